//! What only the inside of the pool can show: bits that rot, who is in which segment, and that every account equals a
//! recount of the segments.

use super::object::{HEADER, location, place};
use super::segment::{Role, SEGMENT, Walk};
use super::*;
use std::collections::HashMap;
use vswap_core::{PAGE_SIZE, Relocated};

const WASTE_MAX: f64 = 0.15;

pub(super) fn slot(n: u64) -> SlotId {
    SlotId::new(n).expect("a slot")
}

/// A page that compresses to about a third: its slot, then words of little entropy.
pub(super) fn page(n: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in page.as_chunks_mut::<8>().0 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        *word = (x & 0x00ff_f000).to_le_bytes();
    }
    page[..8].copy_from_slice(&n.to_le_bytes());
    page
}

pub(super) fn store(pool: &Pool, n: u64) -> Location {
    let mut out = Vec::new();
    pool.store(&[(slot(n), &page(n))], &mut out);
    out[0].expect("stored")
}

pub(super) fn load(pool: &Pool, n: u64, at: Location) -> Result<(), LoadError> {
    let mut into = [0xee; PAGE_SIZE];
    pool.load(slot(n), at, &mut into)?;
    assert!(into == page(n), "slot {n} has other contents");
    Ok(())
}

/// A plain map in the place of the slot table.
#[derive(Default)]
struct Owners {
    words: Mutex<HashMap<SlotId, Location>>,
    /// What to say instead of looking.
    busy: Mutex<Vec<SlotId>>,
}

impl Owner for Owners {
    fn relocate(&self, slot: SlotId, old: Location, new: Location) -> Relocated {
        if self.busy.lock().contains(&slot) {
            return Relocated::Busy;
        }
        match self.words.lock().get_mut(&slot) {
            Some(at) if *at == old => {
                *at = new;
                Relocated::Moved
            }
            _ => Relocated::Gone,
        }
    }
}

/// Every account from scratch, and every object once.
fn recount(pool: &Pool) {
    let (mut objects, mut live, mut resident) = (0, 0, 0);
    let mut free = 0;
    for index in 0..pool.end.load(Relaxed) {
        let segment = pool.segment(index).expect("below the end").read();
        resident += u64::from(segment.resident());
        free += usize::from(segment.role == Role::Free);
        let (mut offset, mut here) = (0, 0);
        while let Walk::Object { offset: at, header, .. } = segment.next_live(offset) {
            offset = at + header.size();
            here += 1;
            live += u64::from(header.size());
        }
        assert_eq!(here, segment.live_objects, "segment {index}");
        objects += u64::from(here);
        assert_ne!(segment.role, Role::Victim);
        assert!(segment.role == Role::Open || (segment.role == Role::Free) == (here == 0));
    }
    let registry = pool.registry.lock();
    assert_eq!(registry.free.len(), free);
    let tables = pool.table.bytes() + (registry.free.capacity() * size_of::<u32>()) as u64;
    let cleaner = pool.cleaner.lock().bytes();
    let usage = pool.usage();
    assert_eq!((usage.objects, usage.live_bytes), (objects, live));
    assert_eq!(usage.resident_bytes, resident + tables + cleaner + size_of::<Pool>() as u64);
    assert_eq!(pool.account.segments.load(Relaxed), resident);
}

#[test]
fn every_rotten_bit_is_seen_or_harmless() {
    let pool = Pool::new(16 << 20);
    let at = store(&pool, 1);
    let (index, offset) = place(at);
    let size = pool.usage().live_bytes as u32;
    let rot = |byte: u32, bit| pool.segment(index).expect("there").write().rot(offset + byte, bit);
    let (mut stale, mut corrupt, mut missed) = (0, 0, 0);
    for byte in 0..size {
        for bit in 0..8 {
            rot(byte, bit);
            let mut into = [0xee; PAGE_SIZE];
            match pool.load(slot(1), at, &mut into) {
                Err(LoadError::Stale) => stale += 1,
                Err(LoadError::Corrupt) => corrupt += 1,
                Err(e) => panic!("{e:?}"),
                Ok(()) if into == page(1) => assert!(byte >= size - 7, "byte {byte} of {size} rotted unseen"),
                Ok(()) => missed += 1,
            }
            rot(byte, bit);
        }
    }
    assert_eq!(stale, 40, "bits of the header's slot");
    assert!(corrupt > (size - HEADER - 7) * 8 - 40, "{corrupt}");
    // One in 4096 of some 11000 bits, when the decompressor accepts it too.
    assert!(missed <= 12, "{missed} wrong pages came back of {}", size * 8);
    load(&pool, 1, at).expect("as it was");
}

