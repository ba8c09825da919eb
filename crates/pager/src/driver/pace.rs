//! How fast things go: sums over the last seconds, from samples that the governor takes once a second.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::meter::Meters;
use crate::Recent;

const EVERY: Duration = Duration::from_secs(1);
const SAMPLES: usize = 10;

/// What was counted up to a moment.
#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    stalled_ns: u64,
    some_ns: u64,
    throttled_ns: u64,
    faults: u64,
    evictions: u64,
}

impl Sample {
    fn new(meters: &Meters, at: Instant) -> Self {
        Self {
            at,
            stalled_ns: meters.stalled_ns.load(Relaxed),
            some_ns: meters.some_ns.load(Relaxed),
            throttled_ns: meters.throttled_ns.load(Relaxed),
            faults: meters.faults(),
            evictions: meters.evictions.load(Relaxed),
        }
    }
}

/// The samples, the oldest first.
#[derive(Clone, Default)]
pub struct Pace(VecDeque<Sample>);

impl Pace {
    /// Takes a sample if the last one is old enough.
    pub fn note(&mut self, meters: &Meters, now: Instant) {
        if self.0.back().is_some_and(|last| now.duration_since(last.at) < EVERY) {
            return;
        }
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(Sample::new(meters, now));
    }

    /// The share of the last ten seconds, in percent, in which at least one thread waited; none before ten seconds have passed.
    pub fn stall(&self, meters: &Meters, now: Instant) -> Option<u64> {
        let recent = self.recent(meters, now);
        (self.0.len() == SAMPLES && recent.over_ms > 0).then(|| recent.stalled_some_ms * 100 / recent.over_ms)
    }

    /// What happened since the oldest sample.
    pub fn recent(&self, meters: &Meters, now: Instant) -> Recent {
        let Some(first) = self.0.front() else { return Recent::default() };
        let last = Sample::new(meters, now);
        Recent {
            over_ms: now.duration_since(first.at).as_millis() as u64,
            stalled_ms: last.stalled_ns.saturating_sub(first.stalled_ns) / 1_000_000,
            stalled_some_ms: last.some_ns.saturating_sub(first.some_ns) / 1_000_000,
            throttled_ms: last.throttled_ns.saturating_sub(first.throttled_ns) / 1_000_000,
            faults: last.faults.saturating_sub(first.faults),
            evictions: last.evictions.saturating_sub(first.evictions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_reach_ten_samples_back_and_no_further() {
        let (meters, start) = (Meters::default(), Instant::now());
        let mut pace = Pace::default();
        assert_eq!(pace.recent(&meters, start), Recent::default());
        for second in 0..30u64 {
            let at = start + Duration::from_secs(second);
            // Two tenths of each second; nothing is said of less than ten.
            assert_eq!(pace.stall(&meters, at), (second >= SAMPLES as u64).then_some(20));
            pace.note(&meters, start + Duration::from_secs(second));
            // Too early for another sample.
            pace.note(&meters, start + Duration::from_millis(second * 1000 + 500));
            meters.evictions.fetch_add(5, Relaxed);
            let from = second * 1_000_000_000;
            meters.waited(from, from + 200_000_000);
            meters.zero.add(Duration::from_micros(1));
        }
        let recent = pace.recent(&meters, start + Duration::from_secs(30));
        assert_eq!(
            recent,
            Recent {
                over_ms: 10_000,
                stalled_ms: 2000,
                stalled_some_ms: 2000,
                throttled_ms: 0,
                faults: 10,
                evictions: 50
            }
        );
    }
}
