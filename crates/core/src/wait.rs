//! Waiting for another thread's transition of a slot to end.
//!
//! The busy bit has no room for a list of waiters, so slots share a few queues. Who clears busy looks at its queue's
//! number of waiters; who waits counts itself there first and then looks at the word again: with both sequentially
//! consistent one of the two sees the other. Transitions are short unless they read or write a tier below the pool.

use crate::SlotId;

pub(crate) use real_or_model::Waits;

#[cfg(not(loom))]
mod real_or_model {
    use super::SlotId;
    use crate::sync::{AtomicU32, Condvar, Mutex};
    use std::sync::atomic::Ordering::{Relaxed, SeqCst};
    use std::sync::atomic::fence;

    const QUEUES: usize = 16;
    /// Looks at the word before a thread goes to sleep.
    const SPINS: usize = 200;

    #[derive(Default)]
    struct Queue {
        waiters: AtomicU32,
        lock: Mutex<()>,
        changed: Condvar,
    }

    /// See the module's head.
    #[derive(Default)]
    pub(crate) struct Waits([Queue; QUEUES]);

    impl Waits {
        fn queue(&self, slot: SlotId) -> &Queue {
            &self.0[slot.get() as usize % QUEUES]
        }

        /// Returns once `busy` says no. It must read the slot's word.
        pub(crate) fn wait_while(&self, slot: SlotId, busy: impl Fn() -> bool) {
            for _ in 0..SPINS {
                if !busy() {
                    return;
                }
                std::hint::spin_loop();
            }
            let queue = self.queue(slot);
            let mut lock = queue.lock.lock();
            queue.waiters.fetch_add(1, SeqCst);
            fence(SeqCst);
            while busy() {
                queue.changed.wait(&mut lock);
            }
            queue.waiters.fetch_sub(1, SeqCst);
        }

        /// To be called after busy was cleared.
        pub(crate) fn wake(&self, slot: SlotId) {
            let queue = self.queue(slot);
            fence(SeqCst);
            if queue.waiters.load(Relaxed) != 0 {
                drop(queue.lock.lock());
                queue.changed.notify_all();
            }
        }
    }
}

#[cfg(loom)]
mod real_or_model {
    use super::SlotId;

    #[derive(Default)]
    pub(crate) struct Waits;

    impl Waits {
        pub(crate) fn wait_while(&self, _slot: SlotId, busy: impl Fn() -> bool) {
            while busy() {
                loom::thread::yield_now();
            }
        }

        pub(crate) fn wake(&self, _slot: SlotId) {}
    }
}
