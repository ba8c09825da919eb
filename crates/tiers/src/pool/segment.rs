//! The segment: 1 MiB of address space into which objects are appended, and what is live in it.
//!
//! A segment is an entry of the pool's table and guarded by that entry's lock; nothing here calls out. Its memory is
//! an anonymous mapping of its own, made at the first append and unmapped when the last object dies, so the system has
//! it back at once (malloc keeps blocks of this size after the first free: glibc raises its mmap threshold). Only the
//! pages up to the append mark have been touched, so only they are resident and charged.
//!
//! ```text
//!          reserve            seal             pick                 last object dies
//!   Free ───────────► Open ────────► Sealed ────────► Victim ─┐   (Sealed; a Victim when its cleaner is done)
//!    ▲                 │ last object  ▲ │               │     │
//!    │                 │ dies: memory │ │               └─────┤
//!    │                 └─ returned,   └─┼─ some stay ─────────┘
//!    └──────────────────  stays Open    ▼
//!                                     Free
//! ```
//!
//! A victim that a few objects hold (busy, or their release is late) sheds the rest: its memory is exchanged for a fresh
//! mapping into which only the live objects are copied, at their old offsets, so that no object can hold a megabyte.
//!
//! A Victim is never freed under its cleaner: the location of an object that is being moved must not be given to
//! another object before `Owner::relocate` has compared it. Offsets of a sealed segment are never used again either.

use super::object::{Body, HEADER, Header, Width};
use crate::compress::{Codec, fill};
use memmap2::{Advice, MmapMut};
use vswap_core::{LoadError, NotThere, PAGE_SIZE, Page, SlotId};

/// Bytes of a page, as offsets are counted.
pub(super) const PAGE: u32 = PAGE_SIZE as u32;
/// Bytes of a segment.
pub(super) const SEGMENT: u32 = 1 << 20;

/// Who may append to a segment and who may free it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Role {
    /// Nobody's; its index is in the free list (or was never used).
    #[default]
    Free,
    /// A shard or the cleaner appends to it.
    Open,
    /// Full; freed by whoever kills its last object.
    Sealed,
    /// The cleaner copies out of it; freed by the cleaner alone.
    Victim,
}

/// See the file's head.
#[derive(Default)]
pub(super) struct Segment {
    memory: Option<MmapMut>,
    pub(super) role: Role,
    /// A header in it makes no sense, so it cannot be walked: never cleaned, never offered for writeback.
    pub(super) broken: bool,
    /// The append mark.
    used: u32,
    /// Bytes of touched pages.
    resident: u32,
    /// Pages are touched in pieces of this size: a multiple of the page size, set by whoever opens the segment.
    pub(super) grain: u32,
    pub(super) live_bytes: u32,
    pub(super) live_objects: u32,
    /// Order of age: lower is older.
    pub(super) age: u64,
    /// Changes when an offset may no longer be where an object begins.
    pub(super) generation: u32,
    /// The cleaner's call that last had it as a victim.
    pub(super) tried: u32,
}

impl Segment {
    /// Whether an object of `size` bytes can be appended.
    pub(super) fn fits(&self, size: u32) -> bool {
        self.used + size <= SEGMENT
    }

    /// Bytes of touched pages.
    pub(super) fn resident(&self) -> u32 {
        self.resident
    }

    /// Bytes of dead objects.
    pub(super) fn dead(&self) -> u32 {
        self.used - self.live_bytes
    }

    /// Share of what was appended that is dead, 0 to 1.
    pub(super) fn dead_share(&self) -> f64 {
        f64::from(self.dead()) / f64::from(self.used.max(1))
    }

    /// Bytes that appending `size` bytes would touch for the first time.
    pub(super) fn growth(&self, size: u32) -> u32 {
        (self.used + size).next_multiple_of(self.grain) - self.used.next_multiple_of(self.grain)
    }

    /// Maps the memory if it is not mapped; `false` if the system has none.
    pub(super) fn map(&mut self) -> bool {
        if self.memory.is_none() {
            let Ok(memory) = MmapMut::map_anon(SEGMENT as usize) else { return false };
            // A huge page would make more resident than was charged. A kernel without them refuses; that is as good.
            let _ = memory.advise(Advice::NoHugePage);
            self.memory = Some(memory);
        }
        true
    }

    /// Appends an object and returns its offset. The segment is mapped, Open, and the object fits.
    pub(super) fn append(&mut self, header: Header, body: [&[u8]; 2]) -> u32 {
        let size = header.size();
        let [payload, trailer] = body;
        let length = payload.len() + trailer.len();
        assert!(self.role == Role::Open && self.fits(size) && length == header.length() as usize);
        let at = self.used as usize;
        let growth = self.growth(size);
        let memory = self.memory.as_mut().expect("mapped before append");
        if growth > PAGE {
            // One call for all of them instead of a fault for each. An old kernel refuses; then they fault.
            let _ = memory.advise_range(Advice::PopulateWrite, self.resident as usize, growth as usize);
        }
        memory[at..at + HEADER as usize].copy_from_slice(&header.to_bytes());
        memory[at + HEADER as usize..][..payload.len()].copy_from_slice(payload);
        memory[at + HEADER as usize + payload.len()..][..trailer.len()].copy_from_slice(trailer);
        self.resident += growth;
        self.used += size;
        self.live_bytes += size;
        self.live_objects += 1;
        at as u32
    }

