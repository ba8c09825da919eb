//! The agent's own memory in a target.
//!
//! ```text
//! pages   1      128      1      128     1      1       7       1      1
//!       guard  staging  guard   ring   tally  guard   stack   state  guard
//!              private          └─────────── one memfd, shared ────┘
//! ```
//!
//! One reservation without access rights, so that nothing of ours ever merges with a mapping of the program, holds
//! everything except the beacon, and none of it is inherited by fork. Staging is private anonymous memory, because
//! UFFDIO_MOVE wants that; it is empty except while a batch is under way. Ring, stack and state are shared memory, which a
//! userfaultfd of our kind never covers. The pager maps ring and tally.
//!
//! The beacon is a page in a small reservation of its own that fork children do inherit, wiped: reading it there is
//! how a child learns which address space it is to the pager. Behind that it tells whether somebody there has set an agent
//! up already, or is about to: a child may be entered from its fork hook and by the pager at the same time.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vswap_wire::{BATCH_PAGES, PAGE, RING_PAGES};

use crate::system::{
    Descriptor, ENOMEM, Errno, MADV_DONTFORK, MADV_NOHUGEPAGE, MADV_WIPEONFORK, MAP_ANONYMOUS, MAP_FIXED,
    MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, call, nr,
};

const BATCH: u64 = BATCH_PAGES as u64;
const STACK: u64 = 7;

const STAGING: u64 = PAGE;
const RING: u64 = STAGING + (BATCH + 1) * PAGE;
const STACK_GUARD: u64 = RING + RING_PAGES as u64 * PAGE;
const STACK_TOP: u64 = STACK_GUARD + (1 + STACK) * PAGE;
const STATE: u64 = STACK_TOP;
const SIZE: u64 = STATE + 2 * PAGE;
const FILE_SIZE: u64 = STATE + PAGE - RING;

/// What the agent's thread needs to know; lies in the state page, so that the thread never depends on the
/// stack of the thread that started it.
pub(crate) struct State {
    /// 0 until the thread has let go of the program's descriptors.
    pub(crate) running: AtomicU32,
    /// The connection to the pager.
    pub(crate) socket: i32,
    /// The userfaultfd of this address space.
    pub(crate) userfaultfd: i32,
    /// /proc/thread-self/pagemap.
    pub(crate) pagemap: i32,
    /// Lets our calls pass the gate.
    pub(crate) cookie: u64,
    /// Address of staging.
    pub(crate) staging: u64,
    /// Address of the ring.
    pub(crate) ring: u64,
    /// Batches copied to the ring.
    pub(crate) batches: u64,
    /// Staging could not be emptied.
    pub(crate) full: bool,
}

const _: () = assert!(size_of::<State>() <= PAGE as usize);

/// A mapped area; unmapped when dropped.
pub(crate) struct Area {
    start: u64,
}

impl Area {
    /// Maps an area, and returns it with the memfd whose first pages are the ring.
    pub(crate) fn map() -> Result<(Area, Descriptor), Errno> {
        let area = Area { start: reserve(SIZE)? };
        protect(area.staging(), BATCH * PAGE, PROT_READ | PROT_WRITE)?;
        // Fails only on a kernel without huge pages.
        let _ = advise(area.staging(), BATCH * PAGE, MADV_NOHUGEPAGE);
        let file = memfd()?;
        // SAFETY: replaces a part of our own reservation, which nothing refers to yet.
        unsafe {
            call(
                nr::MMAP,
                &[
                    area.ring() as usize,
                    FILE_SIZE as usize,
                    PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_FIXED,
                    file.arg(),
                    0,
                ],
            )?;
        }
        protect(area.start + STACK_GUARD, PAGE, 0)?;
        advise(area.start, SIZE, MADV_DONTFORK)?;
        Ok((area, file))
    }

    /// All of it, guards included.
    pub(crate) fn range(&self) -> Range<u64> {
        self.start..self.start + SIZE
    }

    /// Address of staging.
    pub(crate) fn staging(&self) -> u64 {
        self.start + STAGING
    }

    /// Address of the ring.
    pub(crate) fn ring(&self) -> u64 {
        self.start + RING
    }

    /// The first address above the thread's stack, aligned to a page.
    pub(crate) fn stack_top(&self) -> u64 {
        self.start + STACK_TOP
    }

