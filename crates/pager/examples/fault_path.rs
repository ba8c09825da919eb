//! Where the time of a fault goes, part by part, beside the least that each part can take here.
//!
//! ```text
//! cargo run --release -p vswap-pager --example fault_path -- FILE.pages...
//! ```
//!
//! A thread touches pages of its own in random order; a server on the same CPU, with the pager's protocol, space, pool and priority,
//! brings each back from images of real programs' pages (made by `page_images` of vswap-tiers). Medians and tenths of all
//! faults, in nanoseconds. What a stamp costs is in every part; it is the last line.
#![allow(missing_docs)]

use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

use vswap_core::{GroupId, PAGE_SIZE, Page, SlotId, SpaceConfig, VirtualSwap};
use vswap_pager::proto::{AddressSpace, Answer, Command, Effect, Fault, Input, Mapping, Stop};
use vswap_sys::poll::{EventFd, Events, poll};
use vswap_sys::process;
use vswap_sys::uffd::{FEATURES, Message, RegisterMode, Uffd};
use vswap_tiers::Pool;
use zstd::bulk::{Compressor, Decompressor};

const PAGES: usize = 8192;
const PAGE: u64 = PAGE_SIZE as u64;
/// The pool's.
const LEVEL: i32 = -1;

/// Stamps of one fault, in the order in which they are taken.
const PARTS: [&str; 7] = [
    "delivery: touch to poll's return",
    "read the message",
    "protocol: fault to command",
    "load: slot to page",
    "COPY, the wake-up included",
    "protocol: answer, slot freed",
    "return: back in the thread",
];

#[derive(Clone, Copy)]
enum Backing {
    Filled,
    Cached,
    Pooled,
}

fn main() {
    // Before anything was freed, so that nothing of it was ever touched. A black box, or the compiler knows what is read.
    let fresh: [Vec<u8>; 5] = std::array::from_fn(|_| black_box(vec![0; (PAGES + 1) * PAGE_SIZE]));
    let cpu = process::current_cpu();
    process::set_affinity_self(cpu).expect("this CPU");
    let other = process::allowed_cpus().into_iter().find(|&other| other != cpu);
    let files: Vec<Vec<u8>> =
        std::env::args().skip(1).map(|file| std::fs::read(file).expect("readable")).collect();
    // What does not compress never gets into the pool.
    let mut compressor = Compressor::new(LEVEL).expect("a level");
    let images: Vec<&Page> = files
        .iter()
        .flat_map(|bytes| bytes.as_chunks().0)
        .filter(|page| page[8..] != page[..PAGE_SIZE - 8])
        .filter(|page| compressor.compress(&page[..]).is_ok_and(|bytes| bytes.len() < PAGE_SIZE / 4 * 3))
        .collect();
    assert!(!images.is_empty(), "no pages: name files that page_images has made");
    let pages: Vec<&Page> = (0..PAGES).map(|n| images[n * 7919 % images.len()]).collect();

    // Thread creation takes the affinity along.
    let floors = Floors::measure(&fresh[0], cpu, &pages);
    let backings = [
        ("same-filled", Backing::Filled, 0.0),
        ("swap cache", Backing::Cached, floors.page_copy),
        ("pool", Backing::Pooled, floors.decompress),
    ];
    for ((name, backing, load), memory) in backings.into_iter().zip(&fresh[1..]) {
        let parts = faults(memory, cpu, backing, &pages);
        let least = [floors.switch, floors.read, 0.0, load, floors.copy, 0.0, floors.switch];
        report(name, &parts, Some(&least));
    }
    if let Some(other) = other {
        report("pool, server on another CPU", &faults(&fresh[4], other, Backing::Pooled, &pages), None);
    }
    println!("a stamp: {:.0}", floors.stamp);
}

