//! The gate: a seccomp filter that stops some calls of a process tree until the pager answers, and the listener
//! through which it answers.
//!
//! They are the calls that change what a page reads without a userfaultfd event that tells enough: every `mremap`, and
//! `madvise` with [`GATED_ADVICE`]; and every exec, before which the pager finds out whether the agent has to be put into the
//! new program by ptrace. The same advice by `process_madvise`, whose targets and ranges are behind
//! pointers, is refused with `EPERM`; programs fall back to `madvise`. What a ring of io_uring is told to do passes
//! by any filter. Where no event tells of forks either (see [`crate::uffd::EVENT_FORK`]), they are stopped too (`forks`). And so is entering a user
//! namespace (`alone`), for which an agent has to leave first, and installing a filter (`filters`), which may end it.
//!
//! Owner: the child of `vswap run` installs the filter before its exec and sends the listener to the pager, which holds it
//! for ever (the guardian shares the descriptor table, so it holds it too): when the last holder goes, a gated
//! call fails with `ENOSYS`. The filter survives fork and exec. The idea and its measured costs are in the design
//! documents; the kernel side is `kernel/seccomp.c` and seccomp_unotify(2).

mod alone;
mod filters;
mod forks;

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{sock_filter, sock_fprog};

pub use self::filters::Installs;

use crate::Errno;
use crate::errno::{check, last};
use crate::poll::{Events, poll};

