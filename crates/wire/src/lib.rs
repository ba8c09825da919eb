//! The messages between the pager and its agents, and the block of configuration that is patched into
//! the agent's library.
//!
//! Life of a connection (SOCK_SEQPACKET, one message per packet, descriptors by SCM_RIGHTS):
//!
//! ```text
//! agent                                   pager
//!   Hello::Greeting + descriptors  ──►            (or Hello::Refusal: "I stay unpaged", then closes)
//!                                  ◄──  Welcome   (+ userfaultfd for a matched fork child)
//!   Answer::Started                ──►
//!                                  ◄──  Command   at most one is under way per agent
//!   Answer::Evicted | Called       ──►
//!                                  ◄──  Command::Retire; the agent closes
//! ```
//!
//! Both sides treat the other as hostile: encoding is explicit little-endian into a fixed buffer, decoding is
//! total, rejects every packet that no honest peer could have sent, and never panics. The agent is
//! built without `std`, without an allocator and without a libc, and so is this crate.
//! It knows nothing of sockets, descriptors or page tables.

#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod answer;
mod codec;
mod command;
mod config;
mod hello;
#[cfg(test)]
mod noise;

pub use answer::{Answer, MOVED_WORDS};
pub use codec::Malformed;
pub use command::{Command, Run, Runs, RunsError, RunsIter};
pub use config::{BEACON_OFFSET, CONFIG_MAGIC, Config, PatchError, SOCKET_PATH_MAX};
pub use hello::{Greeting, Hello, Reason, Refusal, Welcome};

/// Version of the protocol. Agent and pager come out of one build, so it must match exactly.
pub const VERSION: u32 = 1;

/// Bytes in a page. The agent and the pager exist for x86-64 only.
pub const PAGE: u64 = 4096;

/// The most pages one [`Command::Evict`] may name, and the size in pages of staging and of the ring.
///
/// 128 is where the cost of a MOVE's TLB flush has vanished beside the copy, while the 512 KiB each of
/// staging and ring stay small beside any limit worth having.
pub const BATCH_PAGES: usize = 128;

/// Pages of the ring's memfd that the pager maps: the ring, and the [`TALLY`].
pub const RING_PAGES: usize = BATCH_PAGES + 1;

/// The page of the memfd in which an agent counts: its first word is the number of batches whose pages it has copied to the ring,
/// the next [`MOVED_WORDS`] say which pages of the last one had moved (as [`Answer::Evicted`] does). Written after
/// the copies, and before staging is emptied: what has moved is in staging until the count says that it is in the ring.
pub const TALLY: usize = BATCH_PAGES;

/// The most runs one [`Command::Evict`] may name: every page of a batch may lie alone.
pub const MAX_RUNS: usize = BATCH_PAGES;

/// The size in bytes of the buffer that every message fits into.
pub const MAX_MESSAGE: usize = 8 + 8 * MAX_RUNS;

/// The first address that no x86-64 user mapping can contain, five-level page tables included.
pub const USER_END: u64 = 1 << 56;

/// What a thread finds in its first argument that is to set up an agent in a library just mapped.
pub const ENTER_AFRESH: u64 = 0;
/// The same in a process that has the library from its parent, by fork.
pub const ENTER_FORKED: u64 = 1;

/// Where messages are encoded.
pub type Buffer = [u8; MAX_MESSAGE];

/// A buffer to encode into or to receive into.
pub const fn buffer() -> Buffer {
    [0; MAX_MESSAGE]
}
