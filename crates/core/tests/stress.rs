//! All operations from several threads at once, with an oracle: front doors that share slots, and every background task.
#![cfg(not(loom))]

mod common;

use common::*;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use vswap_core::{PAGE_SIZE, SlotId, StoreError, TierId, VirtualSwap};

const FRONT_DOORS: u64 = 3;
const TIME: Duration = Duration::from_secs(3);

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// A reference, and the page that the slot has. Only slots that were never shared are stored to again.
#[derive(Clone, Copy)]
struct Reference {
    slot: SlotId,
    seed: u64,
    sole: bool,
}

/// References on their way to another front door, as after a fork.
type Mailbox = Mutex<Vec<Reference>>;

fn front_door(space: &VirtualSwap, mailbox: &Mailbox, me: u64, stop: &AtomicBool) -> Vec<Reference> {
    let mut random = Random(0x1234_5678 + me * 0x9999_9999);
    let mut mine: Vec<Reference> = Vec::new();
    let mut page = [0; PAGE_SIZE];
    while !stop.load(Relaxed) {
        let pick = random.below(mine.len().max(1) as u64) as usize;
        match random.below(16) {
            0..3 if mine.len() < 1500 => {
                let n = 1 + random.below(40) as usize;
                let slots = alloc(space, n);
                let seeds: Vec<_> = slots.iter().map(|_| random.below(1 << 20)).collect();
                let pages: Vec<_> = seeds.iter().map(|seed| page_of(*seed)).collect();
                let batch: Vec<_> = slots.iter().copied().zip(&pages).collect();
                let cached = if random.below(3) == 0 { 0 } else { space.cache_many(&batch) };
                let mut stored = Vec::new();
                space.store_many(&batch[cached..], &mut stored);
                for (i, (slot, seed)) in slots.iter().zip(seeds).enumerate() {
                    if i < cached || stored[i - cached].is_ok() {
                        mine.push(Reference { slot: *slot, seed, sole: true });
                    } else {
                        space.free_n(&[*slot]);
                    }
                }
            }
            3..8 if !mine.is_empty() => {
                let count = (1 + random.below(16) as usize).min(mine.len() - pick);
                let some = &mine[pick..pick + count];
                let slots: Vec<_> = some.iter().map(|r| r.slot).collect();
                let mut pages = vec![[0x77; PAGE_SIZE]; count];
                let mut out = Vec::new();
                space.load_many(&slots, &mut pages, &mut out);
                for ((reference, page), outcome) in some.iter().zip(&pages).zip(out) {
                    outcome.unwrap_or_else(|e| panic!("{e}"));
                    assert!(*page == page_of(reference.seed), "{:?}", reference.slot);
                }
            }
            8 if !mine.is_empty() => {
                let reference = mine.swap_remove(pick);
                space.load(reference.slot, &mut page).unwrap_or_else(|e| panic!("{e}"));
                assert!(page == page_of(reference.seed));
                space.free_n(&[reference.slot]);
            }
            9..12 if !mine.is_empty() => {
                let count = (1 + random.below(30) as usize).min(mine.len() - pick);
                let freed: Vec<_> = mine.drain(pick..pick + count).map(|r| r.slot).collect();
                space.free_n(&freed);
            }
            12 if !mine.is_empty() => {
                mine[pick].sole = false;
                space.dup_n(&[mine[pick].slot]);
                mailbox.lock().expect("mailbox").push(mine[pick]);
            }
            13 => mine.extend(mailbox.lock().expect("mailbox").pop()),
            14 if !mine.is_empty() && mine[pick].sole => {
                let seed = random.below(1 << 20);
                let slot = mine[pick].slot;
                if random.below(2) == 0 {
                    if cache(space, slot, seed) {
                        mine[pick].seed = seed;
                    }
                } else if store(space, slot, seed).is_ok() {
                    mine[pick].seed = seed;
                }
                check(space, slot, mine[pick].seed);
            }
            15 if !mine.is_empty() => {
                let count = (1 + random.below(8) as usize).min(mine.len() - pick);
                let slots: Vec<_> = mine[pick..pick + count].iter().map(|r| r.slot).collect();
                space.promote_many(&slots);
            }
            _ => {}
        }
    }
    mine
}

#[test]
fn nothing_is_lost_or_wrong_under_everything_at_once() {
    let pool = MemTier::pool(800);
    pool.refuse(incompressible);
    let (failing, file) = (MemTier::device(300), MemTier::device(100_000));
    failing.refuse(|page| page[1].is_multiple_of(3).then_some(StoreError::Io(5)));
    let space = Arc::new(space(&pool, &[&failing, &file], 300));
    let (mailbox, stop) = (Mailbox::default(), AtomicBool::new(false));
    let (written, back, cleaned, drained) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let background = |work: &'static (dyn Fn(&VirtualSwap) -> u64 + Sync), sum: &AtomicU64| {
        while !stop.load(Relaxed) {
            sum.fetch_add(work(&space), Relaxed);
            std::thread::yield_now();
        }
    };
    let start = Instant::now();
    let left = std::thread::scope(|scope| {
        let doors: Vec<_> = (0..FRONT_DOORS)
            .map(|me| {
                let (space, mailbox, stop) = (&space, &mailbox, &stop);
                scope.spawn(move || front_door(space, mailbox, me, stop))
            })
            .collect();
        scope.spawn(|| background(&|space| space.write_out(64).written as u64, &written));
        scope.spawn(|| background(&|space| space.write_out(7).written as u64, &written));
        scope.spawn(|| background(&|space| space.write_back(40).written as u64, &back));
        scope.spawn(|| background(&|space| space.clean(u64::MAX).moved, &cleaned));
        scope.spawn(|| {
            background(
                &|space| {
                    let moved = (0..20).map(|_| space.swap_off(TierId(0), 20).moved as u64).sum();
                    space.swap_on(TierId(0));
                    space.set_max_frames(200 + moved as usize);
                    moved
                },
                &drained,
            );
        });
        while start.elapsed() < TIME {
            std::thread::sleep(Duration::from_millis(20));
            if doors.iter().any(|door| door.is_finished()) {
                break; // by a panic, which comes out at the join
            }
        }
        stop.store(true, Relaxed);
        doors.into_iter().flat_map(|door| door.join().expect("no panic")).collect::<Vec<_>>()
    });
    let tiers = [&failing, &file];
    audit(&space, &pool, &tiers);
    let all: Vec<_> = left.into_iter().chain(mailbox.into_inner().expect("mailbox")).collect();
    for reference in &all {
        check(&space, reference.slot, reference.seed);
        space.free_n(&[reference.slot]);
    }
    audit(&space, &pool, &tiers);
    let usage = space.usage();
    assert_eq!(
        (usage.slots, usage.frames, pool.objects(), failing.objects(), file.objects()),
        (0, 0, 0, 0, 0)
    );
    assert!(usage.clusters <= 8, "one for each shard at most");
    for (name, sum) in [("written", written), ("back", back), ("cleaned", cleaned), ("drained", drained)] {
        let n = sum.into_inner();
        println!("{name}: {n}");
        assert!(n > 0, "nothing was {name}");
    }
}
