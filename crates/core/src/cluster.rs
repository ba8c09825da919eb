//! The cluster: 512 slots of one group, and its life from the first allocation to the last free.
//!
//! ```text
//!             attach                    fill up
//!   (new) ──────────► current ────────────────────────► full
//!                       ▲  └──┐ detach, partly used       │ a slot is freed
//!                attach │     ▼                           ▼
//!                       └── listed ◄──────────────────────┘
//!                             │ the last slot is freed
//!                             ▼
//!                          retired: out of the directory, its number may be used again
//! ```
//!
//! One atomic word holds the number of used slots and the state, so that each arrow is one compare-and-swap, and who
//! makes it carries out what follows from it (alloc.rs). `used` is raised **before** words are taken and lowered
//! **after** they are free, so that a reservation always finds its free words, and a retired cluster has none in use.
//!
//! Only the holder of a counted reference (of a busy bit, which keeps the slot as well) may count on a cluster's being
//! in the directory. Walkers may find it retired: every word is then free for ever, which answers every question.

use crate::SlotId;
use crate::charge::Charges;
use crate::directory::{OutOfMemory, try_boxed};
use crate::sync::{AtomicU32, AtomicU64};
use crate::word::Word;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Slots of a cluster.
pub(crate) const SLOTS: u32 = if cfg!(loom) { 4 } else { 512 };

const USED: u32 = 0xffff;
const CURRENT: u32 = 1 << 16;
const LISTED: u32 = 1 << 17;
const RETIRED: u32 = 1 << 18;

/// See the module's head.
pub(crate) struct Cluster {
    number: u32,
    state: AtomicU32,
    /// Where the next search for free words begins: a hint.
    hint: AtomicU32,
    charges: Arc<Charges>,
    words: Box<[AtomicU64]>,
}

/// What the one who freed slots has to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Freed {
    /// Nothing.
    Nothing,
    /// Put the cluster on the list of partly used ones.
    List,
    /// Take the cluster out of the directory.
    Retire,
}

