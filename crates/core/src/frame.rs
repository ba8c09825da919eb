//! The swap cache's frames: pages that are evicted but still uncompressed in memory.
//!
//! **Whose is a frame?** The slot's whose word says `cached` with its number, or the thread's that took it and has not
//! published it yet. Only they release it, once. A frame's body is written before it is published and then only by the
//! holder of the slot's busy bit. A loader may read a frame that is no longer the slot's, so it checks the body's slot
//! under the body's lock, and reads the word again afterwards.
//!
//! **Order.** Frames in use form a list by the time they were taken, oldest first: first in, first out. `oldest` shows
//! its head without taking anything out; a frame leaves the list when it is released.
//!
//! **Memory.** Frames come in slabs of 64, each an allocation of 258 KiB that the system's allocator maps by itself and
//! gives back when it is freed. Low slabs are preferred, and a slab is freed when it is empty, but for one.
//!
//! **Locks**: `state` is a leaf; a body's lock is taken with no other held, but for the busy bit.

use crate::directory::{Directory, OutOfMemory, try_boxed};
use crate::sync::{Mutex, Pin, RwLock, RwLockReadGuard};
use crate::word::{Backing, FrameId, Place};
use crate::{Location, PAGE_SIZE, Page, SlotId};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Frames of a slab.
pub(crate) const SLAB: u32 = if cfg!(loom) { 2 } else { 64 };
const NONE: u32 = u32::MAX;

/// What a frame holds.
pub(crate) struct Body {
    page: Page,
    slot: Option<SlotId>,
    /// The object that still holds the same page, if any.
    former: Option<(Place, Location)>,
}

/// 64 frames.
pub(crate) struct Slab {
    bodies: Box<[RwLock<Body>]>,
}

impl Slab {
    fn new() -> Result<Self, OutOfMemory> {
        let body = || RwLock::new(Body { page: [0; PAGE_SIZE], slot: None, former: None });
        Ok(Self { bodies: try_boxed(SLAB as usize, body)? })
    }
}

/// A slab that holds one certain frame.
pub(crate) struct FrameHold {
    slab: Pin<Slab>,
    index: usize,
}

impl FrameHold {
    /// Locks the frame for reading. Nobody writes a frame that is a slot's but the slot's busy holder.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Body> {
        self.slab.bodies[self.index].read()
    }
}

impl Body {
    pub(crate) fn page(&self) -> &Page {
        &self.page
    }

    pub(crate) fn slot(&self) -> Option<SlotId> {
        self.slot
    }

    pub(crate) fn former(&self) -> Option<(Place, Location)> {
        self.former
    }
}

#[derive(Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
    used: bool,
    /// A write-out is at work on it: a hint for others.
    claimed: bool,
    /// Every place refused the page for its content: to be tried again only when nothing else is left.
    refused: bool,
}

struct State {
    links: Vec<Link>,
    /// Free frames of each slab; 0 also if it has no memory.
    free: Vec<u64>,
    present: Vec<bool>,
    /// No slab below this one has a free frame.
    lowest: usize,
    /// Slabs present without a frame in use.
    empty: usize,
    oldest: u32,
    newest: u32,
    slabs: usize,
}

/// See the module's head.
pub(crate) struct Frames {
    slabs: Directory<Slab>,
    state: Mutex<State>,
    used: AtomicUsize,
    limit: AtomicUsize,
}

const ALL: u64 = if SLAB == 64 { u64::MAX } else { (1 << SLAB) - 1 };

