//! Counters and latencies. Atomics only: every thread of the pager adds, the summary reads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::Timed;

const SUB_BITS: u32 = 3;
const BUCKETS: usize = (64 << SUB_BITS) as usize;

/// Durations in buckets an eighth of an octave wide.
pub struct Histogram {
    buckets: Box<[AtomicU64; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new([const { AtomicU64::new(0) }; BUCKETS]) }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn add(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)].fetch_add(1, Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    /// Count, median and 99th percentile.
    pub fn timed(&self) -> Timed {
        let counts: Vec<u64> = self.buckets.iter().map(|b| b.load(Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let at = |percent: u64| {
            let wanted = (count * percent).div_ceil(100);
            let mut seen = 0;
            counts
                .iter()
                .position(|&n| {
                    seen += n;
                    seen >= wanted && seen > 0
                })
                .map_or(0, value)
        };
        Timed { count, p50_ns: at(50), p99_ns: at(99) }
    }
}

fn bucket(ns: u64) -> usize {
    if ns < 1 << SUB_BITS {
        return ns as usize;
    }
    let octave = ns.ilog2();
    let sub = (ns >> (octave - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    (((octave - SUB_BITS + 1) << SUB_BITS) as usize) + sub as usize
}

/// The middle of a bucket.
fn value(bucket: usize) -> u64 {
    let (octave, sub) = (bucket as u64 >> SUB_BITS, bucket as u64 & ((1 << SUB_BITS) - 1));
    if octave == 0 {
        return sub;
    }
    let width = 1u64 << (octave - 1);
    ((1 << SUB_BITS) + sub) * width + width / 2
}

/// What all threads count.
#[derive(Default)]
pub struct Meters {
    /// Faults answered from the swap cache.
    pub soft: Histogram,
    /// Faults answered from the pool.
    pub pool: Histogram,
    /// Faults answered from a tier below.
    pub file: Histogram,
    /// First touches, zero and same-filled slots.
    pub zero: Histogram,
    /// Pages that came along with faults.
    pub around: AtomicU64,
    /// Pages evicted.
    pub evictions: AtomicU64,
    /// Pages evicted now, over all page tables.
    pub evicted_now: AtomicU64,
    /// Pages written to a tier below the pool.
    pub spilled: AtomicU64,
    /// Nanoseconds that threads waited for the pager.
    pub stalled_ns: AtomicU64,
    /// Nanoseconds in which at least one thread waited.
    pub some_ns: AtomicU64,
    /// When the last wait ended that is counted in `some_ns`.
    some_until_ns: AtomicU64,
    /// Nanoseconds of `stalled_ns` because memory was short.
    pub throttled_ns: AtomicU64,
    /// Faults that waited for over a second.
    pub slow_faults: AtomicU64,
    /// The longest of these waits.
    pub longest_wait_ms: AtomicU64,
    /// Windows of mapping changes.
    pub windows: AtomicU64,
    /// Granted mremaps.
    pub mremaps: AtomicU64,
    /// Freezes for liveness.
    pub freezes: AtomicU64,
    /// Fail-stops.
    pub fail_stops: AtomicU64,
    /// Address spaces seen.
    pub address_spaces: AtomicU64,
    /// FORK events, or forks stopped at the gate.
    pub forks: AtomicU64,
    /// Pages brought back before forks that no event tells of.
    pub fork_pages: AtomicU64,
    /// Nanoseconds that such forks waited.
    pub fork_wait_ns: AtomicU64,
    /// Processes that were sent a thread by ptrace, to set their agent up.
    pub entered: AtomicU64,
}

impl Meters {
    /// A thread has waited from one moment of the run to another, in nanoseconds.
    ///
    /// Of waits that overlap, the part before the end of one that was counted earlier is not counted again: so a long one that
    /// has short ones of other threads within it counts from the end of the last of these, and the sum is never too high.
    pub fn waited(&self, from: u64, to: u64) {
        self.stalled_ns.fetch_add(to.saturating_sub(from), Relaxed);
        let counted = self.some_until_ns.fetch_max(to, Relaxed);
        self.some_ns.fetch_add(to.saturating_sub(from.max(counted)), Relaxed);
    }

    /// Faults of all kinds.
    pub fn faults(&self) -> u64 {
        [&self.soft, &self.pool, &self.file, &self.zero].iter().map(|kind| kind.count()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_that_overlap_are_one_stall() {
        let meters = Meters::default();
        // Three threads: one waits alone, two at a time, and the end of the second wait is known first.
        for (from, to) in [(10, 20), (40, 50), (30, 60), (55, 58)] {
            meters.waited(from, to);
        }
        assert_eq!(meters.stalled_ns.load(Relaxed), 10 + 10 + 30 + 3);
        assert_eq!(meters.some_ns.load(Relaxed), 10 + 10 + 10);
    }

    #[test]
    fn percentiles_are_within_an_eighth() {
        let histogram = Histogram::default();
        for us in 1..=1000u64 {
            histogram.add(Duration::from_micros(us));
        }
        let timed = histogram.timed();
        assert_eq!(timed.count, 1000);
        for (got, want) in [(timed.p50_ns, 500_000.0), (timed.p99_ns, 990_000.0)] {
            assert!((got as f64 / want - 1.0).abs() < 0.125, "{got} for {want}");
        }
        assert_eq!(Histogram::default().timed(), Timed::default());
    }

    #[test]
    fn every_duration_has_a_bucket() {
        for ns in [0, 1, 7, 8, 9, 1 << 20, u64::MAX] {
            assert!(bucket(ns) < BUCKETS);
        }
    }
}
