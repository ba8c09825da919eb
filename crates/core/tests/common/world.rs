//! A small world for tests of single rules: a space over a pool that refuses some pages and a file that takes all.

use super::{At, MemTier, alloc, audit, cache, check, incompressible, space, store};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use vswap_core::{Location, SlotId, Source, TierId, VirtualSwap};

/// A compressible, an incompressible, a zero, a short and a long pattern page.
pub const SEEDS: [u64; 5] = [3, 4, 0, 1, 2];
/// The file, as a load names it.
pub const TIER: Source = Source::Tier(TierId(0));

/// A space over a pool and a file.
pub struct World {
    pub space: Arc<VirtualSwap>,
    pub pool: Arc<MemTier>,
    pub file: Arc<MemTier>,
}

pub fn world() -> World {
    let (pool, file) = (MemTier::pool(1000), MemTier::device(1000));
    pool.refuse(incompressible);
    World { space: Arc::new(space(&pool, &[&file], 100)), pool, file }
}

impl World {
    pub fn in_pool(&self, seed: u64) -> SlotId {
        let slot = alloc(&self.space, 1)[0];
        store(&self.space, slot, seed).expect("room");
        assert_eq!(check(&self.space, slot, seed), Source::Pool);
        slot
    }

    pub fn in_file(&self) -> SlotId {
        let slot = alloc(&self.space, 1)[0];
        store(&self.space, slot, 4).expect("room");
        assert_eq!(check(&self.space, slot, 4), TIER);
        slot
    }

    pub fn cached(&self, seed: u64) -> SlotId {
        let slot = alloc(&self.space, 1)[0];
        assert!(cache(&self.space, slot, seed));
        slot
    }

    pub fn audit(&self) {
        audit(&self.space, &self.pool, &[&self.file]);
    }

    /// Nothing is left anywhere.
    pub fn assert_empty(&self) {
        self.audit();
        let usage = self.space.usage();
        assert_eq!((usage.slots, usage.frames, self.pool.objects(), self.file.objects()), (0, 0, 0, 0));
    }

    pub fn location(&self, tier: &MemTier, slot: SlotId) -> Location {
        tier.locations().iter().find(|(s, _)| *s == slot).expect("has an object").1
    }

    /// Does `act` once, the first time that a tier is at `at`.
    pub fn once(
        &self,
        tier: &MemTier,
        at: At,
        act: impl Fn(&VirtualSwap) + Send + Sync + 'static,
    ) -> Arc<AtomicBool> {
        let space = Arc::downgrade(&self.space);
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        tier.set_hook(move |now, _| {
            if now == at && !flag.swap(true, SeqCst) {
                act(&space.upgrade().expect("in use"));
            }
        });
        done
    }
}