/// `AUDIT_ARCH_X86_64`: 64-bit system calls, and x32 ones, whose number has bit 30 set.
pub const ARCH_X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`: 32-bit system calls.
pub const ARCH_I386: u32 = 0x4000_0003;

const X32_BIT: u32 = 0x4000_0000;
const MREMAP_X86_64: u32 = 25;
const MREMAP_I386: u32 = 163;
const MADVISE_X86_64: u32 = 28;
const MADVISE_I386: u32 = 219;
const EXECVE_X86_64: u32 = 59;
const EXECVE_X32: u32 = 520;
const EXECVE_I386: u32 = 11;
const EXECVEAT_X86_64: u32 = 322;
const EXECVEAT_X32: u32 = 545;
const EXECVEAT_I386: u32 = 358;
/// Of all three tables.
const PROCESS_MADVISE: u32 = 440;

const WIPE_ON_FORK: u32 = libc::MADV_WIPEONFORK as u32;
const KEEP_ON_FORK: u32 = libc::MADV_KEEPONFORK as u32;
const GUARD_INSTALL: u32 = 102;

/// The advice that stops a `madvise`: `MADV_WIPEONFORK`, `MADV_KEEPONFORK` and `MADV_GUARD_INSTALL`. The kernel sends no
/// event for them.
pub const GATED_ADVICE: [u32; 3] = [WIPE_ON_FORK, KEEP_ON_FORK, GUARD_INSTALL];

/// Which argument of a gated call (none has more than five) carries the cookie.
pub const COOKIE_ARGUMENT: usize = 5;

const CONTINUE_FLAG: u32 = 1 << 0;
const FD_SYNC_WAKE_UP: libc::c_ulong = 1 << 0;

const SECCOMP_FILTER_FLAGS: libc::c_ulong =
    libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

const GATE_LENGTH: usize = 37;
const ADVICE: usize = 20;
const COOKIE: usize = 26;
const REMOTE: usize = 30;
const ALLOW: usize = 34;
const REFUSE: usize = 35;
const NOTIFY: usize = 36;

/// Notifies on `mremap`, on `execve` and `execveat`, and on `madvise` with gated advice, of any of the three system call tables of the processor,
/// except on the 64-bit one when the sixth argument is `cookie`; refuses gated advice by `process_madvise`; allows
/// everything else.
///
/// Nothing but the architecture and the number is looked at before they decide: so the kernel (5.11) finds out, when the
/// filter is installed, which calls it always allows, and does not run it for them at all.
fn gate_program(cookie: u64) -> [sock_filter; GATE_LENGTH] {
    let nr = offset_of!(libc::seccomp_data, nr);
    let arch = offset_of!(libc::seccomp_data, arch);
    // Little-endian: the low half comes first.
    let argument = |index: usize| offset_of!(libc::seccomp_data, args) + index * 8;
    let cookie_argument = argument(COOKIE_ARGUMENT);
    [
        /*  0 */ load(arch),
        /*  1 */ if_equal(1, ARCH_X86_64, 2, 13),
        /*  2 */ load(nr),
        /*  3 */ if_equal(3, MREMAP_X86_64, COOKIE, 4),
        /*  4 */ if_equal(4, MADVISE_X86_64, ADVICE, 5),
        /*  5 */ if_equal(5, EXECVE_X86_64, COOKIE, 6),
        /*  6 */ if_equal(6, EXECVEAT_X86_64, COOKIE, 7),
        /*  7 */ if_equal(7, PROCESS_MADVISE, REMOTE, 8),
        /*  8 */ if_equal(8, X32_BIT | MREMAP_X86_64, NOTIFY, 9),
        /*  9 */ if_equal(9, X32_BIT | MADVISE_X86_64, ADVICE, 10),
        /* 10 */ if_equal(10, X32_BIT | EXECVE_X32, NOTIFY, 11),
        /* 11 */ if_equal(11, X32_BIT | EXECVEAT_X32, NOTIFY, 12),
        /* 12 */ if_equal(12, X32_BIT | PROCESS_MADVISE, REMOTE, ALLOW),
        /* 13 */ if_equal(13, ARCH_I386, 14, ALLOW), // no x86 kernel has a third one
        /* 14 */ load(nr),
        /* 15 */ if_equal(15, MREMAP_I386, NOTIFY, 16),
        /* 16 */ if_equal(16, MADVISE_I386, ADVICE, 17),
        /* 17 */ if_equal(17, EXECVE_I386, NOTIFY, 18),
        /* 18 */ if_equal(18, EXECVEAT_I386, NOTIFY, 19),
        /* 19 */ if_equal(19, PROCESS_MADVISE, REMOTE, ALLOW),
        /* 20 */ load(argument(2)), // madvise: an int, so the low half is all
        /* 21 */ if_equal(21, GUARD_INSTALL, 24, 22),
        /* 22 */ if_equal(22, WIPE_ON_FORK, 24, 23),
        /* 23 */ if_equal(23, KEEP_ON_FORK, 24, ALLOW),
        /* 24 */ load(nr), // i386 gets here with its own number only
        /* 25 */ if_equal(25, MADVISE_X86_64, COOKIE, NOTIFY),
        /* 26 */ load(cookie_argument), // ours?
        /* 27 */ if_equal(27, cookie as u32, 28, NOTIFY),
        /* 28 */ load(cookie_argument + 4),
        /* 29 */ if_equal(29, (cookie >> 32) as u32, ALLOW, NOTIFY),
        /* 30 */ load(argument(3)), // process_madvise
        /* 31 */ if_equal(31, GUARD_INSTALL, REFUSE, 32),
        /* 32 */ if_equal(32, WIPE_ON_FORK, REFUSE, 33),
        /* 33 */ if_equal(33, KEEP_ON_FORK, REFUSE, ALLOW),
        /* 34 */ verdict(libc::SECCOMP_RET_ALLOW),
        /* 35 */ verdict(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        /* 36 */ verdict(libc::SECCOMP_RET_USER_NOTIF),
    ]
}

fn load(offset: usize) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset as u32 }
}

/// The instruction at `here`: goes to `then` if the accumulator is `value`, else to `otherwise`.
fn if_equal(here: usize, value: u32, then: usize, otherwise: usize) -> sock_filter {
    sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: (then - here - 1) as u8,
        jf: (otherwise - here - 1) as u8,
        k: value,
    }
}

/// The same, if the accumulator has any of these bits.
fn if_any_bit(here: usize, bits: u32, then: usize, otherwise: usize) -> sock_filter {
    let code = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    sock_filter { code, ..if_equal(here, bits, then, otherwise) }
}

fn verdict(action: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

/// Installs the gate in the calling thread, for it and for all its descendants, for ever; returns the listener
/// (close-on-exec). With `stop_forks`, whatever copies the caller's memory is a gated call too, and `clone3` is not there.
///
/// From then on a gated call here waits until someone answers on the listener, and so does whatever makes one inside
/// (`realloc` of a large block makes an `mremap`). Allocates nothing and may be used between fork and exec.
///
/// # Errors
///
/// `EACCES`: needs `CAP_SYS_ADMIN` in the user namespace, or [`set_no_new_privs`] first. `EBUSY`: a filter above
/// has a listener already (a container runtime's). `EINVAL`: a kernel before 5.19.
pub fn install_gate(cookie: u64, stop_forks: bool) -> io::Result<OwnedFd> {
    install(cookie, stop_forks).map_err(io::Error::from_raw_os_error)
}

/// As [`install_gate`], with the bare error number for the path between fork and exec.
pub(crate) fn install(cookie: u64, stop_forks: bool) -> Result<OwnedFd, Errno> {
    let mut filter =
        [verdict(libc::SECCOMP_RET_ALLOW); forks::LENGTH + filters::LENGTH + alone::LENGTH + GATE_LENGTH];
    let (in_front, behind) = filter.split_at_mut(forks::LENGTH);
    in_front.copy_from_slice(&forks::program());
    behind[..filters::LENGTH].copy_from_slice(&filters::program());
    behind[filters::LENGTH..][..alone::LENGTH].copy_from_slice(&alone::program());
    behind[filters::LENGTH + alone::LENGTH..].copy_from_slice(&gate_program(cookie));
    let filter = if stop_forks { &mut filter[..] } else { behind };
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` names so many live instructions; the kernel copies and verifies them during the call.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            SECCOMP_FILTER_FLAGS,
            &raw const program,
        )
    })?;
    // SAFETY: the kernel has just created this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Renounces, in the calling thread and its descendants, every gain of privilege by exec. Allows an unprivileged