#[test]
fn a_location_into_nowhere_is_stale() {
    let pool = Pool::new(16 << 20);
    let at = store(&pool, 1);
    let (index, offset) = place(at);
    for (segment, offset) in [
        (index, offset + 8),
        (index, SEGMENT - 8),
        (index, SEGMENT),
        (index, (1 << 23) - 8),
        (index + 1, offset),
        (SEGMENTS_MAX - 1, 0),
    ] {
        assert_eq!(load(&pool, 1, location(segment, offset)), Err(LoadError::Stale));
    }
    assert_eq!(load(&pool, 2, at), Err(LoadError::Stale));
}

/// Stores 1..=n, publishes them, releases those that `dead` names.
fn fill(pool: &Pool, n: u64, dead: impl Fn(u64) -> bool) -> Owners {
    let owners = Owners::default();
    for i in 1..=n {
        owners.words.lock().insert(slot(i), store(pool, i));
    }
    for i in (1..=n).filter(|i| dead(*i)) {
        pool.release(slot(i), owners.words.lock().remove(&slot(i)).expect("stored")).expect("held");
    }
    owners
}

fn check_all(pool: &Pool, owners: &Owners) {
    for (slot, at) in owners.words.lock().iter() {
        load(pool, slot.get(), *at).expect("a live object");
    }
    assert_eq!(pool.usage().objects, owners.words.lock().len() as u64);
    recount(pool);
}

#[test]
fn cleaning_keeps_every_object_and_returns_memory() {
    let pool = Pool::new(64 << 20);
    let owners = fill(&pool, 12_000, |i| i % 4 != 0);
    let before = pool.usage();
    assert!(pool.waste() > 0.7);
    let report = pool.clean(&owners, u64::MAX);
    let after = pool.usage();
    assert!(report.moved > 1000 && pool.waste() <= WASTE_MAX, "{report:?}, waste {}", pool.waste());
    // The buffers that the first cleaning allocates are not the segments'.
    let buffers = pool.cleaner.lock().bytes();
    assert_eq!(before.resident_bytes + buffers - after.resident_bytes, report.freed_bytes);
    assert_eq!((before.objects, before.live_bytes), (after.objects, after.live_bytes));
    check_all(&pool, &owners);
    assert_eq!(pool.clean(&owners, u64::MAX), CleanReport::default(), "there is nothing left to clean");
    for (slot, at) in owners.words.lock().drain() {
        pool.release(slot, at).expect("held");
    }
    recount(&pool);
    assert_eq!(pool.account.segments.load(Relaxed), 0, "an empty pool has no segment memory");
}

#[test]
fn a_budget_bounds_what_one_call_moves() {
    let pool = Pool::new(64 << 20);
    let owners = fill(&pool, 8000, |i| i % 4 != 0);
    let mut calls = 0;
    while pool.waste() > WASTE_MAX {
        let moved = pool.clean(&owners, 100 << 10).moved;
        assert!((1..=400).contains(&moved), "{moved} objects of some 1.5 KiB in a budget of 100 KiB");
        check_all(&pool, &owners);
        calls += 1;
    }
    assert!(calls > 3);
}

