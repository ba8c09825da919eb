//! The pool: compressed pages in memory, in a log of segments.
//!
//! **Life of an object.** A page is compressed outside any lock and appended to the open segment of a shard, behind a
//! header that names its slot (object.rs). Loads copy out under the segment's read lock. Release marks the header dead
//! and lowers the segment's live counts; the segment whose last object dies is unmapped at once. When dead bytes pass a
//! share of the pool, the cleaner copies what lives out of sparse segments, asks the owner to publish each new place,
//! and frees the victim (clean.rs). Segments have an order of age, which the cleaner keeps; age.rs walks it for writeback.
//!
//! **Locks**, outermost first; a thread may skip any but never goes back:
//! slot's busy bit (the caller's) → cleaner | cursor → shard → registry → one segment. Never two segments at once. The
//! owner is called with no lock of the pool but the cleaner's, so it may load and release, but not clean.
//!
//! **Accounts.** `resident` is every byte of touched segment pages and of the tables; it is charged before memory is
//! touched (what a segment sheds into: at once after) and uncharged after it is unmapped. Stores stop one reserve short of the
//! limit, so that the cleaner always has room to work in.
//!
//! The idea is the log-structured file system's (Rosenblum and Ousterhout, 1991) and RAMCloud's, in zswap's place.

mod age;
mod clean;
mod object;
#[cfg(test)]
mod rot;
mod segment;
#[cfg(test)]
mod tests;

use crate::compress::{Codec, filled_word};
use crate::table::Table;
use age::Cursor;
use clean::Cleaner;
pub use clean::{Choice, Cleaning};
use memmap2::MmapMut;
use object::{Header, SEGMENTS_MAX, Width, location, place};
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use segment::{Role, SEGMENT, Segment};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use vswap_core::{
    CleanReport, LoadError, Location, NotThere, Owner, Page, SlotId, StoreError, Tier, TierUsage,
};

/// Open segments that stores append to at the same time. A thread takes the first that is free, so that a lone
/// evictor fills one.
const SHARDS: usize = 4;
/// Bytes of a segment that stores touch at a time: a fault for each page costs a tenth of a store.
const STORE_GRAIN: u32 = 64 << 10;
/// An open segment that is this many segments behind is closed, so that age order is off by no more than this.
const LAG_MAX: u64 = 8;

/// The memory account and the object counts. Relaxed: they order nothing, each is exact on its own.
struct Account {
    limit: AtomicU64,
    /// Segment pages and tables.
    resident: AtomicU64,
    /// Segment pages alone.
    segments: AtomicU64,
    live_bytes: AtomicU64,
    live_objects: AtomicU64,
}

impl Account {
    /// Charges `bytes` unless that would take `resident` over `cap`.
    fn charge(&self, bytes: u64, cap: u64) -> bool {
        bytes == 0
            || self
                .resident
                .fetch_update(Relaxed, Relaxed, |now| now.checked_add(bytes).filter(|n| *n <= cap))
                .is_ok()
    }

    fn uncharge(&self, bytes: u64) {
        let before = self.resident.fetch_sub(bytes, Relaxed);
        assert!(before >= bytes, "uncharged {bytes} of {before} bytes");
    }

    fn is_over(&self) -> bool {
        self.resident.load(Relaxed) > self.limit.load(Relaxed)
    }

    /// How far stores may go: the rest is the cleaner's reserve, a segment or an eighth of a small pool.
    fn store_cap(&self) -> u64 {
        let limit = self.limit.load(Relaxed);
        limit - (limit / 8).min(u64::from(SEGMENT))
    }
}

/// Which segment indexes are unused.
#[derive(Default)]
struct Registry {
    /// Lowest first, so that the table stays short.
    free: BinaryHeap<Reverse<u32>>,
    /// The first index never used.
    next: u32,
}

/// Compressed memory. See the module's head.
pub struct Pool {
    cleaning: Cleaning,
    width: Width,
    codec: Codec,
    table: Table<RwLock<Segment>>,
    /// The segment each shard appends to.
    shards: [Mutex<Option<u32>>; SHARDS],
    registry: Mutex<Registry>,
    account: Account,
    cleaner: Mutex<Cleaner>,
    cursor: Mutex<Cursor>,
    /// The next age.
    clock: AtomicU64,
    /// Indexes in use are below this.
    end: AtomicU32,
}