/// Runs all faults; the times of each part.
fn faults(memory: &[u8], server: u32, backing: Backing, pages: &[&Page]) -> [Vec<u64>; PARTS.len()] {
    let space = VirtualSwap::new(SpaceConfig {
        pool: Some(Arc::new(Pool::new(1 << 30))),
        tiers: Vec::new(),
        max_frames: PAGES,
    });
    let slots = fill(&space, backing, pages);
    let base = (memory.as_ptr() as u64).next_multiple_of(PAGE);
    let skip = (base - memory.as_ptr() as u64) as usize;
    let range = base..base + (PAGES * PAGE_SIZE) as u64;
    let uffd = Uffd::open().expect("userfaultfd");
    uffd.api(FEATURES).expect("its features");
    uffd.register(range.clone(), RegisterMode::MISSING | RegisterMode::WP).expect("register");
    uffd.set_nonblocking().expect("non-blocking");
    let protocol = evicted(&range, &slots);

    let start = Instant::now();
    let touched = AtomicU64::new(0);
    let mut parts: [Vec<u64>; PARTS.len()] = Default::default();
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            process::set_affinity_self(server).expect("a CPU");
            // As the pager: without the right to it, as it comes.
            let _ = process::set_realtime_self();
            serve(&uffd, protocol, &space, start)
        });
        let mut ends = Vec::with_capacity(PAGES);
        for n in 0..PAGES {
            let page = n * 4099 % PAGES;
            touched.store(stamp(start), SeqCst);
            black_box(memory[skip + page * PAGE_SIZE]);
            ends.push((touched.load(SeqCst), stamp(start)));
        }
        let served = serving.join().expect("the server");
        for ((from, to), middle) in ends.into_iter().zip(served) {
            let all: Vec<u64> = [from].into_iter().chain(middle).chain([to]).collect();
            for (part, two) in parts.iter_mut().zip(all.windows(2)) {
                // The thread may be back on another CPU before the server has finished.
                part.push(two[1].saturating_sub(two[0]));
            }
        }
    });
    parts
}

fn stamp(start: Instant) -> u64 {
    start.elapsed().as_nanos() as u64
}

fn fill(space: &VirtualSwap, backing: Backing, pages: &[&Page]) -> Vec<SlotId> {
    let mut slots = Vec::new();
    space.alloc_n(GroupId(0), pages.len(), &mut slots).expect("slots");
    let mut stored = Vec::new();
    for (slot, page) in slots.iter().zip(pages) {
        match backing {
            Backing::Filled => space.store_many(&[(*slot, &[7; PAGE_SIZE])], &mut stored),
            Backing::Pooled => space.store_many(&[(*slot, page)], &mut stored),
            Backing::Cached => assert_eq!(space.cache_many(&[(*slot, page)]), 1),
        }
    }
    assert!(stored.iter().all(Result::is_ok), "everything has a place");
    slots
}

/// The protocol of an address space all of whose pages have left to these slots.
fn evicted(range: &std::ops::Range<u64>, slots: &[SlotId]) -> AddressSpace {
    let mut protocol = AddressSpace::new(true);
    let mut registered = false;
    let slot = |addr: u64| slots[((addr - range.start) / PAGE) as usize];
    while protocol.evicted() < slots.len() as u64 {
        protocol.input(Input::Evict(128));
        while let Some(command) = protocol.next_command() {
            let answer = match command {
                Command::Mapping(at) if at < range.end => {
                    Answer::Mapping(Some(Mapping { range: range.clone(), evictable: true }))
                }
                Command::Mapping(_) => Answer::Mapping(None),
                Command::ProbePage(_) if !registered => Answer::Refused,
                Command::Register(_) => {
                    registered = true;
                    Answer::Done
                }
                Command::WipedOnFork(_) => Answer::Wiped(Vec::new()),
                Command::Scan(part, most) => {
                    let end = part.end.min(part.start + most * PAGE);
                    Answer::Scanned(std::iter::once(part.start..end).collect(), end)
                }
                Command::Move(runs) => {
                    let addrs = runs.into_iter().flat_map(|run| run.step_by(PAGE_SIZE));
                    Answer::Moved(addrs.map(|addr| (addr, slot(addr))).collect(), false)
                }
                _ => Answer::Done,
            };
            protocol.answer(answer);
        }
    }
    protocol
}

/// Serves every page once; stamps between the touch and the return.
fn serve(uffd: &Uffd, mut protocol: AddressSpace, space: &VirtualSwap, start: Instant) -> Vec<[u64; 6]> {
    let mut all = Vec::with_capacity(PAGES);
    let (mut pages, mut found) = (vec![[0; PAGE_SIZE]; 1], Vec::new());
    while all.len() < PAGES {
        poll(&[(uffd.as_fd(), Events::IN)], None).expect("poll");
        let polled = stamp(start);
        let Ok(Some(Message::Fault { addr, write, tid, .. })) = uffd.read_message() else { continue };
        let read = stamp(start);
        protocol.input(Input::Fault(Fault { addr, write, tid, stamp: read }));
        let Some(Command::Copy { addr, slots, .. }) = protocol.next_command() else {
            panic!("the page at {addr:#x} has left")
        };
        let known = stamp(start);
        found.clear();
        space.load_many(&slots[..1], &mut pages, &mut found);
        assert!(found[0].is_ok(), "{found:?}");
        let loaded = stamp(start);
        uffd.copy(addr, pages.as_flattened(), false).expect("COPY");
        let copied = stamp(start);
        protocol.answer(Answer::Installed(1, Stop::Complete));
        while let Some(effect) = protocol.effect() {
            if let Effect::Free(slots, _) = effect {
                space.free_n(&slots);
            }
        }
        // Neighbours that would come along are left to their own faults.
        while protocol.next_command().is_some() {
            protocol.answer(Answer::Installed(0, Stop::Exists));
        }
        all.push([polled, read, known, loaded, copied, stamp(start)]);
    }
    all
}

