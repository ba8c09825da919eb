//! The last changes of an address space, for the message that ends its tree. The protocol itself never looks here.
//!
//! Two rings: what was read and called, and which pages left and came, so that a program's faults do not push out the change
//! of mappings that explains them. Both are made when there is something to note and take 4 KiB at most.

use std::fmt::Write;
use std::ops::Range;

use super::space::PAGE;

/// Entries of each ring.
const KEPT: usize = 64;
/// How many of them are told of one range.
const TOLD: usize = 12;

/// What happened to a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Unmapped,
    Removed,
    Moved,
    Forked,
    Guarded,
    Grown,
    Out,
    In,
    Zeroed,
}

impl What {
    fn is_of_pages(self) -> bool {
        matches!(self, Self::Out | Self::In | Self::Zeroed)
    }

    fn words(self) -> &'static str {
        match self {
            Self::Unmapped => "unmapped",
            Self::Removed => "discarded",
            Self::Moved => "moved by mremap",
            Self::Forked => "copied by fork",
            Self::Guarded => "guarded",
            Self::Grown => "grown over",
            Self::Out => "evicted",
            Self::In => "brought back",
            Self::Zeroed => "zeroed at first touch",
        }
    }
}

#[derive(Clone, Copy)]
struct Entry {
    stamp: u64,
    start: u64,
    /// Where to, of what was moved.
    to: u64,
    pages: u32,
    what: What,
}

const _: () = assert!(2 * KEPT * size_of::<Entry>() <= 4096);

impl Entry {
    fn range(&self) -> Range<u64> {
        self.start..self.start.saturating_add(u64::from(self.pages) * PAGE)
    }

    fn touches(&self, range: &Range<u64>) -> bool {
        let overlaps = |own: Range<u64>| own.start < range.end && range.start < own.end;
        let arrived = self.to..self.to.saturating_add(u64::from(self.pages) * PAGE);
        overlaps(self.range()) || (self.what == What::Moved && overlaps(arrived))
    }
}

#[derive(Default)]
struct Ring {
    entries: Vec<Entry>,
    next: usize,
}

impl Ring {
    fn note(&mut self, entry: Entry) {
        let newest = if self.next == 0 { KEPT - 1 } else { self.next - 1 };
        if let Some(last) = self.entries.get_mut(newest)
            && entry.what.is_of_pages()
            && last.what == entry.what
            && last.range().end == entry.start
        {
            // One walk through memory is one change.
            last.pages = last.pages.saturating_add(entry.pages);
            last.stamp = entry.stamp;
            return;
        }
        if self.entries.len() == KEPT {
            self.entries[self.next] = entry;
        } else if self.entries.capacity() >= KEPT || self.entries.try_reserve_exact(KEPT).is_ok() {
            self.entries.push(entry);
        } else {
            return;
        }
        self.next = (self.next + 1) % KEPT;
    }
}

/// See the module's head.
#[derive(Default)]
pub(super) struct History {
    changes: Ring,
    pages: Ring,
    /// The driver's time now.
    now: u64,
}

impl History {
    pub(super) fn set_now(&mut self, now: u64) {
        self.now = now;
    }

    pub(super) fn note(&mut self, what: What, range: &Range<u64>) {
        self.note_move(what, range, 0);
    }

    /// What was moved, and where to.
    pub(super) fn note_move(&mut self, what: What, range: &Range<u64>, to: u64) {
        let pages = (range.end.saturating_sub(range.start) / PAGE).min(u64::from(u32::MAX)) as u32;
        if pages == 0 {
            return;
        }
        let ring = if what.is_of_pages() { &mut self.pages } else { &mut self.changes };
        ring.note(Entry { stamp: self.now, start: range.start, to, pages, what });
    }

    /// Pages that left, in ascending order.
    pub(super) fn note_evicted(&mut self, addrs: impl Iterator<Item = u64>) {
        let mut run = 0..0;
        for addr in addrs {
            if run.end != addr {
                self.note(What::Out, &run);
                run.start = addr;
            }
            run.end = addr + PAGE;
        }
        self.note(What::Out, &run);
    }

    /// What is remembered of a range, the last at the end, in words that go on a sentence.
    pub(super) fn of(&self, range: &Range<u64>) -> String {
        let all = self.changes.entries.iter().chain(&self.pages.entries);
        let mut found: Vec<_> = all.filter(|entry| entry.touches(range)).collect();
        found.sort_by_key(|entry| entry.stamp);
        if found.is_empty() {
            return "; no change there is remembered".into();
        }
        let first = found.len().saturating_sub(TOLD);
        let mut text = String::from("; the last changes there, by seconds of the run: ");
        for (index, entry) in found[first..].iter().enumerate() {
            let Range { start, end } = entry.range();
            let comma = if index == 0 { "" } else { ", " };
            let seconds = entry.stamp as f64 / 1e9;
            let _ = write!(text, "{comma}{seconds:.6} {} {start:#x}-{end:#x}", entry.what.words());
            if entry.what == What::Moved {
                let _ = write!(text, " to {:#x}", entry.to);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_changes_of_a_range_are_told_and_no_others() {
        let mut history = History::default();
        assert_eq!(history.of(&(0..u64::MAX)), "; no change there is remembered");
        assert_eq!(history.pages.entries.capacity() + history.changes.entries.capacity(), 0);
        let mut noted = |at, what, range: Range<u64>, to| {
            history.set_now(at);
            history.note_move(what, &range, to);
        };
        noted(1_000_000, What::Out, PAGE..2 * PAGE, 0);
        noted(2_000_000, What::Out, 2 * PAGE..4 * PAGE, 0);
        noted(3_000_000, What::Moved, PAGE..3 * PAGE, 100 * PAGE);
        noted(4_000_000, What::In, 7 * PAGE..9 * PAGE, 0);
        noted(5_000_000, What::Unmapped, PAGE..3 * PAGE, 0);
        let told = history.of(&(101 * PAGE..102 * PAGE));
        assert!(told.ends_with(": 0.003000 moved by mremap 0x1000-0x3000 to 0x64000"), "{told}");
        let told = history.of(&(2 * PAGE..3 * PAGE));
        let expected = "0.002000 evicted 0x1000-0x4000, 0.003000 moved by mremap 0x1000-0x3000 to 0x64000, \
                        0.005000 unmapped 0x1000-0x3000";
        assert!(told.ends_with(expected), "{told}");
    }

    #[test]
    fn both_rings_keep_the_newest_and_do_not_grow() {
        let mut history = History::default();
        history.note(What::Removed, &(0..PAGE));
        for n in 0..1000 {
            history.set_now(n);
            history.note(What::In, &(2 * n * PAGE..(2 * n + 1) * PAGE));
        }
        assert!(history.of(&(0..PAGE)).contains("discarded"), "faults push out no change of mappings");
        assert!(history.of(&(1998 * PAGE..1999 * PAGE)).contains("brought back 0x7ce000-0x7cf000"));
        assert!(!history.of(&(0..PAGE)).contains("brought"), "the oldest is forgotten");
        assert_eq!(history.pages.entries.len(), KEPT);
        assert_eq!(history.pages.entries.capacity(), KEPT);
        assert_eq!(history.of(&(0..u64::MAX)).matches("brought").count(), TOLD);
    }
}
