//! What slot operations cost, by number of threads: `cargo run -p vswap-core --release --example slot_ops`.
//!
//! Each thread works on slots of its own, a quarter of a second for each figure. More threads than processors only show
//! that nothing collapses.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use vswap_core::{GroupId, PAGE_SIZE, Page, SlotId, SpaceConfig, VirtualSwap};

const TIME: Duration = Duration::from_millis(250);
const GROUP: GroupId = GroupId(0);
/// Slots of a thread.
const SLOTS: usize = 4096;
const BATCH: usize = 64;

type Setup = fn(&VirtualSwap) -> Vec<SlotId>;
type Round = fn(&VirtualSwap, &[SlotId], &mut Buffers) -> u64;

struct Buffers {
    slots: Vec<SlotId>,
    pages: Vec<Page>,
    found: Vec<Result<vswap_core::Source, vswap_core::LoadFailure>>,
    round: usize,
}

fn none(_: &VirtualSwap) -> Vec<SlotId> {
    Vec::new()
}

fn zeros(space: &VirtualSwap) -> Vec<SlotId> {
    let mut slots = Vec::new();
    space.alloc_n(GROUP, SLOTS, &mut slots).expect("memory");
    let pages: Vec<_> = slots.iter().map(|slot| (*slot, &[0; PAGE_SIZE])).collect();
    let mut out = Vec::new();
    space.store_many(&pages, &mut out);
    slots
}

fn cached(space: &VirtualSwap) -> Vec<SlotId> {
    let mut slots = Vec::new();
    space.alloc_n(GROUP, BATCH, &mut slots).expect("memory");
    for slot in &slots {
        assert_eq!(space.cache_many(&[(*slot, &[7; PAGE_SIZE])]), 1);
    }
    slots
}

fn alloc_free(space: &VirtualSwap, _: &[SlotId], buffers: &mut Buffers) -> u64 {
    buffers.slots.clear();
    space.alloc_n(GROUP, 1, &mut buffers.slots).expect("memory");
    space.free_n(&buffers.slots);
    1
}

fn alloc_free_batch(space: &VirtualSwap, _: &[SlotId], buffers: &mut Buffers) -> u64 {
    buffers.slots.clear();
    space.alloc_n(GROUP, BATCH, &mut buffers.slots).expect("memory");
    space.free_n(&buffers.slots);
    BATCH as u64
}

fn lookup(space: &VirtualSwap, slots: &[SlotId], buffers: &mut Buffers) -> u64 {
    buffers.round = (buffers.round + 1021) % slots.len();
    assert_eq!(space.references(slots[buffers.round]), 1);
    1
}

fn load(space: &VirtualSwap, slots: &[SlotId], buffers: &mut Buffers) -> u64 {
    buffers.round = (buffers.round + 1021) % slots.len();
    space.load(slots[buffers.round], &mut buffers.pages[0]).expect("stored");
    1
}

fn load_batch(space: &VirtualSwap, slots: &[SlotId], buffers: &mut Buffers) -> u64 {
    buffers.found.clear();
    space.load_many(&slots[..BATCH], &mut buffers.pages, &mut buffers.found);
    BATCH as u64
}

fn dup_free(space: &VirtualSwap, slots: &[SlotId], buffers: &mut Buffers) -> u64 {
    buffers.round = (buffers.round + 1021) % slots.len();
    let one = &slots[buffers.round..=buffers.round];
    space.dup_n(one);
    space.free_n(one);
    1
}

fn dup_free_batch(space: &VirtualSwap, slots: &[SlotId], _: &mut Buffers) -> u64 {
    space.dup_n(&slots[..BATCH]);
    space.free_n(&slots[..BATCH]);
    BATCH as u64
}

fn cache_again(space: &VirtualSwap, slots: &[SlotId], buffers: &mut Buffers) -> u64 {
    let pages: Vec<_> = slots.iter().copied().zip(&buffers.pages).collect();
    assert_eq!(space.cache_many(&pages), BATCH);
    BATCH as u64
}

fn measure(threads: usize, setup: Setup, round: Round) -> f64 {
    let space = VirtualSwap::new(SpaceConfig { pool: None, tiers: Vec::new(), max_frames: 1 << 14 });
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let slots = setup(&space);
                let pages = vec![[0; PAGE_SIZE]; BATCH];
                let mut buffers = Buffers { slots: Vec::new(), pages, found: Vec::new(), round: 0 };
                let mut operations = 0;
                while !stop.load(Relaxed) {
                    for _ in 0..16 {
                        operations += round(&space, &slots, &mut buffers);
                    }
                }
                done.fetch_add(operations, Relaxed);
            });
        }
        std::thread::sleep(TIME);
        stop.store(true, Relaxed);
    });
    done.into_inner() as f64 / start.elapsed().as_secs_f64()
}

fn main() {
    let cases: [(&str, Setup, Round); 10] = [
        ("alloc + free", none, alloc_free),
        ("alloc + free, by 64", none, alloc_free_batch),
        ("look up", zeros, lookup),
        ("load a zero page", zeros, load),
        ("load zero pages, by 64", zeros, load_batch),
        ("load a cached page", cached, load),
        ("load cached pages, by 64", cached, load_batch),
        ("dup + free", zeros, dup_free),
        ("dup + free, by 64", zeros, dup_free_batch),
        ("cache over cached, by 64", cached, cache_again),
    ];
    println!("million slots a second (ns a slot and thread)");
    println!("{:26}{:>16}{:>16}{:>16}{:>16}", "threads", 1, 2, 4, 8);
    for (name, setup, round) in cases {
        print!("{name:26}");
        for threads in [1, 2, 4, 8] {
            let rate = measure(threads, setup, round);
            let cpus = std::thread::available_parallelism().map_or(1, usize::from).min(threads);
            print!("{:>8.2} ({:>5.0})", rate / 1e6, 1e9 * cpus as f64 / rate);
        }
        println!();
    }
}
