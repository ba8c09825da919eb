//! The figures of a run, as people and machines read them.

use serde::{Deserialize, Serialize};

/// A count of events with their latency, in nanoseconds from reading the fault to its answer.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Timed {
    /// Events.
    pub count: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
}

/// Faults by what answered them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Faults {
    /// From an uncompressed page in the swap cache.
    pub soft: Timed,
    /// From the compressed pool.
    pub pool: Timed,
    /// From the spill file.
    pub file: Timed,
    /// A first touch, or a zero or same-filled slot.
    pub zero: Timed,
    /// Pages brought in around faults, beyond the page that was asked for.
    pub around_pages: u64,
}

/// Where pages were at the end, in pages.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Backing {
    /// In the swap cache, uncompressed.
    pub cached: u64,
    /// Zero pages, without storage.
    pub zero: u64,
    /// Same-filled pages, without storage.
    pub filled: u64,
    /// In the compressed pool.
    pub pool: u64,
    /// In the spill file.
    pub file: u64,
}

/// A process that ran without the pager.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unpaged {
    /// Its process id.
    pub pid: u32,
    /// Its name, as the kernel has it.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Everything that a run reports.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// The memory limit in bytes (the last one, if `auto` moved it).
    pub limit: u64,
    /// Highest total seen: anonymous memory of the tree and all of ours, in bytes.
    pub peak_total: u64,
    /// Highest resident anonymous memory of the tree alone, in bytes.
    pub peak_resident: u64,
    /// Highest resident memory plus evicted pages of the tree: what it would have taken without vswap, in bytes.
    pub peak_virtual: u64,
    /// Highest memory of the pager alone, pool and metadata included, in bytes.
    pub peak_pager: u64,
    /// By how many bytes the limit was passed at most.
    pub over_limit_bytes: u64,
    /// For how many milliseconds in all the total was over the limit.
    pub over_limit_ms: u64,
    /// Most evicted pages at one time.
    pub peak_evicted_pages: u64,
    /// Where evicted pages are now.
    pub backing: Backing,
    /// The same at the moment when most pages were evicted.
    pub backing_at_peak: Backing,
    /// Bytes of pages in the pool over their compressed bytes, at that moment; 0 without any.
    pub compression_ratio: f64,
    /// Bytes of slots, directory and page tables per evicted page, at that moment.
    pub metadata_per_slot: f64,
    /// Faults.
    pub faults: Faults,
    /// Pages evicted.
    pub evictions: u64,
    /// Pages written to the spill file.
    pub spilled: u64,
    /// Bytes the spill file took on disk at most.
    pub peak_file_bytes: u64,
    /// Milliseconds that threads of the program waited for the pager, added up over threads.
    pub stalled_ms: u64,
    /// Milliseconds in which at least one thread waited for the pager: what `some` is in Linux's pressure stall information
    /// (Documentation/accounting/psi.rst).
    pub stalled_some_ms: u64,
    /// Milliseconds of `stalled_ms` spent because memory was at its limit.
    pub throttled_ms: u64,
    /// Faults that waited for over a second (each was reported with its cause).
    pub slow_faults: u64,
    /// The longest of these waits in milliseconds, to a fifth of a second.
    pub longest_wait_ms: u64,
    /// Windows of mapping changes.
    pub windows: u64,
    /// mremap calls that went through the gate.
    pub mremaps: u64,
    /// Freezes for liveness.
    pub freezes: u64,
    /// Stops: events with two readings, contradictions, pages that are lost.
    pub fail_stops: u64,
    /// Address spaces paged in the whole run.
    pub address_spaces: u64,
    /// Forks followed.
    pub forks: u64,
    /// Pages brought back before forks, because no event tells of them (that takes CAP_SYS_PTRACE); the limit may be passed
    /// meanwhile.
    pub fork_pages: u64,
    /// Milliseconds that such forks waited.
    pub fork_wait_ms: u64,
    /// Programs that the agent entered by ptrace: static ones, children of a fork without a fork hook.
    #[serde(default)]
    pub entered: u64,
    /// Whether mremap went through the gate.
    pub gate: bool,
    /// Processes that ran unpaged.
    pub unpaged: Vec<Unpaged>,
    /// Things the user should know.
    pub warnings: Vec<String>,
    /// Wall time of the run in milliseconds.
    pub wall_ms: u64,
}
