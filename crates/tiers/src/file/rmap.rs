//! The reverse map of a file: for each page the slot whose data it holds, and the check of that data.
//!
//! ```text
//!  63                                24 23                  0
//! ┌────────────────────────────────────┬─────────────────────┐
//! │ slot 40                            │ check 24            │   0: no data (no slot has the number 0)
//! └────────────────────────────────────┴─────────────────────┘
//! ```
//!
//! 512 words a cluster, allocated while the cluster is open, under the lock of the cluster's entry. A word is set after
//! the page is written and cleared before the page is given back, so a load that finds the same word before and after
//! its read has read that slot's data. The check (see check.rs) misses a wrong page once in 2^24.

use super::clusters::CLUSTER;
use crate::check::check;
use crate::table::{OutOfMemory, Table};
use parking_lot::RwLock;
use vswap_core::{NotThere, PAGE_SIZE, SlotId};

/// What a page of the file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word(u64);

impl Word {
    const EMPTY: Self = Self(0);

    /// The word of `page` as the data of `slot`.
    pub(super) fn new(slot: SlotId, page: &[u8]) -> Self {
        assert_eq!(page.len(), PAGE_SIZE);
        Self(slot.get() << 24 | check::<24>(slot, page))
    }

    pub(super) fn slot(self) -> Option<SlotId> {
        SlotId::new(self.0 >> 24)
    }

    /// Whether the check matches.
    pub(super) fn verify(self, page: &[u8]) -> bool {
        self.slot().is_some_and(|slot| Self::new(slot, page) == self)
    }
}

type Words = Box<[Word]>;

/// The words of all clusters.
pub(super) struct Rmap(Table<RwLock<Option<Words>>>);

impl Rmap {
    pub(super) fn new() -> Self {
        Self(Table::new())
    }

    /// Bytes of the table of clusters; the words of open clusters come on top, see [`Rmap::open`].
    pub(super) fn table_bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn split(page: u64) -> (u64, usize) {
        (page / CLUSTER as u64, page as usize % CLUSTER)
    }

    /// Allocates the words of a cluster and returns their bytes.
    pub(super) fn open(&self, cluster: usize) -> Result<u64, OutOfMemory> {
        let mut words = Vec::new();
        words.try_reserve_exact(CLUSTER).map_err(|_| OutOfMemory)?;
        words.resize(CLUSTER, Word::EMPTY);
        let mut entry = self.0.ensure(cluster as u64)?.write();
        assert!(entry.is_none(), "cluster {cluster} opened twice");
        *entry = Some(words.into_boxed_slice());
        Ok((CLUSTER * size_of::<Word>()) as u64)
    }

    /// Frees the words of a cluster and returns their bytes.
    pub(super) fn close(&self, cluster: usize) -> u64 {
        let words = self.0.get(cluster as u64).and_then(|e| e.write().take()).expect("an open cluster");
        assert!(words.iter().all(|w| *w == Word::EMPTY), "cluster {cluster} closed with data in it");
        (CLUSTER * size_of::<Word>()) as u64
    }

    /// What a page holds, if anything.
    pub(super) fn get(&self, page: u64) -> Option<Word> {
        let (cluster, at) = Self::split(page);
        let word = self.0.get(cluster)?.read().as_ref()?[at];
        (word != Word::EMPTY).then_some(word)
    }

    /// Notes the data of a page that was just written.
    pub(super) fn set(&self, page: u64, word: Word) {
        let (cluster, at) = Self::split(page);
        let mut entry = self.0.get(cluster).expect("an open cluster").write();
        let old = &mut entry.as_mut().expect("an open cluster")[at];
        assert_eq!(*old, Word::EMPTY, "page {page} has data already");
        *old = word;
    }

    /// Clears the word of a page that holds data of `slot`. If it does not (it was released twice, is another's, or the word has
    /// rotted), nothing changes.
    pub(super) fn clear(&self, slot: SlotId, page: u64) -> Result<(), NotThere> {
        let (cluster, at) = Self::split(page);
        let mut entry = self.0.get(cluster).map(RwLock::write);
        let word = entry.as_mut().and_then(|e| e.as_mut()).map(|words| &mut words[at]);
        match word {
            Some(word) if word.slot() == Some(slot) => {
                *word = Word::EMPTY;
                Ok(())
            }
            _ => Err(NotThere),
        }
    }
    /// For tests: flips a bit of a page's word.
    #[cfg(test)]
    pub(super) fn rot(&self, page: u64, bit: u32) {
        let (cluster, at) = Self::split(page);
        let mut entry = self.0.get(cluster).expect("an open cluster").write();
        entry.as_mut().expect("an open cluster")[at].0 ^= 1 << bit;
    }
}
