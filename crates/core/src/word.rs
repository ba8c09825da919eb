//! The slot word: 64 bits that are all the space knows about a slot. This file alone knows the bits.
//!
//! ```text
//!  63  61 60 59   58      52 51        40 39                                    0
//! ┌──────┬──┬────┬──────────┬────────────┬───────────────────────────────────────┐
//! │kind 3│bu│more│ count 7  │ shadow 12  │ payload 40                            │
//! └──────┴──┴────┴──────────┴────────────┴───────────────────────────────────────┘
//!
//!  kind       payload
//!  0 free     0; the whole word is 0
//!  1 reserved 0: allocated, nothing stored yet
//!  2 zero     0
//!  3 filled   the repeated 64-bit value, packed (see Pattern)
//!  4 pool     the pool's Location, 40 bits
//!  5 tier     tier number 4 (bits 39..36) + Location 36
//!  6 cached   frame number 32; the former backing, if any, is in the frame
//!  7 error    why the only copy is lost: cause 8 (bits 15..8) + place 8 (0 pool, 1 + n tier n)
//!
//!  busy       a transition is in flight; its holder alone may change kind, payload and the frame's former backing
//!  more       the count goes on in the side table (count.rs), which then holds at least one batch of it
//!  count      references of front doors, without those in the side table
//!  shadow     when the page was last written out, in ticks; 0: never (see space.rs)
//! ```
//!
//! Transitions, each one compare-and-swap:
//!
//! | who | from | to |
//! | --- | --- | --- |
//! | alloc | free | reserved, count 1 |
//! | dup, free | count n ≥ 1 | count n ± 1, anything else as it was, busy or not |
//! | take busy | not busy, count ≥ 1 | busy |
//! | publish | busy, count ≥ 1 | new kind and payload, not busy; count and shadow as they are now |
//! | give up | busy, count ≥ 1 | not busy |
//! | last free, busy | count 1, busy | count 0, busy: the holder of busy tears the slot down |
//! | last free, not busy | count 1 | count 0, busy: the freer tears the slot down |
//! | torn down | count 0, busy | free (a store: nobody else may touch it) |
//! | relocate | pool(old), not busy | pool(new) |
//!
//! The layout follows the swap table of Linux (one word a slot) with zswap's and the device's roles added to it.

use crate::{Location, TierId};

/// Bits of the shadow.
pub(crate) const SHADOW_BITS: u32 = 12;
/// Most references that the word itself counts.
pub(crate) const COUNT_MAX: u64 = (1 << 7) - 1;

const PAYLOAD: u64 = (1 << 40) - 1;
const SHADOW_SHIFT: u32 = 40;
const SHADOW: u64 = ((1 << SHADOW_BITS) - 1) << SHADOW_SHIFT;
const COUNT_SHIFT: u32 = SHADOW_SHIFT + SHADOW_BITS;
const COUNT: u64 = COUNT_MAX << COUNT_SHIFT;
const MORE: u64 = 1 << 59;
const BUSY: u64 = 1 << 60;
const KIND_SHIFT: u32 = 61;
/// Kind and payload together.
const BACKING: u64 = 7 << KIND_SHIFT | PAYLOAD;
const TIER_SHIFT: u32 = Location::TIER_BITS;
/// Tiers that a word can tell apart.
pub(crate) const TIERS_MAX: usize = 1 << (40 - TIER_SHIFT);

/// A frame of the swap cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameId(pub(crate) u32);

/// A 64-bit value that fits in a word: below 2^38, at or above 2^64 − 2^38, two equal halves (which covers repeated
/// bytes and 16-bit values), or with its low 26 bits clear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pattern(u64);

impl Pattern {
    const FORM_SHIFT: u32 = 38;
    const BODY: u64 = (1 << Self::FORM_SHIFT) - 1;
    const HIGH_SHIFT: u32 = 26;

    /// Packs the value; `None` if it does not fit.
    pub(crate) const fn new(value: u64) -> Option<Self> {
        if value <= Self::BODY {
            Some(Self(value))
        } else if !value <= Self::BODY {
            Some(Self(1 << Self::FORM_SHIFT | !value))
        } else if value >> 32 == value & 0xffff_ffff {
            Some(Self(2 << Self::FORM_SHIFT | value >> 32))
        } else if value & ((1 << Self::HIGH_SHIFT) - 1) == 0 {
            Some(Self(3 << Self::FORM_SHIFT | value >> Self::HIGH_SHIFT))
        } else {
            None
        }
    }

