//! Cold pages leave below the limit, too, as long as the program hardly notices (`--proactive`).
//!
//! A little is asked for each second, and more or less of it the next time, by how long threads have waited meanwhile: what senpai
//! does for control groups (Weiner et al., "TMO: Transparent Memory Offloading in Datacenters", ASPLOS 2022). There is no
//! other sign of which pages are cold: those that stay away were.

use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(1);
/// At most this share of the time may threads wait. Half of what is promised (0.1 %), because a fault costs the thread more than the part
/// of it that we see.
const MOST_STALL: f64 = 0.0005;
/// What happened long ago counts less and less, by this part a second.
const FADE: f64 = 0.1;
/// Shares of resident memory that are asked for at one time.
const LEAST: f64 = 1.0 / 16_384.0;
const MOST: f64 = 1.0 / 16.0;

/// Decides how much is asked for.
pub struct Proactive {
    share: f64,
    stall: f64,
    stalled_ns: u64,
    at: Instant,
}

impl Proactive {
    pub fn new(now: Instant) -> Self {
        Self { share: LEAST * 16.0, stall: 0.0, stalled_ns: 0, at: now }
    }

    /// Pages to ask for now, of so many resident ones, when at least one thread has waited for `stalled_ns` of the run so far.
    pub fn look(&mut self, now: Instant, stalled_ns: u64, resident: u64) -> u64 {
        let elapsed = now.duration_since(self.at);
        if elapsed < EVERY {
            return 0;
        }
        let stall = stalled_ns.saturating_sub(self.stalled_ns) as f64 / elapsed.as_nanos() as f64;
        self.stall += (stall - self.stall) * FADE;
        (self.at, self.stalled_ns) = (now, stalled_ns);
        let stall = stall.max(self.stall);
        if stall > MOST_STALL {
            self.share = (self.share / 4.0).max(LEAST);
            return 0;
        }
        if stall < MOST_STALL / 2.0 {
            self.share = (self.share * 2.0).min(MOST);
        }
        (resident as f64 * self.share) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs for so many seconds with a program of `hot` and `cold` pages whose every evicted hot page costs a wait of so many
    /// nanoseconds within the second; gives what is left of the cold pages and the share of the time that it waited, in the last half.
    fn program(hot: u64, cold: u64, wait: u64, seconds: u32) -> (u64, f64) {
        let start = Instant::now();
        let mut proactive = Proactive::new(start);
        let (mut left, mut stalled, mut half) = (cold, 0, 0);
        for second in 1..=seconds {
            let resident = hot + left;
            let pages = proactive.look(start + EVERY * second, stalled, resident);
            let of_hot = pages * hot / resident.max(1);
            left -= (pages - of_hot).min(left);
            stalled += of_hot * wait;
            if second == seconds / 2 {
                half = stalled;
            }
        }
        (left, (stalled - half) as f64 / (f64::from(seconds - seconds / 2) * 1e9))
    }

    #[test]
    fn what_nobody_wants_leaves_within_minutes() {
        let (left, stall) = program(0, 262_144, 50_000, 300);
        assert!(left < 262_144 / 100 && stall == 0.0, "{left} left");
    }

    #[test]
    fn what_is_wanted_costs_less_than_was_promised() {
        for (hot, cold) in [(262_144, 0), (131_072, 131_072), (2621, 260_000)] {
            for wait in [10_000, 100_000] {
                let (_, stall) = program(hot, cold, wait, 1200);
                assert!(stall < 0.001, "{hot} hot, {cold} cold, {wait} ns: {stall}");
            }
        }
    }

    #[test]
    fn cold_pages_leave_beside_hot_ones() {
        let (left, _) = program(26_214, 235_930, 20_000, 1200);
        assert!(left < 235_930 / 2, "{left}");
    }

    #[test]
    fn nothing_is_asked_for_between_the_seconds_or_while_threads_wait() {
        let start = Instant::now();
        let mut proactive = Proactive::new(start);
        assert!(proactive.look(start + EVERY, 0, 100_000) > 0);
        assert_eq!(proactive.look(start + EVERY * 3 / 2, 0, 100_000), 0);
        assert_eq!(proactive.look(start + EVERY * 2, 1_000_000, 100_000), 0);
    }
}
