//! The virtual swap space, free of the operating system: slots, the words that say what backs them, the swap cache, and
//! the movements between frames, pool and tiers.
//!
//! A front door (the pager, a block device) gives the space a page and keeps a [`SlotId`] in its own page table. The
//! space decides, late and repeatedly, what backs the slot: nothing (a zero or same-filled page), a frame of the swap
//! cache, the pool, or a tier below it. Moving a page changes one 64-bit word, and no page table.
//!
//! ```
//! use vswap_core::{GroupId, PAGE_SIZE, Source, SpaceConfig, VirtualSwap};
//!
//! let space = VirtualSwap::new(SpaceConfig { pool: None, tiers: Vec::new(), max_frames: 16 });
//! let mut slots = Vec::new();
//! space.alloc_n(GroupId(0), 1, &mut slots)?;
//! assert_eq!(space.cache_many(&[(slots[0], &[7; PAGE_SIZE])]), 1);
//! assert_eq!(space.write_out(64).filled, 1);
//! let mut page = [0; PAGE_SIZE];
//! assert_eq!(space.load(slots[0], &mut page), Ok(Source::Filled));
//! assert_eq!(page, [7; PAGE_SIZE]);
//! space.free_n(&slots);
//! # Ok::<(), vswap_core::AllocError>(())
//! ```
//!
//! **May touch**: memory from the global allocator, atomics and locks. **Must never know**: system calls, threads, time,
//! files, compressors, processes, page tables. Tiers come in through [`Tier`]; the space calls them, and they call back
//! only through [`Owner`]. There is no unsafe code.
//!
//! # Map
//!
//! | storey | files |
//! | --- | --- |
//! | what front doors call | `space` (alloc, dup, free, usage), `store`, `load` |
//! | background work | `write_out` (frame → backing), `write_back` (pool → tier), `promote` (backing → frame), `swap_off`, `owner` (the cleaner's view), on `moving` and `scratch` |
//! | who may change a slot | `hold` (busy, publish, release), `count` (references), `wait` |
//! | one slot, 512 slots, all slots | `word` (the bits), `cluster`, `alloc`, `directory` |
//! | beside them | `frame` (the swap cache), `charge` (accounts), `filled`, `failure`, `damage`, `sync` (loom's stand-ins) |
//!
//! # Concurrency
//!
//! Every method may be called from any thread at any time. The slot word is the only truth; each of its transitions is
//! one compare-and-swap (the table is in `word.rs`). Two rights exist:
//! - **a reference** (counted, a front door's): the slot and its cluster stay. With it one may load, store, dup, free;
//! - **busy** (one bit, one holder): only the holder changes what backs the slot. With it one may publish, and must then
//!   release what was replaced. It keeps the slot too: when the last reference goes meanwhile, the word becomes
//!   {count 0, busy} and the holder tears the slot down.
//!
//! Who comes by a tier's reverse map (cleaner, writeback) or by a frame (write-out) or by a scan (swapoff) has neither.
//! It looks the cluster up, which may be gone or retired (all words free), and takes busy only if the word names the
//! object or frame that it came for. The cleaner's relocation of a pool object is the one change of backing without
//! busy: pool(old) to pool(new) by one swap, if the slot is idle. For a cached slot it takes busy and looks at the
//! former backing in the frame.
//!
//! | slot is | load | store | write-out, writeback, promotion, swapoff | relocate | dup, free |
//! | --- | --- | --- | --- | --- | --- |
//! | idle | at once; from a tier it takes busy while it reads | takes busy | take busy | by one swap | at once |
//! | busy, page in memory | at once, from the old backing | waits | pass over it | answers Busy | at once |
//! | busy, page in a tier | waits | waits | pass over it | answers Busy | at once |
//!
//! **Who frees.** A backing: who took it out of the word, in `hold.rs`, once. A frame: the same. A slot: who made its
//! count 0, or the holder of busy. A cluster: who freed its last slot, unless a shard allocates from it. Memory of a
//! cluster or slab: the last reader that still holds it (arc-swap's protected reads).
//!
//! **Locks**, outermost first. Busy bits: a thread waits for one only while it holds none, and takes the others of a
//! batch only if they are free. Then a frame's body. Then, each alone: an allocation shard and under it the lists, the
//! frames' state, the counts' side table, a wait queue, the scratch list. **No lock is held while a tier works**, but the
//! read locks of frames that are being written out: these pin bodies that nobody may write without busy, so nobody waits
//! for them.
//!
//! **What one may see.** Loads and stores of a slot are linearizable by its word: a load that overlaps a store gives the
//! older or the newer page whole, and one that begins after it the newer. Accounts are exact when nothing is under way
//! ([`VirtualSwap::recount`]).
//!
//! # Limits
//!
//! - Folios: [`Order`] exists, the allocator hands out single pages only.
//! - Groups: exact accounts for each, no limits, tier masks or hierarchy; clusters hold one group, so many small groups
//!   waste clusters. The pool is charged by object; its bytes are in its own account, for all groups
//!   together.
//! - Memory: `alloc_n` reports a failed allocation of clusters and directory tables. Small headers (under 100 bytes a
//!   cluster or slab, an account a group, the count's side table) come from allocations that abort. `write_out` needs
//!   none of its own (`scratch.rs`); a tier may.
//! - Directory tables (8 bytes in 512 slots) and the lists of clusters and frames keep their largest size.
//! - A loader of a tier waits for another loader of the same slot, and reads again after it.
//! - No integrity of its own: what a tier gives back without an error is believed. Tiers check.
#![forbid(unsafe_code)]

mod alloc;
mod charge;
mod cluster;
mod count;
mod damage;
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
pub use damage::Damage;
pub use failure::{LoadFailure, StoreFailure};
pub use id::{GroupId, Location, Order, SlotId, TierId};
pub use space::{Source, SpaceConfig, SpaceUsage, VirtualSwap};
pub use swap_off::SwapOff;
pub use tier::{CleanReport, LoadError, NotThere, Owner, Relocated, StoreError, Tier, TierUsage};
pub use word::{Loss, Place};
pub use write_back::WriteBack;
pub use write_out::WriteOut;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// The contents of one page.
pub type Page = [u8; PAGE_SIZE];
