//! The virtual swap space: what front doors call, but for storing, loading and the background work, which have files of
//! their own.

use crate::alloc::{AllocError, Allocator, place};
use crate::charge::{Charges, Sums, place_index};
use crate::cluster::SLOTS;
use crate::count::{Counts, Put};
use crate::frame::Frames;
use crate::hold::OldObject;
use crate::scratch::Scratch;
use crate::sync::Mutex;
use crate::wait::Waits;
use crate::word::{Backing, Place, SHADOW_BITS, TIERS_MAX, Word};
use crate::{Damage, GroupId, Page, SlotId, Tier, TierId, TierUsage};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// Pages written out in one tick of the shadows: 4095 ticks are 1 GiB of refault distance.
const TICK_PAGES: u64 = 64;
/// Shadows in use: 1 to this.
const SHADOWS: u64 = (1 << SHADOW_BITS) - 1;

/// What a space is made of.
pub struct SpaceConfig {
    /// Compressed memory, asked first. A location of its may have 40 bits.
    pub pool: Option<Arc<dyn Tier>>,
    /// The tiers below it in the order in which they are asked; the index is the [`TierId`]. At most 16, with locations
    /// of at most 36 bits.
    pub tiers: Vec<Arc<dyn Tier>>,
    /// Most frames of the swap cache, in pages.
    pub max_frames: usize,
}

/// Where a load found the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// In a frame of the swap cache.
    Cached,
    /// A zero page, made.
    Zero,
    /// A page of one repeated value, made.
    Filled,
    /// In the pool.
    Pool,
    /// In a tier below it.
    Tier(TierId),
}

/// What a space holds. Exact when nothing is under way.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SpaceUsage {
    /// Slots in use, of all kinds.
    pub slots: u64,
    /// Allocated slots that nothing was stored in yet.
    pub reserved: u64,
    /// Slots whose page is in a frame. One slot has one frame, so these are the group's frames too.
    pub cached: u64,
    /// Slots of zero pages.
    pub zero: u64,
    /// Slots of same-filled pages whose value is in the slot word.
    pub filled: u64,
    /// Slots in the pool.
    pub pooled: u64,
    /// Slots in each tier.
    pub tiered: Vec<u64>,
    /// Slots whose only copy is lost.
    pub lost: u64,
    /// Objects charged for the pool: `pooled`, and what frames keep as former backing.
    pub pool_objects: u64,
    /// Objects charged for each tier, former backings included.
    pub tier_objects: Vec<u64>,
    /// Frames in use.
    pub frames: u64,
    /// Bytes of the slabs that frames come from.
    pub frame_bytes: u64,
    /// Clusters in use.
    pub clusters: u64,
    /// Bytes of clusters, directories, lists, accounts, the count's side table and the frames' bookkeeping.
    pub metadata_bytes: u64,
    /// What the pool says of itself.
    pub pool: Option<TierUsage>,
    /// What each tier says of itself.
    pub tiers: Vec<TierUsage>,
}

/// See the crate's documentation.
pub struct VirtualSwap {
    pub(crate) allocator: Allocator,
    pub(crate) counts: Counts,
    pub(crate) frames: Frames,
    pub(crate) waits: Waits,
    pub(crate) pool: Option<Arc<dyn Tier>>,
    pub(crate) tiers: Vec<Arc<dyn Tier>>,
    /// Working memory for background work; one set is always here or in use.
    pub(crate) scratch: Mutex<Vec<Scratch>>,
    pub(crate) bounce: Mutex<Box<[Page]>>,
    /// Tiers that take nothing new, a bit each.
    pub(crate) closed: AtomicU32,
    /// Clusters that swapoff has passed in this lap.
    pub(crate) scan: AtomicU32,
    /// Pages ever written out.
    written_out: AtomicU64,
    damage: OnceLock<Damage>,
}

