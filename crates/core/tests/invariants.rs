//! The six invariants of the space, one test or more for each.
#![cfg(not(loom))]

mod common;

use common::world::*;
use common::*;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use vswap_core::{GroupId, LoadError, LoadFailure, Loss, PAGE_SIZE, Place, Source, StoreError, Tier, TierId};

#[test]
fn invariant_1_a_page_survives_every_move() {
    let w = world();
    for seed in SEEDS {
        let slot = alloc(&w.space, 1)[0];
        let mut page = [0x77; PAGE_SIZE];
        assert_eq!(w.space.load(slot, &mut page), Err(LoadFailure::NeverStored { slot }));
        assert!(cache(&w.space, slot, seed));
        check(&w.space, slot, seed);
        assert_eq!(w.space.write_out(10).written, 1);
        check(&w.space, slot, seed);
        w.space.clean(u64::MAX);
        check(&w.space, slot, seed);
        w.space.promote_many(&[slot]);
        check(&w.space, slot, seed);
        w.space.clean(u64::MAX);
        w.space.write_out(10);
        check(&w.space, slot, seed);
        w.space.write_back(10);
        check(&w.space, slot, seed);
        w.space.promote_many(&[slot]);
        w.space.write_out(10);
        check(&w.space, slot, seed);
        // Newer bytes replace older ones wherever those are.
        assert!(cache(&w.space, slot, seed + 5));
        check(&w.space, slot, seed + 5);
        store(&w.space, slot, seed + 10).expect("room");
        check(&w.space, slot, seed + 10);
        w.space.free_n(&[slot]);
        assert_eq!(w.space.load(slot, &mut page), Err(LoadFailure::NotAllocated { slot }));
        w.assert_empty();
    }
}

#[test]
fn invariant_1_a_failed_store_leaves_the_older_page() {
    let w = world();
    w.file.set_limit(0);
    for seed in [0, 1, 3] {
        let slot = alloc(&w.space, 1)[0];
        store(&w.space, slot, seed).expect("room");
        assert_eq!(store(&w.space, slot, 4), Err(StoreError::Full));
        check(&w.space, slot, seed);
    }
    w.space.set_max_frames(0);
    let slot = w.in_pool(3);
    assert!(!cache(&w.space, slot, 8));
    check(&w.space, slot, 3);
    w.audit();
}

#[test]
fn invariant_1_a_lost_page_is_an_error_until_it_is_stored_again() {
    for loss in [Loss::Missing, Loss::Corrupt] {
        let w = world();
        let (pooled, filed) = (w.in_pool(3), w.in_file());
        for (tier, slot, place) in [(&w.pool, pooled, Place::Pool), (&w.file, filed, Place::Tier(TierId(0)))]
        {
            if loss == Loss::Missing {
                tier.lose_all_objects();
            } else {
                tier.fail_loads(1, LoadError::Corrupt);
            }
            let mut page = [0x77; PAGE_SIZE];
            let lost = Err(LoadFailure::Lost { slot, place, loss });
            assert_eq!(w.space.load(slot, &mut page), lost);
            tier.fail_loads(0, LoadError::Corrupt);
            assert_eq!(w.space.load(slot, &mut page), lost, "it stays lost");
            assert_eq!(w.space.promote_many(&[slot]), 0);
            w.audit();
        }
        assert_eq!(w.space.usage().lost, 2);
        store(&w.space, pooled, 8).expect("room");
        check(&w.space, pooled, 8);
        w.space.free_n(&[pooled, filed]);
        w.assert_empty();
    }
}

#[test]
fn invariant_1_an_unreadable_device_is_an_error_and_the_copy_stays() {
    let w = world();
    let slot = w.in_file();
    w.file.fail_loads(1, LoadError::Io(5));
    let mut page = [0x77; PAGE_SIZE];
    let failure = w.space.load(slot, &mut page).expect_err("the device fails");
    assert!(matches!(failure, LoadFailure::Io { errno: 5, .. }), "{failure}");
    w.file.fail_loads(0, LoadError::Io(5));
    assert_eq!(check(&w.space, slot, 4), TIER);
}

