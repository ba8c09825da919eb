//! An agent that takes a batch out, as `crates/agent/src/evict.rs` does it: MOVE after MOVE, a refusal is the next
//! call's matter, and staging's page table is the truth about what has moved. The pager may end the batch meanwhile
//! (`World::take_back`).

use std::ops::Range;

use crate::memory::Pte;
use crate::userfaultfd::{EAGAIN, EBUSY, ENOENT};
use crate::world::{Access, Batch, Micro, Wait, World, note};

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

    /// What is in staging has moved: it is copied to the ring, and the tally says so.
    pub fn copied(&mut self, t: usize) {
        let s = self.threads[t].space;
        let space = &mut self.spaces[s];
        let staged = space.pager.batch.pages.iter().zip(&space.staging);
        space.pager.batch.taken = staged.filter_map(|(&page, &value)| Some((page, value?))).collect();
        space.pager.batch.copied = true;
    }

    /// Staging is emptied, and registered anew.
    pub fn emptied(&mut self, t: usize) {
        let space = &mut self.spaces[self.threads[t].space];
        space.staging.fill(None);
        space.fenced = false;
    }

    /// The batch is answered, in time or too late.
    pub fn answered(&mut self, t: usize) {
        let space = &mut self.spaces[self.threads[t].space];
        space.fenced = false;
        if std::mem::take(&mut space.pager.overdue) {
            space.pager.space.set_overdue(None);
            space.pager.batch = Batch::default();
        } else {
            space.pager.batch.done = true;
        }
        self.rest(t);
    }

    /// An agent that has nothing more to do.
    pub fn rest(&mut self, t: usize) {
        if self.threads[t].micros.is_empty() {
            self.threads[t].wait = Wait::Idle;
        }
    }
}