impl Cluster {
    /// A cluster attached to whoever made it.
    pub(crate) fn new(number: u32, charges: Arc<Charges>) -> Result<Self, OutOfMemory> {
        let words = try_boxed(SLOTS as usize, || AtomicU64::new(Word::FREE.raw()))?;
        Ok(Self { number, state: AtomicU32::new(CURRENT), hint: AtomicU32::new(0), charges, words })
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// The slot at this index.
    pub(crate) fn slot(&self, index: u32) -> SlotId {
        SlotId::new(u64::from(self.number) * u64::from(SLOTS) + u64::from(index))
            .expect("cluster 0 is never used")
    }

    pub(crate) fn charges(&self) -> &Charges {
        &self.charges
    }

    /// Bytes of a cluster on the heap.
    pub(crate) const fn bytes() -> u64 {
        let counts = 2 * size_of::<usize>();
        (counts + size_of::<Self>() + SLOTS as usize * size_of::<AtomicU64>()) as u64
    }

    /// The word now. Acquire: what was written before it was published is visible.
    pub(crate) fn word(&self, index: u32) -> Word {
        Word::from_raw(self.words[index as usize].load(Acquire))
    }

    /// Replaces the word if it is still `old`; else says what it is.
    pub(crate) fn swap(&self, index: u32, old: Word, new: Word) -> Result<(), Word> {
        self.words[index as usize]
            .compare_exchange(old.raw(), new.raw(), AcqRel, Acquire)
            .map(drop)
            .map_err(Word::from_raw)
    }

    /// Changes the state by `next`, until that says `None` or succeeds; returns the old one.
    fn change(&self, next: impl Fn(u32) -> Option<u32>) -> Option<u32> {
        let mut state = self.state.load(Acquire);
        loop {
            match self.state.compare_exchange_weak(state, next(state)?, AcqRel, Acquire) {
                Ok(old) => return Some(old),
                Err(now) => state = now,
            }
        }
    }

    /// Reserves up to `want` slots of the cluster that the caller is attached to; returns how many.
    fn reserve(&self, want: u32) -> u32 {
        let got = |state: u32| want.min(SLOTS - (state & USED));
        let old = self.change(|state| {
            debug_assert!(state & CURRENT != 0);
            (got(state) > 0).then(|| state + got(state))
        });
        old.map_or(0, got)
    }

    /// Allocates up to `want` slots, ascending from a hint, and calls `take` with the index of each. The caller is
    /// attached.
    pub(crate) fn alloc(&self, want: u32, mut take: impl FnMut(u32)) -> u32 {
        let reserved = self.reserve(want);
        let mut left = reserved;
        let mut index = self.hint.load(Relaxed) % SLOTS;
        while left > 0 {
            // There are at least `left` free words: nobody takes more than was reserved. Frees may put them behind us.
            if self.words[index as usize].load(Relaxed) == Word::FREE.raw()
                && self.swap(index, Word::FREE, Word::RESERVED).is_ok()
            {
                take(index);
                left -= 1;
            }
            index = (index + 1) % SLOTS;
        }
        self.hint.store(index, Relaxed);
        reserved
    }

    /// Frees the word of a slot that is torn down: count 0 and busy, held by the caller. [`put`](Self::put) must follow.
    pub(crate) fn clear(&self, index: u32) {
        let word = self.word(index);
        assert!(word.is_busy() && word.count() == 0 && !word.has_more(), "tearing down {word:?}");
        self.words[index as usize].store(Word::FREE.raw(), Release);
    }

    /// Counts `slots` that were cleared as free again.
    pub(crate) fn put(&self, slots: u32) -> Freed {
        let next = |state: u32| {
            assert!(state & USED >= slots && state & RETIRED == 0, "freed {slots} slots in state {state:#x}");
            let state = state - slots;
            match state & (USED | CURRENT | LISTED) {
                0 | LISTED => (RETIRED, Freed::Retire),
                rest if rest & (CURRENT | LISTED) == 0 => (state | LISTED, Freed::List),
                _ => (state, Freed::Nothing),
            }
        };
        let old = self.change(|state| Some(next(state).0)).expect("never refuses");
        next(old).1
    }

    /// Attaches a listed cluster; `false` if it is no longer listed.
    pub(crate) fn attach(&self) -> bool {
        self.change(|state| (state & LISTED != 0).then_some(state & !LISTED | CURRENT)).is_some()
    }

    /// Detaches from a full cluster; `false` if slots were freed meanwhile.
    pub(crate) fn detach_full(&self) -> bool {
        self.change(|state| (state & USED == SLOTS).then_some(state & !CURRENT)).is_some()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::GroupId;

    fn cluster() -> Cluster {
        Cluster::new(1, Arc::new(Charges::new(GroupId(0)))).expect("memory")
    }

    fn free(cluster: &Cluster, index: u32) -> Freed {
        let word = cluster.word(index);
        cluster.swap(index, word, word.with_count(0, false).busy()).expect("alone");
        cluster.clear(index);
        cluster.put(1)
    }

    #[test]
    fn a_cluster_lives_as_drawn() {
        let cluster = cluster();
        let mut got = Vec::new();
        assert_eq!(cluster.alloc(10, |i| got.push(i)), 10);
        assert_eq!(got, (0..10).collect::<Vec<_>>());
        assert!(!cluster.detach_full());
        assert_eq!(cluster.alloc(SLOTS, |_| ()), SLOTS - 10);
        assert_eq!(cluster.alloc(1, |_| panic!("full")), 0);
        assert!(cluster.detach_full() && !cluster.attach());
        assert_eq!(free(&cluster, 3), Freed::List);
        assert_eq!(free(&cluster, 4), Freed::Nothing);
        assert!(cluster.attach() && !cluster.attach());
        for i in (0..SLOTS).filter(|i| ![3, 4, 77].contains(i)) {
            assert_eq!(free(&cluster, i), Freed::Nothing);
        }
        assert_eq!(free(&cluster, 77), Freed::Nothing, "current clusters stay");
        assert_eq!(cluster.alloc(SLOTS, |_| ()), SLOTS);
        assert!(cluster.detach_full());
        assert_eq!(free(&cluster, 0), Freed::List);
        for i in 1..SLOTS - 1 {
            assert_eq!(free(&cluster, i), Freed::Nothing);
        }
        assert_eq!(free(&cluster, SLOTS - 1), Freed::Retire);
        assert!(!cluster.attach());
    }

    #[test]
    #[should_panic(expected = "tearing down")]
    fn a_slot_in_use_is_not_cleared() {
        let cluster = cluster();
        cluster.alloc(1, |_| ());
        cluster.clear(0);
    }
}