    /// The header at `offset`, if an object can start there.
    fn header(&self, offset: u32) -> Option<Header> {
        if offset >= self.used {
            return None;
        }
        let bytes = self.memory.as_ref()?.get(offset as usize..)?.first_chunk::<8>()?;
        Some(Header::from_bytes(*bytes))
    }

    /// Payload and trailer of the object at `offset`; `None` if its length makes no sense.
    fn payload(&self, offset: u32, header: Header) -> Option<&[u8]> {
        if !header.is_sane() || header.size() > self.used - offset {
            return None;
        }
        let start = (offset + HEADER) as usize;
        self.memory.as_ref()?.get(start..start + header.length() as usize)
    }

    /// Reads the object of `slot` at `offset`.
    pub(super) fn load(
        &self,
        slot: SlotId,
        offset: u32,
        width: Width,
        codec: &Codec,
        into: &mut Page,
    ) -> Result<(), LoadError> {
        let header = self.header(offset).filter(|h| h.slot() == Some(slot)).ok_or(LoadError::Stale)?;
        let body = self.payload(offset, header).and_then(|bytes| Body::split(bytes, width));
        let body = body.filter(|body| header.verify(slot, body)).ok_or(LoadError::Corrupt)?;
        match <[u8; 8]>::try_from(body.payload) {
            Ok(word) => fill(u64::from_le_bytes(word), into),
            Err(_) if codec.decompress(body.payload, into) => {}
            Err(_) => return Err(LoadError::Corrupt),
        }
        Ok(())
    }

    /// Marks the object of `slot` at `offset` dead and returns its size. There may be no such object: it was released twice, is
    /// another's, or its header has rotted; then nothing changes.
    pub(super) fn kill(&mut self, slot: SlotId, offset: u32) -> Result<u32, NotThere> {
        let header = self.header(offset).filter(|h| h.slot() == Some(slot)).ok_or(NotThere)?;
        // A rotten length would have the walk stumble over what follows.
        self.payload(offset, header).ok_or(NotThere)?;
        let (size, last) = (header.size(), self.live_objects == 1);
        if self.live_objects == 0 || self.live_bytes < size || last != (self.live_bytes == size) {
            return Err(NotThere);
        }
        let memory = self.memory.as_mut().expect("has objects");
        memory[offset as usize..][..HEADER as usize].copy_from_slice(&Header::dead(size).to_bytes());
        self.live_bytes -= size;
        self.live_objects -= 1;
        Ok(size)
    }

    /// The first live object at or after `offset`: its offset, slot, header, payload and trailer.
    pub(super) fn next_live(&self, mut offset: u32) -> Walk<'_> {
        while let Some(header) = self.header(offset) {
            if let Some(slot) = header.slot() {
                let Some(payload) = self.payload(offset, header) else { return Walk::Broken };
                return Walk::Object { offset, slot, header, payload };
            }
            if !header.is_sane() || header.size() > self.used - offset {
                return Walk::Broken;
            }
            offset += header.size();
        }
        Walk::End
    }

    /// Takes the memory and every object's place away. The caller drops the memory when it has let go of the lock.
    pub(super) fn take(&mut self) -> Option<MmapMut> {
        assert!(self.live_objects == 0 && self.live_bytes == 0);
        (self.used, self.resident) = (0, 0);
        self.broken = false;
        self.generation = self.generation.wrapping_add(1);
        self.memory.take()
    }

    /// Exchanges the memory of a sealed segment for one with nothing but the live objects in it, at the same offsets.
    /// Returns the old memory, which the caller drops when it has let go of the lock; `None`, and nothing has changed, if
    /// the system has no memory or the segment cannot be walked.
    pub(super) fn shed(&mut self) -> Option<MmapMut> {
        assert!(self.role == Role::Sealed && self.live_objects > 0);
        let mut fresh = Segment { used: self.used, ..Self::default() };
        if !fresh.map() {
            return None;
        }
        let memory = fresh.memory.as_mut().expect("just mapped");
        let mut touched = [false; (SEGMENT / PAGE) as usize];
        let mut put = |at: u32, bytes: &[u8]| {
            memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
            touched[(at / PAGE) as usize..=((at + bytes.len() as u32 - 1) / PAGE) as usize].fill(true);
        };
        let mut end = 0;
        loop {
            let (offset, object) = match self.next_live(end) {
                Walk::Object { offset, header, payload, .. } => (offset, Some((header, payload))),
                Walk::End => (self.used, None),
                Walk::Broken => return None,
            };
            if offset > end {
                put(end, &Header::dead(offset - end).to_bytes());
            }
            let Some((header, payload)) = object else { break };
            put(offset, &header.to_bytes());
            put(offset + HEADER, payload);
            end = offset + header.size();
        }
        self.resident = touched.iter().filter(|t| **t).count() as u32 * PAGE;
        // A walk may have stopped between two dead objects that are one now.
        self.generation = self.generation.wrapping_add(1);
        std::mem::replace(&mut self.memory, fresh.memory)
    }

    /// For tests: flips a bit.
    #[cfg(test)]
    pub(super) fn rot(&mut self, offset: u32, bit: u8) {
        self.memory.as_mut().expect("mapped")[offset as usize] ^= 1 << bit;
    }
}

/// A step of a walk over a segment's live objects.
pub(super) enum Walk<'a> {
    /// A live object.
    Object { offset: u32, slot: SlotId, header: Header, payload: &'a [u8] },
    /// No more.
    End,
    /// A header makes no sense; what follows cannot be found.
    Broken,
}
