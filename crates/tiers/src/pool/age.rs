//! The walk from the oldest segment to the youngest that offers objects for writeback.
//!
//! The cursor (age, segment, offset) remembers where the last call ended, so that objects which the space may not write
//! back (their group keeps to the pool, or they were busy) do not stand in the way of the next ones. A lap ends at the
//! youngest segment or when as many objects were offered as there were at its start; the next one begins at the oldest.
//!
//! An offer is a hint: the object may be dead by the time the caller looks, or be a copy that the cleaner has not
//! published yet. The slot word decides. The cursor's lock is held for the call; segments are read one at a time.

use super::object::location;
use super::segment::{Role, Walk};
use super::{Account, Pool};
use std::sync::atomic::Ordering::Relaxed;
use vswap_core::{Location, SlotId};

/// Where the walk stands.
#[derive(Default)]
pub(super) struct Cursor {
    /// Age and index of the segment: the next one is the least that is not below.
    key: (u64, u32),
    /// Where to go on in that very segment, if it is still of this generation.
    offset: u32,
    generation: u32,
    /// Objects that this lap may still offer.
    lap_left: u64,
}

impl Cursor {
    pub(super) fn restart(&mut self, account: &Account) {
        *self = Self { lap_left: account.live_objects.load(Relaxed), ..Self::default() };
    }
}

impl Pool {
    /// [`Tier::coldest`](vswap_core::Tier::coldest).
    pub(super) fn walk_coldest(&self, max: usize, out: &mut Vec<(SlotId, Location)>) {
        let mut cursor = self.cursor.lock();
        let full = out.len() + max;
        let begun = out.len();
        let mut restarted = false;
        while out.len() < full {
            let next = if cursor.lap_left == 0 { None } else { self.oldest_from(cursor.key) };
            match next {
                Some(key) => {
                    if key != cursor.key {
                        (cursor.key, cursor.offset) = (key, 0);
                    }
                    self.offer(&mut cursor, full, out);
                }
                None if restarted || out.len() > begun => {
                    // The lap is over; the next call begins a new one. Nothing is offered twice by one call.
                    cursor.lap_left = 0;
                    return;
                }
                None => {
                    cursor.restart(&self.account);
                    restarted = true;
                }
            }
        }
    }

    /// Age and index of the oldest segment in use that is not below `from`.
    fn oldest_from(&self, from: (u64, u32)) -> Option<(u64, u32)> {
        let key = |index| {
            let segment = self.segment(index)?.read();
            let offered = segment.role != Role::Free && !segment.broken && segment.live_objects > 0;
            offered.then_some((segment.age, index))
        };
        (0..self.end.load(Relaxed)).filter_map(key).filter(|k| *k >= from).min()
    }

    /// Offers the objects of the cursor's segment from its offset on, and leaves the cursor after the last one.
    fn offer(&self, cursor: &mut Cursor, full: usize, out: &mut Vec<(SlotId, Location)>) {
        let (age, index) = cursor.key;
        let segment = self.segment(index).expect("was in use").read();
        if segment.generation != cursor.generation {
            (cursor.generation, cursor.offset) = (segment.generation, 0);
        }
        // Between the scan and this lock it may have become another's.
        if segment.age == age && segment.role != Role::Free {
            while let Walk::Object { offset, slot, header, .. } = segment.next_live(cursor.offset) {
                if out.len() == full || cursor.lap_left == 0 {
                    return;
                }
                out.push((slot, location(index, offset)));
                cursor.offset = offset + header.size();
                cursor.lap_left -= 1;
            }
        }
        (cursor.key, cursor.offset) = ((age, index + 1), 0);
    }
}
