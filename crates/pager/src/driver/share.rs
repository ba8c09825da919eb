//! How much of the limit the pool may have.
//!
//! The user's bound, or three quarters of the limit, as long as programs do with the rest. Hundreds of small processes do not:
//! each has pages that cannot leave. A tree that stays over its limit although pages leave all the time has too
//! many of them in the pool, and the coldest go to the file.

use std::time::{Duration, Instant};

/// Over the limit for so long, the pool gives way.
const PATIENCE: Duration = Duration::from_millis(50);
/// With room for so long, it gets some of its share back.
const EASE: Duration = Duration::from_secs(1);
/// Parts of the limit: the least that the pool keeps, and what it gets back at one time.
const LEAST: u64 = 16;
const BACK: u64 = 32;

/// The pool's share, as it changes.
pub struct PoolShare {
    most: u64,
    now: u64,
    since: Instant,
    short: bool,
}

impl PoolShare {
    /// All of `most` bytes.
    pub fn new(most: u64, now: Instant) -> Self {
        Self { most, now: most, since: now, short: false }
    }

    /// The share in bytes, after a look that found `room` bytes below `limit`, of which `headroom` should be free,
    /// and `pool` bytes in the pool.
    pub fn look(&mut self, now: Instant, room: i64, headroom: u64, limit: u64, pool: u64) -> u64 {
        let (short, easy) = (room < 0, room > headroom as i64);
        if short != self.short || !(short || easy) {
            self.short = short;
            self.since = now;
        }
        let waited = now.duration_since(self.since);
        if short && waited >= PATIENCE {
            let missing = room.unsigned_abs() + headroom / 2;
            self.now = self.now.min(pool).saturating_sub(missing).max(self.most.min(limit / LEAST));
            self.since = now;
        } else if easy && waited >= EASE {
            self.now = (self.now + limit / BACK).min(self.most);
            self.since = now;
        }
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_pool_gives_way_while_the_limit_is_passed_and_gets_its_share_back_slowly() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut share = PoolShare::new(96 * MIB, start);
        let mut look = |ms, room: i64, pool: u64| {
            share.look(at(ms), room * MIB as i64, 4 * MIB, 128 * MIB, pool * MIB) / MIB
        };
        assert_eq!(look(0, 60, 0), 96);
        assert_eq!(look(10, -10, 80), 96, "for a moment only");
        assert_eq!(look(20, 2, 80), 96);
        assert_eq!(look(30, -10, 80), 96);
        assert_eq!(look(85, -10, 80), 68, "what is missing, and some room");
        assert_eq!(look(100, -10, 70), 68);
        assert_eq!(look(140, -100, 66), 8, "never less than a sixteenth of the limit");
        assert_eq!(look(150, 10, 8), 8);
        assert_eq!(look(1140, 10, 8), 8);
        assert_eq!(look(1160, 10, 8), 12);
        for second in 2..60 {
            look(second * 1100, 10, 8);
        }
        assert_eq!(look(70_000, 10, 8), 96, "all of it, and no more");
    }
}
