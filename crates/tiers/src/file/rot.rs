//! Bits of the spill file that flip, and of its reverse map: how often a load notices.

use super::tests::{Faulty, load, page, slot, store};
use super::*;
use crate::random::Random;
use vswap_core::{NotThere, PAGE_SIZE};

#[test]
fn random_flips_in_the_file_are_seen() {
    const ROUNDS: u32 = 200_000;
    let mut random = Random(0x2026_1121);
    let mut below = |n: usize| random.below(n as u64) as usize;
    let pages: Vec<_> = (1..=16).map(|n| (page(n), Word::new(slot(n), &page(n)))).collect();
    let (mut harmless, mut missed) = (0, 0);
    for _ in 0..ROUNDS {
        let (whole, word) = &pages[below(pages.len())];
        let mut damaged = *whole;
        for _ in 0..1 + below(8) {
            damaged[below(PAGE_SIZE)] ^= 1 << below(8);
        }
        if damaged == *whole {
            harmless += 1;
        } else if word.verify(&damaged) {
            missed += 1;
        }
    }
    assert!(harmless < ROUNDS / 1000, "{harmless} of {ROUNDS} undid themselves");
    assert_eq!(missed, 0, "of 24 bits, one in 16.7 million is expected");
}

#[test]
fn a_page_whose_reverse_map_has_rotted_is_neither_loaded_nor_released() {
    let device = Faulty::default();
    let tier = device.tier(2048);
    let places: Vec<_> = store(&tier, 1..=3).into_iter().map(|at| at.expect("stored")).collect();
    for bit in 0..64 {
        tier.rmap.rot(places[1].get(), bit);
        let expected = if bit < 24 { LoadError::Corrupt } else { LoadError::Stale };
        assert_eq!(load(&tier, 2, places[1]), Err(expected), "bit {bit}");
        if bit >= 24 {
            assert_eq!(tier.release(slot(2), places[1]), Err(NotThere));
        }
        tier.rmap.rot(places[1].get(), bit);
    }
    load(&tier, 2, places[1]).expect("as it was");
    for (n, at) in (1..).zip(places) {
        tier.release(slot(n), at).expect("held");
    }
    assert_eq!(tier.usage().objects, 0);
}
