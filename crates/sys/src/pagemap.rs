//! Which pages of a process are present: `/proc/PID/pagemap` by PAGEMAP_SCAN (Linux 6.7) and by raw entries.
//!
//! Owner: the pager's state of one address space. What is read is true at one moment per page only; nothing keeps it true.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::errno::last;

/// Entry bit: the page is in memory.
pub const ENTRY_PRESENT: u64 = 1 << 63;
/// Entry bit: swapped out, or a migration entry of a page that is being moved. A page is *there* when this or
/// [`ENTRY_PRESENT`] is set.
pub const ENTRY_SWAPPED: u64 = 1 << 62;
/// Entry bit: a page of a file, or shared memory.
pub const ENTRY_FILE: u64 = 1 << 61;
/// Entry bit: a guard marker (`MADV_GUARD_INSTALL`; Linux 6.14).
pub const ENTRY_GUARD: u64 = 1 << 58;
/// Entry bit: write-protected by a userfaultfd.
pub const ENTRY_UFFD_WP: u64 = 1 << 57;
/// Entry bit: mapped by this process only.
pub const ENTRY_EXCLUSIVE: u64 = 1 << 56;

/// Runs one [`Pagemap::scan`] returns at most.
pub const SCAN_RUNS_MAX: usize = 256;

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: libc::Ioctl = libc::_IOWR::<ScanArgument>(b'f' as u32, 16);

/// An open `/proc/PID/pagemap`.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens the page map of process `pid`. The handle stays with the address space of that moment: after an exec it reads as
    /// empty.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is no such process, `EACCES` without ptrace permission over it.
    pub fn open(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self)
    }

    /// Appends to `out` the runs of present anonymous pages of `range` (not the zero page, not files, not swapped or guard
    /// entries) as byte ranges, until `max_pages` pages or [`SCAN_RUNS_MAX`] runs are found. Returns the address to go on
    /// from, which is `range.end` when the range was seen to its end.
    ///
    /// `range` is page-aligned; `max_pages` 0 means no limit on pages. Pages of shared memory count as files. Telling
    /// files apart makes the kernel look at every page's frame: see [`Pagemap::scan_present`].
    ///
    /// # Errors
    ///
    /// `ENOTTY`: a kernel before 6.7; `EINVAL`: a bad range; `ESRCH`: the address space has gone.
    pub fn scan(&self, range: Range<u64>, max_pages: u64, out: &mut Vec<Range<u64>>) -> io::Result<u64> {
        self.scan_for(
            PAGE_IS_PRESENT,
            PAGE_IS_PFNZERO | PAGE_IS_FILE | PAGE_IS_SWAPPED,
            range,
            max_pages,
            out,
        )
    }

    /// As [`Pagemap::scan`], but finds present pages of files too, at a third of the cost (11 ns a page instead of
    /// 31, `examples/costs.rs`). The same thing, therefore, in a mapping that is private and has no file.
    ///
    /// # Errors
    ///
    /// As for [`Pagemap::scan`].
    pub fn scan_present(
        &self,
        range: Range<u64>,
        max_pages: u64,
        out: &mut Vec<Range<u64>>,
    ) -> io::Result<u64> {
        self.scan_for(PAGE_IS_PRESENT, PAGE_IS_PFNZERO, range, max_pages, out)
    }

    fn scan_for(
        &self,
        required: u64,
        excluded: u64,
        range: Range<u64>,
        max_pages: u64,
        out: &mut Vec<Range<u64>>,
    ) -> io::Result<u64> {
        let mut regions = [Region::default(); SCAN_RUNS_MAX];
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            flags: 0,
            start: range.start,
            end: range.end,
            walk_end: range.start,
            vec: regions.as_mut_ptr() as u64,
            vec_len: SCAN_RUNS_MAX as u64,
            max_pages,
            category_inverted: excluded,
            category_mask: required | excluded,
            category_anyof_mask: 0,
            return_mask: required,
        };
        // SAFETY: the kernel reads and writes `argument`, whose size is in its first field, and writes at most
        // `vec_len` regions, which `regions` has room for. Both are borrowed by this frame alone.
        let found = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        if found < 0 {
            return Err(io::Error::from_raw_os_error(last()));
        }
        out.extend(regions.iter().take(found as usize).map(|region| region.start..region.end));
        Ok(argument.walk_end)
    }

    /// Reads the raw entries of the pages from number `first_page` (address divided by the page size) on. Returns
    /// how many were read: fewer than asked at the end of the address space, 0 when it has gone.
    ///
    /// # Errors
    ///
    /// Those of reading the file.
    pub fn entries(&self, first_page: u64, out: &mut [u64]) -> io::Result<usize> {
        let bytes = size_of_val(out);
        // SAFETY: the bytes of a slice of u64, borrowed mutably for as long as this view; any bytes make valid u64s.
        let view = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<u8>(), bytes) };
        let mut done = 0;
        while done < bytes {
            match self.0.read_at(&mut view[done..], first_page * 8 + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done / 8)
    }
}

/// Whether an entry says that the page is there: present, or on its way between two frames (a migration entry looks like
/// swap, even on a machine without swap).
pub fn is_there(entry: u64) -> bool {
    entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0
}
