//! Holding a slot's busy bit: the only way to change what backs it, and the only place where backings are released.
//!
//! Who holds busy owns kind, payload and the frame's former backing until it publishes, gives up or tears down. A
//! backing is released here and nowhere else, always by who took it out of the word, so exactly once:
//! - `publish` releases the old one after the new one is in the word. If the last reference went meanwhile, it releases
//!   both;
//! - `give_up` releases nothing, unless the last reference went meanwhile;
//! - the last free of an idle slot takes busy with the same swap and comes here to tear down.
//!
//! **No deadlock.** A thread waits for busy ([`hold`](VirtualSwap::hold)) only while it holds none; batches take the
//! others with [`try_hold`](VirtualSwap::try_hold).

use crate::alloc::place;
use crate::cluster::Cluster;
use crate::space::VirtualSwap;
use crate::sync::Pin;
use crate::word::{Backing, Loss, Place, Word};
use crate::{Damage, Location, SlotId, Tier};
use std::sync::Arc;

/// What a change of backing does to the object that backed the slot before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OldObject {
    /// It is released and counted off.
    Release,
    /// It does not exist: it is counted off only.
    Missing,
    /// It is part of the new backing, a frame's former one.
    Kept,
}

/// The busy bit of one slot.
#[must_use = "a slot that stays busy is stuck for ever"]
pub(crate) struct Held {
    pub(crate) slot: SlotId,
    /// What backs the slot: it cannot change while it is held, except by the holder.
    pub(crate) old: Backing,
    /// What becomes of the old object when another backing is published.
    pub(crate) old_object: OldObject,
    cluster: Arc<Cluster>,
    index: u32,
}

impl Held {
    /// Counts an object that was stored for this slot.
    pub(crate) fn charge(&self, backing: Backing) {
        if let Some((place, _)) = backing.as_object() {
            self.cluster.charges().objects(place, 1);
        }
    }

    /// The old object is lost in this way.
    pub(crate) fn lose(&mut self, loss: Loss) {
        self.old_object = match loss {
            Loss::Corrupt => OldObject::Release,
            Loss::Missing => OldObject::Missing,
        };
    }

    fn word(&self) -> Word {
        self.cluster.word(self.index)
    }
}

/// Finds clusters, and remembers the last one: batches mostly stay in it.
pub(crate) struct Finder<'a> {
    space: &'a VirtualSwap,
    last: Option<Pin<Cluster>>,
}

impl Finder<'_> {
    /// The slot's cluster and its index there; `None` if the cluster is not in the directory.
    ///
    /// A remembered cluster is right for holders of a reference: theirs kept it from being retired since before the
    /// call. For walkers it may be a retired one, in which all words are free.
    pub(crate) fn find(&mut self, slot: SlotId) -> Option<(&Pin<Cluster>, u32)> {
        let (number, index) = place(slot);
        if self.last.as_ref().is_none_or(|c| c.number() != number) {
            self.last = self.space.allocator.cluster(number);
        }
        self.last.as_ref().map(|c| (c, index))
    }

    /// The same for a holder of a reference.
    ///
    /// # Panics
    ///
    /// If the slot was never allocated or is free.
    pub(crate) fn of_reference(&mut self, slot: SlotId) -> (&Pin<Cluster>, u32) {
        self.find(slot).unwrap_or_else(|| panic!("slot {} is not allocated", slot.get()))
    }
}

