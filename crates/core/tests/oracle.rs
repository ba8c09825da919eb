//! The space against a plain map of slot to bytes and count, over tiers that refuse, fail and fill up.
#![cfg(not(loom))]

mod common;

use common::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use vswap_core::{LoadError, LoadFailure, PAGE_SIZE, Place, SlotId, Source, StoreError, TierId, VirtualSwap};

#[derive(Clone, Debug)]
enum Op {
    Alloc(usize),
    Cache(Vec<(usize, u64)>),
    Store(Vec<(usize, u64)>),
    Load(Vec<usize>),
    Take(usize),
    Dup(usize),
    DupMany(usize),
    Free(usize),
    WriteOut(usize),
    WriteBack(usize),
    Promote(Vec<usize>),
    Clean,
    Frames(usize),
    SwapOff(u8, usize),
    SwapOn(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let at = || 0..1000usize;
    let pages = || prop::collection::vec((at(), 0..60u64), 1..20);
    prop_oneof![
        3 => (1..30usize).prop_map(Op::Alloc),
        1 => (500..600usize).prop_map(Op::Alloc),
        6 => pages().prop_map(Op::Cache),
        4 => pages().prop_map(Op::Store),
        6 => prop::collection::vec(at(), 1..20).prop_map(Op::Load),
        2 => at().prop_map(Op::Take),
        3 => at().prop_map(Op::Dup),
        1 => at().prop_map(Op::DupMany),
        5 => at().prop_map(Op::Free),
        6 => (0..100usize).prop_map(Op::WriteOut),
        4 => (0..100usize).prop_map(Op::WriteBack),
        3 => prop::collection::vec(at(), 1..20).prop_map(Op::Promote),
        3 => Just(Op::Clean),
        1 => (0..80usize).prop_map(Op::Frames),
        1 => (0..3u8, 1..50usize).prop_map(|(tier, max)| Op::SwapOff(tier, max)),
        1 => (0..3u8).prop_map(Op::SwapOn),
    ]
}

#[derive(Default, Clone, Debug)]
struct Entry {
    seed: Option<u64>,
    count: u64,
}

struct World {
    space: VirtualSwap,
    pool: Arc<MemTier>,
    tiers: [Arc<MemTier>; 3],
    model: BTreeMap<SlotId, Entry>,
    /// Loads from the second tier fail now and then.
    io: bool,
}

impl World {
    fn new(pool_limit: u64, io: bool) -> Self {
        let pool = MemTier::pool(pool_limit);
        pool.refuse(incompressible);
        let tiers = [MemTier::device(1000), MemTier::device(1000), MemTier::device(60)];
        tiers[0].refuse(|_| Some(StoreError::Incompressible));
        // Fails on a third of the contents.
        tiers[1].refuse(|page| page[1].is_multiple_of(3).then_some(StoreError::Io(5)));
        if io {
            tiers[1].fail_loads(7, LoadError::Io(5));
        }
        let space = space(&pool, &[&tiers[0], &tiers[1], &tiers[2]], 40);
        Self { space, pool, tiers, model: BTreeMap::new(), io }
    }

    fn pick(&self, at: usize) -> Option<SlotId> {
        let n = self.model.len();
        (n > 0).then(|| *self.model.keys().nth(at % n).expect("below n"))
    }

    fn check(&self, slot: SlotId, outcome: Result<Source, LoadFailure>, page: &[u8; PAGE_SIZE]) -> bool {
        match (outcome, self.model[&slot].seed) {
            (Ok(_), Some(seed)) => {
                assert!(*page == page_of(seed), "slot {slot:?} has another page than {seed}");
                true
            }
            (Err(LoadFailure::NeverStored { slot: s }), None) => {
                assert_eq!(s, slot);
                false
            }
            (Err(LoadFailure::Io { slot: s, place, errno: 5, .. }), Some(_)) if self.io => {
                assert_eq!((s, place), (slot, Place::Tier(TierId(1))));
                false
            }
            (outcome, seed) => panic!("slot {slot:?}: {outcome:?} for {seed:?}"),
        }
    }

