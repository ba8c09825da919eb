//! Background work on the space: compress what the swap cache holds too much of, spill what the pool holds too much
//! of, clean the pool. All ahead of need, on whatever core is free.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use log::debug;
use vswap_core::StoreError;

use super::shared::Shared;

/// Pages that one round takes out of the swap cache.
const ROUND: usize = 64;
/// Pages that one round writes to the spill file.
const SPILL_ROUND: usize = 256;
/// Bytes that one round of the cleaner may copy.
const CLEAN_ROUND: u64 = 1 << 20;
/// Waste of the pool, in percent of what it occupies, above which it is cleaned.
const WASTE_PERCENT: u64 = 15;
/// Without a call, look this often.
const IDLE: Duration = Duration::from_secs(1);
/// With one, no more often than this.
const SPILL_EVERY: Duration = Duration::from_millis(20);

/// Compresses: keeps at most `keep` pages in the swap cache, and less if somebody wishes so.
pub fn compress(shared: Arc<Shared>, keep: usize) {
    loop {
        shared.compressor.wait(IDLE);
        loop {
            let cached = shared.space.cached_frames();
            let surplus = cached.saturating_sub(keep).max(shared.wish.to_squeeze().min(cached));
            if surplus == 0 {
                if cached == 0 {
                    shared.wish.squeezed(0);
                }
                break;
            }
            let out = shared.space.write_out(ROUND.min(surplus));
            shared.spiller.call();
            shared.wish.squeezed(out.written);
            debug!(target: "spill", "{} pages of the cache compressed: {:?}", out.written, out.stuck);
            shared.meters.spilled.fetch_add(out.tiered as u64, Relaxed);
            shared.stuck.store(out.stuck.is_some(), Relaxed);
            if let Some(StoreError::Io(errno)) = out.stuck {
                let error = std::io::Error::from_raw_os_error(errno);
                shared.fail(format!("evicted pages cannot be written: {error}"));
                return;
            }
            if out.written == 0 {
                break;
            }
            clean(&shared);
        }
        clean(&shared);
    }
}

fn clean(shared: &Shared) {
    while let Some(pool) = shared.space.usage().pool {
        let waste = pool.resident_bytes.saturating_sub(pool.live_bytes);
        if waste < 2 * CLEAN_ROUND || waste * 100 < pool.resident_bytes * WASTE_PERCENT {
            return;
        }
        if shared.space.clean(CLEAN_ROUND).moved == 0 {
            return;
        }
    }
}

/// Spills: keeps the pool below nine tenths of what it may have at the time.
pub fn spill(shared: Arc<Shared>) {
    loop {
        std::thread::sleep(SPILL_EVERY);
        shared.spiller.wait(IDLE);
        let share = shared.pool_share.load(Relaxed);
        let (high, low) = (share / 10 * 9, share / 10 * 8);
        let resident = || shared.space.usage().pool.map_or(0, |pool| pool.resident_bytes);
        if resident() < high {
            continue;
        }
        while resident() > low {
            let back = shared.space.write_back(SPILL_ROUND);
            shared.meters.spilled.fetch_add(back.written as u64, Relaxed);
            debug!(target: "spill", "{} pages of the pool written: {:?}", back.written, back.stuck);
            match back.stuck {
                Some(StoreError::Io(errno)) => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    shared.fail(format!("the spill file cannot be written: {error}"));
                    return;
                }
                Some(_) => break,
                None if back.written == 0 => break,
                None => shared.compressor.call(),
            }
        }
    }
}