/// [`install_gate`], at the price that `sudo` and other set-user-id programs do not work inside. Cannot be undone.
///
/// # Errors
///
/// None on a kernel this crate can run on.
pub fn set_no_new_privs() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// What a stopped system call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatedCall {
    /// `mremap`: old address, old length, new length, flags, new address.
    Mremap,
    /// `madvise`: address, length, advice, of which only the lower 32 bits count: one of [`GATED_ADVICE`].
    Madvise,
    /// `fork`, or `clone` without `CLONE_VM`.
    Fork,
    /// `setns`, or an `unshare` that only a process with one thread may make.
    Alone,
    /// A filter of the program's own: see [`Notification::installs`].
    Filter,
    /// `execve` or `execveat`: see [`Notification::exec`].
    Exec,
}

/// What an exec names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// The descriptor of a directory that a relative path starts from; `None` for the caller's own.
    pub directory: Option<i32>,
    /// Address of the path in the caller's memory; an empty one means the descriptor itself.
    pub path: u64,
}

/// A stopped system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Names the call in [`Gate::respond`]; never used twice.
    pub id: u64,
    /// The calling thread, in our pid namespace (0 if it has no id there).
    pub tid: u32,
    /// [`ARCH_X86_64`] or [`ARCH_I386`].
    pub arch: u32,
    /// The number of the system call in the table of `arch` (x32: with bit 30).
    pub nr: u32,
    /// Its arguments, see [`GatedCall`]. For i386 and x32 the upper halves are 0 or meaningless.
    pub args: [u64; 6],
}

impl Notification {
    /// Which call it is, whatever the table: the filter stops no others.
    pub fn call(&self) -> GatedCall {
        match (self.arch, self.nr & !X32_BIT) {
            _ if forks::is_fork(self.arch, self.nr) => GatedCall::Fork,
            _ if alone::is_alone(self.arch, self.nr) => GatedCall::Alone,
            _ if filters::is_filter(self.arch, self.nr) => GatedCall::Filter,
            (ARCH_X86_64, MADVISE_X86_64) | (ARCH_I386, MADVISE_I386) => GatedCall::Madvise,
            (ARCH_X86_64, EXECVE_X86_64 | EXECVE_X32 | EXECVEAT_X86_64 | EXECVEAT_X32)
            | (ARCH_I386, EXECVE_I386 | EXECVEAT_I386) => GatedCall::Exec,
            _ => GatedCall::Mremap,
        }
    }

