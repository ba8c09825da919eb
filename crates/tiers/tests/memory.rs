//! The pool's own count of its memory against the system's. One test, alone in its process.

mod support;

use support::{Owners, page, slot};
use vswap_core::Tier;
use vswap_tiers::Pool;

/// Anonymous memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("a line");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}

#[test]
fn usage_is_what_the_system_says_and_freed_memory_goes_back() {
    let pool = Pool::new(1 << 30);
    let owners = Owners::default();
    // What the tests themselves need, before the first look.
    owners.0.lock().reserve(200_000);
    for n in 1..100 {
        owners.0.lock().insert(slot(n), vswap_core::Location::new(0).expect("a location"));
    }
    owners.0.lock().clear();
    let (base, base_usage) = (resident(), pool.usage().resident_bytes);
    let check = |what: &str| {
        let system = resident().saturating_sub(base) as f64;
        let usage = (pool.usage().resident_bytes - base_usage) as f64;
        println!("{what}: the system says {system}, the pool says {usage}");
        // The map of the test itself may still grow by a few pages.
        assert!(
            (system - usage).abs() < 2e6 + usage * 0.02,
            "{what}: the system says {system}, the pool says {usage}"
        );
        usage
    };
    const N: u64 = 60_000;
    let mut out = Vec::new();
    for n in 1..=N {
        out.clear();
        // Four kinds of pages; 0.9 KiB in the mean.
        pool.store(&[(slot(n), &page(n))], &mut out);
        owners.0.lock().insert(slot(n), out[0].expect("stored"));
    }
    let full = check("full");
    assert!(full > 40e6);
    for n in (1..=N).filter(|n| n % 8 != 0) {
        let at = owners.0.lock().remove(&slot(n)).expect("stored");
        pool.release(slot(n), at);
    }
    check("sparse");
    let report = pool.clean(&owners, u64::MAX);
    let clean = check("clean");
    assert!(report.freed_bytes > 30_000_000 && clean < full / 5.0, "{report:?}");
    for (slot, at) in owners.0.lock().drain() {
        pool.release(slot, at);
    }
    assert!(check("empty") < 300e3);
}
