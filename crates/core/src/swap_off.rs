//! Swapoff: taking a tier out of service without losing a page.
//!
//! The tier first gets nothing new, then gives back what it has: each slot that it backs, found by a scan of the slot
//! words, is held and moved to the pool, another tier, or a frame. It is over when the tier itself counts no object, not
//! after a pass: a store may have been on its way when the door was closed. Between two calls everything is in order,
//! so it can be interrupted, and undone by opening the door again.

use crate::cluster::{Cluster, SLOTS};
use crate::hold::Held;
use crate::scratch::{BATCH, Scratch};
use crate::space::VirtualSwap;
use crate::store::Placed;
use crate::sync::Pin;
use crate::word::{Backing, FrameId, Place};
use crate::{Page, SlotId, StoreError, TierId};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// How far [`VirtualSwap::swap_off`] has come.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SwapOff {
    /// Objects taken out of the tier by this call.
    pub moved: usize,
    /// Pages that were found to be lost. Their slots say so, the tier has their storage back.
    pub lost: usize,
    /// Objects that the tier still has. At 0 it may be removed.
    pub left: u64,
    /// Errno of a page that could not be read. It stays in the tier; a later call tries again.
    pub unreadable: Option<i32>,
    /// The gravest reason why a page found no other place.
    pub stuck: Option<StoreError>,
}

impl VirtualSwap {
    /// Closes a tier to new pages and takes up to `max` out of it. To be called until nothing is left, or until it
    /// makes no progress: then [`swap_on`](Self::swap_on) puts the tier back into service, or a tier is added by raising
    /// a limit and the calls go on.
    ///
    /// # Panics
    ///
    /// If there is no such tier.
    pub fn swap_off(&self, tier: TierId, max: usize) -> SwapOff {
        let device = &self.tiers[usize::from(tier.0)];
        self.closed.fetch_or(1 << tier.0, SeqCst);
        let mut report = SwapOff::default();
        let clusters = self.allocator.last_number();
        let first = self.scan.load(Relaxed);
        self.with_scratch(|scratch| {
            self.with_bounce(|pages| {
                // One lap over all clusters, from where the last call ended.
                for number in (0..clusters).map(|i| (first + i) % clusters + 1) {
                    if report.moved == max || report.stuck.is_some() {
                        break;
                    }
                    let done = self.allocator.cluster(number).is_none_or(|cluster| {
                        self.drain_cluster(&cluster, tier, max, pages, scratch, &mut report)
                    });
                    if done {
                        self.scan.store(number % clusters, Relaxed);
                    }
                }
            });
        });
        report.left = device.usage().objects;
        report
    }

    /// Takes what a cluster has in the tier out of it, until `max` objects in all; `false` if that was the end.
    fn drain_cluster(
        &self,
        cluster: &Pin<Cluster>,
        tier: TierId,
        max: usize,
        pages: &mut [Page],
        scratch: &mut Scratch,
        report: &mut SwapOff,
    ) -> bool {
        let wanted = |backing| match backing {
            Backing::Tier(t, _) => t == tier,
            Backing::Cached(_) => true,
            _ => false,
        };
        let mut index = 0;
        while index < SLOTS {
            let room = pages.len().min(max - report.moved);
            if room == 0 {
                return false;
            }
            let mut held: [Option<Held>; BATCH] = [const { None }; BATCH];
            let mut n = 0;
            while index < SLOTS && n < room && report.moved + n < max {
                let slot = cluster.slot(index);
                if wanted(cluster.word(index).backing())
                    && let Some(found) = self.try_hold((cluster, index), slot, wanted)
                {
                    if let Backing::Cached(frame) = found.old {
                        report.moved += usize::from(self.drop_former(found, frame, tier));
                    } else {
                        held[n] = Some(found);
                        n += 1;
                    }
                }
                index += 1;
            }
            let held = held.into_iter().flatten();
            let moves = self.move_objects(held, pages, scratch, |batch, scratch, placed| {
                self.place_anywhere(batch, scratch, placed);
            });
            report.moved += moves.moved;
            report.lost += moves.lost;
            report.unreadable = moves.unreadable.or(report.unreadable);
            report.stuck = moves.stuck.or(report.stuck);
        }
        true
    }

    /// Finds a backing for each page, or else a frame.
    fn place_anywhere(&self, batch: &[(SlotId, &Page)], scratch: &mut Scratch, placed: &mut [Placed]) {
        self.place(batch, scratch, placed);
        for ((slot, page), placed) in batch.iter().zip(placed) {
            if placed.is_err()
                && let Some(frame) = self.frames.take(*slot, page, None)
            {
                *placed = Ok(Backing::Cached(frame));
            }
        }
    }

    /// Lets a tier take new pages again.
    pub fn swap_on(&self, tier: TierId) {
        self.closed.fetch_and(!(1 << tier.0), SeqCst);
    }

    /// Releases the former backing of a held slot if it is in the tier: the frame has the page. Gives up the slot.
    fn drop_former(&self, held: Held, frame: FrameId, tier: TierId) -> bool {
        let former = self.frames.former(frame).filter(|(place, _)| *place == Place::Tier(tier));
        if let Some((place, at)) = former {
            self.frames.set_former(frame, None);
            self.release_object(&held, place, at);
        }
        self.give_up(held);
        former.is_some()
    }
}
