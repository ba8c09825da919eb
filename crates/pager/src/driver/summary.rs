//! From counters to the summary.

use std::sync::atomic::Ordering::Relaxed;

use vswap_core::{PAGE_SIZE, SpaceUsage};

use super::governor::Peaks;
use super::shared::Shared;
use crate::{Backing, Faults, Summary};

/// Notes where pages are, at the moment when most are evicted.
pub fn at_peak(peaks: &mut Peaks, space: &SpaceUsage, evicted: u64, tables: u64) {
    peaks.backing = backing(space);
    peaks.ratio = ratio(space);
    peaks.file_bytes = peaks.file_bytes.max(space.tiers.iter().map(|tier| tier.device_bytes).sum());
    peaks.metadata_per_slot = (space.metadata_bytes + tables) as f64 / evicted.max(1) as f64;
}

/// Bytes of pages in the pool over their compressed bytes.
pub fn ratio(space: &SpaceUsage) -> f64 {
    let live = space.pool.map_or(0, |pool| pool.live_bytes);
    if live == 0 { 0.0 } else { (space.pooled * PAGE_SIZE as u64) as f64 / live as f64 }
}

fn backing(space: &SpaceUsage) -> Backing {
    Backing {
        cached: space.cached,
        zero: space.zero,
        filled: space.filled,
        pool: space.pooled,
        file: space.tiered.iter().sum(),
    }
}

/// The summary as of now.
pub fn summary(shared: &Shared, peaks: &Peaks) -> Summary {
    let space = shared.space.usage();
    let meters = &shared.meters;
    Summary {
        limit: peaks.limit,
        peak_total: peaks.total,
        peak_resident: peaks.resident,
        peak_virtual: peaks.virtual_bytes,
        peak_pager: peaks.pager,
        over_limit_bytes: peaks.over_bytes,
        over_limit_ms: peaks.over_time.as_millis() as u64,
        peak_evicted_pages: peaks.evicted,
        backing: backing(&space),
        backing_at_peak: peaks.backing,
        compression_ratio: peaks.ratio,
        metadata_per_slot: peaks.metadata_per_slot,
        faults: Faults {
            soft: meters.soft.timed(),
            pool: meters.pool.timed(),
            file: meters.file.timed(),
            zero: meters.zero.timed(),
            around_pages: meters.around.load(Relaxed),
        },
        evictions: meters.evictions.load(Relaxed),
        spilled: meters.spilled.load(Relaxed),
        peak_file_bytes: peaks.file_bytes.max(space.tiers.iter().map(|tier| tier.device_bytes).sum()),
        stalled_ms: meters.stalled_ns.load(Relaxed) / 1_000_000,
        stalled_some_ms: meters.some_ns.load(Relaxed) / 1_000_000,
        throttled_ms: meters.throttled_ns.load(Relaxed) / 1_000_000,
        slow_faults: meters.slow_faults.load(Relaxed),
        longest_wait_ms: meters.longest_wait_ms.load(Relaxed),
        windows: meters.windows.load(Relaxed),
        mremaps: meters.mremaps.load(Relaxed),
        freezes: meters.freezes.load(Relaxed),
        fail_stops: meters.fail_stops.load(Relaxed),
        address_spaces: meters.address_spaces.load(Relaxed),
        forks: meters.forks.load(Relaxed),
        fork_pages: meters.fork_pages.load(Relaxed),
        fork_wait_ms: meters.fork_wait_ns.load(Relaxed) / 1_000_000,
        entered: meters.entered.load(Relaxed),
        gate: shared.gated,
        unpaged: shared.unpaged.lock().clone(),
        warnings: shared.warnings.lock().clone(),
        wall_ms: shared.started.elapsed().as_millis() as u64,
    }
}
