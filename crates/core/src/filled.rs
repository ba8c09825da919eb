//! Pages that are one 64-bit value repeated (zero pages above all): they need no storage.
//!
//! As zswap's same-filled pages, which are also compared in machine words.

use crate::Page;

/// Words compared between two looks at the outcome: long enough for vector instructions.
const BLOCK: usize = 32;

/// The value that the page repeats, if it does.
pub(crate) fn filled(page: &Page) -> Option<u64> {
    let (words, rest) = page.as_chunks::<8>();
    debug_assert!(rest.is_empty());
    let first = u64::from_ne_bytes(words[0]);
    // Most pages that are not filled differ at their end or within the first block.
    if u64::from_ne_bytes(words[words.len() - 1]) != first {
        return None;
    }
    let differs =
        |block: &[[u8; 8]]| block.iter().fold(0, |all, word| all | (u64::from_ne_bytes(*word) ^ first)) != 0;
    if words.chunks(BLOCK).any(differs) { None } else { Some(first) }
}

/// Fills a page with a repeated value.
pub(crate) fn fill(page: &mut Page, value: u64) {
    if value == 0 {
        page.fill(0);
    } else {
        page.as_chunks_mut::<8>().0.fill(value.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE;

    #[test]
    fn a_filled_page_is_known_and_made_again() {
        for value in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            let mut page = [0xee; PAGE_SIZE];
            fill(&mut page, value);
            assert_eq!(filled(&page), Some(value));
        }
    }

    #[test]
    fn one_other_bit_anywhere_is_seen() {
        let mut page = [0x55; PAGE_SIZE];
        for at in (0..PAGE_SIZE).step_by(if cfg!(miri) { 509 } else { 1 }) {
            page[at] ^= 0x10;
            assert_eq!(filled(&page), None, "byte {at}");
            page[at] ^= 0x10;
        }
        assert_eq!(filled(&page), Some(0x5555_5555_5555_5555));
    }
}
