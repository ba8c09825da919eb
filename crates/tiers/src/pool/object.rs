//! The object: one stored page in a segment. This file alone knows the bits.
//!
//! ```text
//!  63                        24 23          12 11           0
//! ┌────────────────────────────┬──────────────┬──────────────┐
//! │ slot 40                    │ check 12     │ length 12    │  header, little endian, 8-byte aligned
//! ├────────────────────────────┴──────────────┴──────────────┤
//! │ payload and trailer: `length` bytes, then 0 to 7 of      │
//! │ padding                                                  │
//! └──────────────────────────────────────────────────────────┘
//!
//!  payload 8 bytes: the page repeats that 64-bit word; more: a compressed page; less: never
//!  check   of slot and payload (see check.rs)
//!  trailer none, or in a pool with the wide check the next 32 bits of the check, 4 bytes
//!
//!  63                        24 23                          0
//! ┌────────────────────────────┬─────────────────────────────┐
//! │ 0: no slot's number        │ size 24                     │  one or more dead objects: bytes to skip
//! └────────────────────────────┴─────────────────────────────┘
//!
//!  39                  20 19                   0
//! ┌──────────────────────┬──────────────────────┐
//! │ segment 20           │ offset / 8, 20       │  Location of an object in the pool
//! └──────────────────────┴──────────────────────┘
//! ```

use crate::check::check;
use crate::compress::KEEP_MAX;
use vswap_core::{Location, SlotId};

/// Bytes of a header.
pub(super) const HEADER: u32 = 8;
/// Length of a payload that marks a page of one repeated word.
pub(super) const FILLED: u32 = 8;
/// Most bytes an object takes in a segment.
pub(super) const OBJECT_MAX: u32 = HEADER + LENGTH_MAX.next_multiple_of(8);
const LENGTH_MAX: u32 = KEEP_MAX as u32 + TRAILER;
/// Bytes of a trailer.
const TRAILER: u32 = 4;
/// Segments that a location can tell apart.
pub(super) const SEGMENTS_MAX: u32 = 1 << 20;

const _: () = assert!(LENGTH_MAX < 1 << 12 && Location::POOL_BITS == 40 && SlotId::BITS == 40);

/// How much of the check goes with each object of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Width {
    /// 12 bits, in the header.
    #[default]
    Narrow,
    /// 44 bits, 32 of them in a trailer.
    Wide,
}

/// What follows a header: the payload, and the trailer if there is one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a> {
    pub(super) payload: &'a [u8],
    trailer: [u8; TRAILER as usize],
    width: Width,
}

impl<'a> Body<'a> {
    /// The two parts to be stored.
    pub(super) fn parts(&self) -> [&[u8]; 2] {
        [self.payload, if self.width == Width::Wide { &self.trailer } else { &[] }]
    }

    /// The stored bytes of an object, taken apart; `None` if they are too few.
    pub(super) fn split(bytes: &'a [u8], width: Width) -> Option<Self> {
        let (payload, trailer) = match width {
            Width::Narrow => (bytes, [0; TRAILER as usize]),
            Width::Wide => bytes.split_last_chunk().map(|(payload, trailer)| (payload, *trailer))?,
        };
        (payload.len() >= FILLED as usize).then_some(Self { payload, trailer, width })
    }
}

/// An object's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header(u64);

impl Header {
    /// The header of `payload` as the object of `slot`, and what follows it.
    pub(super) fn new(slot: SlotId, payload: &[u8], width: Width) -> (Self, Body<'_>) {
        assert!((FILLED as usize..=KEEP_MAX).contains(&payload.len()), "payload of {} bytes", payload.len());
        let check = check::<44>(slot, payload);
        let body = Body { payload, trailer: (check as u32).to_le_bytes(), width };
        let length = body.parts().map(<[u8]>::len).iter().sum::<usize>() as u64;
        (Self(slot.get() << 24 | check >> 32 << 12 | length), body)
    }

    pub(super) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }

    pub(super) fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    /// The slot whose object this is; `None` if the object is dead.
    pub(super) fn slot(self) -> Option<SlotId> {
        SlotId::new(self.0 >> 24)
    }

    /// Bytes of the payload and trailer of a live object.
    pub(super) fn length(self) -> u32 {
        (self.0 & 0xfff) as u32
    }

    /// Bytes up to the next header.
    pub(super) fn size(self) -> u32 {
        match self.slot() {
            Some(_) => HEADER + self.length().next_multiple_of(8),
            None => (self.0 & 0xff_ffff) as u32,
        }
    }

    /// Whether the fields are such as are made here; a rotten header may have others.
    pub(super) fn is_sane(self) -> bool {
        match self.slot() {
            Some(_) => (FILLED..=LENGTH_MAX).contains(&self.length()),
            None => self.size() >= HEADER && self.size().is_multiple_of(8),
        }
    }

    /// Whether the check matches.
    pub(super) fn verify(self, slot: SlotId, body: &Body<'_>) -> bool {
        let check = check::<44>(slot, body.payload);
        let narrow = self.0 >> 12 & 0xfff == check >> 32;
        narrow && (body.width == Width::Narrow || u32::from_le_bytes(body.trailer) == check as u32)
    }

    /// The header of `size` dead bytes.
    pub(super) fn dead(size: u32) -> Self {
        assert!(size >> 24 == 0 && size >= HEADER && size.is_multiple_of(8));
        Self(u64::from(size))
    }
}

/// The location of the object at `offset` of `segment`.
pub(super) fn location(segment: u32, offset: u32) -> Location {
    assert!(segment < SEGMENTS_MAX && offset.is_multiple_of(8) && offset >> 23 == 0);
    Location::new(u64::from(segment) << 20 | u64::from(offset / 8)).expect("40 bits")
}

/// Segment and byte offset of a location.
pub(super) fn place(at: Location) -> (u32, u32) {
    ((at.get() >> 20) as u32, (at.get() as u32 & 0xf_ffff) * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_location_keep_their_fields() {
        let slot = SlotId::new((1 << 40) - 1).expect("a slot");
        for (len, width) in
            [8, 9, 1000, KEEP_MAX].into_iter().flat_map(|len| [(len, Width::Narrow), (len, Width::Wide)])
        {
            let payload = vec![0x5a; len];
            let (header, body) = Header::new(slot, &payload, width);
            let stored = body.parts().concat();
            let header = Header::from_bytes(header.to_bytes());
            assert_eq!((header.slot(), header.length() as usize), (Some(slot), stored.len()));
            assert_eq!(stored.len(), len + if width == Width::Wide { 4 } else { 0 });
            let body = Body::split(&stored, width).expect("long enough");
            assert_eq!(body.payload, payload);
            assert!(header.is_sane() && header.verify(slot, &body) && header.size() <= OBJECT_MAX);
            let dead = Header::from_bytes(Header::dead(header.size()).to_bytes());
            assert_eq!((dead.slot(), dead.size(), dead.is_sane()), (None, header.size(), true));
        }
        for (segment, offset) in [(0, 0), (SEGMENTS_MAX - 1, (1 << 23) - 8), (5, 1 << 19)] {
            assert_eq!(place(location(segment, offset)), (segment, offset));
        }
    }
}