    /// What an exec names.
    pub fn exec(&self) -> Exec {
        match (self.arch, self.nr & !X32_BIT) {
            (ARCH_X86_64, EXECVEAT_X86_64 | EXECVEAT_X32) | (ARCH_I386, EXECVEAT_I386) => {
                let directory = self.args[0] as i32;
                Exec { directory: (directory != libc::AT_FDCWD).then_some(directory), path: self.args[1] }
            }
            _ => Exec { directory: None, path: self.args[0] },
        }
    }
}

/// How a stopped call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It returns this value without being executed.
    Value(i64),
    /// It fails with this (positive) error number without being executed.
    Errno(Errno),
    /// It is executed as if there were no gate.
    Continue,
}

/// The listener of the gate.
#[derive(Debug)]
pub struct Gate(OwnedFd);

impl Gate {
    /// Waits for the next stopped call; `None` if its caller was killed before we looked. Poll first to wait for other
    /// things too.
    ///
    /// # Errors
    ///
    /// `BrokenPipe`: nobody is left whom the filter holds, nor will be. `ENOTTY`: not a listener.
    pub fn recv(&self) -> io::Result<Option<Notification>> {
        loop {
            // SAFETY: plain integers, for which zero is valid; the kernel demands zeros.
            let mut raw: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            match self.ioctl(libc::SECCOMP_IOCTL_NOTIF_RECV, &mut raw) {
                Ok(()) => {
                    return Ok(Some(Notification {
                        id: raw.id,
                        tid: raw.pid,
                        arch: raw.data.arch,
                        nr: raw.data.nr as u32,
                        args: raw.data.args,
                    }));
                }
                Err(libc::EINTR) => {}
                // The kernel says the same to both; without the difference a loop would spin after the end.
                Err(libc::ENOENT) if self.is_deserted()? => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(libc::ENOENT) => return Ok(None),
                Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }

    /// Whether nobody is left whom the filter holds, nor will be.
    ///
    /// # Errors
    ///
    /// Those of `poll`.
    pub fn is_deserted(&self) -> io::Result<bool> {
        let happened = poll(&[(self.0.as_fd(), Events::empty())], Some(Duration::ZERO))?;
        Ok(happened[0].contains(Events::HUP))
    }

    /// Ends the stopped call `id`.
    ///
    /// # Errors
    ///
    /// `ENOENT`: the caller has died (nothing to do). `EINPROGRESS`: answered already.
    pub fn respond(&self, id: u64, reply: Reply) -> io::Result<()> {
        let (val, error, flags) = match reply {
            Reply::Value(value) => (value, 0, 0),
            Reply::Errno(errno) => (0, -errno, 0),
            Reply::Continue => (0, 0, CONTINUE_FLAG),
        };
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SEND, &mut libc::seccomp_notif_resp { id, val, error, flags })
            .map_err(io::Error::from_raw_os_error)
    }

    /// Whether the caller of `id` still waits: asked *after* looking at the process by its id, it tells that the id had not been
    /// reused.
    pub fn is_valid(&self, id: u64) -> bool {
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut { id }).is_ok()
    }

    /// Wakes the caller on the CPU of whoever responds, and us on the caller's: right for one pager that answers at
    /// once (Linux 6.6).
    ///
    /// # Errors
    ///
    /// `EINVAL` or `ENOTTY` on an older kernel; the gate works without it.
    pub fn set_sync_wake(&self) -> io::Result<()> {
        // SAFETY: this command takes its flags by value and touches no memory of ours.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, FD_SYNC_WAKE_UP) }
        {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    fn ioctl<T>(&self, command: libc::Ioctl, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: every caller passes the structure that belongs to the command (the size is part of the command); it is borrowed
        // mutably for the call and names no other memory.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), command, std::ptr::from_mut(argument)) } {
            -1 => Err(last()),
            _ => Ok(()),
        }
    }
}

impl AsFd for Gate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Gate {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}