impl Pool {
    /// An empty pool that will occupy at most `limit_bytes` of memory, all of it counted: segments, waste and tables.
    ///
    /// Stores are refused within the last megabyte (or eighth, below 8 MiB) of the limit, which is the cleaner's. With
    /// a limit below 8 MiB, or lowered below what is stored, cleaning may exceed it by up to 1 MiB while it runs.
    pub fn new(limit_bytes: u64) -> Self {
        Self::with_cleaning(limit_bytes, Cleaning::default())
    }

    /// The same, empty as it must be, with a check of 44 bits in place of 12: an object takes 4 bytes more.
    #[must_use]
    pub fn with_wide_check(self) -> Self {
        Self { width: Width::Wide, ..self }
    }

    /// As [`Pool::new`], cleaned in another way than the default.
    pub fn with_cleaning(limit_bytes: u64, cleaning: Cleaning) -> Self {
        Self {
            cleaning,
            width: Width::default(),
            codec: Codec::default(),
            table: Table::new(),
            shards: Default::default(),
            registry: Mutex::default(),
            account: Account {
                limit: AtomicU64::new(limit_bytes),
                resident: AtomicU64::new(size_of::<Self>() as u64),
                segments: AtomicU64::new(0),
                live_bytes: AtomicU64::new(0),
                live_objects: AtomicU64::new(0),
            },
            cleaner: Mutex::default(),
            cursor: Mutex::default(),
            clock: AtomicU64::new(1),
            end: AtomicU32::new(0),
        }
    }

    /// The segment's entry, if that index was ever used.
    fn segment(&self, index: u32) -> Option<&RwLock<Segment>> {
        self.table.get(u64::from(index))
    }

    /// Share of the segments' memory that is not live objects, 0 to 1.
    pub fn waste(&self) -> f64 {
        let total = self.account.segments.load(Relaxed);
        let live = self.account.live_bytes.load(Relaxed);
        if total == 0 { 0.0 } else { total.saturating_sub(live) as f64 / total as f64 }
    }

    /// Opens a segment whose pages are touched by `grain` bytes. It has no memory yet. The tables' growth is charged up
    /// to `cap`.
    fn open(&self, cap: u64, grain: u32) -> Result<u32, StoreError> {
        let mut registry = self.registry.lock();
        let index = match registry.free.pop() {
            Some(Reverse(index)) => index,
            None => {
                let index = registry.next;
                if index == SEGMENTS_MAX {
                    return Err(StoreError::Full);
                }
                // Room in the free list for every index, so that freeing a segment never has to allocate.
                let missing = self.table.missing(u64::from(index));
                let bytes = (missing * (size_of::<RwLock<Segment>>() + size_of::<Reverse<u32>>())) as u64;
                if !self.account.charge(bytes, cap) {
                    return Err(StoreError::Full);
                }
                let room = registry.free.try_reserve_exact(index as usize + missing);
                if room.is_err() || self.table.ensure(u64::from(index)).is_err() {
                    self.account.uncharge(bytes);
                    return Err(StoreError::Full);
                }
                registry.next = index + 1;
                self.end.store(index + 1, Relaxed);
                index
            }
        };
        drop(registry);
        let mut segment = self.segment(index).expect("ensured").write();
        assert!(segment.role == Role::Free && segment.live_objects == 0);
        segment.role = Role::Open;
        segment.age = self.clock.fetch_add(1, Relaxed);
        segment.grain = grain;
        Ok(index)
    }

    /// Appends to an open segment into which the object fits. New pages are charged up to `cap`.
    fn put(
        &self,
        segment: &mut Segment,
        header: Header,
        body: [&[u8]; 2],
        cap: u64,
    ) -> Result<u32, StoreError> {
        let growth = u64::from(segment.growth(header.size()));
        if !self.charge_segment(growth, cap) {
            return Err(StoreError::Full);
        }
        if !segment.map() {
            self.unmap(None, growth);
            return Err(StoreError::Full);
        }
        self.account.live_bytes.fetch_add(u64::from(header.size()), Relaxed);
        self.account.live_objects.fetch_add(1, Relaxed);
        Ok(segment.append(header, body))
    }

