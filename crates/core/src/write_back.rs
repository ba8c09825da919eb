//! Writeback: the pool's coldest objects move to a tier below it.
//!
//! Comes by the pool's reverse map, without references: the slot word must still name the object, and is held busy while
//! the page is read, stored, published and released. Loads go on from the pool's copy meanwhile.

use crate::failure::graver;
use crate::hold::Held;
use crate::scratch::{BATCH, Scratch};
use crate::space::VirtualSwap;
use crate::word::{Backing, Loss, Place};
use crate::{LoadError, Location, PAGE_SIZE, Page, SlotId, StoreError};

/// What [`VirtualSwap::write_back`] did, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WriteBack {
    /// Moved to a tier.
    pub written: usize,
    /// Offered by the pool, but gone, in another transition, or in a frame.
    pub passed: usize,
    /// The pool could not give back the page. Its slot knows: a load says so.
    pub lost: usize,
    /// The gravest reason why a page stayed in the pool, if one did.
    pub stuck: Option<StoreError>,
}

impl VirtualSwap {
    /// Moves up to `max` pages from the pool to the first tier that takes each, the coldest first. Ends early when no
    /// tier takes any of a batch.
    pub fn write_back(&self, max: usize) -> WriteBack {
        let mut report = WriteBack::default();
        let Some(pool) = self.pool.as_ref().filter(|_| !self.tiers.is_empty()) else { return report };
        self.with_scratch(|scratch| {
            let mut candidates = std::mem::take(&mut scratch.candidates);
            let mut bounce = scratch.take_bounce();
            let mut one = [[0; PAGE_SIZE]];
            let mut offered = 0;
            while offered < max && report.stuck.is_none() {
                let pages = if bounce.is_empty() { &mut one[..] } else { &mut bounce[..] };
                candidates.clear();
                pool.coldest(pages.len().min(max - offered), &mut candidates);
                if candidates.is_empty() {
                    break;
                }
                candidates.truncate(pages.len());
                offered += candidates.len();
                self.move_batch(&candidates, pages, scratch, &mut report);
            }
            scratch.put_bounce(bounce);
            scratch.candidates = candidates;
        });
        report
    }

    /// Moves at most as many candidates as there are pages.
    fn move_batch(
        &self,
        candidates: &[(SlotId, Location)],
        pages: &mut [Page],
        scratch: &mut Scratch,
        report: &mut WriteBack,
    ) {
        let mut finder = self.finder();
        let mut held: [Option<Held>; BATCH] = [const { None }; BATCH];
        let mut n = 0;
        for (slot, at) in candidates {
            let found = finder
                .find(*slot)
                .and_then(|place| self.try_hold(place, *slot, |backing| backing == Backing::Pool(*at)));
            let Some(mut found) = found else {
                report.passed += 1;
                continue;
            };
            let loss = match self.load_object(*slot, Place::Pool, *at, &mut pages[n]) {
                Ok(()) => {
                    held[n] = Some(found);
                    n += 1;
                    continue;
                }
                Err(LoadError::Corrupt) => Loss::Corrupt,
                Err(LoadError::Stale) => Loss::Missing,
                Err(LoadError::Io(_)) => {
                    self.give_up(found);
                    report.passed += 1;
                    continue;
                }
            };
            found.missing = loss == Loss::Missing;
            self.publish(found, Backing::Error(loss, Place::Pool), None);
            report.lost += 1;
        }
        let Some(first) = held[0].as_ref() else { return };
        let mut batch = [(first.slot, &pages[0]); BATCH];
        for (entry, (held, page)) in batch.iter_mut().zip(held.iter().flatten().zip(pages.iter())) {
            *entry = (held.slot, page);
        }
        let mut placed = [Err(None); BATCH];
        self.place_in_tiers(&batch[..n], scratch, &mut placed);
        for (held, placed) in held.into_iter().flatten().zip(placed) {
            match placed {
                Ok(backing) => {
                    held.charge(backing);
                    self.publish(held, backing, None);
                    report.written += 1;
                }
                Err(error) => {
                    self.give_up(held);
                    let error = error.unwrap_or(StoreError::Full);
                    report.stuck = Some(report.stuck.map_or(error, |before| graver(before, error)));
                }
            }
        }
    }
}