impl Frames {
    pub(crate) fn new(limit: usize) -> Self {
        let state = State {
            links: Vec::new(),
            free: Vec::new(),
            present: Vec::new(),
            lowest: 0,
            empty: 0,
            oldest: NONE,
            newest: NONE,
            slabs: 0,
        };
        Self {
            slabs: Directory::new(),
            state: Mutex::new(state),
            used: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit.min(NONE as usize - 1)),
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit.min(NONE as usize - 1), Relaxed);
    }

    fn get(&self, FrameId(frame): FrameId) -> Option<FrameHold> {
        Some(FrameHold { slab: self.slabs.get(frame / SLAB)?, index: (frame % SLAB) as usize })
    }

    /// A frame that is the caller's, or its slot's under the caller's busy bit.
    pub(crate) fn owned(&self, frame: FrameId) -> FrameHold {
        self.get(frame).expect("a frame in use has memory")
    }

    /// Takes a frame for `page` and fills it; `None` at the limit or without memory.
    pub(crate) fn take(
        &self,
        slot: SlotId,
        page: &Page,
        former: Option<(Place, Location)>,
    ) -> Option<FrameId> {
        let frame = self.grab().ok()??;
        let hold = self.owned(frame);
        let mut body = hold.slab.bodies[hold.index].write();
        body.page.copy_from_slice(page);
        body.slot = Some(slot);
        body.former = former;
        drop(body);
        Some(frame)
    }

    fn grab(&self) -> Result<Option<FrameId>, OutOfMemory> {
        let mut state = self.state.lock();
        let used = self.used.load(Relaxed);
        if used >= self.limit() {
            return Ok(None);
        }
        let lowest = state.lowest;
        let slab = match state.free[lowest..].iter().position(|free| *free != 0) {
            Some(further) => lowest + further,
            None => self.grow(&mut state)?,
        };
        state.lowest = slab;
        if state.free[slab] == ALL {
            state.empty -= 1;
        }
        let bit = state.free[slab].trailing_zeros();
        state.free[slab] &= !(1 << bit);
        let frame = slab as u32 * SLAB + bit;
        self.used.store(used + 1, Relaxed);
        state.append(frame);
        Ok(Some(FrameId(frame)))
    }

    /// Gives memory to the lowest slab that has none.
    fn grow(&self, state: &mut State) -> Result<usize, OutOfMemory> {
        let slab = state.present.iter().position(|p| !p).unwrap_or(state.present.len());
        if slab == state.present.len() {
            state.present.try_reserve(1).map_err(|_| OutOfMemory)?;
            state.free.try_reserve(1).map_err(|_| OutOfMemory)?;
            state.links.try_reserve(SLAB as usize).map_err(|_| OutOfMemory)?;
            self.slabs.ensure(slab as u32)?;
        }
        let memory = Arc::new(Slab::new()?);
        if slab == state.present.len() {
            state.present.push(false);
            state.free.push(0);
            let link = Link { older: NONE, newer: NONE, used: false, claimed: false, refused: false };
            let len = state.links.len() + SLAB as usize;
            state.links.resize(len, link);
        }
        state.present[slab] = true;
        state.free[slab] = ALL;
        state.empty += 1;
        state.slabs += 1;
        assert!(self.slabs.set(slab as u32, Some(memory)).is_none(), "slab {slab} made twice");
        Ok(slab)
    }

    /// Gives a frame back. The caller owned it.
    pub(crate) fn release(&self, FrameId(frame): FrameId) {
        let mut state = self.state.lock();
        state.unlink(frame);
        self.used.fetch_sub(1, Relaxed);
        let slab = (frame / SLAB) as usize;
        let bit = 1 << (frame % SLAB);
        assert!(state.free[slab] & bit == 0, "frame {frame} released twice");
        state.free[slab] |= bit;
        state.lowest = state.lowest.min(slab);
        if state.free[slab] != ALL {
            return;
        }
        state.empty += 1;
        let unused = if state.empty > 1 {
            let highest = (0..state.free.len()).rev().find(|s| state.free[*s] == ALL).expect("two are empty");
            state.free[highest] = 0;
            state.present[highest] = false;
            state.empty -= 1;
            state.slabs -= 1;
            self.slabs.set(highest as u32, None)
        } else {
            None
        };
        drop(state);
        // Unmapping takes long: not under the lock.
        drop(unused);
    }

    /// Copies the page of `slot` if the frame holds it.
    pub(crate) fn load(&self, frame: FrameId, slot: SlotId, into: &mut Page) -> bool {
        let Some(hold) = self.get(frame) else { return false };
        let body = hold.read();
        let is_slots = body.slot == Some(slot);
        if is_slots {
            into.copy_from_slice(&body.page);
        }
        is_slots
    }

    /// Changes the former backing. The caller holds the slot's busy bit; loaders keep the body's lock for a copy.
    pub(crate) fn set_former(&self, frame: FrameId, former: Option<(Place, Location)>) {
        let hold = self.owned(frame);
        hold.slab.bodies[hold.index].write().former = former;
    }

    /// The backing that an owned frame keeps beside it.
    pub(crate) fn former(&self, frame: FrameId) -> Option<(Place, Location)> {
        self.owned(frame).read().former
    }

    /// Fills `out` with the oldest frames that no write-out is at work on, and claims them: those that were not
    /// refused, or the refused ones. Returns how many.
    pub(crate) fn claim_oldest(&self, out: &mut [FrameId], refused: bool) -> usize {
        let mut state = self.state.lock();
        let mut at = state.oldest;
        let mut n = 0;
        while at != NONE && n < out.len() {
            let link = &mut state.links[at as usize];
            if !link.claimed && link.refused == refused {
                link.claimed = true;
                out[n] = FrameId(at);
                n += 1;
            }
            at = link.newer;
        }
        n
    }

    /// Ends a claim. The frame may be another's by now, which loses nothing.
    pub(crate) fn unclaim(&self, FrameId(frame): FrameId, refused: bool) {
        let link = &mut self.state.lock().links[frame as usize];
        link.claimed = false;
        link.refused = refused && link.used;
    }

    /// The slot that a frame was filled for.
    pub(crate) fn slot_of(&self, frame: FrameId) -> Option<SlotId> {
        self.get(frame)?.read().slot
    }

    /// Bytes of the slabs without their pages, of the list, and of the directory; and bytes of the slabs in all.
    pub(crate) fn footprint(&self) -> (u64, u64) {
        let state = self.state.lock();
        let slab = size_of::<Slab>() + 2 * size_of::<usize>() + SLAB as usize * size_of::<RwLock<Body>>();
        let pages = state.slabs * SLAB as usize * PAGE_SIZE;
        let lists =
            state.links.capacity() * size_of::<Link>() + state.free.capacity() * 8 + state.present.capacity();
        let all = state.slabs * slab;
        ((all - pages + lists) as u64 + self.slabs.bytes(), all as u64)
    }
}

