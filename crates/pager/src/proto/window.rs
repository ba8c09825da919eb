//! The window: mapping changes that were read and not yet settled.
//!
//! # The rule that keeps it sound
//!
//! The kernel counts every change of registered mappings from inside the lock that makes the change until the thread
//! that made it has woken from its event, and refuses guarded commands (copy, zeropage, write-protect, move) while
//! the count is not zero. So a guarded command that succeeds proves that every event of every change so far has been
//! read: the moment is *quiet*. It does not prove in which order the changes were made. Between two quiet moments
//! events therefore collect in one *window*, and their meaning is settled when it closes:
//!
//! 1. while a window is open nothing is installed, evicted or registered; faults wait;
//! 2. UNMAP only marks slots dead; REMAP moves the newest slots whatever their mark, and what arrives replaces what
//!    was there; mremap growth is an arrival of zeros. mremaps are granted one at a time, so each page has one newest
//!    arrival;
//! 3. REMOVE comes before its zap: slots go at once, and resident pages of the range are *owed*: not evicted until
//!    we installed the page ourselves or it was unmapped;
//! 4. FORK takes the table as it is at that place of the window, without what is wiped on fork; the child's faults
//!    wait until the window closes;
//! 5. the window closes at a quiet moment: marked slots die, except arrivals, where a probe of the page tells.
//!
//! Without the gate, or where nobody tells of growth, what has two readings is a stop: two mremaps of one window that touch; a page
//! that was unmapped, may have arrived, and is mapped; a page that an mremap took from where there were two owners in this window.
//!
//! Here is what each change does to an open window; `fork.rs` has FORK, `close.rs` the close.

use std::ops::Range;

use super::history::What;
use super::message::{Call, ChildKey, Ticket};
use super::ranges::RangeSet;
use super::space::{AddressSpace, PAGE};
use super::table::Entry;

#[derive(Clone, Default)]
pub(super) struct Window {
    /// UNMAPs read in this window, but for what has arrived there since.
    pub(super) unmapped: RangeSet,
    /// All UNMAPs read since the first FORK of this window.
    pub(super) gone: RangeSet,
    /// What mremaps of this window brought.
    pub(super) arrived: RangeSet,
    /// Both ends of mremaps that no grant of ours covers.
    pub(super) ungranted: RangeSet,
    /// What such mremaps of several threads brought: a fork that is read later may have been made before.
    pub(super) beside: RangeSet,
    /// Pages that had a slot and that such an mremap has taken from their place, of several threads.
    pub(super) left: RangeSet,
    /// Pages whose slots a REMOVE of this window took, where nobody tells of growth.
    pub(super) emptied: RangeSet,
    /// What was unmapped more than once.
    pub(super) twice: RangeSet,
    /// Children forked in this window.
    pub(super) children: Vec<ChildKey>,
    /// Nothing was left to read since the last event.
    pub(super) drained: bool,
}

impl AddressSpace {
    /// The window, opened if it was not; what was read must be drained again.
    pub(super) fn open(&mut self) -> &mut Window {
        let window = self.window.get_or_insert_with(Window::default);
        window.drained = false;
        window
    }

    pub(super) fn unmap(&mut self, range: Range<u64>) {
        self.history.note(What::Unmapped, &range);
        // With one thread events come in order, and what was unmapped is dead, whatever grows over it.
        let in_order = self.sole_thread && self.asks_for_order() && self.rules.untold_growth;
        let window = self.open();
        for again in window.unmapped.overlaps(&range).collect::<Vec<_>>() {
            window.twice.insert(again);
        }
        window.unmapped.insert(range.clone());
        if !window.children.is_empty() {
            window.gone.insert(range.clone());
        }
        self.registered.remove(range.clone());
        if in_order || !self.rules.unmap_marks {
            self.drop_slots(range);
            return;
        }
        self.table.alter(range, |entry| entry.dead = true);
    }

    pub(super) fn discard(&mut self, range: Range<u64>) {
        self.history.note(What::Removed, &range);
        self.open();
        self.settling.remove(range.clone());
        if !self.growth_is_told() {
            let emptied = self.table.addrs(range.clone());
            self.open().emptied.insert_pages(&emptied);
        }
        self.drop_slots(range.clone());
        if self.rules.owed {
            self.owed.insert(range);
        }
    }

