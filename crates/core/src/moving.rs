//! Moving objects from one place to another: what writeback and swapoff have in common.
//!
//! Each slot is held busy while its page is read, stored elsewhere, published there and released here. If nothing takes
//! the page, busy is given up and the object is untouched.

use crate::failure::graver;
use crate::hold::{Held, OldObject};
use crate::scratch::{BATCH, Scratch};
use crate::space::VirtualSwap;
use crate::store::Placed;
use crate::word::{Backing, Loss};
use crate::{LoadError, Page, SlotId, StoreError};

/// What became of a batch.
#[derive(Clone, Copy, Default)]
pub(crate) struct Moves {
    pub(crate) moved: usize,
    /// Could not be read for good: their slots say so now.
    pub(crate) lost: usize,
    /// Could not be read now: errno of the last.
    pub(crate) unreadable: Option<i32>,
    /// The gravest reason why a page found no other place.
    pub(crate) stuck: Option<StoreError>,
}

impl VirtualSwap {
    /// Moves the objects of held slots to where `to` places them; `pages` is as long as `held` at least.
    pub(crate) fn move_objects(
        &self,
        held: impl Iterator<Item = Held>,
        pages: &mut [Page],
        scratch: &mut Scratch,
        to: impl Fn(&[(SlotId, &Page)], &mut Scratch, &mut [Placed]),
    ) -> Moves {
        let mut moves = Moves::default();
        let mut read: [Option<Held>; BATCH] = [const { None }; BATCH];
        let mut n = 0;
        for mut held in held {
            let (place, at) = held.old.as_object().expect("only objects are moved");
            let loss = match self.tier(place).load(held.slot, at, &mut pages[n]) {
                Ok(()) => {
                    read[n] = Some(held);
                    n += 1;
                    continue;
                }
                Err(LoadError::Io(errno)) => {
                    moves.unreadable = Some(errno);
                    self.give_up(held);
                    continue;
                }
                Err(LoadError::Corrupt) => Loss::Corrupt,
                Err(LoadError::Stale) => Loss::Missing,
            };
            held.lose(loss);
            self.publish(held, Backing::Error(loss, place), None);
            moves.lost += 1;
        }
        let Some(first) = read[0].as_ref() else { return moves };
        let mut batch = [(first.slot, &pages[0]); BATCH];
        for (entry, (held, page)) in batch.iter_mut().zip(read.iter().flatten().zip(pages.iter())) {
            *entry = (held.slot, page);
        }
        let mut placed = [Err(None); BATCH];
        to(&batch[..n], scratch, &mut placed);
        for (held, placed) in read.into_iter().flatten().zip(placed) {
            debug_assert!(held.old_object == OldObject::Release);
            match self.settle(held, placed, None) {
                Ok(()) => moves.moved += 1,
                Err(error) => {
                    let error = error.unwrap_or(StoreError::Full);
                    moves.stuck = Some(moves.stuck.map_or(error, |before| graver(before, error)));
                }
            }
        }
        moves
    }
}