impl State {
    fn append(&mut self, frame: u32) {
        self.links[frame as usize] =
            Link { older: self.newest, newer: NONE, used: true, claimed: false, refused: false };
        match self.newest {
            NONE => self.oldest = frame,
            newest => self.links[newest as usize].newer = frame,
        }
        self.newest = frame;
    }

    fn unlink(&mut self, frame: u32) {
        let link = self.links[frame as usize];
        assert!(link.used, "frame {frame} is not in use");
        self.links[frame as usize] =
            Link { older: NONE, newer: NONE, used: false, claimed: false, refused: false };
        match link.older {
            NONE => self.oldest = link.newer,
            older => self.links[older as usize].newer = link.newer,
        }
        match link.newer {
            NONE => self.newest = link.older,
            newer => self.links[newer as usize].older = link.older,
        }
    }
}

/// The backing that a cached slot falls back to when its frame is dropped.
pub(crate) fn former_backing(former: Option<(Place, Location)>) -> Option<Backing> {
    former.map(|(place, at)| Backing::object(place, at))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn slot(n: u64) -> SlotId {
        SlotId::new(n).expect("a slot")
    }

    fn take(frames: &Frames, n: u64) -> FrameId {
        frames.take(slot(n), &[n as u8; PAGE_SIZE], None).expect("room")
    }

    fn oldest(frames: &Frames, n: usize, refused: bool) -> Vec<FrameId> {
        let mut out = vec![FrameId(NONE); n];
        let found = frames.claim_oldest(&mut out, refused);
        out.truncate(found);
        out
    }

    #[test]
    fn a_frame_gives_its_page_to_its_slot_alone() {
        let frames = Frames::new(10);
        let mut page = [0; PAGE_SIZE];
        let first = take(&frames, 7);
        assert!(frames.load(first, slot(7), &mut page) && page == [7; PAGE_SIZE]);
        // A loader with an old word: the frame is another's by now, or not there at all.
        frames.release(first);
        assert_eq!(take(&frames, 8), first);
        assert!(!frames.load(first, slot(7), &mut page));
        assert!(frames.load(first, slot(8), &mut page) && page == [8; PAGE_SIZE]);
        assert!(!frames.load(FrameId(1000), slot(7), &mut page));
    }

    #[test]
    fn frames_leave_in_the_order_in_which_they_came() {
        let frames = Frames::new(100);
        let all: Vec<_> = (1..=10).map(|n| take(&frames, n)).collect();
        frames.release(all[0]);
        frames.release(all[4]);
        frames.release(all[9]);
        assert_eq!(oldest(&frames, 3, false), [all[1], all[2], all[3]]);
        assert_eq!(oldest(&frames, 2, false), [all[5], all[6]], "claimed ones are passed over");
        all[1..4].iter().for_each(|frame| frames.unclaim(*frame, false));
        frames.unclaim(all[5], true);
        assert_eq!(oldest(&frames, 9, false), [all[1], all[2], all[3], all[7], all[8]]);
        assert_eq!(oldest(&frames, 9, true), [all[5]], "refused ones come when asked for");
        // A frame taken anew is the newest and has no past.
        frames.release(all[5]);
        let again = take(&frames, 50);
        assert_eq!(oldest(&frames, 9, false), [again]);
    }

    #[test]
    fn the_limit_holds_and_can_be_changed() {
        let frames = Frames::new(3);
        let all: Vec<_> = (1..=3).map(|n| take(&frames, n)).collect();
        assert!(frames.take(slot(4), &[4; PAGE_SIZE], None).is_none());
        frames.set_limit(1);
        frames.release(all[0]);
        assert!(frames.take(slot(4), &[4; PAGE_SIZE], None).is_none());
        frames.set_limit(3);
        assert!(frames.take(slot(4), &[4; PAGE_SIZE], None).is_some());
        assert_eq!((frames.used(), frames.limit()), (3, 3));
    }

    #[test]
    fn empty_slabs_but_one_are_given_back_and_low_ones_are_used_first() {
        let frames = Frames::new(10_000);
        let all: Vec<_> = (1..=640).map(|n| take(&frames, n)).collect();
        assert_eq!(frames.state.lock().slabs, 10);
        all[320..].iter().for_each(|frame| frames.release(*frame));
        assert_eq!(frames.state.lock().slabs, 6);
        frames.release(all[5]);
        assert_eq!(take(&frames, 1000), all[5]);
        all[64..128].iter().for_each(|frame| frames.release(*frame));
        // The lowest empty one stays.
        let state = frames.state.lock();
        assert_eq!((state.slabs, state.present[1], state.present[5]), (5, true, false));
        drop(state);
        let mut page = [0; PAGE_SIZE];
        for (n, frame) in (1..=64).zip(&all) {
            let owner = if n == 6 { 1000 } else { n };
            assert!(frames.load(*frame, slot(owner), &mut page) && page[0] == owner as u8);
        }
        let more: Vec<_> = (0..640).map(|n| take(&frames, 2000 + n)).collect();
        assert!(more.iter().all(|frame| frame.0 < 640 + 320));
    }

    #[test]
    #[should_panic(expected = "not in use")]
    fn a_frame_is_released_once() {
        let frames = Frames::new(10);
        let (first, _) = (take(&frames, 1), take(&frames, 2));
        frames.release(first);
        frames.release(first);
    }
}
