//! The space as the pool's cleaner sees it: a walker of the reverse map, without references.

use crate::hold::Held;
use crate::space::VirtualSwap;
use crate::word::{Backing, FrameId, Place};
use crate::{CleanReport, Location, Owner, Relocated, SlotId};

impl VirtualSwap {
    /// Lets the pool clean itself, copying at most about `budget` bytes.
    pub fn clean(&self, budget: u64) -> CleanReport {
        self.pool.as_ref().map_or_else(CleanReport::default, |pool| pool.clean(self, budget))
    }

    /// Changes the former backing of a held slot's frame if it is `old`; gives up the slot.
    fn relocate_former(&self, held: Held, frame: FrameId, old: Location, new: Location) -> Relocated {
        let names_old = self.frames.former(frame) == Some((Place::Pool, old));
        if names_old {
            self.frames.set_former(frame, Some((Place::Pool, new)));
        }
        // If the last reference went meanwhile, this releases what the frame names now.
        self.give_up(held);
        if names_old { Relocated::Moved } else { Relocated::Gone }
    }
}

impl Owner for VirtualSwap {
    fn relocate(&self, slot: SlotId, old: Location, new: Location) -> Relocated {
        let mut finder = self.finder();
        // No cluster: the slot was freed, and its object released before that.
        let Some((cluster, index)) = finder.find(slot) else { return Relocated::Gone };
        loop {
            let word = cluster.word(index);
            if word.is_busy() {
                // Its holder may be about to release the old object, or to publish it for the first time.
                return Relocated::Busy;
            }
            match word.backing() {
                Backing::Pool(at) if at == old => {
                    if cluster.swap(index, word, word.with_backing(Backing::Pool(new))).is_ok() {
                        return Relocated::Moved;
                    }
                }
                Backing::Cached(frame) => {
                    let same = |backing| backing == Backing::Cached(frame);
                    if let Some(held) = self.try_hold((cluster, index), slot, same) {
                        return self.relocate_former(held, frame, old, new);
                    }
                }
                _ => return Relocated::Gone,
            }
        }
    }
}
