//! Virtual swap space in user space.
//!
//! This crate is two things: the program `vswap` (see `vswap --help` and the README), and this library, the front of the
//! house for programs that want the space itself rather than the pager: slots, backings, tiers and groups, without an
//! operating system below.
//!
//! ```
//! use std::sync::Arc;
//! use vswap::{GroupId, PAGE_SIZE, Source, SpaceConfig, VirtualSwap, tiers::Pool};
//!
//! let pool = Arc::new(Pool::new(64 << 20));
//! let space = VirtualSwap::new(SpaceConfig { pool: Some(pool), tiers: vec![], max_frames: 1024 });
//!
//! let mut slots = Vec::new();
//! space.alloc_n(GroupId(0), 2, &mut slots)?;
//! let text: [u8; PAGE_SIZE] = std::array::from_fn(|i| b"virtual swap "[i % 13]);
//! let mut outcomes = Vec::new();
//! space.store_many(&[(slots[0], &text), (slots[1], &[0; PAGE_SIZE])], &mut outcomes);
//! assert!(outcomes.iter().all(Result::is_ok));
//!
//! let mut page = [0; PAGE_SIZE];
//! assert_eq!(space.load(slots[0], &mut page)?, Source::Pool);
//! assert!(page == text);
//! assert_eq!(space.load(slots[1], &mut page)?, Source::Zero);
//! space.free_n(&slots);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The rooms behind it are crates of their own, and dependencies between them point one way; ARCHITECTURE.md is the map.
#![forbid(unsafe_code)]

pub use vswap_core::*;
/// What backs a slot: the compressed pool and the spill file.
pub use vswap_tiers as tiers;
