//! What every tier promises: one suite, run on each of them.

mod support;

use std::collections::{HashMap, HashSet};
use support::{dir, page, slot};
use vswap_core::{LoadError, Location, NotThere, PAGE_SIZE, Page, StoreError, Tier};
use vswap_tiers::{FileTier, Pool};

/// Enough that no test but those of the limit meets it.
const AMPLE: u64 = 256 << 20;

macro_rules! conformance {
    ($($tier:ident: $new:expr;)*) => { $(
        mod $tier {
            use super::*;
            fn new(limit: u64) -> Box<dyn Tier> { Box::new($new(limit)) }
            #[test] fn gives_back_what_was_stored() { super::gives_back_what_was_stored(&*new(AMPLE)); }
            #[test] fn lost_races_are_stale() { super::lost_races_are_stale(&*new(AMPLE)); }
            #[test] fn any_location_may_be_asked_for() { super::any_location_may_be_asked_for(&*new(AMPLE)); }
            #[test] fn the_limit_holds() { super::the_limit_holds(&new); }
            #[test] fn no_limit_is_too_small_to_survive() { super::no_limit_is_too_small_to_survive(&new); }
            #[test] fn a_lower_limit_refuses_and_frees_nothing() { super::a_lower_limit_refuses_and_frees_nothing(&*new(AMPLE)); }
            #[test] fn usage_counts_and_returns() { super::usage_counts_and_returns(&*new(AMPLE)); }
            #[test] fn wrong_releases_are_refused() { super::wrong_releases_are_refused(&*new(AMPLE)); }
            #[test] fn threads_do_not_disturb_each_other() { super::threads_do_not_disturb_each_other(&*new(AMPLE)); }
        }
    )* };
}

conformance! {
    pool: Pool::new;
    file: |limit| FileTier::create(&dir(), limit).expect("a file");
}

/// Stores slot n with page(n) for each n.
fn store(tier: &dyn Tier, slots: impl IntoIterator<Item = u64>) -> Vec<Result<Location, StoreError>> {
    let pages: Vec<_> = slots.into_iter().map(|n| (slot(n), page(n))).collect();
    let refs: Vec<_> = pages.iter().map(|(s, p)| (*s, p)).collect();
    let mut out = vec![Err(StoreError::Io(-1))];
    tier.store(&refs, &mut out);
    assert_eq!(out.remove(0), Err(StoreError::Io(-1)), "outcomes are pushed");
    assert_eq!(out.len(), pages.len());
    out
}

fn load(tier: &dyn Tier, n: u64, at: Location) -> Result<Page, LoadError> {
    let mut into = [0xee; PAGE_SIZE];
    tier.load(slot(n), at, &mut into).map(|()| into)
}

fn gives_back_what_was_stored(tier: &dyn Tier) {
    let slots = [1, 2, 3, 4, 5, 6, 7, 8, (1 << 40) - 1, 1 << 39];
    let places: Vec<_> = store(tier, slots).into_iter().map(|r| r.expect("stored")).collect();
    assert_eq!(places.iter().map(|at| at.get()).collect::<HashSet<_>>().len(), slots.len());
    for _ in 0..2 {
        for (n, at) in slots.iter().zip(&places) {
            assert!(load(tier, *n, *at).expect("there") == page(*n), "slot {n}");
        }
    }
    for (n, at) in slots.iter().zip(&places).rev() {
        tier.release(slot(*n), *at).expect("held");
    }
    store(tier, []);
    assert_eq!(tier.usage().objects, 0);
}

fn lost_races_are_stale(tier: &dyn Tier) {
    let places: Vec<_> = store(tier, 1..=1000).into_iter().map(|r| r.expect("stored")).collect();
    assert_eq!(load(tier, 1001, places[0]), Err(LoadError::Stale), "another's");
    tier.release(slot(500), places[499]).expect("held");
    assert_eq!(load(tier, 500, places[499]), Err(LoadError::Stale), "released");
    for n in (1..=1000).filter(|n| *n != 500) {
        tier.release(slot(n), places[n as usize - 1]).expect("held");
    }
    // Others come to the same places.
    store(tier, 2001..=3000);
    for n in 1..=1000 {
        assert_eq!(
            load(tier, n, places[n as usize - 1]),
            Err(LoadError::Stale),
            "slot {n}, its place used again"
        );
    }
}

fn any_location_may_be_asked_for(tier: &dyn Tier) {
    let real = store(tier, 1..=100);
    let real: HashSet<_> = real.into_iter().map(|r| r.expect("stored").get()).collect();
    let mut x = 1u64;
    for i in 0..20_000 {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // All of 40 bits, then the neighbourhood of what there is.
        let raw = if i % 2 == 0 { x >> 24 } else { x >> 48 };
        if !real.contains(&raw) {
            assert_eq!(
                load(tier, 7, Location::new(raw).expect("40 bits")),
                Err(LoadError::Stale),
                "location {raw:#x}"
            );
        }
    }
}