    pub(super) fn remap(&mut self, from: u64, to: u64, len: u64) {
        let granted = self.gated && self.granted.is_some();
        let (source, target) = (from..from + len, to..to + len);
        self.history.note_move(What::Moved, &source, to);
        let doubtful = !granted && !self.sole_thread && self.rules.touching_stop;
        let window = self.open();
        if !granted {
            if doubtful && (window.ungranted.intersects(&source) || window.ungranted.intersects(&target)) {
                let why = format!(
                    "two mremaps of one window touch {from:#x} or {to:#x} (+{len:#x}) and no gate orders them"
                );
                self.stop(source, why);
                return;
            }
            window.ungranted.insert(source.clone());
            window.ungranted.insert(target.clone());
        }
        window.arrived.remove(source.clone());
        window.arrived.insert(target.clone());
        window.unmapped.remove(target.clone());
        let in_order = !granted && self.sole_thread;
        let untold = !granted && !self.growth_is_told();
        let open_to_doubt = |entry: Entry| entry.dead && (untold || (doubtful && !entry.arrived));
        if self.table.iter(source.clone()).any(|(_, entry)| open_to_doubt(entry)) {
            // Unmapped, and alive after all, or grown over since: nobody has told.
            let why = format!(
                "an mremap of {from:#x} (+{len:#x}) moves what was unmapped, and no gate orders them"
            );
            self.stop(source, why);
            return;
        }
        if untold && !self.sole_thread {
            let left = self.table.addrs(source.clone());
            let two_owners = self.rules.two_owners;
            let window = self.open();
            window.beside.insert(target.clone());
            if two_owners {
                window.left.insert_pages(&left);
                for part in window.emptied.overlaps(&source).collect::<Vec<_>>() {
                    window.left.insert(part);
                }
            }
        }
        if in_order || !self.rules.remap_proves_source {
            let sure = |entry: &Entry| entry.dead && !(in_order && entry.arrived);
            let dead = self.table.iter(source.clone()).filter(|(_, entry)| sure(entry)).map(|(addr, _)| addr);
            for addr in dead.collect::<Vec<_>>() {
                self.drop_slots(addr..addr + PAGE);
            }
        }
        if self.rules.newest_arrival_wins {
            self.drop_slots(target.clone());
        } else {
            for addr in self.table.addrs(target.clone()) {
                self.drop_slots(addr - to + from..addr - to + from + PAGE);
            }
        }
        let known = self.holds(&source);
        for addr in self.table.addrs(source.clone()) {
            if let Some(entry) = self.table.remove(addr) {
                self.table.insert(addr - from + to, Entry { dead: false, arrived: true, ..entry });
            }
        }
        // A zap goes by address, and whoever is about to make one does not move the page meanwhile: what arrives owes nothing.
        self.owed.remove(target.clone());
        // The source keeps its mark: with DONTUNMAP it lives on as it was; else its UNMAP takes the mark away.
        let wiped: Vec<_> = self.wiped.overlaps(&source).collect();
        self.wiped.remove(target.clone());
        for part in wiped {
            self.wiped.insert(part.start - from + to..part.end - from + to);
        }
        self.registered.remove(source);
        if known {
            self.registered.insert(target);
        } else {
            // Registered it is, but what a forked child would read there was never asked: the next sweep does.
            self.registered.remove(target);
        }
        if !granted {
            self.moved_untold(from, to);
        }
    }

    pub(super) fn wiped_on_fork(&mut self, range: Range<u64>, parts: Vec<Range<u64>>) {
        self.wiped.remove(range);
        for part in parts {
            self.wiped.insert(part);
        }
    }

    pub(super) fn returned(&mut self, ticket: Ticket, result: i64) {
        let Some((granted, call)) = self.granted.take() else { return };
        debug_assert_eq!(granted, ticket, "one call at a time");
        self.open();
        let (Ok(to), Call::Mremap(call)) = (u64::try_from(result), call) else { return };
        let (old_end, new_end) = (to + round_up(call.old_len), to + round_up(call.new_len));
        if new_end <= old_end || !self.rules.growth {
            return;
        }
        self.history.note(What::Grown, &(old_end..new_end));
        let registered = self.registered.contains(to);
        self.drop_slots(old_end..new_end);
        self.owed.remove(old_end..new_end);
        if registered {
            self.registered.insert(old_end..new_end);
        }
        self.wiped.remove(old_end..new_end);
        if self.wiped.contains(to) {
            self.wiped.insert(old_end..new_end);
        }
        if let Some(window) = &mut self.window {
            window.unmapped.remove(old_end..new_end);
        }
    }
}

fn round_up(len: u64) -> u64 {
    len.div_ceil(PAGE) * PAGE
}
