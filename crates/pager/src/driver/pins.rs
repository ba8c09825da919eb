//! Pages that must stay: thread control blocks.
//!
//! The kernel clears a thread's `clear_child_tid` at its exit and skips that silently when the page is missing: then
//! pthread_join hangs. glibc keeps the word, the robust-futex list and the rseq area in the control block at the top of
//! the stack; get_robust_list(2) tells where that is, for any C library that registers a list from there.

use std::ops::Range;

use vswap_core::PAGE_SIZE;
use vswap_sys::process;

use crate::proto::RangeSet;

const PAGE: u64 = PAGE_SIZE as u64;
/// Pages below and above the list head that are kept too: the control block and the static TLS beside it.
const BELOW: u64 = 1;
const ABOVE: u64 = 2;

/// The pinned pages of one address space, as of the last look.
#[derive(Default)]
pub struct Pins {
    pinned: RangeSet,
    threads: Vec<u32>,
    fresh: bool,
}

impl Pins {
    /// From now on a look is out of date: once for each turn and each batch, since a look costs two system calls a thread.
    pub fn outdate(&mut self) {
        self.fresh = false;
    }

    /// Looks at the threads of `pid` again, unless the last look still holds.
    pub fn refresh(&mut self, pid: u32) {
        if self.fresh {
            return;
        }
        self.threads.clear();
        if process::threads(pid, &mut self.threads).is_err() {
            return;
        }
        self.fresh = true;
        self.pinned.clear();
        for &tid in &self.threads {
            if let Ok(head) = process::robust_list_head(tid)
                && head != 0
            {
                let page = head & !(PAGE - 1);
                self.pinned.insert(page.saturating_sub(BELOW * PAGE)..page.saturating_add(ABOVE * PAGE));
            }
        }
    }

    /// The parts of `run` that may leave, if `stack_top` has to stay as well.
    pub fn gaps(&self, run: &Range<u64>, stack_top: &Range<u64>) -> Vec<Range<u64>> {
        let parts = self.pinned.gaps(run).into_iter();
        let below_and_above = |part: Range<u64>| {
            [part.start..part.end.min(stack_top.start), part.start.max(stack_top.end)..part.end]
        };
        parts.flat_map(below_and_above).filter(|part| part.start < part.end).collect()
    }
}
