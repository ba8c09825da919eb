//! What the pool adds to its compressor, on images of real programs' pages (made by `page_images`).
//!
//! ```text
//! cargo run --release -p vswap-tiers --example pool_costs -- FILE.pages...
//! ```
//!
//! Nine rounds over all pages of a file, in random order for loads: ns a page, median [least to greatest]. Stores are
//! batches of 64 into an empty pool, the system's page faults for fresh segments included.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;
use vswap_core::{Location, PAGE_SIZE, Page, SlotId, Tier};
use vswap_tiers::Pool;
use zstd::bulk::{Compressor, Decompressor};

/// The pool's.
const LEVEL: i32 = -1;

const NAMES: [&str; 5] = ["compress alone", "store", "decompress alone", "load", "release"];

fn main() {
    for file in std::env::args().skip(1) {
        let bytes = std::fs::read(&file).expect("readable");
        let pages: Vec<&Page> = bytes.as_chunks().0.iter().filter(|p| p[8..] != p[..PAGE_SIZE - 8]).collect();
        println!("\n{file}: {} pages", pages.len());
        let mut rounds: [Vec<f64>; 5] = Default::default();
        let mut usage = (0, 0);
        for _ in 0..9 {
            usage = round(&pages, &mut rounds);
        }
        for (name, ns) in NAMES.iter().zip(&mut rounds) {
            ns.sort_unstable_by(f64::total_cmp);
            println!("{name:<17} {:>5.0} [{:.0} to {:.0}]", ns[ns.len() / 2], ns[0], ns[ns.len() - 1]);
        }
        println!("{:<17} {} live, {} resident bytes a page", "memory", usage.0, usage.1);
    }
}

fn round(pages: &[&Page], rounds: &mut [Vec<f64>; 5]) -> (u64, u64) {
    let mut time = |which: usize, f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        rounds[which].push(start.elapsed().as_nanos() as f64 / pages.len() as f64);
    };
    let mut compressed = vec![[0; 2 * PAGE_SIZE]; pages.len()];
    let mut lengths = Vec::new();
    let mut compressor = Compressor::new(LEVEL).expect("a level");
    time(0, &mut || {
        lengths.clear();
        for (page, out) in pages.iter().zip(&mut compressed) {
            lengths.push(compressor.compress_to_buffer(&page[..], out).expect("room"));
        }
    });

    let slot = |i: usize| SlotId::new(i as u64 + 1).expect("a slot");
    let pool = Pool::new(1 << 30);
    let mut places: Vec<Result<Location, _>> = Vec::new();
    time(1, &mut || {
        for (b, batch) in pages.chunks(64).enumerate() {
            let batch: Vec<_> = batch.iter().enumerate().map(|(i, page)| (slot(b * 64 + i), *page)).collect();
            pool.store(&batch, &mut places);
        }
    });
    let usage = pool.usage();

    // The same pseudo-random order for both.
    let order: Vec<usize> = (0..pages.len()).map(|i| i * 7919 % pages.len()).collect();
    let mut into = [0; PAGE_SIZE];
    let mut decompressor = Decompressor::new().expect("memory");
    time(2, &mut || {
        for i in &order {
            let bytes = &compressed[*i][..lengths[*i]];
            assert_eq!(decompressor.decompress_to_buffer(bytes, &mut into[..]).expect("valid"), PAGE_SIZE);
            black_box(&into);
        }
    });
    time(3, &mut || {
        for i in &order {
            if let Ok(at) = places[*i] {
                pool.load(slot(*i), at, &mut into).expect("there");
                black_box(&into);
            }
        }
    });
    time(4, &mut || {
        for (i, at) in places.iter().enumerate() {
            at.iter().for_each(|at| pool.release(slot(i), *at).expect("held"));
        }
    });
    (usage.live_bytes / pages.len() as u64, usage.resident_bytes / pages.len() as u64)
}
