//! What all threads of the pager share.
//!
//! Lock order: `tenants` before a tenant's `idle`; no lock is held across a wait for a target. Server threads own
//! their page tables and take neither.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use log::info;
use parking_lot::Mutex;
use vswap_core::{GroupId, VirtualSwap};
use vswap_sys::poll::EventFd;
use vswap_sys::process;

use super::buffers::Buffers;
use super::call::Call;
use super::forks::Forks;
use super::meter::Meters;
use super::reclaim::Wish;
use super::tenant::Tenant;
use super::untold::Untold;
use crate::Unpaged;

/// Warnings that are kept.
const WARNINGS: usize = 256;
/// Unpaged processes that are remembered: some of their reasons are the processes' own words.
const UNPAGED: usize = 256;

/// Why a process is unpaged whose agent may still come, when it gets the time for it.
pub const NOT_COME: &str = "its agent did not come: the loader or the program does not let it in";

/// The pager, as its threads see it.
pub struct Shared {
    /// The virtual swap space.
    pub space: Arc<VirtualSwap>,
    /// Who is charged.
    pub group: GroupId,
    /// For pages on their way.
    pub buffers: Buffers,
    /// Counters.
    pub meters: Meters,
    /// All address spaces by number.
    pub tenants: Mutex<HashMap<u64, Arc<Tenant>>>,
    /// Processes that have greeted and wait for memory before they begin.
    pub arriving: Mutex<HashSet<u32>>,
    /// Bytes left below the limit: measured now and then, lowered by what is installed meanwhile.
    pub room: AtomicI64,
    /// The evictor makes progress, so it is worth waiting for it.
    pub may_hold: AtomicBool,
    /// A tier cannot take more: pages stay.
    pub stuck: AtomicBool,
    /// Bytes that the pool may have at this time: its limit, or less while programs cannot do without more.
    pub pool_share: AtomicU64,
    /// What somebody asked to be evicted.
    pub wish: Wish,
    /// mremaps come through the gate.
    pub gated: bool,
    /// Events tell of forks; else the gate stops them.
    pub fork_events: bool,
    /// Those that it has stopped.
    pub forks: Forks,
    /// Calls that it has let go although they are nobody's to tell of.
    pub untold: Untold,
    /// When the run began.
    pub started: Instant,
    /// Names and reasons of processes that run unpaged.
    pub unpaged: Mutex<Vec<Unpaged>>,
    /// Warnings for the summary.
    pub warnings: Mutex<Vec<String>>,
    /// Faults that wait for over a second now, in words.
    pub slow: Mutex<Vec<String>>,
    fatal: Mutex<Option<String>>,
    next_id: AtomicU64,
    hub_bell: EventFd,
    /// The swap cache holds too much.
    pub compressor: Call,
    /// The pool has grown, or may have less.
    pub spiller: Call,
    /// The program has done something while the governor took it for idle.
    pub governor: Call,
    /// It takes it for idle.
    pub idle: AtomicBool,
}

impl Shared {
    /// A pager for this space.
    pub fn new(space: Arc<VirtualSwap>, gated: bool, fork_events: bool) -> std::io::Result<Self> {
        Ok(Self {
            space,
            group: GroupId(0),
            buffers: Buffers::default(),
            meters: Meters::default(),
            tenants: Mutex::default(),
            arriving: Mutex::default(),
            room: AtomicI64::new(i64::MAX),
            may_hold: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            pool_share: AtomicU64::new(u64::MAX),
            wish: Wish::default(),
            gated,
            fork_events,
            forks: Forks::default(),
            untold: Untold::default(),
            started: Instant::now(),
            unpaged: Mutex::default(),
            warnings: Mutex::default(),
            slow: Mutex::default(),
            fatal: Mutex::default(),
            next_id: AtomicU64::new(1),
            hub_bell: EventFd::new()?,
            compressor: Call::default(),
            spiller: Call::default(),
            governor: Call::default(),
            idle: AtomicBool::new(false),
        })
    }

    /// A number never used before.
    pub fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Relaxed)
    }

    /// The promise cannot be kept: the tree must not run on. The first reason counts.
    pub fn fail(&self, why: String) {
        self.fatal.lock().get_or_insert(why);
        self.hub_bell.notify();
    }

    /// The promise cannot be kept and nothing can be tidied up: ends the pager, and by the guardian the tree.
    pub fn abort(&self, why: &str) -> ! {
        eprintln!("vswap: {why}; ending the program");
        std::process::abort();
    }

    /// Why the tree must not run on.
    pub fn failure(&self) -> Option<String> {
        self.fatal.lock().clone()
    }

    /// Wakes the hub.
    pub fn ring_hub(&self) {
        self.hub_bell.notify();
    }

    /// The hub's bell.
    pub fn hub_bell(&self) -> &EventFd {
        &self.hub_bell
    }

    /// Says once that something is not as the user would expect.
    pub fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock();
        // Some name processes: there is no end of these.
        if warnings.len() < WARNINGS && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// An agent has come after all.
    pub fn has_come(&self, pid: u32) {
        self.unpaged.lock().retain(|other| other.pid != pid || other.reason != NOT_COME);
    }

    /// Remembers a process that runs unpaged; once under each name that it has.
    pub fn name_unpaged(&self, pid: u32, reason: String) {
        info!(target: "agent", "process {pid} is not paged: {reason}");
        let name = process::status(pid).map(|status| status.name).unwrap_or_default();
        let mut all = self.unpaged.lock();
        let known = all.iter().any(|other| other.pid == pid && other.name == name);
        if !known && all.len() < UNPAGED {
            all.push(Unpaged { pid, name, reason });
        }
    }

    /// All address spaces, in a list of their own.
    pub fn all_tenants(&self) -> Vec<Arc<Tenant>> {
        self.tenants.lock().values().cloned().collect()
    }

    /// Whether who wants memory has to wait for it.
    pub fn is_throttled(&self) -> bool {
        self.may_hold.load(Relaxed) && self.room.load(Relaxed) <= 0
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A number that a forked child reads from its beacon: not 0, and not to be guessed by a sibling.
    pub fn new_token(&self) -> u64 {
        let state = std::collections::hash_map::RandomState::new();
        std::hash::BuildHasher::hash_one(&state, self.new_id()) | 1
    }
}