    /// The value.
    pub(crate) const fn value(self) -> u64 {
        let body = self.0 & Self::BODY;
        match self.0 >> Self::FORM_SHIFT {
            0 => body,
            1 => !body,
            2 => body << 32 | body,
            _ => body << Self::HIGH_SHIFT,
        }
    }
}

/// What stores objects: the pool, or a tier below it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// The pool.
    Pool,
    /// A tier below it.
    Tier(TierId),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pool => f.write_str("the pool"),
            Self::Tier(TierId(n)) => write!(f, "tier {n}"),
        }
    }
}

/// Why the only copy of a page is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// What was read back does not match its check.
    Corrupt,
    /// The place does not know the object although the slot names it: metadata of one of the two is damaged.
    Missing,
}

/// Kind and payload of a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backing {
    Free,
    Reserved,
    Zero,
    Filled(Pattern),
    Pool(Location),
    Tier(TierId, Location),
    Cached(FrameId),
    Error(Loss, Place),
}

impl Backing {
    /// An object's backing.
    pub(crate) fn object(place: Place, at: Location) -> Self {
        match place {
            Place::Pool => Self::Pool(at),
            Place::Tier(tier) => Self::Tier(tier, at),
        }
    }

    /// The object that this backing names.
    pub(crate) fn as_object(self) -> Option<(Place, Location)> {
        match self {
            Self::Pool(at) => Some((Place::Pool, at)),
            Self::Tier(tier, at) => Some((Place::Tier(tier), at)),
            _ => None,
        }
    }

    /// The number of the kind, 0 to 7.
    pub(crate) fn kind(self) -> usize {
        match self {
            Self::Free => 0,
            Self::Reserved => 1,
            Self::Zero => 2,
            Self::Filled(_) => 3,
            Self::Pool(_) => 4,
            Self::Tier(..) => 5,
            Self::Cached(_) => 6,
            Self::Error(..) => 7,
        }
    }

    fn to_bits(self) -> u64 {
        let payload = match self {
            Self::Free | Self::Reserved | Self::Zero => 0,
            Self::Filled(pattern) => pattern.0,
            Self::Pool(at) => at.get(),
            Self::Tier(TierId(tier), at) => {
                assert!(
                    usize::from(tier) < TIERS_MAX && at.get() >> TIER_SHIFT == 0,
                    "tier location too wide"
                );
                u64::from(tier) << TIER_SHIFT | at.get()
            }
            Self::Cached(FrameId(frame)) => u64::from(frame),
            Self::Error(loss, place) => {
                let cause: u64 = match loss {
                    Loss::Corrupt => 0,
                    Loss::Missing => 1,
                };
                let place = match place {
                    Place::Pool => 0,
                    Place::Tier(TierId(tier)) => 1 + u64::from(tier),
                };
                cause << 8 | place
            }
        };
        (self.kind() as u64) << KIND_SHIFT | payload
    }

    fn from_bits(bits: u64) -> Self {
        let payload = bits & PAYLOAD;
        let location = |bits| Location::new(bits).expect("at most 40 bits");
        match bits >> KIND_SHIFT {
            0 => Self::Free,
            1 => Self::Reserved,
            2 => Self::Zero,
            3 => Self::Filled(Pattern(payload)),
            4 => Self::Pool(location(payload)),
            5 => {
                Self::Tier(TierId((payload >> TIER_SHIFT) as u8), location(payload & ((1 << TIER_SHIFT) - 1)))
            }
            6 => Self::Cached(FrameId(payload as u32)),
            _ => {
                let place = match payload & 0xff {
                    0 => Place::Pool,
                    n => Place::Tier(TierId((n - 1) as u8)),
                };
                let loss = if payload >> 8 == 0 { Loss::Corrupt } else { Loss::Missing };
                Self::Error(loss, place)
            }
        }
    }
}

/// A slot's word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(u64);

impl Word {
    /// A free slot.
    pub(crate) const FREE: Self = Self(0);
    /// A slot as alloc hands it out.
    pub(crate) const RESERVED: Self = Self(1 << KIND_SHIFT | 1 << COUNT_SHIFT);

    pub(crate) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub(crate) const fn raw(self) -> u64 {
        self.0
    }

    pub(crate) fn backing(self) -> Backing {
        Backing::from_bits(self.0 & BACKING)
    }

    /// Whether both name the same backing, whatever else differs.
    pub(crate) const fn same_backing(self, other: Self) -> bool {
        (self.0 ^ other.0) & BACKING == 0
    }

    pub(crate) fn with_backing(self, backing: Backing) -> Self {
        Self(self.0 & !BACKING | backing.to_bits())
    }

