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
}

impl Pins {
    /// Looks at the threads of `pid` again, and keeps `stack_top` as well.
    pub fn refresh(&mut self, pid: u32, stack_top: Option<Range<u64>>) {
        self.threads.clear();
        if process::threads(pid, &mut self.threads).is_err() {
            return;
        }
        self.pinned.clear();
        self.pinned.insert(stack_top.unwrap_or_default());
        for &tid in &self.threads {
            if let Ok(head) = process::robust_list_head(tid)
                && head != 0
            {
                let page = head & !(PAGE - 1);
                self.pinned.insert(page.saturating_sub(BELOW * PAGE)..page.saturating_add(ABOVE * PAGE));
            }
        }
    }

    /// The parts of `run` that may leave.
    pub fn gaps(&self, run: &Range<u64>) -> Vec<Range<u64>> {
        self.pinned.gaps(run)
    }
}