#[test]
fn busy_objects_stay_and_gone_ones_wait_for_their_release() {
    let pool = Pool::new(64 << 20);
    let owners = fill(&pool, 8000, |i| i % 4 != 0);
    let busy = |n: u64| n.is_multiple_of(40);
    *owners.busy.lock() = (1..=8000).filter(|n| busy(*n)).map(slot).collect();
    // Gone: the word was changed, the release is on its way.
    let gone: Vec<_> = {
        let mut words = owners.words.lock();
        (1..=8000)
            .filter(|n| n % 12 == 0 && !busy(*n))
            .map(|n| (slot(n), words.remove(&slot(n)).expect("in")))
            .collect()
    };
    let before = owners.words.lock().clone();
    let report = pool.clean(&owners, u64::MAX);
    assert!(report.moved > 0);
    for (n, at) in &gone {
        load(&pool, n.get(), *at).expect("not yet released");
        pool.release(*n, *at).expect("held");
    }
    for (n, at) in owners.words.lock().iter().filter(|(n, _)| busy(n.get())) {
        assert_eq!(before[n], *at, "a busy object moved");
    }
    check_all(&pool, &owners);
    owners.busy.lock().clear();
    pool.clean(&owners, u64::MAX);
    assert!(pool.waste() <= WASTE_MAX, "{}", pool.waste());
    check_all(&pool, &owners);
}

#[test]
fn a_busy_object_does_not_hold_a_megabyte() {
    let pool = Pool::new(64 << 20);
    let owners = fill(&pool, 8000, |i| i % 4 != 0);
    // About one in each segment.
    *owners.busy.lock() = (1..=8000).filter(|n| n % 600 == 0).map(slot).collect();
    let live = pool.usage().live_bytes;
    pool.clean(&owners, u64::MAX);
    let segments = pool.account.segments.load(Relaxed);
    assert!(segments < live + live / 5 + 13 * 3 * PAGE_SIZE as u64, "{segments} bytes for {live} live ones");
    check_all(&pool, &owners);
    let offered: std::collections::HashSet<_> = lap(&pool).into_iter().collect();
    assert_eq!(offered.len() as u64, pool.usage().objects, "a segment that was shed can still be walked");
    owners.busy.lock().clear();
    pool.clean(&owners, u64::MAX);
    check_all(&pool, &owners);
    owners.words.lock().drain().for_each(|(slot, at)| pool.release(slot, at).expect("held"));
    recount(&pool);
}

#[test]
fn the_smallest_objects_are_cleaned_within_the_accounts() {
    let pool = Pool::new(64 << 20);
    let owners = Owners::default();
    let mut out = Vec::new();
    for n in 1..=150_000u64 {
        let mut page = [0; PAGE_SIZE];
        crate::compress::fill(n << 20, &mut page);
        pool.store(&[(slot(n), &page)], &mut out);
        owners.words.lock().insert(slot(n), out.pop().expect("one").expect("stored"));
    }
    assert_eq!(pool.usage().live_bytes, 150_000 * 16);
    for n in (1..=150_000).filter(|n| n % 4 != 0) {
        pool.release(slot(n), owners.words.lock().remove(&slot(n)).expect("stored")).expect("held");
    }
    assert!(pool.clean(&owners, u64::MAX).moved > 10_000);
    recount(&pool);
}

#[test]
fn a_page_is_kept_if_it_shrinks_to_three_quarters() {
    let pool = Pool::new(16 << 20);
    let mut rng = 1u64;
    for (noise, kept) in [(2900, true), (3020, true), (3100, false), (3900, false), (4096, false)] {
        let mut page = [0; PAGE_SIZE];
        for byte in &mut page[..noise] {
            rng = rng.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *byte = (rng >> 56) as u8;
        }
        let mut out = Vec::new();
        pool.store(&[(slot(1), &page)], &mut out);
        match out[0] {
            Ok(at) => pool.release(slot(1), at).expect("held"),
            Err(e) => assert_eq!(e, StoreError::Incompressible),
        }
        assert_eq!(out[0].is_ok(), kept, "{noise} random bytes");
    }
    assert_eq!(pool.usage().objects, 0);
}

#[test]
fn an_owner_that_is_always_busy_does_not_hold_the_cleaner() {
    let pool = Pool::new(64 << 20);
    let owners = fill(&pool, 4000, |i| i % 2 != 0);
    *owners.busy.lock() = (1..=4000).map(slot).collect();
    let before = pool.usage();
    assert_eq!(pool.clean(&owners, u64::MAX).moved, 0);
    check_all(&pool, &owners);
    assert_eq!(pool.usage().objects, before.objects);
}

/// The age order as coldest() tells it, one lap.
fn lap(pool: &Pool) -> Vec<u64> {
    pool.cursor.lock().restart(&pool.account);
    let mut all = Vec::new();
    pool.coldest(usize::MAX / 2, &mut all);
    all.iter().map(|(slot, _)| slot.get()).collect()
}

