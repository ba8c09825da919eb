//! Bytes of metadata per slot, counted by the allocator and not by formula.
//!
//! `cargo test -p vswap-core --release --test metadata -- --nocapture` prints the table.
#![cfg(not(loom))]
#![allow(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use vswap_core::{
    GroupId, LoadError, Location, NotThere, PAGE_SIZE, Page, SlotId, SpaceConfig, StoreError, Tier,
    TierUsage, VirtualSwap,
};

struct Counting;

static BYTES: AtomicU64 = AtomicU64::new(0);

/// What the C library's allocator takes for a request: a header of 8 bytes, in steps of 16, at least 32.
fn gross(layout: Layout) -> u64 {
    (layout.size() as u64 + 8).next_multiple_of(16).max(32)
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(gross(layout), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(gross(layout), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn bytes() -> u64 {
    BYTES.load(Relaxed)
}

/// A pool that keeps nothing but the number of its objects, so that its memory does not disturb the count.
#[derive(Default)]
struct Nothing(AtomicU64);

impl Tier for Nothing {
    fn name(&self) -> &str {
        "nothing"
    }
    fn store(&self, pages: &[(SlotId, &Page)], out: &mut Vec<Result<Location, StoreError>>) {
        let first = self.0.fetch_add(pages.len() as u64, Relaxed);
        out.extend((first..).take(pages.len()).map(|at| Ok(Location::new(at).expect("small"))));
    }
    fn load(&self, _slot: SlotId, _at: Location, _into: &mut Page) -> Result<(), LoadError> {
        Err(LoadError::Corrupt)
    }
    fn release(&self, _slot: SlotId, _at: Location) -> Result<(), NotThere> {
        Ok(())
    }
    fn usage(&self) -> TierUsage {
        TierUsage::default()
    }
    fn set_limit(&self, _bytes: u64) {}
}

/// One test at a time: they share the count.
static ALONE: Mutex<()> = Mutex::new(());

fn space() -> VirtualSwap {
    VirtualSwap::new(SpaceConfig {
        pool: Some(Arc::new(Nothing::default())),
        tiers: Vec::new(),
        max_frames: 1 << 20,
    })
}

fn fill(space: &VirtualSwap, slots: usize, page: &Page) -> Vec<SlotId> {
    let mut all = Vec::with_capacity(slots);
    space.alloc_n(GroupId(0), slots, &mut all).expect("memory");
    let mut out = Vec::with_capacity(1024);
    for batch in all.chunks(1024) {
        let pages: Vec<_> = batch.iter().map(|slot| (*slot, page)).collect();
        space.store_many(&pages, &mut out);
        assert!(out.drain(..).all(|o| o.is_ok()));
    }
    all
}

fn textured() -> Page {
    let mut page = [7; PAGE_SIZE];
    page[9] = 8;
    page
}

#[test]
fn slots_cost_what_was_promised() {
    let _alone = ALONE.lock().expect("no panic");
    const SLOTS: usize = 1 << 20;
    for (kind, page, object_header, promise) in
        [("zero", [0; PAGE_SIZE], 0.0, 8.5), ("compressed", textured(), 8.0, 16.5)]
    {
        let before = bytes();
        let space = space();
        let slots = fill(&space, SLOTS, &page);
        let list = (slots.capacity() * size_of::<SlotId>()) as u64;
        let used = bytes() - before - list;
        let each = used as f64 / SLOTS as f64 + object_header;
        let said = space.usage().metadata_bytes;
        println!(
            "{SLOTS} {kind} pages: {each:.3} B each, the object's header included; the space says {said} of {used}"
        );
        assert!(each <= promise, "{each} B a slot");
        assert!(said.abs_diff(used) < used / 50, "the space says {said}, the allocator {used}");
    }
}

#[test]
fn an_empty_space_of_any_size_costs_a_few_kibibytes() {
    let _alone = ALONE.lock().expect("no panic");
    let before = bytes();
    let space = Box::new(space());
    let empty = bytes() - before;
    let mut one = Vec::new();
    space.alloc_n(GroupId(0), 1, &mut one).expect("memory");
    let first = bytes() - before;
    space.free_n(&one);
    // And one that was full once.
    let slots = fill(&space, 1 << 18, &[0; PAGE_SIZE]);
    let full = bytes() - before;
    space.free_n(&slots);
    drop((one, slots));
    let after = bytes() - before;
    println!(
        "empty {empty} B, with one slot {first} B, with 2^18 slots {full} B, after all were freed {after} B"
    );
    assert!(empty <= 8 << 10 && first <= 24 << 10 && after <= 48 << 10);
}

#[test]
fn a_tenth_left_at_random_shows_what_clusters_cost() {
    let _alone = ALONE.lock().expect("no panic");
    const SLOTS: usize = 1 << 18;
    let before = bytes();
    let space = space();
    let slots = fill(&space, SLOTS, &[0; PAGE_SIZE]);
    let list = (slots.capacity() * size_of::<SlotId>()) as u64;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut left = 0;
    for slot in &slots {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if state.is_multiple_of(10) {
            left += 1;
        } else {
            space.free_n(&[*slot]);
        }
    }
    let used = bytes() - before - list;
    println!("10 % left after random frees: {:.1} B a used slot", used as f64 / f64::from(left));
    // Nothing can be given back: every cluster still has slots. New slots go there first.
    let clusters = space.usage().clusters;
    let mut more = Vec::new();
    space.alloc_n(GroupId(0), SLOTS / 2, &mut more).expect("memory");
    assert_eq!(space.usage().clusters, clusters);
}

#[test]
fn frames_are_given_back_and_cost_little_beside_their_page() {
    let _alone = ALONE.lock().expect("no panic");
    const FRAMES: usize = 1 << 13;
    let space = space();
    let mut slots = Vec::with_capacity(FRAMES);
    space.alloc_n(GroupId(0), FRAMES, &mut slots).expect("memory");
    let before = bytes();
    for slot in &slots {
        assert_eq!(space.cache_many(&[(*slot, &textured())]), 1);
    }
    let used = bytes() - before;
    let each = used as f64 / FRAMES as f64 - PAGE_SIZE as f64;
    println!("{FRAMES} frames: {each:.1} B each beside the page");
    assert!(each <= 64.0);
    assert_eq!(space.write_out(usize::MAX).written, FRAMES);
    let after = bytes() - before;
    println!("written out: {after} B are left, one slab among them");
    assert!(after <= 1 << 19);
    assert_eq!(space.usage().pooled, FRAMES as u64);
}
