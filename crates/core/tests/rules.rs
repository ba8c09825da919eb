//! The rules of who may do what, a test for each, which fails when its rule is broken: what another thread would do at
//! the worst moment is done by a hook in the middle of a tier's operation.
#![cfg(not(loom))]

mod common;

use common::world::*;
use common::*;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use vswap_core::{Location, Owner, Relocated, SlotId, Source, StoreError, Tier, TierId, VirtualSwap};

#[test]
fn a_walker_asks_the_frame_for_the_former_backing() {
    let w = world();
    let slot = w.in_pool(3);
    assert_eq!(w.space.promote_many(&[slot]), 1);
    let old = w.location(&w.pool, slot);
    // By the word alone the slot is cached and the object dead: it would be dropped, and the clean frame after it.
    assert_eq!(w.space.clean(u64::MAX).moved, 1);
    assert_ne!(w.location(&w.pool, slot), old);
    let out = w.space.write_out(10);
    assert_eq!((out.written, out.clean), (1, 1));
    assert_eq!(check(&w.space, slot, 3), Source::Pool);
    w.space.free_n(&[slot]);
    w.assert_empty();
}

#[test]
fn a_walker_learns_that_a_freed_slot_is_gone() {
    let w = world();
    let at = Location::new(1).expect("small");
    let never = SlotId::new(1 << 30).expect("a slot");
    assert_eq!(w.space.relocate(never, at, at), Relocated::Gone);
    let slots = alloc(&w.space, 2000);
    w.space.free_n(&slots);
    for slot in &slots {
        assert_eq!(w.space.relocate(*slot, at, at), Relocated::Gone);
    }
    // A slot that names another object, or none.
    let slot = w.in_pool(3);
    let elsewhere = Location::new(77).expect("small");
    assert_eq!(w.space.relocate(slot, elsewhere, at), Relocated::Gone);
    check(&w.space, slot, 3);
}

#[test]
fn a_walker_passes_over_objects_that_are_not_the_slots_any_more() {
    let w = world();
    let (moved, stored, freed, cached) = (w.in_pool(3), w.in_pool(8), w.in_pool(13), w.in_pool(18));
    let before: Vec<_> = w.pool.locations();
    store(&w.space, stored, 0).expect("a word");
    w.space.free_n(&[freed]);
    w.space.promote_many(&[cached]);
    w.space.clean(u64::MAX);
    assert_ne!(w.location(&w.pool, moved), before[0].1);
    w.pool.offer(before);
    let back = w.space.write_back(4);
    assert_eq!((back.written, back.passed, back.lost, back.stuck), (0, 4, 0, None));
    assert_eq!(check(&w.space, moved, 3), Source::Pool);
    assert_eq!(check(&w.space, cached, 18), Source::Cached);
    w.audit();
}

#[test]
fn a_backing_changes_only_under_busy() {
    let w = world();
    let slot = w.cached(3);
    let pool = w.pool.clone();
    let done = w.once(&w.pool, At::Stored, move |space| {
        // The object exists and the word does not name it yet: walkers must leave it alone, and not call it gone.
        let at = pool.locations()[0].1;
        let elsewhere = Location::new(500).expect("small");
        assert_eq!(space.relocate(slot, at, elsewhere), Relocated::Busy);
        assert_eq!(space.write_back(10).written, 0);
        assert_eq!(space.promote_many(&[slot]), 0);
        assert_eq!(space.write_out(10).written, 0);
        assert_eq!(check(space, slot, 3), Source::Cached, "loads go on");
    });
    assert_eq!(w.space.write_out(10).pooled, 1);
    assert!(done.load(SeqCst));
    check(&w.space, slot, 3);
    w.audit();
}

#[test]
fn a_store_waits_for_a_transition_of_its_slot() {
    within_seconds(20, || {
        let w = world();
        let slot = w.cached(3);
        let (threads, joins) = mpsc::channel();
        let space = w.space.clone();
        let done = w.once(&w.pool, At::Stored, move |_| {
            let space = space.clone();
            let thread = std::thread::spawn(move || assert!(cache(&space, slot, 8)));
            std::thread::sleep(Duration::from_millis(30));
            threads.send(thread).expect("listened to");
        });
        w.space.write_out(10);
        assert!(done.load(SeqCst));
        joins.recv().expect("one").join().expect("cached");
        // The write-out was of the older page; published last it would bring that back.
        check(&w.space, slot, 8);
        w.audit();
    });
}