    /// Appends a new object to a shard's segment.
    fn append(&self, slot: SlotId, payload: &[u8]) -> Result<Location, StoreError> {
        let (header, body) = Header::new(slot, payload, self.width);
        let cap = self.account.store_cap();
        if self.account.is_over() {
            // The limit was lowered. There may be room in a page that is touched already; it is refused all the same.
            return Err(StoreError::Full);
        }
        let mut shard = self
            .shards
            .iter()
            .find_map(|s| s.try_lock())
            .unwrap_or_else(|| self.shards[slot.get() as usize % SHARDS].lock());
        loop {
            let index = match *shard {
                Some(index) => index,
                None => *shard.insert(self.open(cap, STORE_GRAIN)?),
            };
            let mut segment = self.segment(index).expect("open").write();
            if segment.live_objects == 0 {
                // Nothing in it is old, however long ago it was opened.
                segment.age = self.clock.load(Relaxed);
            }
            if segment.fits(header.size()) && self.clock.load(Relaxed) - segment.age <= LAG_MAX {
                let offset = self.put(&mut segment, header, body.parts(), cap)?;
                return Ok(location(index, offset));
            }
            segment.role = Role::Sealed;
            *shard = None;
        }
    }

    /// Kills an object, and frees its segment if it was the last one.
    fn kill(&self, slot: SlotId, at: Location) -> Result<(), NotThere> {
        let (index, offset) = place(at);
        let mut segment = self.segment(index).ok_or(NotThere)?.write();
        let size = segment.kill(slot, offset)?;
        self.account.live_bytes.fetch_sub(u64::from(size), Relaxed);
        self.account.live_objects.fetch_sub(1, Relaxed);
        if segment.live_objects == 0 && segment.role != Role::Victim {
            self.retire(index, segment);
        }
        Ok(())
    }

    /// Returns the memory of a segment without live objects, and its index too unless somebody appends to it.
    fn retire(&self, index: u32, mut segment: RwLockWriteGuard<'_, Segment>) -> u64 {
        let bytes = u64::from(segment.resident());
        let memory = segment.take();
        let freed = segment.role != Role::Open;
        if freed {
            segment.role = Role::Free;
        }
        drop(segment);
        self.unmap(memory, bytes);
        if freed {
            self.registry.lock().free.push(Reverse(index));
        }
        bytes
    }

    /// Charges pages of a segment up to `cap`.
    fn charge_segment(&self, bytes: u64, cap: u64) -> bool {
        let charged = self.account.charge(bytes, cap);
        if charged {
            self.account.segments.fetch_add(bytes, Relaxed);
        }
        charged
    }

    /// Unmaps, then uncharges.
    fn unmap(&self, memory: Option<MmapMut>, bytes: u64) {
        drop(memory);
        self.account.segments.fetch_sub(bytes, Relaxed);
        self.account.uncharge(bytes);
    }
}

impl Tier for Pool {
    fn name(&self) -> &str {
        "pool"
    }

    fn store(&self, pages: &[(SlotId, &Page)], out: &mut Vec<Result<Location, StoreError>>) {
        let stored = self.codec.with_compressor(|compressor| {
            for (slot, page) in pages {
                out.push(match filled_word(page) {
                    Some(word) => self.append(*slot, &word.to_le_bytes()),
                    None => match compressor.compress(page) {
                        Some(payload) => self.append(*slot, payload),
                        None => Err(StoreError::Incompressible),
                    },
                });
            }
        });
        if stored.is_none() {
            out.extend(pages.iter().map(|_| Err(StoreError::Full)));
        }
    }

    fn load(&self, slot: SlotId, at: Location, into: &mut Page) -> Result<(), LoadError> {
        let (index, offset) = place(at);
        self.segment(index).ok_or(LoadError::Stale)?.read().load(slot, offset, self.width, &self.codec, into)
    }

    fn release(&self, slot: SlotId, at: Location) -> Result<(), NotThere> {
        self.kill(slot, at)
    }

    fn usage(&self) -> TierUsage {
        TierUsage {
            objects: self.account.live_objects.load(Relaxed),
            live_bytes: self.account.live_bytes.load(Relaxed),
            resident_bytes: self.account.resident.load(Relaxed),
            device_bytes: 0,
            limit_bytes: self.account.limit.load(Relaxed),
        }
    }

    fn set_limit(&self, bytes: u64) {
        self.account.limit.store(bytes, Relaxed);
    }

    fn coldest(&self, max: usize, out: &mut Vec<(SlotId, Location)>) {
        self.walk_coldest(max, out);
    }

    fn clean(&self, owner: &dyn Owner, budget: u64) -> CleanReport {
        self.clean_sparse(owner, budget)
    }
}
