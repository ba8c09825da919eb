//! The out-of-process pager.
//!
//! It knows address spaces, events and pages; it holds the page tables and decides what leaves. What becomes of a page
//! that left is the business of the virtual swap space ([`vswap_core`]); how to start a program is that of the binary.
//!
//! - [`proto`]: the protocol, a state machine without I/O.
//! - `driver`: threads that run it on the real kernel.
#![forbid(unsafe_code)]

mod config;
mod control;
mod driver;
mod executable;
pub mod proto;
mod summary;

pub use config::{Config, Limit, Spill};
pub use control::{Memory, Process, Recent, Reclaimed, Reply, Request, Status};
pub use driver::{AutoLimit, Identity, Session, auto_limit, serve};
pub use executable::Executable;
pub use summary::{Backing, Faults, Summary, Timed, Unpaged};

/// The promise of the program's memory cannot be kept; the tree was ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fatal(pub String);

impl core::fmt::Display for Fatal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Fatal {}