    pub(crate) const fn is_busy(self) -> bool {
        self.0 & BUSY != 0
    }

    pub(crate) const fn busy(self) -> Self {
        Self(self.0 | BUSY)
    }

    pub(crate) const fn idle(self) -> Self {
        Self(self.0 & !BUSY)
    }

    /// References counted in the word, 0 to [`COUNT_MAX`].
    pub(crate) const fn count(self) -> u64 {
        (self.0 & COUNT) >> COUNT_SHIFT
    }

    /// Whether the side table counts references too.
    pub(crate) const fn has_more(self) -> bool {
        self.0 & MORE != 0
    }

    pub(crate) fn with_count(self, count: u64, more: bool) -> Self {
        assert!(count <= COUNT_MAX, "count of {count}");
        Self(self.0 & !(COUNT | MORE) | count << COUNT_SHIFT | if more { MORE } else { 0 })
    }

    pub(crate) const fn shadow(self) -> u16 {
        ((self.0 & SHADOW) >> SHADOW_SHIFT) as u16
    }

    pub(crate) fn with_shadow(self, shadow: u16) -> Self {
        assert!(shadow >> SHADOW_BITS == 0, "shadow of {shadow}");
        Self(self.0 & !SHADOW | u64::from(shadow) << SHADOW_SHIFT)
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let busy = if self.is_busy() { " busy" } else { "" };
        let more = if self.has_more() { "+" } else { "" };
        write!(f, "{:?}{busy} count {}{more} shadow {}", self.backing(), self.count(), self.shadow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(raw: u64) -> Location {
        Location::new(raw).expect("40 bits")
    }

    #[test]
    fn every_backing_survives_the_word() {
        let all = [
            Backing::Free,
            Backing::Reserved,
            Backing::Zero,
            Backing::Filled(Pattern::new(0xabab_abab_abab_abab).expect("fits")),
            Backing::Pool(at((1 << 40) - 1)),
            Backing::Tier(TierId(15), at((1 << 36) - 1)),
            Backing::Tier(TierId(0), at(0)),
            Backing::Cached(FrameId(u32::MAX)),
            Backing::Error(Loss::Corrupt, Place::Pool),
            Backing::Error(Loss::Missing, Place::Tier(TierId(15))),
        ];
        for (kind, backing) in all.iter().enumerate() {
            for word in [Word::RESERVED, Word::from_raw(u64::MAX), Word::RESERVED.busy().with_shadow(4095)] {
                let with = word.with_backing(*backing);
                assert_eq!(with.backing(), *backing);
                assert_eq!(
                    (with.count(), with.has_more(), with.shadow(), with.is_busy()),
                    (word.count(), word.has_more(), word.shadow(), word.is_busy())
                );
                assert!(kind > 7 || with.same_backing(Word::FREE.with_backing(*backing)));
            }
        }
        assert_eq!(Word::FREE.backing(), Backing::Free);
        assert_eq!((Word::RESERVED.backing(), Word::RESERVED.count()), (Backing::Reserved, 1));
    }

    #[test]
    fn fields_do_not_touch_each_other() {
        let word = Word::RESERVED.with_backing(Backing::Pool(at(0x12_3456_789a)));
        let changed = word.with_count(COUNT_MAX, true).with_shadow(0xabc).busy();
        assert_eq!(changed.backing(), word.backing());
        assert_eq!((changed.count(), changed.has_more(), changed.shadow()), (COUNT_MAX, true, 0xabc));
        assert_eq!(changed.idle().with_count(1, false).with_shadow(0), word);
    }

    #[test]
    fn patterns_pack_what_they_promise() {
        let one_byte = |b: u64| b * 0x0101_0101_0101_0101;
        for value in (0..256).map(one_byte).chain([
            1,
            (1 << 38) - 1,
            u64::MAX,
            u64::MAX - (1 << 38) + 1,
            0x1234_5678_1234_5678,
            0x3ff0_0000_0000_0000,
            1 << 63,
        ]) {
            assert_eq!(Pattern::new(value).map(Pattern::value), Some(value), "{value:#x}");
        }
        for value in [0x0123_4567_89ab_cdef, (1 << 38) + 1] {
            assert_eq!(Pattern::new(value), None, "{value:#x}");
        }
    }

    #[test]
    #[should_panic(expected = "too wide")]
    fn a_tier_location_of_more_than_36_bits_is_refused() {
        let _ = Word::RESERVED.with_backing(Backing::Tier(TierId(0), at(1 << 36)));
    }
}