#[test]
fn invariant_2_a_device_page_is_not_released_while_it_is_read() {
    within_seconds(20, || {
        let w = world();
        let slot = w.in_file();
        // Another holder stores anew while the device reads: it has to wait (the tier checks that as well).
        let stored = Arc::new(AtomicBool::new(false));
        let (threads, joins) = mpsc::channel();
        let flag = stored.clone();
        let space = w.space.clone();
        let done = w.once(&w.file, At::Loading, move |_| {
            let (space, flag) = (space.clone(), flag.clone());
            let thread = std::thread::spawn(move || {
                store(&space, slot, 3).expect("room");
                flag.store(true, SeqCst);
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(!stored.load(SeqCst), "the backing changed during the read");
            threads.send(thread).expect("listened to");
        });
        let mut page = [0x77; PAGE_SIZE];
        assert_eq!(w.space.load(slot, &mut page), Ok(TIER));
        assert!(page == page_of(4) && done.load(SeqCst));
        joins.recv().expect("one").join().expect("stored");
        check(&w.space, slot, 3);
        assert_eq!(w.file.objects(), 0);
        w.file.clear_hook();
        w.space.free_n(&[slot]);
        w.assert_empty();
    });
}

#[test]
fn invariant_2_each_object_is_released_once() {
    // The tiers of the tests panic at a second release; the audit finds those that never came.
    let w = world();
    let slots: Vec<_> = (0..50).map(|i| w.in_pool(3 + 5 * i)).collect();
    w.space.dup_n(&slots);
    w.space.promote_many(&slots[..20]);
    w.space.write_back(10);
    w.space.clean(u64::MAX);
    w.space.free_n(&slots);
    w.audit();
    assert_eq!(w.pool.objects() + w.file.objects(), 50);
    let mut pages = vec![[0; PAGE_SIZE]; 50];
    let mut out = Vec::new();
    w.space.take_many(&slots, &mut pages, &mut out);
    assert!(out.iter().all(Result::is_ok));
    w.assert_empty();
}

#[test]
fn invariant_3_metadata_outlives_every_refusal() {
    let w = world();
    w.file.refuse(|_| Some(StoreError::Io(5)));
    let slot = w.cached(4);
    w.space.dup_n(&[slot, slot]);
    // Refused as incompressible by the pool, failed by the file.
    let out = w.space.write_out(10);
    assert_eq!((out.written, out.stuck), (0, Some(StoreError::Io(5))));
    assert_eq!((check(&w.space, slot, 4), w.space.references(slot)), (Source::Cached, 3));
    assert_eq!(w.space.refault_distance(slot), None, "it was not evicted");
    // A failing writeback.
    let cold = w.cached(3);
    w.space.dup_n(&[cold]);
    assert_eq!(w.space.write_out(10).pooled, 1);
    let distance = w.space.refault_distance(cold);
    assert!(distance.is_some());
    assert_eq!(w.space.write_back(10).stuck, Some(StoreError::Io(5)));
    assert_eq!((check(&w.space, cold, 3), w.space.references(cold)), (Source::Pool, 2));
    assert_eq!(w.space.refault_distance(cold), distance);
    // An exclusive load of one of several references.
    let mut page = [[0; PAGE_SIZE]];
    let mut outcome = Vec::new();
    w.space.take_many(&[cold], &mut page, &mut outcome);
    assert_eq!(outcome, [Ok(Source::Pool)]);
    assert_eq!((check(&w.space, cold, 3), w.space.references(cold)), (Source::Pool, 1));
    assert_eq!(w.space.group_usage(GROUP).slots, 2);
    w.audit();
}

#[test]
fn invariant_4_the_backing_is_chosen_at_writeout_from_the_content() {
    let w = world();
    let slots: Vec<_> = SEEDS.iter().map(|seed| w.cached(*seed)).collect();
    assert_eq!(w.space.usage().cached, 5);
    let out = w.space.write_out(100);
    assert_eq!((out.written, out.zero, out.filled, out.pooled, out.tiered, out.stuck), (5, 1, 1, 2, 1, None));
    let sources: Vec<_> = slots.iter().zip(SEEDS).map(|(slot, seed)| check(&w.space, *slot, seed)).collect();
    assert_eq!(sources, [Source::Pool, TIER, Source::Zero, Source::Filled, Source::Pool]);
    // Room in the pool is looked for at writeout, not when the page came.
    let late = w.cached(13);
    w.pool.set_limit(0);
    w.space.write_out(1);
    assert_eq!(check(&w.space, late, 13), TIER);
    w.audit();
}

#[test]
fn invariant_5_each_group_is_charged_for_its_own() {
    let w = world();
    let mut all = Vec::new();
    for group in 0..3u16 {
        let mut slots = Vec::new();
        w.space.alloc_n(GroupId(group), 700, &mut slots).expect("memory");
        let pages: Vec<_> =
            (0..700).map(|i| page_of(if i < 20 { 3 } else { u64::from(group == 0) })).collect();
        let batch: Vec<_> = slots.iter().copied().zip(&pages).take(100 * usize::from(group + 1)).collect();
        let mut out = Vec::new();
        w.space.store_many(&batch, &mut out);
        assert!(out.iter().all(Result::is_ok));
        all.push(slots);
    }
    w.space.promote_many(&all[1][..5]);
    let (one, two) = (w.space.group_usage(GroupId(1)), w.space.group_usage(GroupId(2)));
    assert_eq!(
        (one.slots, one.reserved, one.pooled, one.zero, one.cached, one.pool_objects),
        (700, 500, 15, 180, 5, 20)
    );
    assert_eq!((two.slots, two.reserved, two.pooled, two.zero), (700, 400, 20, 280));
    w.audit();
    for slots in &all {
        w.space.free_n(slots);
    }
    assert_eq!(w.space.group_usage(GroupId(1)).slots, 0);
    assert_eq!(w.space.group_usage(GroupId(9)).slots, 0, "a group that never was");
    w.assert_empty();
}

#[test]
fn invariant_6_swapoff_empties_the_tier_or_leaves_it_in_service() {
    let w = world();
    let slots: Vec<_> = (0..600).map(|_| w.in_file()).collect();
    w.space.promote_many(&slots[..10]);
    assert_eq!(w.space.usage().tier_objects, [600]);
    // No other place but frames, and of those there are too few.
    let off = w.space.swap_off(TierId(0), 1000);
    assert!(off.stuck.is_some() && off.left > 0);
    assert_eq!(off.left, w.file.objects());
    w.audit();
    for slot in &slots {
        check(&w.space, *slot, 4);
    }
    // Undone: it takes pages again.
    w.space.swap_on(TierId(0));
    w.in_file();
    // With room elsewhere it ends with nothing in the tier, in small steps that can stop anywhere.
    w.pool.refuse_nothing();
    let mut moved = 0;
    loop {
        let off = w.space.swap_off(TierId(0), 7);
        assert!(off.moved <= 7 && off.stuck.is_none());
        moved += off.moved;
        if off.left == 0 {
            break;
        }
        assert!(off.moved > 0, "no progress");
        w.audit();
    }
    assert!(moved > 400 && w.file.objects() == 0);
    for slot in &slots {
        check(&w.space, *slot, 4);
    }
    w.audit();
}
