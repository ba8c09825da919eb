//! Loading: a page's bytes out of whatever backs its slot.
//!
//! From memory (word, frame, pool) without busy: read the word, copy, read the word again; if kind or payload changed,
//! all over. The copy is made under a lock of the frame or the pool that whoever reuses the place must take after it
//! has changed the word, so a copy of anything else is never followed by the same word.
//!
//! From a tier below the pool under busy, so that nothing is released while its device is at it (invariant 2). Two
//! loaders of one slot thus read one after the other; loaders of other slots are not concerned. No lock is held.
//!
//! What a place cannot find or verify is looked at again under busy, where no race can be the reason, before it is
//! declared lost.

use crate::cluster::Cluster;
use crate::filled::fill;
use crate::space::{Source, VirtualSwap};
use crate::sync::Pin;
use crate::word::{Backing, Loss, Place};
use crate::{LoadError, LoadFailure, Page, SlotId};

/// Tries without busy that may be lost to movers (a cleaner, say) before a loader makes them wait.
const TRIES: usize = 8;

/// One try to load.
enum Try {
    Done(Result<Source, LoadFailure>),
    /// The slot changed meanwhile.
    Again,
    /// Nothing can be said without busy.
    Hold,
}

impl VirtualSwap {
    /// Copies the slot's page into `into`. The stored copy stays. The caller holds a reference.
    ///
    /// # Errors
    ///
    /// See [`LoadFailure`]; `into` is then unspecified.
    pub fn load(&self, slot: SlotId, into: &mut Page) -> Result<Source, LoadFailure> {
        match self.finder().find(slot) {
            Some(at) => self.load_at(at, slot, into),
            None => Err(LoadFailure::NotAllocated { slot }),
        }
    }

    /// Loads each slot's page into the page of the same index, and pushes one outcome each, in order.
    ///
    /// # Panics
    ///
    /// If there are fewer pages than slots.
    pub fn load_many(&self, slots: &[SlotId], into: &mut [Page], out: &mut Vec<Result<Source, LoadFailure>>) {
        assert!(into.len() >= slots.len(), "{} pages for {} slots", into.len(), slots.len());
        let mut finder = self.finder();
        for (slot, page) in slots.iter().zip(into) {
            out.push(match finder.find(*slot) {
                Some(at) => self.load_at(at, *slot, page),
                None => Err(LoadFailure::NotAllocated { slot: *slot }),
            });
        }
    }

    /// Exclusive load: as [`load_many`](Self::load_many), and each slot that was loaded loses the caller's reference.
    ///
    /// # Panics
    ///
    /// If there are fewer pages than slots.
    pub fn take_many(&self, slots: &[SlotId], into: &mut [Page], out: &mut Vec<Result<Source, LoadFailure>>) {
        let before = out.len();
        self.load_many(slots, into, out);
        for (slot, outcome) in slots.iter().zip(&out[before..]) {
            if outcome.is_ok() {
                self.free_n(&[*slot]);
            }
        }
    }

    fn load_at(
        &self,
        at: (&Pin<Cluster>, u32),
        slot: SlotId,
        into: &mut Page,
    ) -> Result<Source, LoadFailure> {
        for tries in 1.. {
            match self.try_load(at, slot, into) {
                Try::Done(outcome) => return outcome,
                Try::Again if tries < TRIES => {}
                Try::Again | Try::Hold => {
                    if let Some(outcome) = self.load_held(at, slot, into) {
                        return outcome;
                    }
                }
            }
        }
        unreachable!("the loop ends by returning")
    }

    fn try_load(&self, (cluster, index): (&Pin<Cluster>, u32), slot: SlotId, into: &mut Page) -> Try {
        let word = cluster.word(index);
        let source = match word.backing() {
            Backing::Free => return Try::Done(Err(LoadFailure::NotAllocated { slot })),
            Backing::Reserved => return Try::Done(Err(LoadFailure::NeverStored { slot })),
            Backing::Error(loss, place) => return Try::Done(Err(LoadFailure::Lost { slot, place, loss })),
            Backing::Zero => {
                fill(into, 0);
                return Try::Done(Ok(Source::Zero));
            }
            Backing::Filled(pattern) => {
                fill(into, pattern.value());
                return Try::Done(Ok(Source::Filled));
            }
            Backing::Tier(..) => return Try::Hold,
            Backing::Cached(frame) => self.frames.load(frame, slot, into).then_some(Source::Cached),
            Backing::Pool(at) => self.tier(Place::Pool).load(slot, at, into).is_ok().then_some(Source::Pool),
        };
        match source {
            _ if !cluster.word(index).same_backing(word) => Try::Again,
            Some(source) => Try::Done(Ok(source)),
            None => Try::Hold,
        }
    }

    /// Loads with the slot's busy bit, so that nothing changes meanwhile; `None` if the slot was not in a state to hold
    /// or is now better loaded without.
    fn load_held(
        &self,
        at: (&Pin<Cluster>, u32),
        slot: SlotId,
        into: &mut Page,
    ) -> Option<Result<Source, LoadFailure>> {
        let (cluster, index) = at;
        let Some(mut held) = self.try_hold(at, slot, |_| true) else {
            self.waits.wait_while(slot, || cluster.word(index).is_busy());
            return None;
        };
        let (place, location, source) = match held.old {
            Backing::Tier(tier, at) => (Place::Tier(tier), at, Source::Tier(tier)),
            Backing::Pool(at) => (Place::Pool, at, Source::Pool),
            Backing::Cached(frame) => {
                let is_slots = self.frames.load(frame, slot, into);
                assert!(is_slots, "frame {frame:?} of slot {} holds another slot's page", slot.get());
                self.give_up(held);
                return Some(Ok(Source::Cached));
            }
            _ => {
                self.give_up(held);
                return None;
            }
        };
        let loss = match self.tier(place).load(slot, location, into) {
            Ok(()) => {
                self.give_up(held);
                return Some(Ok(source));
            }
            Err(LoadError::Io(errno)) => {
                self.give_up(held);
                return Some(Err(LoadFailure::Io { slot, place, location, errno }));
            }
            Err(LoadError::Corrupt) => Loss::Corrupt,
            Err(LoadError::Stale) => Loss::Missing,
        };
        held.lose(loss);
        self.publish(held, Backing::Error(loss, place), None);
        Some(Err(LoadFailure::Lost { slot, place, loss }))
    }
}
