//! The seam between the space and what backs its slots.
//!
//! A tier stores pages and gives back a [`Location`] for each; the slot word is the only place that remembers it.
//! A tier never sees a front door, and calls back into the space only through [`Owner`], for objects that it wants
//! to move itself (the pool's cleaner).

use crate::{Location, Page, SlotId};

/// A place for pages that are not in a frame. Every method may be called from any thread at any time.
pub trait Tier: Send + Sync {
    /// A short name for people: `pool`, `file`.
    fn name(&self) -> &str;

    /// Stores each page for its slot and pushes one outcome a page, in order.
    ///
    /// A location that came back belongs to the slot until [`release`](Self::release) is called for it once.
    /// After an error nothing is kept for that page.
    fn store(&self, pages: &[(SlotId, &Page)], out: &mut Vec<Result<Location, StoreError>>);

    /// Reads the object of `slot` at `at` into `into`.
    ///
    /// The caller may have lost a race: then the object is gone or another's, and the answer is
    /// [`LoadError::Stale`], after which the caller reads the slot word again. `into` is unspecified after an error.
    fn load(&self, slot: SlotId, at: Location, into: &mut Page) -> Result<(), LoadError>;

    /// Gives up the object of `slot` at `at`. Called exactly once for each successful store or relocation.
    ///
    /// # Errors
    ///
    /// If there is no such object, or its header is damaged. Then nothing has changed.
    fn release(&self, slot: SlotId, at: Location) -> Result<(), NotThere>;

    /// What the tier holds now.
    fn usage(&self) -> TierUsage;

    /// Changes the tier's limit, in bytes. A lower limit than what is stored refuses new pages; it frees nothing.
    fn set_limit(&self, bytes: u64);

    /// Appends up to `max` objects, the coldest first, as candidates for writeback. Only the pool has an age order.
    fn coldest(&self, max: usize, out: &mut Vec<(SlotId, Location)>) {
        let _ = (max, out);
    }

    /// Moves live objects out of sparse storage, at most about `budget` bytes, and returns freed memory to the
    /// system. `owner` publishes each new location. Only the pool needs it.
    fn clean(&self, owner: &dyn Owner, budget: u64) -> CleanReport {
        let _ = (owner, budget);
        CleanReport::default()
    }
}

/// The slot table as a walker of the reverse map sees it.
pub trait Owner {
    /// Publishes that the object of `slot` moved from `old` to `new`, if the slot word, or the former backing that a
    /// frame keeps, still names `old`. Never blocks.
    fn relocate(&self, slot: SlotId, old: Location, new: Location) -> Relocated;
}

/// Outcome of [`Owner::relocate`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relocated {
    /// The slot names the new location; the old one was given up by this very call (no `release` follows for it).
    Moved,
    /// The slot no longer names the old location: a `release` for it has come or is on its way. Drop the new copy.
    Gone,
    /// A transition of the slot is in flight: drop the new copy, leave the old one, try later.
    Busy,
}

/// Why a page was not stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// The page does not shrink enough to be worth keeping here.
    Incompressible,
    /// The tier is at its limit, or its device is full.
    Full,
    /// The device failed with this errno.
    Io(i32),
}

/// Why an object could not be read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// The location does not hold an object of this slot now.
    Stale,
    /// The object is the slot's, but its check does not match its contents.
    Corrupt,
    /// The device failed with this errno.
    Io(i32),
}

/// A location does not hold the object that was to be released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotThere;

/// What a tier holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TierUsage {
    /// Live objects.
    pub objects: u64,
    /// Bytes of live objects, headers included.
    pub live_bytes: u64,
    /// Bytes that the tier occupies in memory, waste and metadata included.
    pub resident_bytes: u64,
    /// Bytes that the tier occupies on a device.
    pub device_bytes: u64,
    /// The limit, in bytes, of whichever of the two the tier limits.
    pub limit_bytes: u64,
}

/// What one call of [`Tier::clean`] did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CleanReport {
    /// Objects moved.
    pub moved: u64,
    /// Bytes given back to the system.
    pub freed_bytes: u64,
}