#[test]
fn count_and_shadow_change_at_any_time_and_publishing_keeps_them() {
    let w = world();
    let slot = w.cached(3);
    let done = w.once(&w.pool, At::Stored, move |space| {
        space.dup_n(&[slot; 300]);
        space.free_n(&[slot; 100]);
    });
    w.space.write_out(10);
    assert!(done.load(SeqCst));
    assert_eq!(w.space.references(slot), 201);
    let shadow = w.space.refault_distance(slot);
    assert_eq!(shadow, Some(0));
    // Writeback changes the backing, and neither of the two.
    let done = w.once(&w.file, At::Stored, move |space| space.free_n(&[slot; 200]));
    assert_eq!(w.space.write_back(10).written, 1);
    assert!(done.load(SeqCst));
    assert_eq!((w.space.references(slot), w.space.refault_distance(slot)), (1, shadow));
    assert_eq!(check(&w.space, slot, 3), TIER);
}

#[test]
fn the_holder_releases_both_backings_after_the_last_free() {
    type Start = fn(&World) -> SlotId;
    type Move = fn(&World, SlotId) -> bool;
    let cases: [(&str, Start, Move, bool); 7] = [
        ("write-out to the pool", |w| w.cached(3), |w, _| w.space.write_out(10).written > 0, true),
        ("write-out to the file", |w| w.cached(4), |w, _| w.space.write_out(10).written > 0, true),
        ("writeback", |w| w.in_pool(3), |w, _| w.space.write_back(10).written > 0, true),
        ("store over a pool object", |w| w.in_pool(3), |w, slot| store(&w.space, slot, 8).is_ok(), true),
        ("store over a frame", |w| w.cached(3), |w, slot| store(&w.space, slot, 8).is_ok(), true),
        ("promotion", |w| w.in_file(), |w, slot| w.space.promote_many(&[slot]) == 0, false),
        (
            "swapoff",
            |w| w.in_file(),
            |w, _| {
                w.pool.refuse_nothing();
                w.space.swap_off(TierId(0), 10).left == 0
            },
            false,
        ),
    ];
    for (name, start, act, storing) in cases {
        let w = world();
        let slot = start(&w);
        let at = if storing { At::Stored } else { At::Loading };
        let freed = Arc::new(AtomicUsize::new(0));
        for tier in [&w.pool, &w.file] {
            let (space, freed) = (Arc::downgrade(&w.space), freed.clone());
            tier.set_hook(move |now, s| {
                if now == at && s == slot && freed.fetch_add(1, SeqCst) == 0 {
                    space.upgrade().expect("in use").free_n(&[slot]);
                }
            });
        }
        assert!(act(&w, slot), "{name}");
        assert!(freed.load(SeqCst) > 0, "{name}: the hook ran");
        w.assert_empty();
        // The slot can be allocated again.
        assert!(alloc(&w.space, 600).contains(&slot), "{name}");
    }
}

#[test]
fn a_failing_move_whose_slot_is_freed_meanwhile_leaves_nothing() {
    let w = world();
    let slot = w.in_pool(3);
    w.file.set_limit(0);
    let done = w.once(&w.pool, At::Loading, move |space| space.free_n(&[slot]));
    w.space.write_back(10);
    assert!(done.load(SeqCst));
    w.assert_empty();
}

#[test]
fn a_cleaner_and_the_last_free_leave_one_copy_to_nobody() {
    let w = world();
    let slot = w.in_pool(3);
    // Freed between the copy and the relocation: the answer is Gone, and the release has come.
    let done = w.once(&w.pool, At::Relocating, move |space| space.free_n(&[slot]));
    w.space.clean(u64::MAX);
    assert!(done.load(SeqCst));
    w.assert_empty();
}

