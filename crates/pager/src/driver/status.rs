//! A run as it is now, for who asks on the control socket. Reads counters and /proc; asks no thread for anything.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use parking_lot::Mutex;
use vswap_core::SpaceUsage;
use vswap_sys::process::{self, MemFile};

use super::governor::{Peaks, Usage};
use super::shared::Shared;
use super::summary::{ratio, summary};
use crate::{Identity, Memory, Process, Status};

/// The answer to a request for the status.
pub fn status(shared: &Shared, peaks: &Mutex<Peaks>, identity: &Identity) -> Status {
    let peaks = peaks.lock().clone();
    let space = shared.space.usage();
    let tables = shared.all_tenants().iter().map(|tenant| tenant.footprint.load(Relaxed)).sum();
    Status {
        command: identity.command.clone(),
        pid: identity.root,
        running: process::status(identity.root).is_ok_and(|status| !status.has_ended()),
        front: identity.front,
        guardian: identity.guardian,
        pager: std::process::id(),
        failing: shared.failure(),
        memory: memory(peaks.limit, &peaks.now, &space, tables),
        compression_ratio: ratio(&space),
        slow: shared.slow.lock().clone(),
        recent: peaks.pace.recent(&shared.meters, Instant::now()),
        processes: processes(shared, identity.guardian),
        summary: summary(shared, &peaks),
    }
}

fn memory(limit: u64, now: &Usage, space: &SpaceUsage, tables: u64) -> Memory {
    let pool = space.pool.map_or(0, |pool| pool.resident_bytes);
    let metadata = space.metadata_bytes + tables;
    // Each figure was taken at a moment of its own: the rest may come out below nothing.
    let own = now.pager.saturating_sub(pool + space.frame_bytes + metadata + now.agents);
    Memory {
        limit,
        total: now.total(),
        program: now.tree,
        pager: now.pager,
        pool,
        frames: space.frame_bytes,
        metadata,
        agents: now.agents,
        own,
    }
}

fn processes(shared: &Shared, guardian: u32) -> Vec<Process> {
    let mut evicted: HashMap<u32, u64> = HashMap::new();
    for tenant in shared.all_tenants() {
        *evicted.entry(tenant.pid.load(Relaxed)).or_default() += tenant.evicted.load(Relaxed);
    }
    let pager = std::process::id();
    let tree = process::descendants_of(guardian).unwrap_or_default();
    let mut all: Vec<Process> = tree
        .into_iter()
        .filter(|&pid| pid != pager)
        .filter_map(|pid| {
            let status = process::status(pid).ok().filter(|status| !status.has_ended())?;
            let resident =
                MemFile::open(process::thread_with_memory(pid)).and_then(|mut file| file.read()).ok()?;
            Some(Process {
                pid,
                name: status.name,
                resident_pages: resident.anon_pages,
                evicted_pages: evicted.get(&pid).copied().unwrap_or(0),
                paged: evicted.contains_key(&pid),
                state: status.state,
            })
        })
        .collect();
    all.sort_by_key(|process| process.pid);
    all
}
