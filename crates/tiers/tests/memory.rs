//! The pool's own count of its memory against the system's. One test, alone in its process.

mod support;

use parking_lot::Mutex;
use support::{page, slot};
use vswap_core::{Location, Owner, Relocated, SlotId, Tier};
use vswap_tiers::Pool;

const SLOTS: u64 = 60_000;

/// A slot table whose memory is all touched before the first look.
struct Slots(Mutex<Vec<u64>>);

const NONE: u64 = u64::MAX;

impl Owner for Slots {
    fn relocate(&self, slot: SlotId, old: Location, new: Location) -> Relocated {
        let word = &mut self.0.lock()[slot.get() as usize];
        if *word != old.get() {
            return Relocated::Gone;
        }
        *word = new.get();
        Relocated::Moved
    }
}

/// Anonymous memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("a line");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}

#[test]
fn usage_is_what_the_system_says_and_freed_memory_goes_back() {
    let pool = Pool::new(1 << 30);
    let slots = Slots(Mutex::new(vec![NONE; SLOTS as usize + 1]));
    let (base, base_usage) = (resident(), pool.usage().resident_bytes);
    let check = |what: &str| {
        let system = resident().saturating_sub(base) as f64;
        let usage = (pool.usage().resident_bytes - base_usage) as f64;
        // Stacks, malloc's own, and the kernel's per-thread batching of its count.
        let off = (system - usage).abs();
        assert!(off < 700e3, "{what}: the system says {system}, the pool says {usage}");
        usage
    };
    let release = |n: u64| {
        let at = std::mem::replace(&mut slots.0.lock()[n as usize], NONE);
        pool.release(slot(n), Location::new(at).expect("stored")).expect("held");
    };
    let mut out = Vec::new();
    for n in 1..=SLOTS {
        out.clear();
        pool.store(&[(slot(n), &page(n))], &mut out);
        slots.0.lock()[n as usize] = out[0].expect("stored").get();
    }
    let full = check("full");
    assert!(full > 40e6);
    (1..=SLOTS).filter(|n| n % 8 != 0).for_each(release);
    check("sparse");
    let report = pool.clean(&slots, u64::MAX);
    let clean = check("clean");
    assert!(report.freed_bytes > 30_000_000 && clean < full / 4.0, "{report:?}");
    (1..=SLOTS).filter(|n| n % 8 == 0).for_each(release);
    assert!(check("empty") < 300e3);
}
