//! The virtual swap space, free of the operating system.
#![forbid(unsafe_code)]

mod id;
mod tier;

pub use id::{GroupId, Location, Order, SlotId, TierId};
pub use tier::{CleanReport, LoadError, Owner, Relocated, StoreError, Tier, TierUsage};

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// The contents of one page.
pub type Page = [u8; PAGE_SIZE];
