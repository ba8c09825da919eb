//! Bits of the pool's memory that flip: how often a load notices, and that nothing else suffers.

use super::object::{HEADER, place};
use super::segment::SEGMENT;
use super::tests::{load, page, slot, store};
use super::*;
use crate::random::Random;
use vswap_core::{NotThere, PAGE_SIZE};

/// What loads said of objects with one to eight flipped bits.
#[derive(Default, Debug)]
struct Seen {
    stale: u32,
    corrupt: u32,
    /// The bits were undone by others, or lie in padding.
    harmless: u32,
    /// Another page came back.
    missed: u32,
}

/// Damages an object `rounds` times, loads it, and mends it.
fn torment(pool: &Pool, rounds: u32) -> Seen {
    const OBJECTS: u64 = 32;
    let places: Vec<_> = (1..=OBJECTS).map(|n| store(pool, n)).collect();
    let mut random = Random(0x2026_1121);
    let mut seen = Seen::default();
    for _ in 0..rounds {
        let n = random.below(OBJECTS);
        let at = places[n as usize];
        let (index, offset) = place(at);
        let size = match pool.segment(index).expect("there").read().next_live(offset) {
            segment::Walk::Object { header, .. } => header.size(),
            _ => panic!("there is an object"),
        };
        let bits: Vec<_> = (0..1 + random.below(8)).map(|_| random.below(u64::from(size) * 8)).collect();
        let flip = || {
            let mut segment = pool.segment(index).expect("there").write();
            bits.iter().for_each(|bit| segment.rot(offset + (bit / 8) as u32, (bit % 8) as u8));
        };
        flip();
        let mut into = [0xee; PAGE_SIZE];
        match pool.load(slot(n + 1), at, &mut into) {
            Err(LoadError::Stale) => seen.stale += 1,
            Err(LoadError::Corrupt) => seen.corrupt += 1,
            Err(error) => panic!("{error:?}"),
            Ok(()) if into == page(n + 1) => seen.harmless += 1,
            Ok(()) => seen.missed += 1,
        }
        flip();
        load(pool, n + 1, at).expect("mended");
    }
    seen
}

#[test]
fn random_flips_are_seen_at_the_rate_of_the_checks_width() {
    const ROUNDS: u32 = 400_000;
    let seen = torment(&Pool::new(16 << 20), ROUNDS);
    // The decompressor sees many of those that the check misses, and what hits the slot is always seen.
    assert!((1..=ROUNDS / 4096 * 5 / 4).contains(&seen.missed), "{seen:?}");
    assert!(seen.harmless < ROUNDS / 1000 && seen.stale > ROUNDS / 200, "{seen:?}");
    let seen = torment(&Pool::new(16 << 20).with_wide_check(), ROUNDS);
    assert_eq!(seen.missed, 0, "{seen:?}");
}

#[test]
fn a_wide_check_costs_four_bytes_and_what_rounding_adds() {
    let (narrow, wide) = (Pool::new(16 << 20), Pool::new(16 << 20).with_wide_check());
    let mut places = Vec::new();
    for n in 1..=2000 {
        places.push((n, store(&narrow, n), store(&wide, n)));
    }
    let more = wide.usage().live_bytes - narrow.usage().live_bytes;
    assert!((2000 * 2..=2000 * 6).contains(&more), "{more} bytes for 2000 objects");
    for (n, in_narrow, in_wide) in places {
        load(&narrow, n, in_narrow).expect("stored");
        load(&wide, n, in_wide).expect("stored");
    }
}

#[test]
fn an_object_whose_slot_has_rotted_is_not_released_and_its_neighbours_are() {
    let pool = Pool::new(16 << 20);
    let places: Vec<_> = (1..=3).map(|n| store(&pool, n)).collect();
    let (index, offset) = place(places[1]);
    let before = pool.usage();
    // Bits of the slot's number.
    for bits in [vec![24], vec![63], (24..32).collect()] {
        let flip = || {
            let mut segment = pool.segment(index).expect("there").write();
            bits.iter().for_each(|bit| segment.rot(offset + bit / 8, (bit % 8) as u8));
        };
        flip();
        assert_eq!(pool.release(slot(2), places[1]), Err(NotThere), "{bits:?}");
        flip();
        assert_eq!(pool.usage(), before);
        load(&pool, 2, places[1]).expect("as it was");
    }
    assert_eq!(pool.release(slot(2), location(index, SEGMENT - HEADER)), Err(NotThere));
    for (n, at) in (1..).zip(places) {
        pool.release(slot(n), at).expect("held");
    }
    assert_eq!(pool.usage().objects, 0);
}
