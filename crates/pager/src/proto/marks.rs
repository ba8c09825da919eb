//! One bit per page, for pages that came back by a soft fault: the clock passes them over once.

use std::collections::BTreeMap;

use vswap_core::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;
const CHUNK_PAGES: u64 = 512;

/// A sparse set of pages.
#[derive(Clone, Default)]
pub struct Marks {
    chunks: BTreeMap<u64, [u64; (CHUNK_PAGES / 64) as usize]>,
}

impl Marks {
    /// Marks the page at `addr`.
    pub fn set(&mut self, addr: u64) {
        let page = addr / PAGE;
        let bits = self.chunks.entry(page / CHUNK_PAGES).or_default();
        bits[(page % CHUNK_PAGES / 64) as usize] |= 1 << (page % 64);
    }

    /// Takes the mark of the page at `addr` away and says whether there was one.
    pub fn take(&mut self, addr: u64) -> bool {
        let page = addr / PAGE;
        let Some(bits) = self.chunks.get_mut(&(page / CHUNK_PAGES)) else { return false };
        let word = &mut bits[(page % CHUNK_PAGES / 64) as usize];
        let was = *word & (1 << (page % 64)) != 0;
        *word &= !(1 << (page % 64));
        if was && *bits == [0; (CHUNK_PAGES / 64) as usize] {
            self.chunks.remove(&(page / CHUNK_PAGES));
        }
        was
    }

    /// Bytes of memory that the set takes, about.
    pub fn footprint(&self) -> usize {
        self.chunks.len() * 88
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_taken_once_and_leaves_no_memory() {
        let mut marks = Marks::default();
        marks.set(5 * PAGE);
        marks.set(70 * PAGE);
        assert!(!marks.take(6 * PAGE));
        assert!(marks.take(5 * PAGE) && !marks.take(5 * PAGE));
        assert!(marks.take(70 * PAGE));
        assert_eq!(marks.footprint(), 0);
    }
}