impl VirtualSwap {
    pub(crate) fn finder(&self) -> Finder<'_> {
        Finder { space: self, last: None }
    }

    /// Takes busy if the slot is idle, in use, and backed by something `wanted`.
    pub(crate) fn try_hold(
        &self,
        (cluster, index): (&Pin<Cluster>, u32),
        slot: SlotId,
        wanted: impl Fn(Backing) -> bool,
    ) -> Option<Held> {
        let mut word = cluster.word(index);
        loop {
            let old = word.backing();
            if word.is_busy() || word.count() == 0 || !wanted(old) {
                return None;
            }
            match cluster.swap(index, word, word.busy()) {
                Ok(()) => {
                    return Some(Held {
                        slot,
                        old,
                        old_object: OldObject::Release,
                        cluster: cluster.share(),
                        index,
                    });
                }
                Err(now) => word = now,
            }
        }
    }

    /// Takes busy, waiting for whoever has it. The caller holds a reference, and no other busy bit.
    ///
    /// # Panics
    ///
    /// If the slot is not in use.
    pub(crate) fn hold(&self, at: (&Pin<Cluster>, u32), slot: SlotId) -> Held {
        loop {
            if let Some(held) = self.try_hold(at, slot, |_| true) {
                return held;
            }
            let (cluster, index) = at;
            let word = cluster.word(index);
            assert!(word.count() > 0, "slot {} is used without a reference: {word:?}", slot.get());
            self.waits.wait_while(slot, || cluster.word(index).is_busy());
        }
    }

    /// Makes `new` the slot's backing, gives up busy and releases the old backing.
    ///
    /// `false` if the last reference is gone: then `new` is released as well, and the slot is free.
    pub(crate) fn publish(&self, held: Held, new: Backing, shadow: Option<u16>) -> bool {
        let mut word = held.word();
        loop {
            debug_assert!(word.is_busy() && word.backing() == held.old, "{word:?} is held as {:?}", held.old);
            if word.count() == 0 {
                self.release(&held.cluster, held.slot, new, OldObject::Release);
                self.tear_down(held);
                return false;
            }
            let shadow = shadow.unwrap_or_else(|| word.shadow());
            match held.cluster.swap(held.index, word, word.with_backing(new).with_shadow(shadow).idle()) {
                Ok(()) => break,
                Err(now) => word = now,
            }
        }
        held.cluster.charges().change(held.old, new);
        self.waits.wake(held.slot);
        self.release(&held.cluster, held.slot, held.old, held.old_object);
        true
    }

    /// Gives up busy and leaves the backing as it is.
    pub(crate) fn give_up(&self, held: Held) {
        let mut word = held.word();
        loop {
            debug_assert!(word.is_busy() && word.backing() == held.old, "{word:?} is held as {:?}", held.old);
            if word.count() == 0 {
                return self.tear_down(held);
            }
            match held.cluster.swap(held.index, word, word.idle()) {
                Ok(()) => return self.waits.wake(held.slot),
                Err(now) => word = now,
            }
        }
    }

    /// Frees a slot without references that the caller holds.
    fn tear_down(&self, held: Held) {
        self.clear(&held.cluster, held.index, held.slot, held.old_object);
        self.allocator.put(&held.cluster, 1);
    }

    /// Releases what backs a slot without references, whose busy bit is the caller's, and makes its word free. The
    /// caller gives it back to the allocator.
    pub(crate) fn clear(&self, cluster: &Cluster, index: u32, slot: SlotId, object: OldObject) {
        let old = cluster.word(index).backing();
        self.release(cluster, slot, old, object);
        cluster.charges().slots(old, -1);
        cluster.clear(index);
        self.waits.wake(slot);
    }

    /// Releases what a word no longer names.
    fn release(&self, cluster: &Cluster, slot: SlotId, backing: Backing, object: OldObject) {
        if object == OldObject::Kept {
            return;
        }
        let named = match backing {
            Backing::Cached(frame) => {
                let former = self.frames.former(frame);
                self.frames.release(frame);
                former
            }
            other => other.as_object(),
        };
        if let Some((place, at)) = named {
            cluster.charges().objects(place, -1);
            if object == OldObject::Release && self.tier(place).release(slot, at).is_err() {
                self.damaged(Damage::Misplaced { slot, place, location: at });
            }
        }
    }

    /// Releases an object of a held slot that its frame named as the former backing and no longer does.
    pub(crate) fn release_object(&self, held: &Held, place: Place, at: Location) {
        self.release(&held.cluster, held.slot, Backing::object(place, at), OldObject::Release);
    }

    /// Who keeps the objects of a place.
    pub(crate) fn tier(&self, place: Place) -> &dyn Tier {
        match place {
            Place::Pool => &**self.pool.as_ref().expect("a pool stored the object"),
            Place::Tier(tier) => &*self.tiers[usize::from(tier.0)],
        }
    }
}
