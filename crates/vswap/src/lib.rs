//! Virtual swap space in user space.
//!
//! This crate is two things: the program `vswap` (see `vswap --help` and the README), and this library, the front of the
//! house for programs that want the space itself rather than the pager: slots, backings, tiers and groups, without an
//! operating system below.
//!
//! The rooms behind it are crates of their own, and dependencies between them point one way; ARCHITECTURE.md is the map.
#![forbid(unsafe_code)]

pub use vswap_core::*;
/// What backs a slot: the compressed pool and the spill file.
pub use vswap_tiers as tiers;
