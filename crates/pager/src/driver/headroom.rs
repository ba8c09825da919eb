//! How much is kept free below the limit.
//!
//! Memory that is kept free is taken from the program, and where pages compress by half twice over: what is evicted to make the
//! room still takes its half. So it is little as long as the program asks for nothing new, and more the faster it grows: room
//! for what it can allocate until pages have left.

use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// What grows is given room for so long.
const AHEAD_MS: f64 = 40.0;
/// In so long the growth that was seen counts half.
const HALF_LIFE: Duration = Duration::from_millis(250);
/// Growth is measured over so long, or until it is a leap.
const LOOK: Duration = Duration::from_millis(20);
const LEAP: u64 = 8 * MIB;
/// Resident and evicted pages are not counted at the same moment: a difference of some batches is not growth.
const NOISE: u64 = MIB;

/// Follows a tree's growth.
pub struct Headroom {
    /// Bytes a millisecond.
    growth: f64,
    /// What the tree would take without us, when last looked at.
    size: u64,
    at: Instant,
}

impl Headroom {
    pub fn new(now: Instant) -> Self {
        Self { growth: 0.0, size: 0, at: now }
    }

    /// Bytes to keep free below `limit`, when the tree would take `size` bytes without us.
    pub fn look(&mut self, now: Instant, size: u64, limit: u64) -> u64 {
        let elapsed = now.duration_since(self.at);
        let grown = size.saturating_sub(self.size + NOISE);
        if elapsed >= LOOK || grown > LEAP {
            let seen = grown as f64 / (elapsed.as_secs_f64() * 1e3).max(1.0);
            let faded = self.growth * 0.5_f64.powf(elapsed.as_secs_f64() / HALF_LIFE.as_secs_f64());
            let enough = most(limit) as f64 / AHEAD_MS;
            (self.growth, self.size, self.at) = (seen.max(faded).min(enough), size, now);
        }
        ((self.growth * AHEAD_MS) as u64).clamp(least(limit), most(limit))
    }
}

/// What is kept free while nothing grows.
fn least(limit: u64) -> u64 {
    (limit / 64).clamp(MIB, 32 * MIB)
}

/// The most that is kept free.
fn most(limit: u64) -> u64 {
    (limit / 32).clamp(2 * MIB, 64 * MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_given_room_and_rest_takes_it_back() {
        let (limit, start) = (512 * MIB, Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let mut headroom = Headroom::new(start);
        assert_eq!(headroom.look(at(1), 0, limit), 8 * MIB);
        // 300 KiB a millisecond, and some of it may be an error of measurement.
        let room = headroom.look(at(100), 30_000 << 10, limit);
        assert!((11 * MIB..12 * MIB).contains(&room), "{room}");
        assert_eq!(headroom.look(at(101), 42 * MIB, limit), 16 * MIB, "a leap is seen at once");
        let room = headroom.look(at(301), 42 * MIB, limit);
        assert!((8 * MIB..16 * MIB).contains(&room), "it is remembered: {room}");
        assert_eq!(headroom.look(at(9000), 42 * MIB, limit), 8 * MIB);
        assert_eq!(headroom.look(at(9100), 5 * MIB, limit), 8 * MIB, "what shrinks asks for nothing");
        assert_eq!(headroom.look(at(9130), 6 * MIB, limit), 8 * MIB, "nor does what only seems to grow");
    }

    #[test]
    fn small_and_large_limits_have_their_bounds() {
        let start = Instant::now();
        let mut headroom = Headroom::new(start);
        assert_eq!(headroom.look(start + LOOK, 0, 16 * MIB), MIB);
        assert_eq!(headroom.look(start + 2 * LOOK, 0, 64 << 30), 32 * MIB);
        assert_eq!(headroom.look(start + 3 * LOOK, 64 << 30, 64 << 30), 64 * MIB);
    }
}
