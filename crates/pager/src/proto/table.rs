//! The page table of one address space: which slot holds an evicted page.
//!
//! ```text
//!  63    62        61        60..40    39 .. 0
//! ┌────┬─────────┬───────────┬────────┬───────────────┐
//! │dead│ arrived │ inherited │   0    │ slot id       │   one word per page; 0: no slot
//! └────┴─────────┴───────────┴────────┴───────────────┘
//! ```
//!
//! `dead` and `arrived` live only while a window of mapping changes is open (see `window.rs`). Words come in chunks of
//! 512 pages, made when the first page of a chunk is evicted and dropped with the last one, so that an evicted page
//! costs 8 bytes and a little, and nothing is paid for address space.

use std::collections::BTreeMap;
use std::ops::Range;

use vswap_core::{PAGE_SIZE, SlotId};

const PAGE: u64 = PAGE_SIZE as u64;
const CHUNK_PAGES: u64 = 512;
const DEAD: u64 = 1 << 63;
const ARRIVED: u64 = 1 << 62;
const INHERITED: u64 = 1 << 61;
const SLOT: u64 = (1 << SlotId::BITS) - 1;

/// What the table knows of one evicted page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The slot that holds the page.
    pub slot: SlotId,
    /// An UNMAP of the page was read in the open window.
    pub dead: bool,
    /// The page was brought here by an mremap of the open window.
    pub arrived: bool,
    /// A fork brought the slot here while an mremap was under way: if the page is resident the slot is stale.
    pub inherited: bool,
}

impl Entry {
    fn decode(word: u64) -> Option<Self> {
        let slot = SlotId::new(word & SLOT)?;
        let has = |flag| word & flag != 0;
        Some(Self { slot, dead: has(DEAD), arrived: has(ARRIVED), inherited: has(INHERITED) })
    }

    fn encode(self) -> u64 {
        let flag = |set, flag| if set { flag } else { 0 };
        self.slot.get()
            | flag(self.dead, DEAD)
            | flag(self.arrived, ARRIVED)
            | flag(self.inherited, INHERITED)
    }
}

#[derive(Clone)]
struct Chunk {
    words: Box<[u64; CHUNK_PAGES as usize]>,
    used: u16,
}

/// Page address → slot.
#[derive(Clone, Default)]
pub struct PageTable {
    chunks: BTreeMap<u64, Chunk>,
    used: u64,
}

impl PageTable {
    /// Pages with a slot.
    pub fn len(&self) -> u64 {
        self.used
    }

    /// Bytes of memory that the table takes, about.
    pub fn footprint(&self) -> usize {
        self.chunks.len() * (size_of::<[u64; CHUNK_PAGES as usize]>() + size_of::<Chunk>() + 24)
    }

    /// The entry of the page at `addr`.
    pub fn get(&self, addr: u64) -> Option<Entry> {
        let (chunk, index) = split(addr);
        Entry::decode(self.chunks.get(&chunk)?.words[index])
    }

    /// Sets the entry of the page at `addr` and gives back the one it replaces.
    pub fn insert(&mut self, addr: u64, entry: Entry) -> Option<Entry> {
        let (number, index) = split(addr);
        let chunk = self
            .chunks
            .entry(number)
            .or_insert_with(|| Chunk { words: Box::new([0; CHUNK_PAGES as usize]), used: 0 });
        let old = Entry::decode(core::mem::replace(&mut chunk.words[index], entry.encode()));
        if old.is_none() {
            chunk.used += 1;
            self.used += 1;
        }
        old
    }

    /// Changes the entries of a range.
    pub fn alter(&mut self, range: Range<u64>, change: impl Fn(&mut Entry)) {
        for addr in self.addrs(range) {
            if let Some(mut entry) = self.get(addr) {
                change(&mut entry);
                self.insert(addr, entry);
            }
        }
    }

    /// Takes the entry of the page at `addr` out.
    pub fn remove(&mut self, addr: u64) -> Option<Entry> {
        let (number, index) = split(addr);
        let chunk = self.chunks.get_mut(&number)?;
        let old = Entry::decode(core::mem::take(&mut chunk.words[index]))?;
        chunk.used -= 1;
        self.used -= 1;
        if chunk.used == 0 {
            self.chunks.remove(&number);
        }
        Some(old)
    }

    /// Addresses and entries of `range`, in order.
    pub fn iter(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Entry)> + '_ {
        let (first, end) = (range.start.div_ceil(PAGE), range.end.div_ceil(PAGE));
        let last = end.div_ceil(CHUNK_PAGES).max(first / CHUNK_PAGES);
        self.chunks.range(first / CHUNK_PAGES..last).flat_map(move |(&number, chunk)| {
            let base = number * CHUNK_PAGES;
            let from = first.saturating_sub(base).min(CHUNK_PAGES);
            let to = (end - base).min(CHUNK_PAGES).max(from);
            let words = chunk.words[from as usize..to as usize].iter().enumerate();
            words.filter_map(move |(index, &word)| {
                Some(((base + from + index as u64) * PAGE, Entry::decode(word)?))
            })
        })
    }

    /// All addresses and entries, in order.
    pub fn all(&self) -> impl Iterator<Item = (u64, Entry)> + '_ {
        self.iter(0..!(PAGE - 1))
    }

    /// The addresses of `range` that have an entry; for loops that change the table.
    pub fn addrs(&self, range: Range<u64>) -> Vec<u64> {
        self.iter(range).map(|(addr, _)| addr).collect()
    }
}

fn split(addr: u64) -> (u64, usize) {
    let page = addr / PAGE;
    (page / CHUNK_PAGES, (page % CHUNK_PAGES) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(n: u64) -> Entry {
        let slot = SlotId::new(n).unwrap();
        Entry { slot, dead: n & 1 != 0, arrived: n & 2 != 0, inherited: n & 4 != 0 }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(ops in proptest::collection::vec((0u64..2000, 0u64..9), 1..200), a in 0u64..2000, n in 0u64..1500) {
            let mut table = PageTable::default();
            let mut plain = BTreeMap::new();
            for (page, value) in ops {
                let addr = page * PAGE;
                if value == 0 {
                    prop_assert_eq!(table.remove(addr), plain.remove(&addr));
                } else {
                    prop_assert_eq!(table.insert(addr, entry(value)), plain.insert(addr, entry(value)));
                }
                prop_assert_eq!(table.len(), plain.len() as u64);
            }
            prop_assert!(table.all().eq(plain.iter().map(|(&k, &v)| (k, v))));
            let range = a * PAGE..(a + n) * PAGE;
            prop_assert!(table.iter(range.clone()).eq(plain.range(range).map(|(&k, &v)| (k, v))));
            for addr in plain.keys() {
                table.remove(*addr);
            }
            prop_assert!(table.chunks.is_empty(), "the last page takes its chunk along");
        }
    }
}
