//! Readahead: a load that follows its neighbour reads the next pages with it.
//!
//! Pages that were evicted together lie together in the file and are mostly wanted together, and a disk reads 32 pages
//! in hardly more time than one. Few windows are kept, so this is no cache: it serves as many streams, each once.
//!
//! A window remembers each page's word of the reverse map, taken before the read, and forgets it when the page is
//! released, also while the read is in flight; a page that is still remembered is therefore the data of that word, and
//! not older data of the same slot. The lock is held for no I/O; under it the reverse map is read, nothing else.

use super::buffer::Buffer;
use super::clusters::CLUSTER;
use super::rmap::{Rmap, Word};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use vswap_core::{PAGE_SIZE, Page};

/// Pages read at once.
pub(super) const WINDOW: usize = 32;
/// Streams that are followed at the same time.
const WINDOWS: usize = 4;
/// Single loads that are remembered, to know the next one's neighbour.
const RECENT: usize = 8;

#[derive(Default)]
struct Window {
    /// Number of the first page in the file.
    first: u64,
    /// What each page held when it was read; `None`: not to be used.
    words: [Option<Word>; WINDOW],
    /// Lent while the window is filled.
    buffer: Option<Buffer>,
    filling: bool,
    /// When it last served, in loads.
    used: u64,
}

impl Window {
    fn index(&self, page: u64) -> Option<usize> {
        page.checked_sub(self.first).map(|i| i as usize).filter(|i| *i < WINDOW)
    }
}

#[derive(Default)]
struct State {
    windows: [Window; WINDOWS],
    /// Pages of the last single loads.
    recent: [u64; RECENT],
    loads: u64,
}

/// A window that its reader must fill.
pub(super) struct Fill {
    window: usize,
    pub(super) buffer: Buffer,
    /// Pages to read.
    pub(super) pages: usize,
}

/// The windows of a file.
#[derive(Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    bytes: AtomicU64,
}

impl Ahead {
    /// Bytes of the buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Copies the page out if a window has it with this word.
    pub(super) fn find(&self, page: u64, word: Word, into: &mut Page) -> bool {
        let mut state = self.state.lock();
        state.loads += 1;
        let now = state.loads;
        for window in state.windows.iter_mut().filter(|w| !w.filling) {
            let Some(index) = window.index(page).filter(|i| window.words[*i] == Some(word)) else { continue };
            let buffer = window.buffer.as_ref().expect("not being filled");
            into.copy_from_slice(&buffer[index * PAGE_SIZE..][..PAGE_SIZE]);
            window.used = now;
            return true;
        }
        false
    }

    /// If a load of `page`, which no window has, follows its neighbour's: what to read, and where to.
    pub(super) fn begin(&self, page: u64, rmap: &Rmap) -> Option<Fill> {
        let mut state = self.state.lock();
        let State { windows, recent, loads } = &mut *state;
        let before = page.checked_sub(1);
        let follows = before
            .is_some_and(|p| recent.contains(&p) || windows.iter().any(|w| w.first + WINDOW as u64 == page));
        recent[*loads as usize % RECENT] = page;
        if !follows {
            return None;
        }
        let most = WINDOW.min(CLUSTER - page as usize % CLUSTER);
        let words = std::array::from_fn(|i| if i < most { rmap.get(page + i as u64) } else { None });
        let pages = words.iter().rposition(Option::is_some)? + 1;
        let (index, window) =
            windows.iter_mut().enumerate().filter(|(_, w)| !w.filling).min_by_key(|(_, w)| w.used)?;
        let buffer = match window.buffer.take() {
            Some(buffer) => buffer,
            None => {
                let buffer = Buffer::map(WINDOW).ok()?;
                self.bytes.fetch_add((WINDOW * PAGE_SIZE) as u64, Relaxed);
                buffer
            }
        };
        *window = Window { first: page, words, buffer: None, filling: true, used: *loads };
        Some(Fill { window: index, buffer, pages })
    }

    /// The window is filled, or (`good` false) could not be.
    pub(super) fn finish(&self, fill: Fill, good: bool) {
        let window = &mut self.state.lock().windows[fill.window];
        window.buffer = Some(fill.buffer);
        window.filling = false;
        if !good {
            window.words = [None; WINDOW];
        }
    }

    /// The page is released: nobody may be given what a window has of it. Called when its word is clear and before it
    /// can be another's.
    pub(super) fn forget(&self, page: u64) {
        for window in &mut self.state.lock().windows {
            if let Some(index) = window.index(page) {
                window.words[index] = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswap_core::SlotId;

    #[test]
    fn a_released_page_is_forgotten_even_while_it_is_read() {
        let rmap = Rmap::new();
        rmap.open(0).expect("memory");
        let word = |n: u64| Word::new(SlotId::new(n + 1).expect("a slot"), &[n as u8; PAGE_SIZE]);
        (0..64).for_each(|page| rmap.set(page, word(page)));
        let ahead = Ahead::default();
        let mut into = [0; PAGE_SIZE];
        assert!(!ahead.find(9, word(9), &mut into));
        assert!(ahead.begin(9, &rmap).is_none(), "no neighbour was loaded");
        let mut fill = ahead.begin(10, &rmap).expect("follows 9");
        assert_eq!(fill.pages, WINDOW);
        (0..WINDOW).for_each(|i| fill.buffer[i * PAGE_SIZE..][..PAGE_SIZE].fill(10 + i as u8));
        assert!(!ahead.find(11, word(11), &mut into), "still being read");
        ahead.forget(12);
        ahead.finish(fill, true);
        ahead.forget(13);
        // Their words are what they were: the same slot has the same data at the same place again, or seems to.
        for page in 10..42 {
            assert_eq!(ahead.find(page, word(page), &mut into), page != 12 && page != 13, "page {page}");
        }
        assert!(!ahead.find(11, word(12), &mut into), "another word");
        assert_eq!(
            ahead.begin(42, &rmap).expect("follows the window").pages,
            22,
            "up to the last page with data"
        );
    }
}