impl VirtualSwap {
    /// An empty space.
    ///
    /// # Panics
    ///
    /// With more than 16 tiers.
    pub fn new(config: SpaceConfig) -> Self {
        assert!(config.tiers.len() <= TIERS_MAX, "{} tiers, at most {TIERS_MAX}", config.tiers.len());
        Self {
            allocator: Allocator::new(),
            counts: Counts::default(),
            frames: Frames::new(config.max_frames),
            waits: Waits::default(),
            pool: config.pool,
            tiers: config.tiers,
            scratch: Mutex::new(vec![Scratch::new()]),
            bounce: Mutex::default(),
            closed: AtomicU32::new(0),
            scan: AtomicU32::new(0),
            written_out: AtomicU64::new(0),
            damage: OnceLock::new(),
        }
    }

    /// The first damage that was found. To be asked after [`free_n`](Self::free_n) and [`dup_n`](Self::dup_n), and now and then
    /// for what background work finds.
    pub fn damage(&self) -> Option<Damage> {
        self.damage.get().copied()
    }

    pub(crate) fn damaged(&self, damage: Damage) {
        let _ = self.damage.set(damage);
    }

    /// Appends `n` new slots to `out`, one reference each, nothing stored.
    ///
    /// # Errors
    ///
    /// If there is no memory for another cluster, or all 2^40 slots are in use; then `out` is as it was.
    pub fn alloc_n(&self, group: GroupId, n: usize, out: &mut Vec<SlotId>) -> Result<(), AllocError> {
        let before = out.len();
        let outcome = self.allocator.alloc(group, n, out);
        if outcome.is_err() {
            self.free_n(&out[before..]);
            out.truncate(before);
        }
        outcome
    }

    /// Adds a reference to each slot. The caller has one of each, or of the address space that it clones.
    ///
    /// A slot without a reference is [`damage`](Self::damage). Aborts if a count beyond 127 needs memory and there is none
    /// (24 bytes).
    pub fn dup_n(&self, slots: &[SlotId]) {
        let mut finder = self.finder();
        for slot in slots {
            let found = finder.find(*slot);
            if found.is_none_or(|(cluster, index)| !self.counts.dup(cluster, index, *slot)) {
                self.damaged(Damage::Unreferenced { slot: *slot });
            }
        }
    }

    /// Drops a reference of each slot. The last one releases what backs the slot, and the slot. A slot without a reference is
    /// [`damage`](Self::damage).
    pub fn free_n(&self, slots: &[SlotId]) {
        let mut finder = self.finder();
        for run in slots.chunk_by(|a, b| place(*a).0 == place(*b).0) {
            let Some((cluster, _)) = finder.find(run[0]) else {
                self.damaged(Damage::Unreferenced { slot: run[0] });
                continue;
            };
            let mut freed = 0;
            for slot in run {
                let (_, index) = place(*slot);
                match self.counts.put(cluster, index, *slot) {
                    Put::TearDown => {
                        self.clear(cluster, index, *slot, OldObject::Release);
                        freed += 1;
                    }
                    Put::Unreferenced => self.damaged(Damage::Unreferenced { slot: *slot }),
                    Put::Shared | Put::Left => {}
                }
            }
            // The cluster stays as long as it has slots in use, and those of the run count as such until now.
            if freed > 0 {
                self.allocator.put(cluster, freed);
            }
        }
    }

    /// References to a slot; 0 if it is free. Exact if nobody changes them now.
    pub fn references(&self, slot: SlotId) -> u64 {
        self.word(slot).map_or(0, |word| self.counts.references(word, slot))
    }

    /// Pages written out since this slot's page was, in steps of 64 and modulo 1 GiB; `None` if it never was. At a
    /// refault this is the distance.
    pub fn refault_distance(&self, slot: SlotId) -> Option<u64> {
        let shadow = u64::from(self.word(slot)?.shadow());
        let now = u64::from(self.tick());
        (shadow != 0).then(|| (now + SHADOWS - shadow) % SHADOWS * TICK_PAGES)
    }

