//! An agent that takes a batch out, as `crates/agent/src/evict.rs` does it: MOVE after MOVE, a refusal is the next
//! call's matter, and staging's page table is the truth about what has moved.

use std::ops::Range;

use crate::memory::Pte;
use crate::userfaultfd::{EAGAIN, EBUSY, ENOENT};
use crate::world::{Access, Micro, Wait, World, note};

/// What is left of one run of a batch.
#[derive(Clone, Debug)]
pub struct Take {
    pub run: Range<usize>,
    /// Where in staging its first page goes.
    pub to: usize,
    /// Pages below this one had their sharing broken once.
    pub unshared: usize,
}

impl World<'_> {
    /// One MOVE, and what is done about its answer.
    pub fn take(&mut self, t: usize, take: Take) {
        let s = self.threads[t].space;
        let Take { run, to, unshared } = take;
        if self.spaces[s].pager.batch.again || run.is_empty() {
            return;
        }
        // Whoever comes out of an madvise looks whether to go on.
        if unshared > run.start && self.spaces[s].pager.batch.halted && self.setup.rules.halt {
            self.spaces[s].pager.batch.again = true;
            return;
        }
        // MOVE does not look whether the mapping is registered. If an UNMAP was lost since the pager looked, nobody can
        // know: see "what is not modelled".
        if self.spaces[s].lost && self.spaces[s].mem.vma[run.start].is_some_and(|vma| !vma.registered) {
            self.stats.holes += 1;
            self.stopped = true;
            return;
        }
        let (done, errno) = self.move_pages(s, run.clone(), to);
        note!(self, "P{s} T{t}: MOVE {run:?} = {done}, {errno}");
        // MOVE may say less than it did; who believes it drops the rest with staging.
        if done > 0 && self.whim(256) && !self.setup.rules.staging_truth {
            let said = self.rng.below(done);
            self.spaces[s].staging[to + said..to + done].fill(None);
        }
        let go_on = |done: usize, unshared: usize| {
            Micro::Take(Take { run: run.start + done..run.end, to: to + done, unshared })
        };
        let next = match errno {
            0 => return,
            _ if done > 0 => go_on(done, unshared),
            EAGAIN => {
                self.spaces[s].pager.batch.again = true;
                return;
            }
            EBUSY if run.start >= unshared => {
                // Break the sharing of what is there, then once more.
                let there = |p: &usize| matches!(self.spaces[s].mem.pte[*p], Pte::Page { .. } | Pte::Zero);
                let there: Vec<_> = run.clone().take_while(there).collect();
                self.threads[t].micros.push_front(go_on(0, run.start + there.len()));
                for p in there.into_iter().rev() {
                    self.threads[t].micros.push_front(Micro::Access(p, Access::Populate));
                }
                return;
            }
            EBUSY | ENOENT => go_on(1, unshared),
            _ => return,
        };
        self.threads[t].micros.push_front(next);
    }

    /// The batch is over: what is in staging has moved.
    pub fn taken(&mut self, t: usize) {
        let s = self.threads[t].space;
        let space = &mut self.spaces[s];
        for (&page, staged) in space.pager.batch.pages.iter().zip(&mut space.staging) {
            space.pager.batch.taken.extend(staged.take().map(|value| (page, value)));
        }
        space.pager.batch.done = true;
        self.threads[t].wait = Wait::Idle;
    }
}