/// The least that parts can take, in nanoseconds.
struct Floors {
    /// One thread wakes another on its CPU by an eventfd, and sleeps.
    switch: f64,
    /// A read(2) of a few bytes.
    read: f64,
    page_copy: f64,
    decompress: f64,
    /// COPY that nobody waits for.
    copy: f64,
    stamp: f64,
}

impl Floors {
    fn measure(memory: &[u8], cpu: u32, pages: &[&Page]) -> Self {
        let start = Instant::now();
        let mut into = [0; PAGE_SIZE];
        let (mut compressor, mut decompressor) =
            (Compressor::new(LEVEL).expect("a level"), Decompressor::new().expect("memory"));
        let compressed: Vec<Vec<u8>> =
            pages.iter().map(|page| compressor.compress(&page[..]).expect("compressed")).collect();
        let quiet = EventFd::new().expect("an eventfd");
        Self {
            switch: switch(cpu),
            read: median(|_| {
                black_box(quiet.drain());
            }),
            page_copy: median(|n| {
                into.copy_from_slice(pages[n]);
                black_box(&into);
            }),
            decompress: median(|n| {
                let length = decompressor.decompress_to_buffer(&compressed[n], &mut into[..]);
                assert_eq!(length.expect("valid"), PAGE_SIZE);
            }),
            copy: copy_alone(memory, pages),
            stamp: median(|_| {
                black_box(stamp(start));
            }),
        }
    }
}

/// The median time of something that is done [`PAGES`] times.
fn median(mut act: impl FnMut(usize)) -> f64 {
    let mut times: Vec<u64> = (0..PAGES)
        .map(|n| {
            let start = Instant::now();
            act(n);
            start.elapsed().as_nanos() as u64
        })
        .collect();
    times.sort_unstable();
    times[PAGES / 2] as f64
}

fn switch(cpu: u32) -> f64 {
    let (there, back) = (EventFd::new().expect("an eventfd"), EventFd::new().expect("an eventfd"));
    thread::scope(|scope| {
        scope.spawn(|| {
            process::set_affinity_self(cpu).expect("a CPU");
            for _ in 0..PAGES {
                poll(&[(there.as_fd(), Events::IN)], None).expect("poll");
                there.drain();
                back.notify();
            }
        });
        median(|_| {
            there.notify();
            poll(&[(back.as_fd(), Events::IN)], None).expect("poll");
            back.drain();
        }) / 2.0
    })
}

fn copy_alone(memory: &[u8], pages: &[&Page]) -> f64 {
    let base = (memory.as_ptr() as u64).next_multiple_of(PAGE);
    let uffd = Uffd::open().expect("userfaultfd");
    uffd.api(FEATURES).expect("its features");
    uffd.register(base..base + (PAGES * PAGE_SIZE) as u64, RegisterMode::MISSING).expect("register");
    median(|n| {
        uffd.copy(base + (n * 4099 % PAGES * PAGE_SIZE) as u64, pages[n], false).expect("COPY");
    })
}

fn report(name: &str, parts: &[Vec<u64>; PARTS.len()], least: Option<&[f64; PARTS.len()]>) {
    println!("{name:<34} {:>8} {:>8} {:>8} {:>8}", "median", "tenth", "ninth", "least");
    let mut sums = vec![0; parts[0].len()];
    for (index, part) in parts.iter().enumerate() {
        part.iter().zip(&mut sums).for_each(|(time, sum)| *sum += time);
        line(PARTS[index], part.clone(), least.map(|least| least[index]));
    }
    line("all", sums, least.map(|least| least.iter().sum()));
}

fn line(part: &str, mut times: Vec<u64>, least: Option<f64>) {
    times.sort_unstable();
    let at = |tenths: usize| times[(times.len() - 1) * tenths / 10];
    let least = least.map_or(String::new(), |least| format!("{least:.0}"));
    println!("  {part:<32} {:>8} {:>8} {:>8} {least:>8}", at(5), at(1), at(9));
}
