//! Evicting because somebody asked for it, not because the limit does: cgroup v2's `memory.reclaim` for one tree.
//!
//! The control thread sets how far the count of evictions shall get; the governor asks the address spaces for what is
//! missing; the worker compresses as many pages of the swap cache, so that memory really comes free. A wish ends when it
//! is fulfilled, when nothing has left for a while, or when who asked has gone.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vswap_core::PAGE_SIZE;
use vswap_sys::process;

use super::governor::Peaks;
use super::shared::Shared;
use crate::Reclaimed;

const PAGE: u64 = PAGE_SIZE as u64;
/// When for so long not more pages were away than before, more will not be: many times what the governor and a barren address
/// space rest. (That pages leave is not enough: those that are in use come back, and would leave for ever.)
const NO_PROGRESS: Duration = Duration::from_secs(2);
/// More pages than before, in pages: less is noise.
const MORE: u64 = 64;
/// The governor has measured again by then.
const MEASURED: Duration = Duration::from_millis(120);
/// Processes are looked at for the reason of a short result; so many are enough.
const LOOKED_AT: usize = 256;

/// The wish, as the governor and the worker see it.
#[derive(Default)]
pub struct Wish {
    /// Where the count of evictions shall get; 0 without a wish.
    goal: AtomicU64,
    /// Pages of the swap cache to be written out below what it may keep.
    squeeze: AtomicU64,
}

impl Wish {
    /// Pages still to be evicted, when so many were in all.
    pub fn missing(&self, evictions: u64) -> u64 {
        self.goal.load(Relaxed).saturating_sub(evictions)
    }

    /// Pages to be written out of the swap cache.
    pub fn to_squeeze(&self) -> usize {
        self.squeeze.load(Relaxed) as usize
    }

    /// So many were; 0: no more can be.
    pub fn squeezed(&self, pages: usize) {
        let left = self.to_squeeze().saturating_sub(pages) as u64;
        self.squeeze.store(if pages == 0 { 0 } else { left }, Relaxed);
    }
}

enum Phase {
    Evicting,
    Compressing,
    /// Until the governor has measured.
    Measuring(Instant),
}

/// A wish, as the control thread follows it.
pub struct Reclaim {
    wanted: u64,
    start: u64,
    total_before: u64,
    phase: Phase,
    seen: u64,
    /// Pages that were away when it began, and the most since.
    away_before: u64,
    most: u64,
    moved: Instant,
    short: Option<String>,
}

impl Reclaim {
    /// Begins to evict `bytes`.
    pub fn begin(bytes: u64, shared: &Shared, peaks: &Mutex<Peaks>) -> Self {
        let start = shared.meters.evictions.load(Relaxed);
        let away = shared.meters.evicted_now.load(Relaxed);
        shared.wish.goal.store(start.saturating_add(bytes.div_ceil(PAGE)), Relaxed);
        Self {
            wanted: bytes,
            start,
            total_before: peaks.lock().now.total(),
            phase: Phase::Evicting,
            seen: start,
            away_before: away,
            most: away,
            moved: Instant::now(),
            short: None,
        }
    }

    /// Bytes evicted so far.
    pub fn evicted(&self) -> u64 {
        (self.seen - self.start) * PAGE
    }

    /// Looks at how it goes; the result once it is over.
    pub fn step(&mut self, shared: &Shared, peaks: &Mutex<Peaks>) -> Option<Reclaimed> {
        match self.phase {
            Phase::Evicting => {
                let evictions = shared.meters.evictions.load(Relaxed);
                self.seen = evictions;
                let away = shared.meters.evicted_now.load(Relaxed);
                if away >= self.most + MORE {
                    self.most = away;
                    self.moved = Instant::now();
                }
                let missing = shared.wish.missing(evictions);
                if missing > 0 && self.moved.elapsed() < NO_PROGRESS {
                    return None;
                }
                if missing > 0 {
                    self.short = Some(why_short(shared));
                }
                end(shared);
                shared.wish.squeeze.store(self.seen - self.start, Relaxed);
                shared.compressor.call();
                self.moved = Instant::now();
                self.phase = Phase::Compressing;
            }
            Phase::Compressing => {
                if shared.wish.to_squeeze() == 0 || self.moved.elapsed() > NO_PROGRESS {
                    self.phase = Phase::Measuring(Instant::now() + MEASURED);
                }
            }
            Phase::Measuring(until) if Instant::now() >= until => {
                let more_away =
                    shared.meters.evicted_now.load(Relaxed).saturating_sub(self.away_before) * PAGE;
                return Some(Reclaimed {
                    wanted: self.wanted,
                    evicted: self.evicted(),
                    came_back: self.evicted().saturating_sub(more_away),
                    total_before: self.total_before,
                    total_after: peaks.lock().now.total(),
                    short: self.short.take(),
                });
            }
            Phase::Measuring(_) => {}
        }
        None
    }
}

/// Takes the wish back.
pub fn end(shared: &Shared) {
    if shared.wish.goal.swap(0, Relaxed) != 0 {
        for tenant in shared.all_tenants() {
            // What the limit asks for, the governor asks for again.
            tenant.wanted.store(0, Relaxed);
        }
    }
}

/// What stood in the way, as far as one can tell from outside.
fn why_short(shared: &Shared) -> String {
    if shared.stuck.load(Relaxed) {
        return "the pool and the spill file take no more".into();
    }
    let tenants = shared.all_tenants();
    let pids = tenants.iter().map(|tenant| tenant.pid.load(Relaxed)).take(LOOKED_AT);
    let stopped: Vec<String> = pids
        .filter(|&pid| process::status(pid).is_ok_and(|status| matches!(status.state, 'T' | 't')))
        .map(|pid| pid.to_string())
        .collect();
    if !stopped.is_empty() {
        return format!("stopped processes cannot be evicted from (pid {})", stopped.join(", "));
    }
    if tenants.is_empty() {
        return "no process of the tree is paged".into();
    }
    "the rest cannot leave: locked, executable or shared memory, small mappings, thread control blocks, or pages that \
     come back as fast as they go"
        .into()
}
