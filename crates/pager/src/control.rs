//! What one may ask of a pager while its tree runs, and what it answers: the messages of the control socket.
//!
//! A request is one packet, a JSON object. The answer is JSON too, one object a line, in packets that may break anywhere;
//! after the last one the pager closes. Owned by nobody: plain data, that the pager's control thread and `vswap status`
//! share.

use serde::{Deserialize, Serialize};

use crate::Summary;

/// A question or a wish.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How are things?
    Status,
    /// Evict resident pages of the tree, although the limit does not ask for it.
    Reclaim {
        /// So many bytes.
        bytes: u64,
    },
}

/// A line of an answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Reclaim`], now and then: bytes evicted so far.
    Reclaiming(u64),
    /// To [`Request::Reclaim`], at its end.
    Reclaimed(Reclaimed),
    /// It was no request, or not one for now: why.
    Refused(String),
}

/// What came of a [`Request::Reclaim`], in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reclaimed {
    /// Asked for.
    pub wanted: u64,
    /// Pages that left the memory of the tree.
    pub evicted: u64,
    /// What of it is back already, or was given up by the program.
    pub came_back: u64,
    /// All memory that counts against the limit, before: the tree's and the pager's.
    pub total_before: u64,
    /// The same afterwards: what was evicted takes some, compressed.
    pub total_after: u64,
    /// Why it was less than asked for.
    pub short: Option<String>,
}

/// A run as it is now.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// CMD and its arguments; bytes that are not UTF-8 are replaced.
    pub command: Vec<String>,
    /// CMD's process id.
    pub pid: u32,
    /// CMD has not ended. Without it, children that it left behind go on.
    pub running: bool,
    /// The process that the user started.
    pub front: u32,
    /// The guardian.
    pub guardian: u32,
    /// The pager.
    pub pager: u32,
    /// Why the pager is ending the tree, if it is.
    pub failing: Option<String>,
    /// Memory now.
    pub memory: Memory,
    /// Bytes of pages in the pool over their compressed bytes, now; 0 without any.
    pub compression_ratio: f64,
    /// Faults that have waited for over a second and still do, with the reason.
    pub slow: Vec<String>,
    /// The last seconds.
    pub recent: Recent,
    /// Every process of the tree.
    pub processes: Vec<Process>,
    /// The figures since the start, as at the end of the run.
    pub summary: Summary,
}

/// Where memory goes, in bytes. `total` is `program` and `pager`; the pager's is split below it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// The limit.
    pub limit: u64,
    /// All that counts against it.
    pub total: u64,
    /// Resident anonymous memory of the tree, shared pages once.
    pub program: u64,
    /// The pager's, in all.
    pub pager: u64,
    /// The compressed pool, its waste included.
    pub pool: u64,
    /// The swap cache: frames of evicted pages that are still uncompressed.
    pub frames: u64,
    /// Slots, directories, page tables.
    pub metadata: u64,
    /// The agents' rings, stacks and states.
    pub agents: u64,
    /// What is left of the pager's: stacks, buffers, code that was written to.
    pub own: u64,
}

/// Sums over the last seconds, ten as a rule.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recent {
    /// How many milliseconds.
    pub over_ms: u64,
    /// Milliseconds that threads waited for the pager, added up over threads. Counted when a wait ends.
    pub stalled_ms: u64,
    /// Milliseconds in which at least one thread waited.
    pub stalled_some_ms: u64,
    /// Milliseconds of `stalled_ms` because memory was at its limit.
    pub throttled_ms: u64,
    /// Faults.
    pub faults: u64,
    /// Pages evicted.
    pub evictions: u64,
}

/// A process of the tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its name, as the kernel has it.
    pub name: String,
    /// Resident anonymous pages, those shared after a fork included.
    pub resident_pages: u64,
    /// Evicted pages.
    pub evicted_pages: u64,
    /// The pager serves it.
    pub paged: bool,
    /// The state letter of /proc: `R`, `S`, `T`, …
    pub state: char,
}
