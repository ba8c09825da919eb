//! The virtual swap space, free of the operating system.
#![forbid(unsafe_code)]

mod alloc;
mod charge;
mod cluster;
mod count;
mod directory;
mod failure;
mod filled;
mod frame;
mod hold;
mod id;
mod load;
mod moving;
mod owner;
mod promote;
mod scratch;
mod space;
mod store;
mod swap_off;
mod sync;
mod tier;
mod wait;
mod word;
mod write_back;
mod write_out;

pub use alloc::AllocError;
pub use failure::{LoadFailure, StoreFailure};
pub use id::{GroupId, Location, Order, SlotId, TierId};
pub use space::{Source, SpaceConfig, SpaceUsage, VirtualSwap};
pub use swap_off::SwapOff;
pub use tier::{CleanReport, LoadError, Owner, Relocated, StoreError, Tier, TierUsage};
pub use word::{Loss, Place};
pub use write_back::WriteBack;
pub use write_out::WriteOut;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// The contents of one page.
pub type Page = [u8; PAGE_SIZE];
