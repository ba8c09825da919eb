//! Whether the threads of a program are to come to the server's CPU. Threads that do little but fault are faster on one CPU,
//! where a fault is two switches, than on several, where each wakes the server up on another CPU than the last one did.
//!
//! What that depends on is how long the program runs between two faults. Together, that is what is left of the time when the
//! server has run and has waited for the agent. Apart, that includes the wake-ups, so it does not tell those who compute from those who
//! wait for a CPU to wake up; therefore threads that turned out to compute are left apart for long.

/// Faults between two decisions.
pub const FAULTS: u32 = 64;
/// With less of its own between two faults than this, a program is bound by faults. By measurement, with 2 and 4 threads on 2 CPUs:
/// being together pays below 60 µs.
const FAULT_BOUND_NS: u64 = 50_000;
/// For how many decisions threads are left apart that had more to do than to fault.
const APART: u32 = 64;

/// See the module.
#[derive(Default)]
pub struct Gathering {
    on: bool,
    /// Decisions to wait for.
    apart: u32,
    /// The time at the last decision, and the server's own by then.
    last: (u64, u64),
    /// How often another thread has faulted than the one before, since then.
    changes: u32,
}

impl Gathering {
    /// Whether threads come to the server.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Another thread has faulted than the one before.
    pub fn changed(&mut self) {
        self.changes += 1;
    }

    /// To be asked every [`FAULTS`] faults, with the time and how much of it the server has used, all in nanoseconds. `comes`: the
    /// thread that has faulted now is where it should be; one that has CPUs of its own does not come.
    pub fn decide(&mut self, now: u64, used: u64, comes: bool) {
        let (then, before) = core::mem::replace(&mut self.last, (now, used));
        let theirs = now.saturating_sub(then).saturating_sub(used.saturating_sub(before));
        let bound = theirs < u64::from(FAULTS) * FAULT_BOUND_NS;
        let several = core::mem::take(&mut self.changes) > FAULTS / 8;
        self.apart = if self.on && !bound { APART } else { self.apart.saturating_sub(1) };
        self.on = bound && several && comes && self.apart == 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock, and what the server used of it.
    #[derive(Default)]
    struct Turns {
        gathering: Gathering,
        now: u64,
        used: u64,
    }

    impl Turns {
        /// As many faults as a decision takes: for each the server needs 20 µs.
        fn faults(&mut self, own_us: u64, changes: u32, comes: bool) -> bool {
            self.used += u64::from(FAULTS) * 20_000;
            self.now += u64::from(FAULTS) * (20_000 + own_us * 1000);
            (0..changes).for_each(|_| self.gathering.changed());
            self.gathering.decide(self.now, self.used, comes);
            self.gathering.is_on()
        }
    }

    #[test]
    fn several_threads_that_do_little_but_fault_come_together() {
        let mut turns = Turns::default();
        assert!(turns.faults(30, 32, true));
        assert!(turns.faults(49, 32, true));
        assert!(!turns.faults(30, 8, true), "one thread after the other");
        assert!(turns.faults(30, 9, true));
        assert!(!turns.faults(30, 32, false), "it does not come");
        assert!(turns.faults(30, 32, true));
    }

    #[test]
    fn threads_that_compute_are_left_apart_for_long() {
        let mut turns = Turns::default();
        assert!(!turns.faults(51, 32, true));
        assert!(turns.faults(49, 32, true), "that was apart, where it says nothing");
        assert!(!turns.faults(51, 32, true));
        for _ in 1..APART {
            assert!(!turns.faults(10, 32, true));
        }
        assert!(turns.faults(10, 32, true));
    }
}
