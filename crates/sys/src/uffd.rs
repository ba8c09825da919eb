//! A userfaultfd: the commands a pager gives through it and the messages it reads from it.
//!
//! Owner: one per address space, held by the pager's state of that address space; there is no lock here. Every
//! call is one system call, may be made from any thread, and reports exactly what the kernel reported: a short
//! count is never turned into success, and `EAGAIN` (a mapping change is under way) is the caller's business.
//!
//! The structures are those of `include/uapi/linux/userfaultfd.h` as of Linux 6.18.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::mem::size_of;
use std::ops::{BitOr, Range};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::Errno;
use crate::errno::{check, last};

/// Report write-protection faults (`UFFD_FEATURE_PAGEFAULT_FLAG_WP`).
pub const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
/// Report forks and hand over the child's descriptor. Whoever calls [`Uffd::api`] with it needs `CAP_SYS_PTRACE`
/// in the initial user namespace.
pub const EVENT_FORK: u64 = 1 << 1;
/// Report `mremap`.
pub const EVENT_REMAP: u64 = 1 << 2;
/// Report `MADV_DONTNEED` and `MADV_FREE`.
pub const EVENT_REMOVE: u64 = 1 << 3;
/// Report `munmap` and whatever else removes a mapping.
pub const EVENT_UNMAP: u64 = 1 << 6;
/// Report the faulting thread's id.
pub const THREAD_ID: u64 = 1 << 8;
/// `UFFDIO_MOVE` (used by the agent inside the target).
pub const MOVE: u64 = 1 << 16;

/// What the pager asks of every userfaultfd.
pub const FEATURES: u64 =
    EVENT_FORK | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP | MOVE | PAGEFAULT_FLAG_WP | THREAD_ID;

const UFFD_API: u64 = 0xaa;
const UFFDIO_COPY_MODE_DONTWAKE: u64 = 1 << 0;
const UFFDIO_ZEROPAGE_MODE_DONTWAKE: u64 = 1 << 0;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

const EVENT_CODE_PAGEFAULT: u8 = 0x12;
const EVENT_CODE_FORK: u8 = 0x13;
const EVENT_CODE_REMAP: u8 = 0x14;
const EVENT_CODE_REMOVE: u8 = 0x15;
const EVENT_CODE_UNMAP: u8 = 0x16;

const PAGEFAULT_WRITE: u64 = 1 << 0;
const PAGEFAULT_WP: u64 = 1 << 1;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RangeArgument {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: RangeArgument,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zeropage {
    range: RangeArgument,
    mode: u64,
    zeroed: i64,
}

#[repr(C)]
struct WriteProtect {
    range: RangeArgument,
    mode: u64,
}

/// `struct uffd_msg`, with its union read as three words: pagefault {flags, address, thread id in the low half},
/// fork {descriptor in the low half}, remap {from, to, len}, remove and unmap {start, end}.
#[repr(C)]
#[derive(Default)]
struct RawMessage {
    event: u8,
    reserved: [u8; 7],
    words: [u64; 3],
}

const _: () =
    assert!(size_of::<RawMessage>() == 32 && size_of::<Copy>() == 40 && size_of::<Register>() == 32);

const fn iowr<T>(number: u8) -> libc::Ioctl {
    libc::_IOWR::<T>(UFFD_API as u32, number as u32)
}

const UFFDIO_API: libc::Ioctl = iowr::<Api>(0x3f);
const UFFDIO_REGISTER: libc::Ioctl = iowr::<Register>(0x00);
// The header calls these two "read" although the kernel reads their argument: an old slip that became the ABI.
const UFFDIO_UNREGISTER: libc::Ioctl = libc::_IOR::<RangeArgument>(UFFD_API as u32, 0x01);
const UFFDIO_WAKE: libc::Ioctl = libc::_IOR::<RangeArgument>(UFFD_API as u32, 0x02);
const UFFDIO_COPY: libc::Ioctl = iowr::<Copy>(0x03);
const UFFDIO_ZEROPAGE: libc::Ioctl = iowr::<Zeropage>(0x04);
const UFFDIO_WRITEPROTECT: libc::Ioctl = iowr::<WriteProtect>(0x06);
const USERFAULTFD_IOC_NEW: libc::Ioctl = libc::_IO(UFFD_API as u32, 0x00);

/// Opens `/dev/userfaultfd`. Whoever has the descriptor can make userfaultfds of its own address space, without more.
///
/// # Errors
///
/// `ENOENT`, `EACCES`, `EMFILE`.
pub fn open_device() -> io::Result<OwnedFd> {
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open("/dev/userfaultfd")?;
    Ok(device.into())
}

/// A userfaultfd. It always acts on the address space of the process that opened it, whoever holds it now.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    /// Whether the kernel says that `fd` is a userfaultfd: what is read from it may then be believed.
    genuine: bool,
}

