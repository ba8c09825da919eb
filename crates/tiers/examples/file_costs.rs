//! What the file tier costs on this machine's disk, by batch size.
//!
//! ```text
//! cargo run --release -p vswap-tiers --example file_costs -- [DIR]
//! ```
//!
//! 16,384 pages (64 MiB) are stored in batches, loaded one by one in random order and in order, and released: µs a page,
//! and MiB/s of the stores. The disk's own cache is not flushed: what is measured is the way to it.
#![allow(missing_docs)]

use std::path::PathBuf;
use std::time::Instant;
use vswap_core::{PAGE_SIZE, Page, SlotId, Tier};
use vswap_tiers::{FileTier, default_dir};

const PAGES: usize = 16_384;

fn main() {
    let dir = std::env::args().nth(1).map(PathBuf::from).or_else(|| default_dir().map(|(dir, _)| dir));
    let dir = dir.expect("a directory on a disk");
    println!(
        "in {}\n{:>6} {:>12} {:>8} {:>12} {:>12} {:>12}",
        dir.display(),
        "batch",
        "store µs",
        "MiB/s",
        "random µs",
        "in order µs",
        "release µs"
    );
    let pages: Vec<Page> = (0..PAGES).map(|i| std::array::from_fn(|b| (i * 31 + b * 7) as u8)).collect();
    for batch in [1, 8, 64, 512] {
        let tier = FileTier::create(&dir, 1 << 30).expect("a file");
        let slot = |i: usize| SlotId::new(i as u64 + 1).expect("a slot");
        let micros = |since: Instant| since.elapsed().as_secs_f64() * 1e6 / PAGES as f64;
        let mut places = Vec::new();
        let start = Instant::now();
        for first in (0..PAGES).step_by(batch) {
            let refs: Vec<_> = (first..first + batch).map(|i| (slot(i), &pages[i])).collect();
            tier.store(&refs, &mut places);
        }
        let store = micros(start);
        let mut into = [0; PAGE_SIZE];
        let mut load = |step: usize| {
            let start = Instant::now();
            for i in (0..PAGES).map(|i| i * step % PAGES) {
                tier.load(slot(i), places[i].expect("stored"), &mut into).expect("there");
            }
            micros(start)
        };
        let (random, ordered) = (load(7919), load(1));
        let start = Instant::now();
        for (i, at) in places.iter().enumerate() {
            tier.release(slot(i), at.expect("stored")).expect("held");
        }
        let release = micros(start);
        println!(
            "{batch:>6} {store:>12.2} {:>8.0} {random:>12.2} {ordered:>12.2} {release:>12.2}",
            PAGE_SIZE as f64 / 1.048576 / store
        );
    }
}
