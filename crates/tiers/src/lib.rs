//! What backs a slot: the compressed pool and the spill file.
#![forbid(unsafe_code)]

mod check;
mod compress;
mod file;
mod pool;
mod table;

pub use file::{FileTier, default_dir};
pub use pool::{Choice, Cleaning, Pool};