fn the_limit_holds(new: &dyn Fn(u64) -> Box<dyn Tier>) {
    let limit = 6 << 20;
    let tier = new(limit);
    let occupied = || {
        let usage = tier.usage();
        assert_eq!(usage.limit_bytes, limit);
        if usage.device_bytes > 0 { usage.device_bytes } else { usage.resident_bytes }
    };
    let (mut kept, mut n) = (HashMap::new(), 0);
    while kept.len() == n as usize {
        n += 1;
        match store(&*tier, [n])[0] {
            Ok(at) => assert_eq!(kept.insert(n, at), None),
            Err(e) => assert_eq!(e, StoreError::Full),
        }
        assert!(occupied() <= limit, "{} of {limit} bytes after {n} pages", occupied());
    }
    assert!(occupied() > limit / 4 * 3, "full at {} of {limit} bytes", occupied());
    // A batch is refused page by page (what is small may still find room); what was there stays.
    assert!(store(&*tier, n..n + 300).iter().filter(|r| **r == Err(StoreError::Full)).count() > 150);
    let objects = tier.usage().objects;
    for (n, at) in &kept {
        assert!(load(&*tier, *n, *at).expect("there") == page(*n));
    }
    for (n, at) in &kept {
        tier.release(slot(*n), *at).expect("held");
    }
    assert_eq!(tier.usage().objects, objects - kept.len() as u64);
    assert!(store(&*tier, n + 1000..n + 1100).iter().all(Result::is_ok), "there is room again");
}

fn no_limit_is_too_small_to_survive(new: &dyn Fn(u64) -> Box<dyn Tier>) {
    for limit in [0, 1, 4095, 4096, 8192, 1 << 16] {
        let tier = new(limit);
        for (n, r) in (1..).zip(store(&*tier, 1..=50)) {
            match r {
                Ok(at) => assert!(load(&*tier, n, at).expect("there") == page(n)),
                Err(e) => assert_eq!(e, StoreError::Full),
            }
        }
        assert!(tier.usage().device_bytes <= limit);
    }
}

fn a_lower_limit_refuses_and_frees_nothing(tier: &dyn Tier) {
    let places: Vec<_> = store(tier, 1..=2000).into_iter().map(|r| r.expect("stored")).collect();
    tier.set_limit(1 << 20);
    assert_eq!(store(tier, [5000]), [Err(StoreError::Full)]);
    assert_eq!(tier.usage().objects, 2000);
    for (n, at) in (1..).zip(&places) {
        assert!(load(tier, n, *at).expect("there") == page(n));
    }
    tier.set_limit(AMPLE);
    assert!(store(tier, [5000])[0].is_ok());
}

fn usage_counts_and_returns(tier: &dyn Tier) {
    let at_first = tier.usage();
    assert_eq!((at_first.objects, at_first.live_bytes, at_first.device_bytes), (0, 0, 0));
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let places: Vec<_> = store(tier, 1..=3000).into_iter().map(|r| r.expect("stored")).collect();
        let full = tier.usage();
        assert_eq!(full.objects, 3000);
        assert!(
            full.live_bytes >= 3000 * 16 && full.resident_bytes.max(full.device_bytes) >= full.live_bytes
        );
        let mut live = full.live_bytes;
        for (n, at) in (1..).zip(&places) {
            tier.release(slot(n), *at).expect("held");
            let now = tier.usage();
            assert_eq!(now.objects, 3000 - n);
            assert!(now.live_bytes < live, "release gives up no bytes");
            live = now.live_bytes;
        }
        assert_eq!((live, tier.usage().device_bytes), (0, 0));
        rounds.push(tier.usage().resident_bytes);
    }
    // Tables and buffers stay, and do not grow from round to round.
    assert!(rounds[0] - at_first.resident_bytes < 1 << 20, "{rounds:?}");
    assert!(rounds.iter().all(|r| *r == rounds[0]), "{rounds:?}");
}

fn wrong_releases_are_refused(tier: &dyn Tier) {
    let places: Vec<_> = store(tier, 1..=3).into_iter().map(|r| r.expect("stored")).collect();
    let refused = |n, at| tier.release(slot(n), at) == Err(NotThere);
    assert!(refused(2, places[0]), "another's");
    tier.release(slot(1), places[0]).expect("held");
    assert!(refused(1, places[0]), "twice");
    assert!(refused(3, Location::new((1 << 40) - 8).expect("40 bits")), "nowhere");
    assert_eq!(tier.usage().objects, 2);
    for n in [2, 3] {
        assert!(load(tier, n, places[n as usize - 1]).expect("untouched") == page(n));
    }
}

fn threads_do_not_disturb_each_other(tier: &dyn Tier) {
    std::thread::scope(|scope| {
        for t in 0..4u64 {
            scope.spawn(move || {
                let mut kept = Vec::new();
                for round in 0..40 {
                    let first = t << 32 | round << 8 | 1;
                    let batch = first..first + 1 + round;
                    for (n, at) in batch.clone().zip(store(tier, batch)) {
                        kept.push((n, at.expect("stored")));
                    }
                    for (n, at) in kept.iter().step_by(7) {
                        assert!(load(tier, *n, *at).expect("there") == page(*n));
                    }
                    for (n, at) in kept.split_off(kept.len() / 2) {
                        assert!(load(tier, n, at).expect("there") == page(n));
                        tier.release(slot(n), at).expect("held");
                    }
                }
                kept.into_iter().for_each(|(n, at)| tier.release(slot(n), at).expect("held"));
            });
        }
    });
    let usage = tier.usage();
    assert_eq!((usage.objects, usage.live_bytes, usage.device_bytes), (0, 0, 0));
}