    /// Gives the area to the agent's thread for the rest of the process's life.
    pub(crate) fn leak(self, state: State) -> &'static mut State {
        let place = (self.start + STATE) as *mut State;
        core::mem::forget(self);
        // SAFETY: the state page is mapped, large enough, aligned, referred to by nothing else, and from now on
        // never unmapped.
        unsafe {
            place.write(state);
            &mut *place
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        unmap(self.start, SIZE);
    }
}

/// What lies at the beginning of a beacon page; all zeros in a fork child, until the pager fills the token in.
#[repr(C)]
pub(crate) struct BeaconPage {
    token: AtomicU64,
    claimed: AtomicU64,
}

impl BeaconPage {
    /// True for the first who asks in this address space.
    pub(crate) fn claim(&self) -> bool {
        self.claimed.swap(1, Ordering::Relaxed) == 0
    }

    /// Which address space this is to the pager; 0 if it does not know it as a child.
    pub(crate) fn token(&self) -> u64 {
        self.token.load(Ordering::Relaxed)
    }
}

/// A fresh beacon page, published; withdrawn and unmapped when dropped.
pub(crate) struct Beacon {
    address: u64,
}

impl Beacon {
    /// Maps a beacon between guards. The gate would stop us; `cookie` lets us pass.
    pub(crate) fn map(cookie: u64) -> Result<Beacon, Errno> {
        let beacon = Beacon { address: reserve(3 * PAGE)? + PAGE };
        protect(beacon.address, PAGE, PROT_READ | PROT_WRITE)?;
        let args = [beacon.address as usize, PAGE as usize, MADV_WIPEONFORK, 0, 0, cookie as usize];
        // SAFETY: a page of our own that nothing refers to yet, and it stays as it is.
        unsafe { call(nr::MADVISE, &args)? };
        // SAFETY: just mapped, zeroed, aligned, and unmapped only by the drop of what is returned here.
        unsafe { &*(beacon.address as *const BeaconPage) }.claim();
        crate::publish_beacon(beacon.address);
        Ok(beacon)
    }

    /// Its address.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Leaves the page mapped for this process and its fork children.
    pub(crate) fn leak(self) {
        core::mem::forget(self);
    }
}

impl Drop for Beacon {
    fn drop(&mut self) {
        crate::publish_beacon(0);
        unmap(self.address - PAGE, 3 * PAGE);
    }
}

fn reserve(size: u64) -> Result<u64, Errno> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: a new mapping where the kernel finds room.
    let start = unsafe { call(nr::MMAP, &[0, size as usize, 0, flags, usize::MAX, 0])? } as u64;
    if start == 0 { Err(ENOMEM) } else { Ok(start) }
}

fn unmap(start: u64, size: u64) {
    // SAFETY: called only from the drop of what `reserve` returned, which nothing refers to any more.
    let _ = unsafe { call(nr::MUNMAP, &[start as usize, size as usize]) };
}

fn protect(start: u64, size: u64, rights: usize) -> Result<(), Errno> {
    // SAFETY: called only for parts of our own reservations that nothing refers to yet.
    unsafe { call(nr::MPROTECT, &[start as usize, size as usize, rights]) }.map(drop)
}

fn advise(start: u64, size: u64, advice: usize) -> Result<(), Errno> {
    // SAFETY: called only for our own reservations, with advice that discards nothing.
    unsafe { call(nr::MADVISE, &[start as usize, size as usize, advice]) }.map(drop)
}

/// Shared memory of fixed size: the pager can map it without fear of SIGBUS once it has seen the seals.
fn memfd() -> Result<Descriptor, Errno> {
    const MFD_CLOEXEC: usize = 1;
    const MFD_ALLOW_SEALING: usize = 2;
    const MFD_NOEXEC_SEAL: usize = 8;
    const F_ADD_SEALS: usize = 1033;
    const F_SEAL_SEAL_SHRINK_GROW: usize = 1 | 2 | 4;
    let name = c"vswap-ring";
    let flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL;
    // SAFETY: the name is NUL-terminated and lives; the other calls touch no memory.
    unsafe {
        let file = Descriptor::new(call(nr::MEMFD_CREATE, &[name.as_ptr() as usize, flags])?);
        call(nr::FTRUNCATE, &[file.arg(), FILE_SIZE as usize])?;
        call(nr::FCNTL, &[file.arg(), F_ADD_SEALS, F_SEAL_SEAL_SHRINK_GROW])?;
        Ok(file)
    }
}
