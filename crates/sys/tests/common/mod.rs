//! What the tests share: an area of memory to do things to, and waiting with a time limit.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, MremapFlags, ProtFlags};
use vswap_sys::PAGE_SIZE;
use vswap_sys::poll::{Events, poll};
use vswap_sys::uffd::{FEATURES, Message, RegisterMode, Uffd};

/// No single step of a test takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Private anonymous memory of the test's own, never seen as a Rust object: only volatile access to single bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) base: u64,
    pub(crate) pages: u64,
}

impl Area {
    pub(crate) fn new(pages: u64) -> Self {
        Self::with(pages, MapFlags::PRIVATE)
    }

    pub(crate) fn with(pages: u64, flags: MapFlags) -> Self {
        let length = pages as usize * PAGE_SIZE;
        // SAFETY: a new mapping at an address the kernel chooses.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                flags | MapFlags::NORESERVE,
            )
        };
        Self { base: base.expect("mmap") as u64, pages }
    }

    /// Byte addresses of these pages.
    pub(crate) fn range(&self, pages: std::ops::Range<u64>) -> std::ops::Range<u64> {
        let page = PAGE_SIZE as u64;
        self.base + pages.start * page..self.base + pages.end * page
    }

    pub(crate) fn whole(&self) -> std::ops::Range<u64> {
        self.range(0..self.pages)
    }

    pub(crate) fn page(&self, index: u64) -> u64 {
        self.base + index * PAGE_SIZE as u64
    }

    pub(crate) fn read(&self, page: u64) -> u8 {
        // SAFETY: inside the mapping (or the test faults, which is its failure).
        unsafe { (self.page(page) as *const u8).read_volatile() }
    }

    pub(crate) fn write(&self, page: u64, value: u8) {
        // SAFETY: inside the mapping, which no Rust object lives in.
        unsafe { (self.page(page) as *mut u8).write_volatile(value) }
    }

    pub(crate) fn advise(&self, pages: std::ops::Range<u64>, advice: i32) {
        let range = self.range(pages);
        // SAFETY: only memory of this area, which no Rust object lives in.
        let answer =
            unsafe { libc::madvise(range.start as *mut _, (range.end - range.start) as usize, advice) };
        assert_eq!(answer, 0, "madvise {advice}: {}", std::io::Error::last_os_error());
    }

    pub(crate) fn unmap(&self, pages: std::ops::Range<u64>) {
        let range = self.range(pages);
        // SAFETY: only memory of this area, which no Rust object lives in.
        unsafe { rustix::mm::munmap(range.start as *mut _, (range.end - range.start) as usize) }
            .expect("munmap");
    }

    /// Moves or grows the whole area.
    pub(crate) fn remap(&self, pages: u64) -> rustix::io::Result<Self> {
        let (old, new) = (self.pages as usize * PAGE_SIZE, pages as usize * PAGE_SIZE);
        // SAFETY: only memory of this area, which no Rust object lives in.
        let base = unsafe { rustix::mm::mremap(self.base as *mut _, old, new, MremapFlags::MAYMOVE) }?;
        Ok(Self { base: base as u64, pages })
    }

    /// Moves the whole area onto `target`.
    pub(crate) fn remap_onto(&self, target: &Self) {
        let length = self.pages as usize * PAGE_SIZE;
        // SAFETY: only memory of these two areas, which no Rust object lives in.
        unsafe {
            rustix::mm::mremap_fixed(
                self.base as *mut _,
                length,
                length,
                MremapFlags::MAYMOVE,
                target.base as *mut _,
            )
        }
        .expect("mremap");
    }
}

/// A userfaultfd with all features; `None`, said loudly, only where this user may not have one.
pub(crate) fn open_uffd() -> Option<Uffd> {
    let uffd = match Uffd::open() {
        Ok(uffd) => uffd,
        Err(error) if !is_root() => {
            eprintln!("NOT TESTED: userfaultfd is refused to this user: {error}");
            return None;
        }
        Err(error) => panic!("userfaultfd is refused to root: {error}"),
    };
    match uffd.api(FEATURES) {
        Ok(offered) => assert_eq!(offered & FEATURES, FEATURES, "the kernel offers {offered:#x}"),
        Err(error) if !is_root() => {
            eprintln!("NOT TESTED: fork events are refused to this user: {error}");
            return None;
        }
        Err(error) => panic!("UFFDIO_API is refused to root: {error}"),
    }
    Some(uffd)
}

/// A userfaultfd and an area that is registered with it for missing pages and write protection.
pub(crate) fn registered(pages: u64) -> Option<(Uffd, Area)> {
    let uffd = open_uffd()?;
    let area = Area::new(pages);
    uffd.register(area.whole(), RegisterMode::MISSING | RegisterMode::WP).expect("register");
    Some((uffd, area))
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn readable(fd: impl AsFd, timeout: Duration) -> bool {
    poll(&[(fd.as_fd(), Events::IN)], Some(timeout)).expect("poll")[0].contains(Events::IN)
}

/// The next message, which must come soon.
pub(crate) fn message(uffd: &Uffd) -> Message {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(message) = uffd.read_message().expect("read") {
            return message;
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no message came");
        readable(uffd, left);
    }
}

/// A page filled with one value.
pub(crate) fn page_of(value: u8) -> Vec<u8> {
    vec![value; PAGE_SIZE]
}
