//! What backs a slot: the compressed [`Pool`] and the spill file, [`FileTier`].
//!
//! Both implement [`vswap_core::Tier`]: they are given a page and its slot's number, and give back a location of 40 bits
//! that the slot word keeps. Both know whose object each location holds (the reverse map) and verify a check of its
//! contents at every load, so a lost race is [`Stale`](vswap_core::LoadError::Stale), and rot, a torn write or a write
//! that went astray is [`Corrupt`](vswap_core::LoadError::Corrupt): never another page.
//!
//! ```
//! use vswap_core::{PAGE_SIZE, SlotId, Tier};
//! use vswap_tiers::Pool;
//!
//! let pool = Pool::new(64 << 20);
//! let slot = SlotId::new(1).unwrap();
//! let mut page = [0; PAGE_SIZE];
//! page[..5].copy_from_slice(b"hello");
//! let mut out = Vec::new();
//! pool.store(&[(slot, &page)], &mut out);
//! let at = out[0].unwrap();
//! let mut back = [0xff; PAGE_SIZE];
//! pool.load(slot, at, &mut back).unwrap();
//! assert_eq!(back, page);
//! pool.release(slot, at).unwrap();
//! ```
//!
//! # Map
//!
//! | place | what lives there |
//! | --- | --- |
//! | `pool/object.rs` | the bits of an object's header and of a pool location |
//! | `pool/segment.rs` | 1 MiB of appended objects, and what is live in it |
//! | `pool/mod.rs` | store, load, release; the memory account; the order of locks |
//! | `pool/clean.rs` | the cleaner: which segments, where to, and why nothing is lost |
//! | `pool/age.rs` | the walk from old to young that offers objects for writeback |
//! | `file/clusters.rs` | which pages of the file are taken |
//! | `file/rmap.rs` | whose data a page holds, and its check |
//! | `file/ahead.rs` | readahead for streams of loads |
//! | `file/device.rs` | the calls on the file, behind a trait that tests make fail |
//! | `file/place.rs` | where a spill file may live |
//! | `compress.rs`, `check.rs`, `table.rs` | Zstandard; XXH3 cut to 12, 44 or 24 bits; a table that grows without moving |
//!
//! # Bounds
//!
//! May touch: memory (anonymous mappings of its own) and one unnamed file. Must never know: front doors, page tables,
//! groups, policy, what a page means, or when to clean or spill; it has no threads and no clock, and calls up only
//! through [`vswap_core::Owner`]. There is no unsafe code here.
//!
//! A failed store keeps nothing. A release of what is not there is refused, and the space calls it damage: going on would lose a
//! page later.
//!
//! # What was measured
//!
//! All on the development machine (2 cores of a nested VM, other work going on); compare the columns, not the machines.
//!
//! **Compressors**, ns a page, median of nine rounds, on 4000 anonymous pages each of python3, node, cc1plus and sort
//! (`cargo run --release -p vswap-tiers --example page_images -- DIR`, then `--example compressors -- DIR/*.pages`, which
//! prints the spread too):
//!
//! | compress / decompress / bytes kept | python | node | cc1plus | sort |
//! | --- | --- | --- | --- | --- |
//! | lz4_flex 0.14, safe | 2767 / 1391 / 977 | 3768 / 1504 / 1357 | 4791 / 2000 / 1053 | 2950 / 1166 / 1136 |
//! | lz4_flex 0.13, unsafe | 2570 / 1177 / 977 | 3507 / 1355 / 1357 | 4527 / 1911 / 1053 | 2595 / 1279 / 1136 |
//! | lz4 in C | 2705 / 1112 / 976 | 3462 / 1230 / 1356 | 4424 / 1438 / 1052 | 2710 / 959 / 1133 |
//! | snap | 2431 / 1721 / 960 | 3255 / 1877 / 1266 | 4212 / 2377 / 1029 | 2271 / 1436 / 1215 |
//! | zstd −1 | 5085 / 2274 / 508 | 6368 / 2878 / 771 | 7789 / 3402 / 709 | 5296 / 2218 / 666 |
//! | zstd 1 | 8545 / 3753 / 481 | 10162 / 4499 / 685 | 11356 / 3951 / 685 | 7782 / 3009 / 488 |
//!
//! Chosen: zstd −1. It takes a third to a half less room at twice the time, and at equal total memory room is what counts: each
//! byte that the pool does not take stays with the program. `vswap run`, the same limits, LZ4 → zstd −1, faults: a JVM at 70 % of its
//! memory 678,000 → 317,000, node at 63 % 547,000 → 432,000, python at 57 % 67,600 → 57,100; wall, on a machine whose cores were both
//! busy with other work, 21.6 → 12.1, 21.5 → 16.3 and 6.6 → 5.9 s. (Where half of each page is noise, as generators make it, there is nothing to win, and a load costs 1.1 µs more.)
//! Smaller hash tables than the level's own compress 4 KiB as well (514 bytes for python's pages with 2^10 to 2^13 entries); level −2
//! is no faster, 1 takes 1.6 times as long for a tenth less. At most 0.7 % of the pages (python's) do not shrink to three quarters,
//! so that threshold decides nothing here; it bounds what an object may cost, and the rest is better off on a disk.
//!
//! **The pool's own cost** (`--example pool_costs`, node's pages, ns a page, median): store 6635, of which compressing
//! 6425; load 2751, of which decompressing all that can be told from noise; release 147. 739 bytes resident for 725 live.
//!
//! **Cleaning** (`--example churn`: 24,000 objects of 0.2 to 2.9 KiB replaced at random, objects moved for each one
//! stored):
//!
//! | at most waste | 10 % | 15 % | 20 % | 30 % |
//! | --- | --- | --- | --- | --- |
//! | uniform, greedy | 4.27 | 2.58 | 1.73 | 0.89 |
//! | uniform, greedy, ages apart | 4.30 | 2.59 | 1.74 | 0.90 |
//! | uniform, cost-benefit, ages apart | 6.58 | 3.87 | 2.52 | 1.19 |
//! | zipf, greedy | 4.42 | 2.95 | 2.24 | 1.27 |
//! | zipf, greedy, ages apart | 3.56 | 2.43 | 1.85 | 1.05 |
//! | zipf, cost-benefit, ages apart | 4.49 | 2.80 | 1.99 | 1.18 |
//!
//! A move takes about 1.2 µs, half of it the kernel's, for fresh pages and freed ones. Chosen: greedy, ages apart, 15 %.
//!
//! **The file** (`--example file_costs`, a virtual disk, O_DIRECT): a page is stored in 77 to 103 µs alone and in 5 to 6 µs
//! in a batch of 64, loaded in 59 to 76 µs at random and in 7 to 10 µs in order.
//!
//! # Limits
//!
//! - The file tier does one request at a time and thread, by pread and pwrite: no io_uring, no encryption.
//!   It writes whole pages, not compressed ones.
//! - The check in a pool header has 12 bits: one rotten object in 4096 is not seen by it (the decompressor sees a few of
//!   those). [`Pool::with_wide_check`] has 44.
//! - A header that rots cannot be walked over: its segment is neither cleaned nor written back any more, only loaded
//!   from and released. If the rotten bits are those of its slot, releasing that object is refused.
//! - Bad pages of a file are remembered until the file is cut off before them.
#![forbid(unsafe_code)]

mod check;
mod compress;
mod file;
mod pool;
#[cfg(test)]
mod random;
mod table;

pub use file::{FileTier, default_dir};
pub use pool::{Choice, Cleaning, Pool};
