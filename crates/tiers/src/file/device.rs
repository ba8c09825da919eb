//! What a file tier does to its file, behind a small trait so that tests can make it fail.
//!
//! The real one is a file without a name (`O_TMPFILE`; where the file system has none, created with `O_EXCL` and
//! `O_NOFOLLOW` and unlinked at once), mode 0600, that dies with its last descriptor. It leaves no page cache behind,
//! which would be charged to somebody: it is opened with `O_DIRECT`, or, where a probe of that fails, every write is
//! followed by `fdatasync` and `POSIX_FADV_DONTNEED` and every read by the latter.

use super::buffer::Buffer;
use rustix::fs::{Advice, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use vswap_core::PAGE_SIZE;

/// Storage that can be read and written by pages. Offsets and lengths are bytes, multiples of the page size; buffers
/// are page-aligned.
pub(super) trait Device: Send + Sync {
    /// As pread(2).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// As pwrite(2).
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;

    /// Whether what was written must be settled. Then no two threads may be between write and settle: the kernel tells
    /// of a lost write once, to whoever syncs the file next.
    fn is_cached(&self) -> bool;

    /// Makes sure of what was written so far in this range: after `Ok` it can be read back, and no copy stays in memory.
    fn settle(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Reserves space, so that a full device shows before a page is written.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Gives the space of this range back.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Cuts the file to this length.
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// A file without a name.
pub(super) struct SpillFile {
    file: File,
    direct: bool,
}

impl SpillFile {
    /// Creates the file in `dir`.
    pub(super) fn create(dir: &Path) -> io::Result<Self> {
        let file = File::from(open_unnamed(dir)?);
        if set_direct(&file)? { Ok(Self { file, direct: true }) } else { Self::cached(file) }
    }

    /// A file that must go through the page cache.
    fn cached(file: File) -> io::Result<Self> {
        // Readahead would fill the page cache with neighbours that nobody asked for.
        rustix::fs::fadvise(&file, 0, None, Advice::Random)?;
        Ok(Self { file, direct: false })
    }

    /// The file, for tests that look at it from outside.
    #[cfg(test)]
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    #[cfg(test)]
    pub(super) fn buffered(dir: &Path) -> io::Result<Self> {
        Self::cached(File::from(open_unnamed(dir)?))
    }
}

/// Opens a new file that has no name in `dir`.
fn open_unnamed(dir: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL;
    match rustix::fs::open(dir, flags | OFlags::TMPFILE, mode) {
        // EISDIR: a kernel or file system that takes the flag for a plain open of the directory.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => open_and_unlink(dir),
        opened => Ok(opened?),
    }
}

/// Creates a file that nobody else can have made, and removes its name.
fn open_and_unlink(dir: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    for attempt in 0..100u32 {
        let path = dir.join(format!(".vswap-{}-{attempt}", std::process::id()));
        match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => {
                rustix::fs::unlink(&path)?;
                return Ok(file);
            }
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AlreadyExists,
        format!("no free name for a spill file in {}", dir.display()),
    ))
}

/// Turns `O_DIRECT` on if the file system takes pages at page-aligned offsets; leaves the file empty.
fn set_direct(file: &File) -> io::Result<bool> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    if rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(false);
    }
    // Some accept the flag and refuse the transfer.
    let mut page = Buffer::map(1)?;
    let works = file.write_at(&page[..], PAGE_SIZE as u64).is_ok_and(|n| n == PAGE_SIZE)
        && file.read_at(&mut page[..], PAGE_SIZE as u64).is_ok_and(|n| n == PAGE_SIZE);
    file.set_len(0)?;
    if !works {
        rustix::fs::fcntl_setfl(file, flags)?;
    }
    Ok(works)
}

impl Device for SpillFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.file.read_at(buf, offset)?;
        if !self.direct {
            rustix::fs::fadvise(&self.file, offset, NonZeroU64::new(buf.len() as u64), Advice::DontNeed)?;
        }
        Ok(n)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(buf, offset)
    }

    fn is_cached(&self) -> bool {
        !self.direct
    }

    fn settle(&self, offset: u64, len: u64) -> io::Result<()> {
        rustix::fs::fdatasync(&self.file)?;
        Ok(rustix::fs::fadvise(&self.file, offset, NonZeroU64::new(len), Advice::DontNeed)?)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len) {
            // Then the writes will tell.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            done => Ok(done?),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, offset, len)?)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}
