//! Each tier against a plain map, under operations that proptest makes up and shrinks.

mod support;

use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use support::{Owners, dir, noise, page, slot};
use vswap_core::{LoadError, Location, PAGE_SIZE, Page, SlotId, StoreError, Tier};
use vswap_tiers::{FileTier, Pool};

/// What happens to the slots `from .. from + count`, in steps of `step`.
#[derive(Clone, Debug)]
enum Op {
    /// Stores them with new contents; what they had is released.
    Store {
        from: u64,
        count: u64,
        step: u64,
        seed: u64,
    },
    /// Stores pages that do not compress.
    Noise {
        from: u64,
        count: u64,
    },
    Release {
        from: u64,
        count: u64,
        step: u64,
    },
    Clean {
        budget: u64,
    },
    /// Writes back what the tier says is coldest.
    Coldest {
        max: usize,
    },
    Limit {
        mib: u64,
    },
}

const SLOTS: u64 = 4000;

fn op() -> impl Strategy<Value = Op> {
    let range = || (1..SLOTS, 1..1500u64, 1..5u64);
    prop_oneof![
        4 => (range(), any::<u64>()).prop_map(|((from, count, step), seed)| Op::Store { from, count, step, seed }),
        1 => (1..SLOTS, 1..50u64).prop_map(|(from, count)| Op::Noise { from, count }),
        4 => range().prop_map(|(from, count, step)| Op::Release { from, count, step }),
        3 => prop_oneof![Just(u64::MAX), 0..200_000u64].prop_map(|budget| Op::Clean { budget }),
        1 => (1..2000usize).prop_map(|max| Op::Coldest { max }),
        1 => (1..12u64).prop_map(|mib| Op::Limit { mib }),
    ]
}

/// The tier, and what it must hold.
struct Model<'a> {
    tier: &'a dyn Tier,
    owners: Owners,
    contents: HashMap<SlotId, Page>,
    /// Places that are nobody's any more, newest last.
    stale: Vec<(SlotId, Location)>,
    pool: bool,
}

impl Model<'_> {
    fn release(&mut self, slot: SlotId) {
        if let Some(at) = self.owners.0.lock().remove(&slot) {
            self.tier.release(slot, at).expect("held");
            self.contents.remove(&slot);
            self.stale.push((slot, at));
        }
    }

    fn store(&mut self, pages: Vec<(SlotId, Page)>) {
        for (slot, _) in &pages {
            self.release(*slot);
        }
        let refs: Vec<_> = pages.iter().map(|(s, p)| (*s, p)).collect();
        let mut out = Vec::new();
        self.tier.store(&refs, &mut out);
        assert_eq!(out.len(), pages.len());
        for ((slot, page), at) in pages.iter().zip(out) {
            match at {
                Ok(at) => {
                    self.owners.0.lock().insert(*slot, at);
                    self.contents.insert(*slot, *page);
                }
                Err(StoreError::Full) => {}
                Err(e) => assert!(e == StoreError::Incompressible && self.pool, "{e:?}"),
            }
        }
    }

    fn step(&mut self, op: &Op) {
        let range = |from: u64, count: u64, step: u64| (from..SLOTS.min(from + count)).step_by(step as usize);
        match *op {
            Op::Store { from, count, step, seed } => {
                self.store(range(from, count, step).map(|n| (slot(n), page(seed.wrapping_add(n)))).collect());
            }
            Op::Noise { from, count } => {
                self.store(range(from, count, 1).map(|n| (slot(n), noise(n))).collect());
                let kept = range(from, count, 1).filter(|n| self.contents.contains_key(&slot(*n))).count();
                assert!(!self.pool || kept == 0, "the pool keeps noise");
            }
            Op::Release { from, count, step } => range(from, count, step).for_each(|n| self.release(slot(n))),
            Op::Clean { budget } => {
                let before = self.owners.0.lock().clone();
                let report = self.tier.clean(&self.owners, budget);
                let now = self.owners.0.lock();
                let moved: Vec<_> = before.iter().filter(|(slot, at)| now[slot] != **at).collect();
                assert_eq!(moved.len() as u64, report.moved);
                self.stale.extend(moved.into_iter().map(|(slot, at)| (*slot, *at)));
            }
            Op::Coldest { max } => {
                let mut cold = Vec::new();
                self.tier.coldest(max, &mut cold);
                assert!(cold.len() <= max && (self.pool || cold.is_empty()));
                assert_eq!(cold.iter().collect::<HashSet<_>>().len(), cold.len(), "offered twice");
                for (slot, at) in cold {
                    assert_eq!(
                        self.owners.0.lock().get(&slot),
                        Some(&at),
                        "nobody else changes anything here"
                    );
                    self.release(slot);
                }
            }
            Op::Limit { mib } => self.tier.set_limit(mib << 20),
        }
        self.check();
    }

    fn check(&self) {
        let owners = self.owners.0.lock();
        let mut into = [0; PAGE_SIZE];
        for (slot, page) in &self.contents {
            assert_eq!(self.tier.load(*slot, owners[slot], &mut into), Ok(()));
            assert!(into == *page, "slot {} has other contents", slot.get());
        }
        for (slot, at) in self.stale.iter().rev().take(300) {
            if owners.get(slot) != Some(at) {
                assert_eq!(self.tier.load(*slot, *at, &mut into), Err(LoadError::Stale));
            }
        }
        assert_eq!(self.tier.usage().objects, self.contents.len() as u64);
    }
}

fn run(tier: &dyn Tier, pool: bool, ops: &[Op]) {
    let mut model =
        Model { tier, owners: Owners::default(), contents: HashMap::new(), stale: Vec::new(), pool };
    ops.iter().for_each(|op| model.step(op));
    for n in 1..SLOTS {
        model.release(slot(n));
    }
    let usage = tier.usage();
    assert_eq!((usage.objects, usage.live_bytes, usage.device_bytes), (0, 0, 0));
    assert!(usage.resident_bytes < 1 << 20, "{usage:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn pool(ops in prop::collection::vec(op(), 1..25)) {
        run(&Pool::new(8 << 20), true, &ops);
    }

    #[test]
    fn file(ops in prop::collection::vec(op(), 1..20)) {
        run(&FileTier::create(&dir(), 12 << 20).expect("a file"), false, &ops);
    }
}