impl Uffd {
    /// Opens a userfaultfd for the calling process: by the system call, or else by `/dev/userfaultfd`. It is close-on-exec
    /// and non-blocking, and useless before [`Uffd::api`].
    ///
    /// # Errors
    ///
    /// What the device answered (`ENOENT`: no such device; `EACCES`: no permission) when the system call was refused
    /// too; a failure of the call for another reason than permission (`EMFILE`, `ENOSYS` ...) as it is.
    pub fn open() -> io::Result<Self> {
        match Self::open_by_syscall() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::EACCES)) => {
                Self::open_by_device()
            }
            answer => answer,
        }
    }

    /// Opens a userfaultfd by the system call alone (for `doctor`; everyone else wants [`Uffd::open`]).
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_PTRACE` unless `vm.unprivileged_userfaultfd` is set, or below a container's seccomp
    /// filter.
    pub fn open_by_syscall() -> io::Result<Self> {
        // SAFETY: the call takes one integer and touches no memory of ours.
        let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) })
            .map_err(io::Error::from_raw_os_error)?;
        // SAFETY: the kernel has just created this descriptor for us; nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd as RawFd) }, genuine: true })
    }

    /// Opens a userfaultfd through `/dev/userfaultfd` alone (for `doctor`; everyone else wants [`Uffd::open`]).
    ///
    /// # Errors
    ///
    /// Those of opening the device, mainly `ENOENT` and `EACCES`.
    pub fn open_by_device() -> io::Result<Self> {
        let device = open_device()?;
        // SAFETY: USERFAULTFD_IOC_NEW takes its flags by value and touches no memory of ours.
        let fd = check(libc::c_long::from(unsafe {
            libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK)
        }))
        .map_err(io::Error::from_raw_os_error)?;
        // SAFETY: the kernel has just created this descriptor for us; nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd as RawFd) }, genuine: true })
    }

    /// Switches the descriptor on with the given features; possible once. Returns the features of this kernel.
    ///
    /// # Errors
    ///
    /// `EINVAL`: already switched on, or a feature the kernel does not know. `EPERM`: [`EVENT_FORK`] without
    /// `CAP_SYS_PTRACE` *in the caller* (the opener does not matter).
    pub fn api(&self, features: u64) -> io::Result<u64> {
        let mut argument = Api { api: UFFD_API, features, ioctls: 0 };
        self.ioctl(UFFDIO_API, &mut argument).map_err(io::Error::from_raw_os_error)?;
        Ok(argument.features)
    }

    /// Registers `range` (page-aligned). Succeeds over holes too, and memory mapped into a hole later is *not* registered: confirm
    /// with [`crate::maps`] afterwards.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no mapping there that can be watched, or not aligned; `EBUSY`: part of it is registered with another
    /// userfaultfd; `EPERM`: a shared file we may not write; `ENOMEM`: also what this command answers, instead of `ESRCH`,
    /// after the process has gone.
    pub fn register(&self, range: Range<u64>, mode: RegisterMode) -> Result<(), Errno> {
        let mut argument = Register { range: range.into(), mode: mode.0, ioctls: 0 };
        self.ioctl(UFFDIO_REGISTER, &mut argument)
    }

    /// Ends the registration of `range` and wakes its waiters, who then get zero pages.
    ///
    /// # Errors
    ///
    /// As for [`Uffd::register`].
    pub fn unregister(&self, range: Range<u64>) -> Result<(), Errno> {
        self.ioctl(UFFDIO_UNREGISTER, &mut RangeArgument::from(range))
    }

    /// Puts the pages `src` at `dst`, where they must be missing. Unless `dont_wake`, wakes whoever waits for the pages that
    /// were put. Returns `src.len()`.
    ///
    /// # Errors
    ///
    /// [`Partial`] with the bytes that *were* put. After a short count the kernel always says `EAGAIN`, whatever
    /// stopped it; go on at the next page to learn the reason. With nothing put: `EAGAIN` (a mapping change is under
    /// way), `EEXIST` (a page is there), `ENOENT` (not registered, or not one mapping), `ESRCH` (the process has gone),
    /// `ENOMEM`, `EINVAL` (`dst` or `src.len()` is not a multiple of the page size, or `src` is empty).
    pub fn copy(&self, dst: u64, src: &[u8], dont_wake: bool) -> Result<usize, Partial> {
        let mut argument = Copy {
            dst,
            src: src.as_ptr() as u64,
            len: src.len() as u64,
            mode: if dont_wake { UFFDIO_COPY_MODE_DONTWAKE } else { 0 },
            copied: 0,
        };
        let answer = self.ioctl(UFFDIO_COPY, &mut argument);
        counted(answer, argument.copied)
    }

    /// Maps the zero page (read-only, copied on write) over `range`, where pages must be missing. Returns the length
    /// of the range in bytes.
    ///
    /// # Errors
    ///
    /// As for [`Uffd::copy`].
    pub fn zeropage(&self, range: Range<u64>, dont_wake: bool) -> Result<usize, Partial> {
        let mut argument = Zeropage {
            range: range.into(),
            mode: if dont_wake { UFFDIO_ZEROPAGE_MODE_DONTWAKE } else { 0 },
            zeroed: 0,
        };
        let answer = self.ioctl(UFFDIO_ZEROPAGE, &mut argument);
        counted(answer, argument.zeroed)
    }

    /// Write-protects the pages of `range`, or lifts the protection and, unless `dont_wake`, wakes the waiters. (Protecting wakes
    /// nobody; the kernel refuses the flag there, so `dont_wake` is ignored.) With `protect` false it is also the cheapest
    /// guarded question "is this registered?".
    ///
    /// # Errors
    ///
    /// `ENOENT`: some page of the range is not registered for write protection; `EAGAIN`: a mapping change is under way; `EINVAL`,
    /// `ESRCH`.
    pub fn write_protect(&self, range: Range<u64>, protect: bool, dont_wake: bool) -> Result<(), Errno> {
        let mode = match (protect, dont_wake) {
            (true, _) => UFFDIO_WRITEPROTECT_MODE_WP,
            (false, true) => UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
            (false, false) => 0,
        };
        self.ioctl(UFFDIO_WRITEPROTECT, &mut WriteProtect { range: range.into(), mode })
    }

    /// Wakes the threads that wait for a page of `range`; they fault again if it is still missing.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a bad range.
    pub fn wake(&self, range: Range<u64>) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WAKE, &mut RangeArgument::from(range))
    }

    /// Makes reading return when there is nothing to read. Whoever else holds the same open file can undo it.
    ///
    /// # Errors
    ///
    /// None that a live descriptor gives.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.fd, true)?)
    }

    /// Reads one message; `None` when there is none. Reading an event acknowledges it: the thread that made the change
    /// goes on at once. Faults are handed out before events.
    ///
    /// # Errors
    ///
    /// `EINVAL` before [`Uffd::api`]; `EMFILE` or `ENFILE` when a fork's descriptor does not fit into our table (the message stays
    /// queued, and its process waits); `EPROTO` for a message this crate does not know.
    pub fn read_message(&self) -> Result<Option<Message>, Errno> {
        if !self.genuine {
            return Err(libc::ENOTTY);
        }
        let mut raw = RawMessage::default();
        let count = loop {
            // SAFETY: `raw` is 32 writable bytes, valid for any content the kernel stores there.
            let count =
                unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut raw).cast(), size_of::<RawMessage>()) };
            match count {
                -1 => match last() {
                    libc::EAGAIN => return Ok(None),
                    libc::EINTR => {}
                    errno => return Err(errno),
                },
                count => break count as usize,
            }
        };
        if count != size_of::<RawMessage>() {
            return Err(libc::EPROTO);
        }
        let [first, second, third] = raw.words;
        Ok(Some(match raw.event {
            EVENT_CODE_PAGEFAULT => Message::Fault {
                addr: second,
                write: first & PAGEFAULT_WRITE != 0,
                wp: first & PAGEFAULT_WP != 0,
                tid: third as u32,
            },
            EVENT_CODE_FORK => Message::Fork {
                // SAFETY: the message is the kernel's (`genuine`), which has put this new descriptor into our
                // table while we read it; it is in no other message and nobody else owns it.
                child: Uffd { fd: unsafe { OwnedFd::from_raw_fd(first as u32 as RawFd) }, genuine: true },
            },
            EVENT_CODE_REMAP => Message::Remap { from: first, to: second, len: third },
            EVENT_CODE_REMOVE => Message::Remove { range: first..second },
            EVENT_CODE_UNMAP => Message::Unmap { range: first..second },
            _ => return Err(libc::EPROTO),
        }))
    }

    /// One ioctl whose argument is a structure the kernel reads and, for some commands, writes back.
    fn ioctl<T>(&self, command: libc::Ioctl, argument: &mut T) -> Result<(), Errno> {
        if !self.genuine {
            return Err(libc::ENOTTY);
        }
        // SAFETY: the descriptor is a userfaultfd; each command is defined above with the structure it takes, every caller passes that one (the size
        // is part of the command), and `argument` is borrowed mutably for the call. The memory the structure
        // *names* is: for COPY's source a live slice that is only read; all other addresses belong to the address space
        // of the userfaultfd, which is another process's (see the crate documentation).
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), command, std::ptr::from_mut(argument)) } {
            -1 => Err(last()),
            _ => Ok(()),
        }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Uffd {
    /// Takes a descriptor received from an agent. If it is not a userfaultfd, every call on it fails with `ENOTTY`: from
    /// something else a hostile sender could have us read a fork event with any number as the child's
    /// descriptor.
    fn from(fd: OwnedFd) -> Self {
        // The only name that begins so; a path has a slash first, sockets and pipes have their own words.
        let genuine = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .is_ok_and(|link| link.as_os_str() == "anon_inode:[userfaultfd]");
        Self { fd, genuine }
    }
}

impl From<Uffd> for OwnedFd {
    fn from(uffd: Uffd) -> Self {
        uffd.fd
    }
}

impl From<Range<u64>> for RangeArgument {
    fn from(range: Range<u64>) -> Self {
        // A reversed range becomes length 0, which the kernel refuses with EINVAL.
        Self { start: range.start, len: range.end.saturating_sub(range.start) }
    }
}

/// The kernel stores the bytes done, or a negative errno, or (refused early) nothing, in the argument's last word.
fn counted(answer: Result<(), Errno>, stored: i64) -> Result<usize, Partial> {
    let done = usize::try_from(stored).unwrap_or(0);
    match answer {
        Ok(()) => Ok(done),
        Err(errno) => Err(Partial { done, errno }),
    }
}

/// Which faults of a range to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterMode(u64);

impl RegisterMode {
    /// Faults on missing pages.
    pub const MISSING: Self = Self(1 << 0);
    /// Writes to write-protected pages.
    pub const WP: Self = Self(1 << 1);
}

impl BitOr for RegisterMode {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A command over several pages that did not do them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Bytes that were done, from the start of the range: a multiple of the page size, often 0.
    pub done: usize,
    /// Why it stopped (`EAGAIN` after any partial success, see [`Uffd::copy`]).
    pub errno: Errno,
}

impl fmt::Display for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped after {} bytes: {}", self.done, io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for Partial {}

/// What a userfaultfd reports.
#[derive(Debug)]
pub enum Message {
    /// A thread waits for a page.
    Fault {
        /// Page-aligned address.
        addr: u64,
        /// The access was a write.
        write: bool,
        /// The page is there but write-protected.
        wp: bool,
        /// The thread, in the pid namespace of whoever opened the userfaultfd (0 without [`THREAD_ID`]).
        tid: u32,
    },
    /// The process has forked.
    Fork {
        /// The child's userfaultfd, with the parent's registrations and features. Dropping it makes the child's missing pages
        /// read as zeros.
        child: Uffd,
    },
    /// Pages were moved by `mremap`.
    Remap {
        /// Old address.
        from: u64,
        /// New address.
        to: u64,
        /// Bytes: the old length if the mapping moved or grew, the new one if it was moved and shrunk.
        len: u64,
    },
    /// The pages of the range are about to be dropped (the message comes *before* the drop).
    Remove {
        /// Byte addresses.
        range: Range<u64>,
    },
    /// The range was unmapped. It is as the caller gave it and may cover memory that was never registered.
    Unmap {
        /// Byte addresses.
        range: Range<u64>,
    },
}
