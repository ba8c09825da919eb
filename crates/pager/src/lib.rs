//! The out-of-process pager.

mod config;
pub mod proto;
mod summary;

pub use config::{Config, Limit, Spill};
pub use summary::{Backing, Faults, Summary, Timed, Unpaged};
