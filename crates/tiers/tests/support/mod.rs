//! Pages, and a slot table that is a plain map: what the tests of both tiers share.
#![allow(dead_code, missing_docs, unreachable_pub)]

use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use vswap_core::{Location, Owner, PAGE_SIZE, Page, Relocated, SlotId};

pub fn slot(n: u64) -> SlotId {
    SlotId::new(n).expect("a slot")
}

/// A page that is different for each `seed`, of one of four kinds by `seed % 4`: text-like, sparse, one repeated
/// word, nearly incompressible (which the pool still takes).
pub fn page(seed: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    let words = page.as_chunks_mut::<8>().0;
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    match seed % 4 {
        0 => words.iter_mut().for_each(|w| *w = (next() & 0x00ff_ff00).to_le_bytes()),
        1 => words.iter_mut().step_by(9).for_each(|w| *w = next().to_le_bytes()),
        2 => words.fill(seed.wrapping_mul(0x0123_4567_89ab_cdef).to_le_bytes()),
        _ => words.iter_mut().take(340).for_each(|w| *w = next().to_le_bytes()),
    }
    page
}

/// A page that no compressor shrinks.
pub fn noise(seed: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    let mut x = seed.wrapping_mul(0xd134_2543_de82_ef95) | 1;
    for word in page.as_chunks_mut::<8>().0 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        *word = x.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
    }
    page
}

/// A directory on a disk for spill files.
pub fn dir() -> PathBuf {
    vswap_tiers::default_dir().expect("a directory on a disk").0
}

/// Slot → location, and whoever relocates is told the truth.
#[derive(Default)]
pub struct Owners(pub Mutex<HashMap<SlotId, Location>>);

impl Owner for Owners {
    fn relocate(&self, slot: SlotId, old: Location, new: Location) -> Relocated {
        match self.0.lock().get_mut(&slot) {
            Some(at) if *at == old => {
                *at = new;
                Relocated::Moved
            }
            _ => Relocated::Gone,
        }
    }
}
