//! Storing: into the swap cache, or straight to a backing. And placing: which backing a page's content finds.

use crate::failure::graver;
use crate::filled::filled;
use crate::hold::Held;
use crate::scratch::{BATCH, Scratch};
use crate::space::VirtualSwap;
use crate::word::{Backing, Pattern, Place};
use crate::{Page, SlotId, StoreError, StoreFailure, TierId};
use std::sync::atomic::Ordering::SeqCst;

/// What [`VirtualSwap::place`] found for a page.
pub(crate) type Placed = Result<Backing, Option<StoreError>>;

impl VirtualSwap {
    /// Copies pages into frames of the swap cache, as the newest there, until frames run out; returns how many were
    /// taken, a prefix of `pages`. What their slots held before is released. What backs them for longer is decided by
    /// [`write_out`](Self::write_out).
    ///
    /// # Panics
    ///
    /// If a slot has no reference.
    pub fn cache_many(&self, pages: &[(SlotId, &Page)]) -> usize {
        let mut finder = self.finder();
        for (taken, (slot, page)) in pages.iter().enumerate() {
            let at = finder.of_reference(*slot);
            let Some(frame) = self.frames.take(*slot, page, None) else { return taken };
            let held = self.hold(at, *slot);
            self.publish(held, Backing::Cached(frame), None);
        }
        pages.len()
    }

    /// Stores pages without a frame: zero and same-filled ones in the slot word, others in the pool or the first tier
    /// that takes them. Pushes one outcome a page, in order. After a failure the slot holds what it held before.
    ///
    /// # Panics
    ///
    /// If a slot has no reference.
    pub fn store_many(&self, pages: &[(SlotId, &Page)], out: &mut Vec<Result<(), StoreFailure>>) {
        let mut finder = self.finder();
        self.with_scratch(|scratch| {
            let mut rest = pages;
            while let Some((first, _)) = rest.first() {
                let mut held = [const { None }; BATCH];
                held[0] = Some(self.hold(finder.of_reference(*first), *first));
                // No waiting with a busy bit in hand: the batch ends at the first slot that another thread is at, or
                // that this very batch has already.
                let mut n = 1;
                while let Some((slot, _)) = rest.get(n).filter(|_| n < BATCH) {
                    let Some(next) = self.try_hold(finder.of_reference(*slot), *slot, |_| true) else {
                        break;
                    };
                    held[n] = Some(next);
                    n += 1;
                }
                let (now, later) = rest.split_at(n);
                let mut placed = [Err(None); BATCH];
                self.place(now, scratch, &mut placed);
                let shadow = self.age(n as u64);
                for ((held, placed), (slot, _)) in held.into_iter().flatten().zip(placed).zip(now) {
                    out.push(self.settle(held, placed, Some(shadow)).map_err(|e| match e {
                        Some(error) => StoreFailure::Refused { slot: *slot, error },
                        None => StoreFailure::NoTier { slot: *slot },
                    }));
                }
                rest = later;
            }
        });
    }

    /// Publishes what was found for a held slot, or gives up.
    pub(crate) fn settle(
        &self,
        held: Held,
        placed: Placed,
        shadow: Option<u16>,
    ) -> Result<(), Option<StoreError>> {
        match placed {
            Ok(backing) => {
                held.charge(backing);
                self.publish(held, backing, shadow);
                Ok(())
            }
            Err(error) => {
                self.give_up(held);
                Err(error)
            }
        }
    }

    /// Finds a backing for each page by its content: none needed, the pool, a tier. At most a batch; `out` is as long
    /// as the pages at least. The slots are held by the caller; nothing is published yet.
    pub(crate) fn place(&self, pages: &[(SlotId, &Page)], scratch: &mut Scratch, out: &mut [Placed]) {
        for ((_, page), out) in pages.iter().zip(out.iter_mut()) {
            *out = match filled(page) {
                Some(0) => Ok(Backing::Zero),
                Some(value) => Pattern::new(value).map(Backing::Filled).ok_or(None),
                None => Err(None),
            };
        }
        if self.pool.is_some() {
            self.offer(Place::Pool, pages, scratch, out);
        }
        self.place_in_tiers(pages, scratch, out);
    }

    /// Offers the pages that have no backing yet to each tier below the pool that is in service.
    pub(crate) fn place_in_tiers(
        &self,
        pages: &[(SlotId, &Page)],
        scratch: &mut Scratch,
        out: &mut [Placed],
    ) {
        let closed = self.closed.load(SeqCst);
        for tier in (0..self.tiers.len()).filter(|tier| closed & 1 << tier == 0) {
            self.offer(Place::Tier(TierId(tier as u8)), pages, scratch, out);
        }
    }

    /// Offers the pages that have no backing yet to one place.
    fn offer(&self, place: Place, pages: &[(SlotId, &Page)], scratch: &mut Scratch, out: &mut [Placed]) {
        assert!(pages.len() <= BATCH && pages.len() <= out.len());
        let Some(first) = pages.first() else { return };
        let mut batch = [*first; BATCH];
        let mut n = 0;
        for (page, placed) in pages.iter().zip(out.iter()) {
            if placed.is_err() {
                batch[n] = *page;
                n += 1;
            }
        }
        if n == 0 {
            return;
        }
        scratch.outcomes.clear();
        let tier = self.tier(place);
        tier.store(&batch[..n], &mut scratch.outcomes);
        assert_eq!(scratch.outcomes.len(), n, "{} answered for another number of pages", tier.name());
        let waiting = out[..pages.len()].iter_mut().filter(|placed| placed.is_err());
        for (placed, outcome) in waiting.zip(&scratch.outcomes) {
            *placed = match (*placed, outcome) {
                (_, Ok(at)) => Ok(Backing::object(place, *at)),
                (Err(Some(before)), Err(error)) => Err(Some(graver(before, *error))),
                (_, Err(error)) => Err(Some(*error)),
            };
        }
    }
}