#[test]
fn a_load_whose_object_moves_meanwhile_tries_again() {
    type Act = fn(&VirtualSwap, SlotId);
    let acts: [(&str, Act, u64, Source); 4] = [
        ("cleaned", |space, _| assert_eq!(space.clean(u64::MAX).moved, 1), 3, Source::Pool),
        ("written back", |space, _| assert_eq!(space.write_back(1).written, 1), 3, TIER),
        ("promoted", |space, slot| assert_eq!(space.promote_many(&[slot]), 1), 3, Source::Cached),
        ("stored anew", |space, slot| store(space, slot, 8).expect("room"), 8, Source::Pool),
    ];
    for (name, act, seed, source) in acts {
        let w = world();
        let slot = w.in_pool(3);
        let done = w.once(&w.pool, At::Loading, move |space| act(space, slot));
        let found = check(&w.space, slot, seed);
        assert!(done.load(SeqCst), "{name}");
        assert_eq!(found, source, "{name}");
        w.audit();
    }
}

#[test]
fn a_reused_location_is_not_taken_for_the_older_object() {
    // The slot's object goes, another slot's takes its place in the pool, and then that is gone too and the place is
    // the first slot's again, with newer bytes: all during one load.
    let w = world();
    let (slot, other) = (w.in_pool(3), alloc(&w.space, 1)[0]);
    let done = w.once(&w.pool, At::Loading, move |space| {
        store(space, slot, 0).expect("a word");
        store(space, other, 8).expect("room");
        store(space, other, 0).expect("a word");
        store(space, slot, 13).expect("room");
    });
    assert_eq!(check(&w.space, slot, 13), Source::Pool);
    assert!(done.load(SeqCst));
}

#[test]
fn no_lock_is_held_while_a_tier_works() {
    within_seconds(20, || {
        let w = world();
        let other = w.cached(3);
        let pooled = w.in_pool(8);
        let (used, depth) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for tier in [&w.pool, &w.file] {
            let (space, used, depth) = (Arc::downgrade(&w.space), used.clone(), depth.clone());
            tier.set_hook(move |_, _| {
                // What is done here reaches tiers itself.
                if depth.fetch_add(1, SeqCst) == 0 {
                    let space = space.upgrade().expect("in use");
                    space.swap_on(TierId(0));
                    let slots = alloc(&space, 3);
                    assert!(cache(&space, slots[0], 3));
                    store(&space, slots[1], 3).expect("room");
                    store(&space, slots[2], 4).expect("room");
                    check(&space, slots[0], 3);
                    check(&space, slots[2], 4);
                    // Not the slots outside: what this very thread holds it would wait for.
                    space.promote_many(&slots[1..]);
                    space.usage();
                    space.write_out(2);
                    space.write_back(2);
                    space.clean(10);
                    space.swap_off(TierId(0), 1);
                    space.swap_on(TierId(0));
                    space.dup_n(&slots);
                    space.free_n(&slots);
                    space.free_n(&slots);
                    used.fetch_add(1, SeqCst);
                }
                depth.fetch_sub(1, SeqCst);
            });
        }
        let slots: Vec<_> = (0..4).map(|i| w.cached(3 + i % 2)).collect();
        w.space.write_out(3);
        w.space.write_back(3);
        let filed = alloc(&w.space, 1)[0];
        store(&w.space, filed, 4).expect("room");
        check(&w.space, filed, 4);
        check(&w.space, pooled, 8);
        w.space.clean(u64::MAX);
        w.space.swap_off(TierId(0), 1);
        w.space.free_n(&slots);
        assert!(used.load(SeqCst) > 8);
        w.pool.clear_hook();
        w.file.clear_hook();
        w.space.free_n(&[other, pooled, filed]);
        w.assert_empty();
    });
}

#[test]
fn a_move_writes_publishes_and_then_releases() {
    let w = world();
    let slot = w.in_pool(3);
    w.pool.take_log();
    let space = Arc::downgrade(&w.space);
    let order = Arc::new(AtomicUsize::new(0));
    let (first, second) = (order.clone(), order.clone());
    w.file.set_hook(move |at, _| {
        if at == At::Stored {
            assert_eq!(first.fetch_add(1, SeqCst), 0);
        }
    });
    w.pool.set_hook(move |at, _| {
        if at == At::Releasing {
            assert_eq!(second.fetch_add(1, SeqCst), 1, "released before it was stored elsewhere");
            let space = space.upgrade().expect("in use");
            assert_eq!(check(&space, slot, 3), TIER, "released before it was published");
        }
    });
    assert_eq!(w.space.write_back(10).written, 1);
    assert_eq!(order.load(SeqCst), 2);
}