    /// The word of a slot, whoever holds references.
    pub(crate) fn word(&self, slot: SlotId) -> Option<Word> {
        let (number, index) = place(slot);
        Some(self.allocator.cluster(number)?.word(index))
    }

    /// The shadow of a page written out now.
    fn tick(&self) -> u16 {
        (1 + self.written_out.load(Relaxed) / TICK_PAGES % SHADOWS) as u16
    }

    /// The shadow for `pages` that are written out now.
    pub(crate) fn age(&self, pages: u64) -> u16 {
        let shadow = self.tick();
        self.written_out.fetch_add(pages, Relaxed);
        shadow
    }

    /// Frames in use.
    pub fn cached_frames(&self) -> usize {
        self.frames.used()
    }

    /// Frames that may still be taken.
    pub fn free_frames(&self) -> usize {
        self.frames.limit().saturating_sub(self.frames.used())
    }

    /// Most frames of the swap cache.
    pub fn max_frames(&self) -> usize {
        self.frames.limit()
    }

    /// Changes the most frames of the swap cache. A lower number than is in use refuses new pages; it writes none out.
    pub fn set_max_frames(&self, frames: usize) {
        self.frames.set_limit(frames);
    }

    /// What the space holds.
    pub fn usage(&self) -> SpaceUsage {
        self.usage_of(&self.allocator.sums())
    }

    /// What a group is charged for: the fields on slots and objects are the group's, the others the whole space's.
    pub fn group_usage(&self, group: GroupId) -> SpaceUsage {
        let mut sums = Sums::default();
        if let Some(charges) = self.allocator.charges(group) {
            charges.add_to(&mut sums);
        }
        self.usage_of(&sums)
    }

    /// The same as [`usage`](Self::usage), with slots and objects counted from the slot words and the frames and not
    /// from the accounts: equal when nothing is under way. Slow.
    pub fn recount(&self) -> SpaceUsage {
        let recount = Charges::new(GroupId(0));
        for number in 1..=self.allocator.last_number() {
            let Some(cluster) = self.allocator.cluster(number) else { continue };
            for word in (0..SLOTS).map(|index| cluster.word(index)).filter(|word| *word != Word::FREE) {
                let backing = word.backing();
                recount.slots(backing, 1);
                let object = match backing {
                    Backing::Cached(frame) => self.frames.former(frame),
                    other => other.as_object(),
                };
                if let Some((place, _)) = object {
                    recount.objects(place, 1);
                }
            }
        }
        let mut sums = Sums::default();
        recount.add_to(&mut sums);
        let mut usage = self.usage_of(&sums);
        usage.frames = usage.cached;
        usage
    }

    fn usage_of(&self, sums: &Sums) -> SpaceUsage {
        let count = |n: i64| n.max(0) as u64;
        let tiers = 0..self.tiers.len();
        let tier = |i: usize| Place::Tier(TierId(i as u8));
        let (clusters, slot_bytes) = self.allocator.footprint();
        let (frame_bookkeeping, frame_bytes) = self.frames.footprint();
        let [_, reserved, zero, filled, pooled, _, cached, lost, ..] = sums.kinds.map(count);
        SpaceUsage {
            slots: sums.kinds.iter().copied().map(count).sum(),
            reserved,
            cached,
            zero,
            filled,
            pooled,
            tiered: tiers.clone().map(|i| count(sums.in_tier(i))).collect(),
            lost,
            pool_objects: count(sums.objects[place_index(Place::Pool)]),
            tier_objects: tiers.map(|i| count(sums.objects[place_index(tier(i))])).collect(),
            frames: self.frames.used() as u64,
            frame_bytes,
            clusters,
            metadata_bytes: slot_bytes
                + frame_bookkeeping
                + self.counts.bytes()
                + self.scratch_bytes()
                + size_of::<Self>() as u64,
            pool: self.pool.as_ref().map(|p| p.usage()),
            tiers: self.tiers.iter().map(|t| t.usage()).collect(),
        }
    }
}
