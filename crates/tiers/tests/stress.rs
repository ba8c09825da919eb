//! Threads that store, load without locks, release late and write back, while cleaners move everything about.
//!
//! The slot table is a mutex a slot, so what a slot must hold is known at every moment; `relocate` only tries the mutex
//! and says Busy, as the real one does. Lost objects, older contents, double releases (the pool stops at them) and
//! leaks (the final count) all fail here. A failure prints the seed.

mod support;

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use support::{dir, page, slot};
use vswap_core::{LoadError, Location, Owner, PAGE_SIZE, Relocated, SlotId, StoreError, Tier};
use vswap_tiers::{FileTier, Pool};

const SLOTS: u64 = 6000;
const THREADS: u64 = 4;

/// What a slot holds.
#[derive(Clone, Copy, Default)]
struct Word {
    at: Option<Location>,
    seed: u64,
}

struct Slots {
    words: Vec<Mutex<Word>>,
    answers: [AtomicU64; 3],
}

impl Slots {
    fn word(&self, slot: SlotId) -> &Mutex<Word> {
        &self.words[slot.get() as usize]
    }
}

impl Owner for Slots {
    fn relocate(&self, slot: SlotId, old: Location, new: Location) -> Relocated {
        let (which, answer) = match self.word(slot).try_lock() {
            None => (0, Relocated::Busy),
            Some(mut word) if word.at == Some(old) => {
                word.at = Some(new);
                (1, Relocated::Moved)
            }
            Some(_) => (2, Relocated::Gone),
        };
        self.answers[which].fetch_add(1, Relaxed);
        answer
    }
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

/// One thread's work.
fn work(tier: &dyn Tier, ops: u64, slots: &Slots, rng: &mut Rng) {
    let mut into = [0; PAGE_SIZE];
    // Taken out of their words, not yet released: for these the cleaner hears Gone.
    let mut late = Vec::new();
    for i in 0..ops {
        // Half of the work on a tenth of the slots.
        let n = if rng.below(2) == 0 { 1 + rng.below(SLOTS / 10) } else { 1 + rng.below(SLOTS - 1) };
        let (slot, seed) = (slot(n), rng.below(1 << 40));
        match rng.below(8) {
            0..=2 => {
                let mut word = slots.word(slot).lock();
                if let Some(old) = word.at.take() {
                    tier.release(slot, old).expect("held");
                }
                let mut out = Vec::new();
                tier.store(&[(slot, &page(seed))], &mut out);
                match out[0] {
                    Ok(at) => *word = Word { at: Some(at), seed },
                    Err(e) => assert_eq!(e, StoreError::Full),
                }
            }
            3..=5 => loop {
                // A load that holds nothing: the word before, the object, the word after.
                let before = *slots.word(slot).lock();
                let Some(at) = before.at else { break };
                let loaded = tier.load(slot, at, &mut into);
                let after = *slots.word(slot).lock();
                if (after.at, after.seed) != (before.at, before.seed) {
                    continue;
                }
                assert_eq!(loaded, Ok(()), "slot {n}");
                assert!(into == page(before.seed), "slot {n} has other contents");
                break;
            },
            6 => {
                if let Some(at) = slots.word(slot).lock().at.take() {
                    late.push((slot, at));
                }
            }
            _ => {
                // Writeback of the coldest.
                let mut cold = Vec::new();
                tier.coldest(8, &mut cold);
                for (slot, at) in cold {
                    let mut word = slots.word(slot).lock();
                    if word.at == Some(at) && i % 16 == 7 {
                        assert_eq!(tier.load(slot, at, &mut into), Ok(()));
                        assert!(into == page(word.seed));
                        word.at = None;
                        tier.release(slot, at).expect("held");
                    }
                }
            }
        }
        if late.len() > 50 {
            late.drain(..).for_each(|(slot, at)| tier.release(slot, at).expect("held"));
        }
    }
    late.drain(..).for_each(|(slot, at)| tier.release(slot, at).expect("held"));
}

/// Returns how many objects the cleaners moved, and how many were gone.
fn stress(tier: &dyn Tier, ops: u64, seed: u64) -> (u64, u64) {
    println!("seed {seed}");
    let limit = tier.usage().limit_bytes;
    let slots = Slots { words: (0..SLOTS).map(|_| Mutex::default()).collect(), answers: Default::default() };
    let over = AtomicBool::new(false);
    let moved = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for c in 0..2 {
            let (slots, over, moved) = (&slots, &over, &moved);
            scope.spawn(move || {
                while !over.load(Relaxed) {
                    moved.fetch_add(tier.clean(slots, if c == 0 { u64::MAX } else { 50_000 }).moved, Relaxed);
                    let usage = tier.usage();
                    let occupied = if usage.device_bytes > 0 { 0 } else { usage.resident_bytes };
                    assert!(occupied <= limit + (1 << 20) && usage.device_bytes <= limit, "{usage:?}");
                    std::thread::yield_now();
                }
            });
        }
        let workers: Vec<_> = (0..THREADS)
            .map(|t| {
                let slots = &slots;
                scope.spawn(move || {
                    work(tier, ops, slots, &mut Rng(seed.wrapping_mul(THREADS).wrapping_add(t) << 1 | 1))
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
        over.store(true, Relaxed);
        results.into_iter().for_each(|r| r.unwrap_or_else(|e| std::panic::resume_unwind(e)));
    });
    let [_, answered_moved, gone] = slots.answers.each_ref().map(|a| a.load(Relaxed));
    assert_eq!(answered_moved, moved.load(Relaxed));
    let mut into = [0; PAGE_SIZE];
    for n in 1..SLOTS {
        let word = *slots.word(slot(n)).lock();
        let Some(at) = word.at else { continue };
        assert_eq!(tier.load(slot(n), at, &mut into), Ok(()));
        assert!(into == page(word.seed), "slot {n} has other contents");
        tier.release(slot(n), at).expect("held");
        assert_eq!(tier.load(slot(n), at, &mut into), Err(LoadError::Stale));
    }
    let usage = tier.usage();
    assert_eq!((usage.objects, usage.live_bytes, usage.device_bytes), (0, 0, 0));
    (answered_moved, gone)
}

fn stress_pool(limit: u64, seed: u64) {
    let pool = Pool::new(limit);
    let (moved, gone) = stress(&pool, 15_000, seed);
    assert!(moved > 1000 && gone > 0, "the cleaner had too little to do: {moved} moved, {gone} gone");
    assert!(pool.usage().resident_bytes < 1 << 18, "{:?}", pool.usage());
}

#[test]
fn nothing_is_lost_in_a_pool_with_room() {
    stress_pool(64 << 20, 1);
}

#[test]
fn nothing_is_lost_in_a_pool_at_its_limit() {
    stress_pool(9 << 20, 2);
}

#[test]
fn nothing_is_lost_in_a_file() {
    // At its limit, so that places are used again at once.
    let file = FileTier::create(&dir(), 4 << 20).expect("a file");
    stress(&file, 4000, 3);
}