    fn forget_one(&mut self, slot: SlotId) {
        let entry = self.model.get_mut(&slot).expect("in use");
        entry.count -= 1;
        if entry.count == 0 {
            self.model.remove(&slot);
            assert_eq!(self.space.references(slot), 0);
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Alloc(n) => {
                for slot in alloc(&self.space, *n) {
                    assert!(
                        self.model.insert(slot, Entry { seed: None, count: 1 }).is_none(),
                        "{slot:?} given twice"
                    );
                }
            }
            Op::Cache(pages) | Op::Store(pages) => {
                let pages: Vec<_> = pages
                    .iter()
                    .filter_map(|(at, seed)| Some((self.pick(*at)?, *seed, page_of(*seed))))
                    .collect();
                let batch: Vec<_> = pages.iter().map(|(slot, _, page)| (*slot, page)).collect();
                let stored: Vec<bool> = if matches!(op, Op::Cache(_)) {
                    let taken = self.space.cache_many(&batch);
                    assert!(taken == batch.len() || self.space.free_frames() == 0);
                    (0..batch.len()).map(|i| i < taken).collect()
                } else {
                    let mut out = Vec::new();
                    self.space.store_many(&batch, &mut out);
                    assert_eq!(out.len(), batch.len());
                    out.iter().map(Result::is_ok).collect()
                };
                for ((slot, seed, _), stored) in pages.iter().zip(stored) {
                    if stored {
                        self.model.get_mut(slot).expect("in use").seed = Some(*seed);
                    }
                }
            }
            Op::Load(ats) => {
                let slots: Vec<_> = ats.iter().filter_map(|at| self.pick(*at)).collect();
                let mut pages = vec![[0x77; PAGE_SIZE]; slots.len()];
                let mut out = Vec::new();
                self.space.load_many(&slots, &mut pages, &mut out);
                assert_eq!(out.len(), slots.len());
                for ((slot, outcome), page) in slots.iter().zip(out).zip(&pages) {
                    self.check(*slot, outcome, page);
                }
            }
            Op::Take(at) => {
                if let Some(slot) = self.pick(*at) {
                    let mut page = [[0x77; PAGE_SIZE]];
                    let mut out = Vec::new();
                    self.space.take_many(&[slot], &mut page, &mut out);
                    if self.check(slot, out[0], &page[0]) {
                        self.forget_one(slot);
                    }
                }
            }
            Op::Dup(at) => {
                if let Some(slot) = self.pick(*at) {
                    self.space.dup_n(&[slot]);
                    self.model.get_mut(&slot).expect("in use").count += 1;
                }
            }
            Op::DupMany(at) => {
                if let Some(slot) = self.pick(*at) {
                    self.space.dup_n(&[slot; 200]);
                    self.model.get_mut(&slot).expect("in use").count += 200;
                    for _ in 0..150 {
                        self.space.free_n(&[slot]);
                        self.forget_one(slot);
                    }
                    assert_eq!(self.space.references(slot), self.model[&slot].count);
                }
            }
            Op::Free(at) => {
                if let Some(slot) = self.pick(*at) {
                    self.space.free_n(&[slot]);
                    self.forget_one(slot);
                }
            }
            Op::WriteOut(max) => {
                let before = self.space.cached_frames();
                let out = self.space.write_out(*max);
                assert!(out.written <= *max);
                assert_eq!(out.written, out.zero + out.filled + out.pooled + out.tiered + out.clean);
                assert_eq!(self.space.cached_frames(), before - out.written);
                // Refused pages are passed over without a word as long as there are others.
                assert!(out.written > 0 || out.stuck.is_some() || (*max).min(before) == 0);
            }
            Op::WriteBack(max) => {
                let back = self.space.write_back(*max);
                assert!(back.written <= *max && back.lost == 0);
            }
            Op::Promote(ats) => {
                let slots: Vec<_> = ats.iter().filter_map(|at| self.pick(*at)).collect();
                self.space.promote_many(&slots);
            }
            Op::Clean => {
                self.space.clean(u64::MAX);
            }
            Op::Frames(n) => self.space.set_max_frames(*n),
            Op::SwapOff(tier, max) => {
                let off = self.space.swap_off(TierId(*tier), *max);
                assert_eq!(off.left, self.tiers[usize::from(*tier)].objects());
                assert_eq!(off.lost, 0);
            }
            Op::SwapOn(tier) => self.space.swap_on(TierId(*tier)),
        }
    }

    fn audit(&self) {
        audit(&self.space, &self.pool, &[&self.tiers[0], &self.tiers[1], &self.tiers[2]]);
        let usage = self.space.usage();
        assert_eq!(usage.slots, self.model.len() as u64);
        assert_eq!(usage.reserved, self.model.values().filter(|e| e.seed.is_none()).count() as u64);
        for (slot, entry) in &self.model {
            assert_eq!(self.space.references(*slot), entry.count);
        }
    }

    /// Everything is as the model says, and after the last free nothing is left anywhere.
    fn finish(mut self) {
        self.audit();
        self.io = false;
        self.tiers[1].fail_loads(0, LoadError::Stale);
        for slot in self.model.keys().copied().collect::<Vec<_>>() {
            let mut page = [0x77; PAGE_SIZE];
            let outcome = self.space.load(slot, &mut page);
            self.check(slot, outcome, &page);
            for _ in 0..self.model[&slot].count {
                self.space.free_n(&[slot]);
            }
        }
        self.model.clear();
        self.audit();
        let usage = self.space.usage();
        assert_eq!((usage.slots, usage.frames), (0, 0));
        assert!(usage.clusters <= 1, "{} clusters without a slot", usage.clusters);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    #[test]
    fn every_load_is_what_was_stored_last(
        ops in prop::collection::vec(op(), 1..120),
        pool_limit in prop_oneof![Just(0u64), Just(30), Just(10_000)],
        io in any::<bool>(),
    ) {
        let mut world = World::new(pool_limit, io);
        for op in &ops {
            world.step(op);
        }
        world.finish();
    }
}