#[test]
fn a_failed_move_leaves_the_old_backing_and_clears_busy() {
    let w = world();
    let slot = w.in_pool(3);
    let before = w.location(&w.pool, slot);
    w.file.set_limit(0);
    assert_eq!(w.space.write_back(10).stuck, Some(StoreError::Full));
    assert_eq!(w.location(&w.pool, slot), before);
    assert_eq!(check(&w.space, slot, 3), Source::Pool);
    w.file.set_limit(10);
    assert_eq!(w.space.write_back(10).written, 1, "busy was cleared");
}

#[test]
fn swapoff_closes_the_tier_before_it_empties_it() {
    let w = world();
    let slot = w.in_file();
    w.pool.refuse_nothing();
    let done = w.once(&w.file, At::Loading, |space| {
        // What is stored while the tier is drained goes elsewhere.
        let slot = alloc(space, 1)[0];
        store(space, slot, 4).expect("room in the pool");
        assert_eq!(check(space, slot, 4), Source::Pool);
    });
    assert_eq!(w.space.swap_off(TierId(0), 10).left, 0);
    assert!(done.load(SeqCst));
    assert_eq!(check(&w.space, slot, 4), Source::Pool);
}

#[test]
fn stuck_pages_keep_their_place_at_the_head() {
    let w = world();
    w.file.set_limit(0);
    let stuck: Vec<_> = (0..70).map(|_| w.cached(4)).collect();
    let later: Vec<_> = (0..10).map(|_| w.cached(3)).collect();
    // They are in the way the first time; what comes after them is written all the same.
    let out = w.space.write_out(5);
    assert_eq!((out.written, out.stuck), (0, Some(StoreError::Full)));
    let no_file = space(&w.pool, &[], 100);
    let slots = alloc(&no_file, 80);
    for (i, slot) in slots.iter().enumerate() {
        assert!(cache(&no_file, *slot, if i < 70 { 4 } else { 3 }));
    }
    let out = no_file.write_out(10);
    assert_eq!((out.written, out.pooled, out.stuck), (10, 10, Some(StoreError::Incompressible)));
    assert_eq!(no_file.write_out(10).written, 0);
    for (i, slot) in slots.iter().enumerate() {
        check(&no_file, *slot, if i < 70 { 4 } else { 3 });
    }
    no_file.free_n(&slots);
    drop(no_file);
    w.file.set_limit(1000);
    assert_eq!(w.space.write_out(70).tiered, 70, "the oldest first");
    for slot in stuck {
        assert_eq!(check(&w.space, slot, 4), TIER);
    }
    for slot in later {
        assert_eq!(check(&w.space, slot, 3), Source::Cached);
    }
}

#[test]
fn counts_overflow_and_come_back_under_contention() {
    let w = world();
    let slot = w.in_pool(3);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..50 {
                    for _ in 0..100 {
                        w.space.dup_n(&[slot]);
                    }
                    w.space.free_n(&vec![slot; if round == 49 { 99 } else { 100 }]);
                }
            });
        }
    });
    assert_eq!(w.space.references(slot), 5);
    w.space.free_n(&[slot; 5]);
    w.assert_empty();
}

#[test]
fn a_batch_may_name_a_slot_twice() {
    let w = world();
    let slot = alloc(&w.space, 1)[0];
    let (a, b) = (page_of(3), page_of(8));
    let mut out = Vec::new();
    w.space.store_many(&[(slot, &a), (slot, &b)], &mut out);
    assert_eq!(out, [Ok(()), Ok(())]);
    check(&w.space, slot, 8);
    assert_eq!(w.space.cache_many(&[(slot, &b), (slot, &a)]), 2);
    check(&w.space, slot, 3);
    w.audit();
}

#[test]
fn threads_that_die_leave_nothing_behind() {
    let w = world();
    for _ in 0..40 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let slots = alloc(&w.space, 100);
                w.space.free_n(&slots);
            });
        });
    }
    assert!(w.space.usage().clusters <= 8, "one for each shard at most");
    w.assert_empty();
}