#[test]
fn coldest_goes_from_old_to_young_and_survives_cleaning() {
    let pool = Pool::new(64 << 20);
    // Sparse everywhere, so that every age has victims; slots are numbered by age.
    let owners = fill(&pool, 16_000, |i| i % 3 != 0);
    let fresh = lap(&pool);
    assert!(fresh.is_sorted() && fresh.len() == 16_000 / 3);
    assert!(pool.clean(&owners, u64::MAX).moved > 3000);
    check_all(&pool, &owners);
    let cleaned = lap(&pool);
    assert_eq!(cleaned.len(), fresh.len());
    // A perfect order has distance 0, a shuffled one a third of the length.
    let mean = |lap: &[u64]| {
        let off = lap.iter().enumerate().map(|(i, n)| (n / 3).abs_diff(i as u64 + 1)).sum::<u64>();
        off as f64 / lap.len() as f64 / lap.len() as f64
    };
    assert!(mean(&cleaned) < 0.05, "mean displacement {} of the length", mean(&cleaned));
}

#[test]
fn coldest_goes_on_where_it_ended_and_comes_round() {
    let pool = Pool::new(64 << 20);
    let owners = fill(&pool, 3000, |_| false);
    let mut seen = Vec::new();
    for _ in 0..30 {
        let before = seen.len();
        pool.coldest(100, &mut seen);
        assert_eq!(seen.len() - before, 100);
    }
    let numbers: Vec<_> = seen.iter().map(|(s, _)| s.get()).collect();
    assert_eq!(numbers, (1..=3000).collect::<Vec<_>>());
    assert!(seen.iter().all(|(s, at)| owners.words.lock()[s] == *at));
    // Nobody wrote them back: they are offered again.
    let mut again = Vec::new();
    while again.is_empty() {
        pool.coldest(100, &mut again);
    }
    assert_eq!(again[0].0, slot(1));
    let mut none = Vec::new();
    Pool::new(1 << 20).coldest(10, &mut none);
    assert_eq!(none, []);
}

/// Every offer is of a live object, at its place.
fn offers_are_true(owners: &Owners, offers: &[(SlotId, Location)]) {
    for (slot, at) in offers {
        assert_eq!(owners.words.lock().get(slot), Some(at), "slot {} offered at a wrong place", slot.get());
    }
}

#[test]
fn a_walk_does_not_go_on_in_a_segment_that_was_emptied() {
    let pool = Pool::new(16 << 20);
    // Pages of different sizes in each round, so that the old offset is no object's.
    for (round, count) in [(1, 100), (2, 130), (3, 170), (4, 130)] {
        let owners = Owners::default();
        for n in 0..count {
            let mut page = page(n);
            page[round * 100..round * 100 + 1000 + 8 * round].fill(7);
            let mut out = Vec::new();
            pool.store(&[(slot(n + 1), &page)], &mut out);
            owners.words.lock().insert(slot(n + 1), out[0].expect("stored"));
        }
        let mut offers = Vec::new();
        while offers.len() < 60 {
            pool.coldest(60 - offers.len(), &mut offers);
            offers_are_true(&owners, &offers);
        }
        owners.words.lock().drain().for_each(|(slot, at)| pool.release(slot, at).expect("held"));
        recount(&pool);
    }
}

#[test]
fn a_walk_goes_on_in_a_segment_that_was_shed() {
    let pool = Pool::new(64 << 20);
    let owners = fill(&pool, 1400, |i| i <= 1000 && i % 10 != 0);
    *owners.busy.lock() = (1..=1400).map(slot).collect();
    let mut offers = Vec::new();
    // Ends between two dead objects of the first segment.
    pool.coldest(33, &mut offers);
    pool.release(slot(330), owners.words.lock().remove(&slot(330)).expect("in")).expect("held");
    assert_eq!(offers.pop().map(|(s, _)| s), Some(slot(330)));
    pool.clean(&owners, u64::MAX);
    while offers.len() < 1000 {
        let before = offers.len();
        pool.coldest(100, &mut offers);
        if offers.len() == before || offers.last().map(|(s, _)| *s) == Some(slot(1400)) {
            break;
        }
    }
    offers_are_true(&owners, &offers);
    let offered: std::collections::HashSet<_> = offers.iter().map(|(s, _)| *s).collect();
    assert_eq!(offered.len(), owners.words.lock().len(), "the rest of the segment was left out");
}

