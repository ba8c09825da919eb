//! The names of things: a slot is not a number, and a location is not a slot.

use core::num::NonZeroU64;

/// A virtual swap slot: what a front door keeps in its page table.
///
/// Dense, 40 bits; 0 is never a slot, so that `Option<SlotId>` fits in eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(NonZeroU64);

impl SlotId {
    /// Width of a slot id in bits.
    pub const BITS: u32 = 40;

    /// The first one.
    pub(crate) const FIRST: Self = Self(NonZeroU64::MIN);

    /// The slot with this number; `None` for 0 and for numbers of more than 40 bits.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw >> Self::BITS != 0 {
            return None;
        }
        match NonZeroU64::new(raw) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The number, 1 to 2^40 − 1.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

/// Where a tier keeps an object: 40 bits that only the tier understands.
///
/// The pool packs a segment (20 bits) and a byte offset in units of 8 (20 bits); a file uses a page number of at
/// most 36 bits, so that the slot word has room for the number of the tier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Location(u64);

impl Location {
    /// Width of a pool location in bits.
    pub const POOL_BITS: u32 = 40;
    /// Width of a location in any other tier, in bits.
    pub const TIER_BITS: u32 = 36;

    /// The location with these bits; `None` if there are more than 40.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw >> Self::POOL_BITS != 0 { None } else { Some(Self(raw)) }
    }

    /// The bits, below 2^40.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A tier below the pool, 0 to 15.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TierId(pub u8);

/// A group that is charged for what it uses (the role of a memory cgroup).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GroupId(pub u16);

/// 1 << order pages that move together, 0 to 9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const ZERO: Self = Self(0);
    /// A whole cluster of 512 pages.
    pub const MAX: Self = Self(9);

    /// The order of this number; `None` above 9.
    pub const fn new(order: u8) -> Option<Self> {
        if order > Self::MAX.0 { None } else { Some(Self(order)) }
    }

    /// Pages of a folio of this order.
    pub const fn pages(self) -> usize {
        1 << self.0
    }
}
