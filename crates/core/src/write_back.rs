//! Writeback: the pool's coldest objects move to a tier below it.
//!
//! Comes by the pool's reverse map, without references: the slot word must still name the object, and is held busy while
//! it moves. Loads go on from the pool's copy meanwhile.

use crate::hold::Held;
use crate::scratch::{BATCH, Scratch};
use crate::space::VirtualSwap;
use crate::word::Backing;
use crate::{Location, Page, SlotId, StoreError};

/// What [`VirtualSwap::write_back`] did, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WriteBack {
    /// Moved to a tier.
    pub written: usize,
    /// Offered by the pool, but gone, in another transition, in a frame, or not readable now.
    pub passed: usize,
    /// The pool could not give back the page, for good. Its slot knows: a load says so.
    pub lost: usize,
    /// The gravest reason why a page stayed in the pool, if one did.
    pub stuck: Option<StoreError>,
}

impl VirtualSwap {
    /// Moves up to `max` pages from the pool to the first tier that takes each, the coldest first. Ends early at the
    /// first batch of which a page finds no tier.
    pub fn write_back(&self, max: usize) -> WriteBack {
        let mut report = WriteBack::default();
        let Some(pool) = self.pool.as_ref().filter(|_| !self.tiers.is_empty()) else { return report };
        self.with_scratch(|scratch| {
            let mut candidates = std::mem::take(&mut scratch.candidates);
            self.with_bounce(|pages| {
                let mut offered = 0;
                while offered < max && report.stuck.is_none() {
                    candidates.clear();
                    pool.coldest(pages.len().min(max - offered), &mut candidates);
                    if candidates.is_empty() {
                        break;
                    }
                    candidates.truncate(pages.len());
                    offered += candidates.len();
                    self.write_back_batch(&candidates, pages, scratch, &mut report);
                }
            });
            scratch.candidates = candidates;
        });
        report
    }

    /// Moves those of the candidates, at most as many as there are pages, that are still where the pool said.
    fn write_back_batch(
        &self,
        candidates: &[(SlotId, Location)],
        pages: &mut [Page],
        scratch: &mut Scratch,
        report: &mut WriteBack,
    ) {
        let mut finder = self.finder();
        let mut held: [Option<Held>; BATCH] = [const { None }; BATCH];
        for (held, (slot, at)) in held.iter_mut().zip(candidates) {
            *held = finder
                .find(*slot)
                .and_then(|place| self.try_hold(place, *slot, |backing| backing == Backing::Pool(*at)));
        }
        let moves =
            self.move_objects(held.into_iter().flatten(), pages, scratch, |batch, scratch, placed| {
                self.place_in_tiers(batch, scratch, placed);
            });
        report.written += moves.moved;
        report.lost += moves.lost;
        report.stuck = moves.stuck;
        if moves.stuck.is_none() {
            report.passed += candidates.len() - moves.moved - moves.lost;
        }
    }
}