#[test]
fn the_limit_holds_and_leaves_the_cleaner_room() {
    let limit = 12 << 20;
    let pool = Pool::new(limit);
    let owners = Owners::default();
    let mut n = 0;
    let full = loop {
        n += 1;
        let mut out = Vec::new();
        pool.store(&[(slot(n), &page(n))], &mut out);
        assert!(pool.usage().resident_bytes <= limit - u64::from(SEGMENT));
        match out[0] {
            Ok(at) => owners.words.lock().insert(slot(n), at),
            Err(e) => break e,
        };
    };
    assert_eq!(full, StoreError::Full);
    assert!(pool.usage().resident_bytes > limit - u64::from(SEGMENT) - 2 * u64::from(STORE_GRAIN));
    recount(&pool);
    // Every third dies: no segment is empty, so without room to copy into nothing could be freed.
    let dead: Vec<_> = (1..n).filter(|i| i % 3 == 0).map(slot).collect();
    for s in dead {
        pool.release(s, owners.words.lock().remove(&s).expect("stored")).expect("held");
    }
    let most = AtomicU64::new(0);
    struct Watch<'a>(&'a Owners, &'a Pool, &'a AtomicU64);
    impl Owner for Watch<'_> {
        fn relocate(&self, slot: SlotId, old: Location, new: Location) -> Relocated {
            self.2.fetch_max(self.1.usage().resident_bytes, Relaxed);
            self.0.relocate(slot, old, new)
        }
    }
    let report = pool.clean(&Watch(&owners, &pool, &most), u64::MAX);
    assert!(report.freed_bytes > 1 << 20, "{report:?}");
    assert!(most.load(Relaxed) <= limit, "cleaning went {} bytes over", most.load(Relaxed) - limit);
    check_all(&pool, &owners);
    pool.set_limit(1 << 20);
    let mut out = Vec::new();
    pool.store(&[(slot(n), &page(n))], &mut out);
    assert_eq!(out, [Err(StoreError::Full)]);
    check_all(&pool, &owners);
}

#[test]
fn a_rotten_header_stops_the_walk_but_not_the_neighbours() {
    let pool = Pool::new(16 << 20);
    let owners = fill(&pool, 400, |i| i % 2 == 0);
    let victim = owners.words.lock()[&slot(101)];
    let (index, offset) = place(victim);
    {
        let mut segment = pool.segment(index).expect("there").write();
        let Walk::Object { header, .. } = segment.next_live(offset) else { panic!("there is an object") };
        // Length 0, which no object has.
        for bit in (0..12).filter(|b| header.length() >> b & 1 != 0) {
            segment.rot(offset + bit / 8, (bit % 8) as u8);
        }
    }
    assert_eq!(load(&pool, 101, victim), Err(LoadError::Corrupt));
    let mut offered = Vec::new();
    pool.coldest(10_000, &mut offered);
    assert_eq!(offered.len(), 50, "the odd ones before it");
    pool.clean(&owners, u64::MAX);
    assert_eq!(owners.words.lock()[&slot(101)], victim);
    pool.clean(&owners, u64::MAX);
    for (n, at) in owners.words.lock().iter() {
        if *n != slot(101) {
            load(&pool, n.get(), *at).expect("a neighbour");
        }
    }
}

#[test]
fn shards_that_fall_behind_are_closed() {
    let pool = Pool::new(64 << 20);
    // Shard 1 gets one object while shard 0 is taken, then rests.
    let held = pool.shards[0].lock();
    let old = store(&pool, 1);
    drop(held);
    for n in 2..12_000 {
        store(&pool, n);
    }
    assert!(pool.clock.load(Relaxed) > LAG_MAX + 1);
    let held = pool.shards[0].lock();
    let young = store(&pool, 12_000);
    drop(held);
    assert_ne!(place(old).0, place(young).0, "a young object joined an old segment");
    recount(&pool);
}
