//! References to a slot: what dup and free do to the count, and where counts go that do not fit in the word.
//!
//! The word counts to 127. Beyond that a batch of 64 moves to the side table and the word's `more` bit says so; when the
//! word is down to its last reference and `more` is set, a batch comes back. Both moves happen under the side table's
//! one lock, so that table and bit always agree; all other changes are compare-and-swaps that need no lock and keep the
//! word's own count between 1 and 127. The idea is Linux's continued swap counts.

use crate::SlotId;
use crate::cluster::Cluster;
use crate::sync::Mutex;
use crate::word::{COUNT_MAX, Word};
use std::collections::HashMap;

/// References that move at once: half of what the word counts, so that the next move is far in both directions.
const BATCH: u64 = COUNT_MAX.div_ceil(2);

/// What became of a slot that lost a reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Put {
    /// There are others.
    Shared,
    /// It was the last one, and a transition is in flight: its holder tears the slot down.
    Left,
    /// It was the last one: the word is {count 0, busy}, and the caller tears the slot down.
    TearDown,
    /// It had none, and has not changed.
    Unreferenced,
}

/// The side table: references that are not counted in words, a multiple of a batch for each slot.
#[derive(Default)]
pub(crate) struct Counts {
    side: Mutex<HashMap<SlotId, u64>>,
}

impl Counts {
    /// Adds a reference; `false` if the slot has none: the caller has lost count.
    pub(crate) fn dup(&self, cluster: &Cluster, index: u32, slot: SlotId) -> bool {
        let mut word = cluster.word(index);
        loop {
            if word.count() == 0 {
                return false;
            }
            if word.count() == COUNT_MAX {
                self.spill(cluster, index, slot);
                word = cluster.word(index);
                continue;
            }
            match cluster.swap(index, word, word.with_count(word.count() + 1, word.has_more())) {
                Ok(()) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// Drops a reference.
    pub(crate) fn put(&self, cluster: &Cluster, index: u32, slot: SlotId) -> Put {
        let mut word = cluster.word(index);
        loop {
            let (next, put) = match word.count() {
                0 => return Put::Unreferenced,
                1 if word.has_more() => {
                    self.fetch_back(cluster, index, slot);
                    word = cluster.word(index);
                    continue;
                }
                1 if word.is_busy() => (word.with_count(0, false), Put::Left),
                1 => (word.with_count(0, false).busy(), Put::TearDown),
                n => (word.with_count(n - 1, word.has_more()), Put::Shared),
            };
            match cluster.swap(index, word, next) {
                Ok(()) => return put,
                Err(now) => word = now,
            }
        }
    }

    /// Moves a batch from a full word to the side table.
    fn spill(&self, cluster: &Cluster, index: u32, slot: SlotId) {
        let mut side = self.side.lock();
        // The entry first: if there is no memory for it, nothing has changed yet.
        let kept = side.entry(slot).or_insert(0);
        let mut word = cluster.word(index);
        while word.count() == COUNT_MAX {
            match cluster.swap(index, word, word.with_count(COUNT_MAX - BATCH, true)) {
                Ok(()) => {
                    *kept += BATCH;
                    return;
                }
                Err(now) => word = now,
            }
        }
        if *kept == 0 {
            side.remove(&slot);
        }
    }

    /// Moves a batch from the side table to a word that is down to its last reference.
    fn fetch_back(&self, cluster: &Cluster, index: u32, slot: SlotId) {
        let mut side = self.side.lock();
        let mut word = cluster.word(index);
        while word.count() == 1 && word.has_more() {
            let kept = side.get_mut(&slot).expect("the word says that there are more");
            let more = *kept > BATCH;
            match cluster.swap(index, word, word.with_count(1 + BATCH, more)) {
                Ok(()) => {
                    *kept -= BATCH;
                    if !more {
                        side.remove(&slot);
                    }
                    return;
                }
                Err(now) => word = now,
            }
        }
    }

    /// References to the slot; exact if nobody changes them now.
    pub(crate) fn references(&self, word: Word, slot: SlotId) -> u64 {
        let side = self.side.lock();
        word.count() + if word.has_more() { side.get(&slot).copied().unwrap_or(0) } else { 0 }
    }

    /// Bytes of the side table on the heap, about.
    pub(crate) fn bytes(&self) -> u64 {
        (self.side.lock().capacity() * (size_of::<(SlotId, u64)>() + 1)) as u64
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::GroupId;
    use crate::charge::Charges;
    use std::sync::Arc;

    fn slot() -> SlotId {
        SlotId::new(1000).expect("a slot")
    }

    fn cluster() -> Cluster {
        let cluster = Cluster::new(1, Arc::new(Charges::new(GroupId(0)))).expect("memory");
        cluster.alloc(1, |_| ());
        cluster
    }

    #[test]
    fn counts_go_far_beyond_the_word_and_come_back() {
        let (counts, cluster) = (Counts::default(), cluster());
        let many = if cfg!(miri) { 300 } else { 2000 };
        for n in 1..many {
            assert_eq!(counts.references(cluster.word(0), slot()), n);
            counts.dup(&cluster, 0, slot());
        }
        for n in (1..many).rev() {
            assert_eq!(counts.put(&cluster, 0, slot()), Put::Shared);
            assert_eq!(counts.references(cluster.word(0), slot()), n);
        }
        assert!(counts.side.lock().is_empty());
        assert_eq!(counts.put(&cluster, 0, slot()), Put::TearDown);
    }

    #[test]
    fn the_border_is_crossed_only_once_in_a_batch() {
        let (counts, cluster) = (Counts::default(), cluster());
        assert!((1..COUNT_MAX).all(|_| counts.dup(&cluster, 0, slot())));
        assert!(!cluster.word(0).has_more());
        counts.dup(&cluster, 0, slot());
        assert!(cluster.word(0).has_more());
        // To and fro across the border: no further move.
        counts.put(&cluster, 0, slot());
        assert!(cluster.word(0).has_more());
        assert_eq!(cluster.word(0).count() + BATCH, COUNT_MAX);
    }

    #[test]
    fn the_last_free_of_a_busy_slot_leaves_it_to_the_holder() {
        let (counts, cluster) = (Counts::default(), cluster());
        let word = cluster.word(0);
        cluster.swap(0, word, word.busy()).expect("alone");
        assert_eq!(counts.put(&cluster, 0, slot()), Put::Left);
        let word = cluster.word(0);
        assert!(word.is_busy() && word.count() == 0);
    }

    #[test]
    fn a_free_slot_cannot_be_freed_or_shared() {
        let (counts, cluster) = (Counts::default(), cluster());
        assert_eq!(counts.put(&cluster, 1, slot()), Put::Unreferenced);
        assert!(!counts.dup(&cluster, 1, slot()));
        assert_eq!(cluster.word(1), Word::FREE);
    }
}
