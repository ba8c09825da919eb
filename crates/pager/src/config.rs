//! What a run is asked to do. Plain data; the front door fills it in.

use std::path::PathBuf;

/// The bound on all anonymous memory of the tree and of the pager.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// This many bytes.
    Bytes(u64),
    /// What the machine or the surrounding control groups leave, read again each second.
    Auto,
}

/// Where cold pages go that the pool does not hold.
#[derive(Clone, Debug)]
pub struct Spill {
    /// A directory on a real file system.
    pub dir: PathBuf,
    /// Bytes that the spill file may take at most.
    pub max: u64,
}

/// A run's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The bound on memory.
    pub limit: Limit,
    /// The compressed pool's limit in bytes; three quarters of the memory limit if `None`.
    pub pool_max: Option<u64>,
    /// The spill file; without one, pages that find no place stay resident over the limit.
    pub spill: Option<Spill>,
    /// Each page in the pool has a check of 44 bits in place of 12.
    pub wide_check: bool,
    /// The tree is ended when at least one thread waited for pages in more than this share of the last ten seconds, in percent.
    pub max_stall: Option<u8>,
    /// Cold pages leave below the limit, too, as long as threads wait for pages in less than 0.1 % of the time.
    pub proactive: bool,
    /// The program itself may run without an agent; its children may in any case.
    pub allow_unpaged: bool,
    /// Nothing is said on standard error but why the tree was ended.
    pub quiet: bool,
}
