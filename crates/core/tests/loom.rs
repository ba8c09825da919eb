//! Every interleaving of small histories, on the whole space with small clusters (4 slots) and slabs (2 frames).
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p vswap-core --release --test loom`
#![cfg(loom)]

use loom::thread;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use vswap_core::{
    GroupId, LoadError, Location, NotThere, Owner, PAGE_SIZE, Page, Relocated, SlotId, Source, SpaceConfig,
    StoreError, Tier, TierUsage, VirtualSwap,
};

/// Preemptions explored: almost all bugs of this kind need no more than two; a frame that is another's for a moment
/// needs three.
const PREEMPTIONS: usize = 3;

/// A tier whose every operation is one step; panics at a second release. Its lock is not the model's.
#[derive(Default)]
struct Fake {
    objects: Mutex<HashMap<u64, (SlotId, u8)>>,
}

impl Fake {
    fn put(&self, slot: SlotId, byte: u8) -> Location {
        let mut objects = self.objects.lock().expect("tier");
        // The lowest place: reuse as early as can be.
        let at = (0..).find(|at| !objects.contains_key(at)).expect("endless");
        objects.insert(at, (slot, byte));
        Location::new(at).expect("small")
    }

    fn remove(&self, slot: SlotId, at: Location) {
        let object = self.objects.lock().expect("tier").remove(&at.get());
        assert_eq!(object.map(|(owner, _)| owner), Some(slot), "released twice, or another's");
    }

    fn find(&self, slot: SlotId) -> Option<(Location, u8)> {
        let objects = self.objects.lock().expect("tier");
        let found = objects.iter().find(|(_, (owner, _))| *owner == slot);
        found.map(|(at, (_, byte))| (Location::new(*at).expect("small"), *byte))
    }

    fn is_empty(&self) -> bool {
        self.objects.lock().expect("tier").is_empty()
    }

    /// One step of a cleaner: moves the object of `slot`, if there is one.
    fn clean_one(&self, space: &VirtualSwap, slot: SlotId) -> Option<Relocated> {
        let (old, byte) = self.find(slot)?;
        let new = self.put(slot, byte);
        let outcome = space.relocate(slot, old, new);
        self.remove(slot, if outcome == Relocated::Moved { old } else { new });
        Some(outcome)
    }
}

impl Tier for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    fn store(&self, pages: &[(SlotId, &Page)], out: &mut Vec<Result<Location, StoreError>>) {
        for (slot, page) in pages {
            out.push(Ok(self.put(*slot, page[0])));
        }
    }

    fn load(&self, slot: SlotId, at: Location, into: &mut Page) -> Result<(), LoadError> {
        let objects = self.objects.lock().expect("tier");
        match objects.get(&at.get()) {
            Some((owner, byte)) if *owner == slot => *into = page(*byte),
            _ => return Err(LoadError::Stale),
        }
        Ok(())
    }

    fn release(&self, slot: SlotId, at: Location) -> Result<(), NotThere> {
        self.remove(slot, at);
        Ok(())
    }

    fn usage(&self) -> TierUsage {
        TierUsage { objects: self.objects.lock().expect("tier").len() as u64, ..TierUsage::default() }
    }

    fn set_limit(&self, _bytes: u64) {}

    fn coldest(&self, max: usize, out: &mut Vec<(SlotId, Location)>) {
        let objects = self.objects.lock().expect("tier");
        let mut all: Vec<_> = objects.iter().map(|(at, (slot, _))| (*at, *slot)).collect();
        all.sort_unstable();
        out.extend(all.into_iter().take(max).map(|(at, slot)| (slot, Location::new(at).expect("small"))));
    }
}

/// A page that is not filled with one value.
fn page(byte: u8) -> Page {
    let mut page = [byte; PAGE_SIZE];
    page[PAGE_SIZE - 1] = !byte;
    page
}

struct World {
    space: VirtualSwap,
    pool: Arc<Fake>,
    file: Arc<Fake>,
}

impl World {
    fn new(max_frames: usize) -> Arc<Self> {
        let (pool, file) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
        let config = SpaceConfig { pool: Some(pool.clone()), tiers: vec![file.clone()], max_frames };
        Arc::new(Self { space: VirtualSwap::new(config), pool, file })
    }

    fn alloc(&self, n: usize) -> Vec<SlotId> {
        let mut slots = Vec::new();
        self.space.alloc_n(GroupId(0), n, &mut slots).expect("memory");
        slots
    }

    fn store(&self, slot: SlotId, byte: u8) {
        let mut out = Vec::new();
        self.space.store_many(&[(slot, &page(byte))], &mut out);
        assert_eq!(out, [Ok(())]);
    }

    fn pooled(&self, byte: u8) -> SlotId {
        let slot = self.alloc(1)[0];
        self.store(slot, byte);
        slot
    }

    fn cache(&self, slot: SlotId, byte: u8) -> bool {
        self.space.cache_many(&[(slot, &page(byte))]) == 1
    }

    fn load(&self, slot: SlotId) -> (u8, Source) {
        let mut into = [0; PAGE_SIZE];
        let source = self.space.load(slot, &mut into).unwrap_or_else(|e| panic!("{e}"));
        assert!(into == page(into[0]), "torn");
        (into[0], source)
    }

    fn free(&self, slot: SlotId) {
        self.space.free_n(&[slot]);
    }

    fn assert_empty(&self) {
        assert!(self.pool.is_empty() && self.file.is_empty(), "an object is left");
        let usage = self.space.usage();
        assert_eq!((usage.slots, usage.frames, usage.pool_objects), (0, 0, 0));
        assert!(usage.clusters <= 1);
        assert_eq!(usage, self.space.recount());
    }
}

fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 100_000;
    builder.check(test);
}

/// Runs `work` in a thread of the model.
fn spawn<R: 'static>(w: &Arc<World>, work: impl FnOnce(&World) -> R + 'static) -> thread::JoinHandle<R> {
    let w = w.clone();
    thread::spawn(move || work(&w))
}

#[test]
fn the_last_free_against_writeback() {
    model(|| {
        let w = World::new(0);
        let slot = w.pooled(7);
        let mover = spawn(&w, |w| w.space.write_back(1).written);
        w.free(slot);
        mover.join().expect("moved or passed");
        w.assert_empty();
    });
}

#[test]
fn the_last_free_against_write_out() {
    model(|| {
        let w = World::new(2);
        let slot = w.alloc(1)[0];
        assert!(w.cache(slot, 7));
        let writer = spawn(&w, |w| w.space.write_out(1).written);
        w.free(slot);
        writer.join().expect("written or passed");
        w.assert_empty();
    });
}

#[test]
fn a_load_against_write_out_and_writeback() {
    model(|| {
        let w = World::new(2);
        let slot = w.alloc(1)[0];
        assert!(w.cache(slot, 7));
        let mover = spawn(&w, |w| {
            w.space.write_out(1);
            w.space.write_back(1);
        });
        assert_eq!(w.load(slot).0, 7);
        mover.join().expect("moved");
        assert_eq!(w.load(slot).0, 7);
        w.free(slot);
        w.assert_empty();
    });
}

#[test]
fn dup_against_free() {
    model(|| {
        let w = World::new(0);
        let slot = w.pooled(7);
        w.space.dup_n(&[slot]);
        let other = spawn(&w, move |w| {
            w.space.dup_n(&[slot]);
            w.free(slot);
            w.free(slot);
        });
        w.free(slot);
        other.join().expect("counted");
        w.assert_empty();
    });
}

#[test]
fn dup_and_free_against_a_publisher() {
    model(|| {
        let w = World::new(0);
        let slot = w.pooled(7);
        let mover = spawn(&w, |w| w.space.write_back(1).written);
        w.space.dup_n(&[slot]);
        w.free(slot);
        mover.join().expect("moved");
        assert_eq!(w.space.references(slot), 1);
        assert_eq!(w.load(slot).0, 7);
        w.free(slot);
        w.assert_empty();
    });
}

#[test]
fn a_count_overflows_and_comes_back() {
    model(|| {
        let w = World::new(0);
        let slot = w.alloc(1)[0];
        // One below the border, which both threads cross upwards and one downwards.
        (0..125).for_each(|_| w.space.dup_n(&[slot]));
        let other = spawn(&w, move |w| {
            w.space.dup_n(&[slot; 2]);
            w.free(slot);
        });
        w.space.dup_n(&[slot; 2]);
        other.join().expect("counted");
        assert_eq!(w.space.references(slot), 129);
        // Down to the border where a batch comes back, from both sides.
        (0..65).for_each(|_| w.free(slot));
        let other = spawn(&w, move |w| w.space.free_n(&[slot; 2]));
        w.free(slot);
        w.space.dup_n(&[slot]);
        other.join().expect("counted");
        assert_eq!(w.space.references(slot), 62);
        w.space.free_n(&[slot; 62]);
        w.assert_empty();
    });
}

#[test]
fn a_cluster_is_freed_while_it_is_wanted() {
    model(|| {
        let w = World::new(0);
        // The first cluster is on the list with one slot in use; the second is current and full.
        let slots = w.alloc(8);
        w.space.free_n(&slots[..3]);
        let last = slots[3];
        let freer = spawn(&w, move |w| w.free(last));
        let new = w.alloc(2);
        freer.join().expect("freed");
        assert!(new[0] != new[1] && !new.iter().any(|slot| slots[4..].contains(slot)), "given twice");
        for slot in &new {
            assert_eq!(w.space.references(*slot), 1);
        }
        w.space.free_n(&new);
        w.space.free_n(&slots[4..]);
        w.assert_empty();
    });
}

#[test]
fn a_walker_looks_up_a_cluster_that_is_freed_and_made_anew() {
    model(|| {
        let w = World::new(0);
        let slots = w.alloc(8);
        w.space.free_n(&slots[1..4]);
        let slot = slots[0];
        w.store(slot, 7);
        let walker = spawn(&w, move |w| w.pool.clean_one(&w.space, slot));
        w.free(slot);
        // May be in the very cluster of the same number.
        let new = w.alloc(1);
        walker.join().expect("walked");
        assert_eq!(w.space.references(new[0]), 1);
        w.space.free_n(&new);
        w.space.free_n(&slots[4..]);
        w.assert_empty();
    });
}

#[test]
fn two_frees_empty_a_cluster() {
    model(|| {
        let w = World::new(0);
        let slots = w.alloc(8);
        w.space.free_n(&slots[..2]);
        let (a, b) = (slots[2], slots[3]);
        let freer = spawn(&w, move |w| w.free(a));
        w.free(b);
        freer.join().expect("freed");
        assert_eq!(w.space.usage().clusters, 1);
        w.space.free_n(&slots[4..]);
        w.assert_empty();
    });
}

#[test]
fn a_cleaner_against_load_and_free() {
    model(|| {
        let w = World::new(0);
        let slot = w.pooled(7);
        let cleaner = spawn(&w, move |w| w.pool.clean_one(&w.space, slot));
        assert_eq!(w.load(slot), (7, Source::Pool));
        w.free(slot);
        cleaner.join().expect("cleaned");
        w.assert_empty();
    });
}

#[test]
fn a_cleaner_against_writeback() {
    model(|| {
        let w = World::new(0);
        let slot = w.pooled(7);
        let cleaner = spawn(&w, move |w| w.pool.clean_one(&w.space, slot));
        w.space.write_back(1);
        cleaner.join().expect("cleaned");
        assert_eq!(w.load(slot).0, 7);
        w.free(slot);
        w.assert_empty();
    });
}

#[test]
fn a_cleaner_against_a_former_backing_that_is_put_back() {
    model(|| {
        let w = World::new(2);
        let slot = w.pooled(7);
        assert_eq!(w.space.promote_many(&[slot]), 1);
        let cleaner = spawn(&w, move |w| w.pool.clean_one(&w.space, slot));
        let out = w.space.write_out(1);
        cleaner.join().expect("cleaned");
        assert!(out.clean <= 1);
        assert_eq!(w.load(slot).0, 7);
        w.free(slot);
        w.assert_empty();
    });
}

#[test]
fn a_cleaner_against_the_last_free_of_a_promoted_slot() {
    model(|| {
        let w = World::new(2);
        let slot = w.pooled(7);
        assert_eq!(w.space.promote_many(&[slot]), 1);
        let cleaner = spawn(&w, move |w| w.pool.clean_one(&w.space, slot));
        w.free(slot);
        cleaner.join().expect("cleaned");
        w.assert_empty();
    });
}

#[test]
fn a_frame_that_is_reused_is_not_taken_for_the_slots() {
    model(|| {
        let w = World::new(2);
        let slots = w.alloc(2);
        let (slot, other) = (slots[0], slots[1]);
        assert!(w.cache(slot, 7));
        // The slot's frame goes to another slot, and a frame comes back with newer bytes.
        let writer = spawn(&w, move |w| {
            w.store(slot, 8);
            assert!(w.cache(other, 100));
            w.store(other, 101);
            assert!(w.cache(slot, 9));
        });
        let first = w.load(slot).0;
        let second = w.load(slot).0;
        assert!((7..=9).contains(&first) && first <= second && second <= 9, "{first} and then {second}");
        writer.join().expect("written");
        assert_eq!(w.load(slot).0, 9);
        w.space.free_n(&slots);
        w.assert_empty();
    });
}

#[test]
fn two_stores_of_one_slot() {
    model(|| {
        let w = World::new(2);
        let slot = w.alloc(1)[0];
        w.space.dup_n(&[slot]);
        let other = spawn(&w, move |w| {
            w.store(slot, 8);
            w.free(slot);
        });
        assert!(w.cache(slot, 9));
        other.join().expect("stored");
        assert!([8, 9].contains(&w.load(slot).0));
        w.free(slot);
        w.assert_empty();
    });
}

#[test]
fn swapoff_against_load_and_free() {
    model(|| {
        let w = World::new(0);
        let slot = w.pooled(7);
        assert_eq!(w.space.write_back(1).written, 1);
        let drainer = spawn(&w, |w| w.space.swap_off(vswap_core::TierId(0), 1).moved);
        assert_eq!(w.load(slot).0, 7);
        w.free(slot);
        drainer.join().expect("drained");
        w.assert_empty();
    });
}
