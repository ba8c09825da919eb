//! Promotion: pages come back into the swap cache while their backing stays good.
//!
//! Such a frame keeps its slot's former backing beside the page: written out again it costs nothing, and whoever walks
//! the reverse map (cleaner, swapoff) must look for its object there as well as in the word.

use crate::hold::OldObject;
use crate::space::VirtualSwap;
use crate::word::Backing;
use crate::{PAGE_SIZE, Page, SlotId};

impl VirtualSwap {
    /// Reads the pages of slots that are in the pool or a tier into frames, as the newest of the swap cache, and keeps
    /// their backing (swap readahead). Stops when frames run out, and passes over slots that have no object, are in
    /// another transition, or cannot be read; their next load says why. Returns how many pages came.
    ///
    /// # Panics
    ///
    /// If a slot has no reference.
    pub fn promote_many(&self, slots: &[SlotId]) -> usize {
        let mut finder = self.finder();
        let mut page: Page = [0; PAGE_SIZE];
        let mut promoted = 0;
        for slot in slots {
            if self.free_frames() == 0 {
                break;
            }
            let at = finder.of_reference(*slot);
            let Some(mut held) = self.try_hold(at, *slot, |backing| backing.as_object().is_some()) else {
                continue;
            };
            let (place, location) = held.old.as_object().expect("checked by try_hold");
            let loaded = self.tier(place).load(*slot, location, &mut page);
            let frame = loaded.ok().and_then(|()| self.frames.take(*slot, &page, Some((place, location))));
            match frame {
                Some(frame) => {
                    held.old_object = OldObject::Kept;
                    promoted += usize::from(self.publish(held, Backing::Cached(frame), None));
                }
                None => self.give_up(held),
            }
        }
        promoted
    }
}
