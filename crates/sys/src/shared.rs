//! Pages shared with a process we do not trust: a memfd of the target's agent, mapped read-only.
//!
//! Owner: the pager's state of one address space. The other process may write any byte at any time; so a page is copied out once, by
//! atomic loads, and only the copy is looked at. It cannot make our reads fail either: the file must be a memfd
//! in memory, long enough, and sealed against shrinking.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::PAGE_SIZE;

const TMPFS_MAGIC: u64 = 0x0102_1994;
const WORDS: usize = PAGE_SIZE / 8;

/// A read-only mapping of a memfd received from another process.
#[derive(Debug)]
pub struct SharedPages {
    fd: OwnedFd,
    base: NonNull<AtomicU64>,
    pages: usize,
}

// SAFETY: the mapping belongs to this value alone, lives as long as it does, and is only read, by atomic loads.
unsafe impl Send for SharedPages {}
// SAFETY: as above; concurrent atomic loads are no race.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// Maps the first `pages` pages of `fd`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` (with a message) if `pages` is 0, or if `fd` is not a memfd on base pages, is shorter, or may
    /// still shrink; those of `mmap`.
    pub fn map(fd: OwnedFd, pages: usize) -> io::Result<Self> {
        let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let Some(bytes) = pages.checked_mul(PAGE_SIZE).filter(|&bytes| bytes != 0) else {
            return refuse("shared memory of no pages, or of too many");
        };
        // Not hugetlbfs: reading a hole there raises SIGBUS when the pool is empty.
        if rustix::fs::fstatfs(&fd)?.f_type as u64 != TMPFS_MAGIC {
            return refuse("shared memory is not a memfd");
        }
        // Seals first: once it cannot shrink, the size that is then seen stays true.
        if !rustix::fs::fcntl_get_seals(&fd)?.contains(SealFlags::SHRINK) {
            return refuse("shared memory may shrink: F_SEAL_SHRINK is missing");
        }
        if (rustix::fs::fstat(&fd)?.st_size as u64) < bytes as u64 {
            return refuse("shared memory is smaller than announced");
        }
        // SAFETY: a new mapping at an address the kernel chooses.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, &fd, 0)
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { fd, base, pages })
    }

    /// Pages mapped.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Copies page `index` out. If the other process writes meanwhile, the copy may mix old and new 8-byte words; it is stable
    /// afterwards.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`SharedPages::pages`].
    pub fn copy_page_out(&self, index: usize, page: &mut [u8; PAGE_SIZE]) {
        assert!(index < self.pages, "page {index} of {}", self.pages);
        // SAFETY: the mapping has `pages` pages of WORDS aligned words each and lives as long as `self`; the file cannot shrink below
        // it, so reads do not raise SIGBUS. Others may store to it at any time: hence atomics, which are valid for
        // any content and cannot race.
        let source = unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(index * WORDS), WORDS) };
        for (chunk, word) in page.as_chunks_mut::<8>().0.iter_mut().zip(source) {
            *chunk = word.load(Ordering::Relaxed).to_ne_bytes();
        }
    }

    /// The word at `word` of page `page`, and with it all that was written before it, if it was stored with release ordering.
    ///
    /// # Panics
    ///
    /// If there is no such page or word.
    pub fn word(&self, page: usize, word: usize) -> u64 {
        assert!(page < self.pages && word < WORDS, "word {word} of page {page} of {}", self.pages);
        // SAFETY: an aligned word of the mapping, as in `copy_page_out`.
        unsafe { &*self.base.as_ptr().add(page * WORDS + word) }.load(Ordering::Acquire)
    }

    /// Gives the memory of the pages `range` back to the system; they read as zeros afterwards, in both processes.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a range that is empty or beyond the mapping; `EPERM` if the file is sealed against writing.
    pub fn punch(&self, range: Range<usize>) -> io::Result<()> {
        if range.is_empty() || range.end > self.pages {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(rustix::fs::fallocate(
            &self.fd,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            (range.start * PAGE_SIZE) as u64,
            (range.len() * PAGE_SIZE) as u64,
        )?)
    }
}

impl AsFd for SharedPages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`; nothing borrows from it any more. It cannot fail for a whole mapping of ours,
        // and a leak would be harmless.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.pages * PAGE_SIZE) };
    }
}

/// A new memfd of `pages` pages, close-on-exec, of a size that never changes again: what [`SharedPages::map`] accepts.
///
/// # Errors
///
/// `EMFILE`, `ENOMEM`, and `InvalidInput` for more pages than a file can have.
pub fn memfd_create(name: &CStr, pages: usize) -> io::Result<OwnedFd> {
    let bytes = pages.checked_mul(PAGE_SIZE).ok_or(io::ErrorKind::InvalidInput)?;
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, bytes as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}
