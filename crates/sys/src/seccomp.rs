//! The mremap gate: a seccomp filter that stops every `mremap` of a process tree until the pager answers, and the
//! listener through which it answers.
//!
//! Owner: the child of `vswap run` installs the filter before its exec and sends the listener to the pager, which holds it
//! for ever (the guardian shares the descriptor table, so it holds it too): when the last holder goes, a gated
//! `mremap` fails with `ENOSYS`. The filter survives fork and exec. The idea and its measured costs are in the design
//! documents; the kernel side is `kernel/seccomp.c` and seccomp_unotify(2).

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{sock_filter, sock_fprog};

use crate::Errno;
use crate::errno::{check, last};
use crate::poll::{Events, poll};

/// `AUDIT_ARCH_X86_64`: 64-bit system calls, and x32 ones, whose number has bit 30 set.
pub const ARCH_X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`: 32-bit system calls.
pub const ARCH_I386: u32 = 0x4000_0003;

const X32_BIT: u32 = 0x4000_0000;
const MREMAP_X86_64: u32 = 25;
const MREMAP_X32: u32 = X32_BIT | 25;
const MREMAP_I386: u32 = 163;

/// Which argument of `mremap` (it has five) carries the cookie.
pub const COOKIE_ARGUMENT: usize = 5;

const CONTINUE_FLAG: u32 = 1 << 0;
const FD_SYNC_WAKE_UP: libc::c_ulong = 1 << 0;

const SECCOMP_FILTER_FLAGS: libc::c_ulong =
    libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

const GATE_LENGTH: usize = 15;
const ALLOW: usize = 13;
const NOTIFY: usize = 14;

/// Notifies on `mremap` of any of the three system call tables of the processor, except on the 64-bit one when its sixth
/// argument is `cookie`; allows everything else.
fn gate_program(cookie: u64) -> [sock_filter; GATE_LENGTH] {
    let nr = offset_of!(libc::seccomp_data, nr);
    let arch = offset_of!(libc::seccomp_data, arch);
    // Little-endian: the low half comes first.
    let low = offset_of!(libc::seccomp_data, args) + COOKIE_ARGUMENT * 8;
    let high = low + 4;
    [
        /*  0 */ load(arch),
        /*  1 */ if_equal(1, ARCH_X86_64, 4, 2),
        /*  2 */ if_equal(2, ARCH_I386, 11, 3),
        /*  3 */ verdict(libc::SECCOMP_RET_ALLOW), // an architecture no x86 kernel has
        /*  4 */ load(nr),
        /*  5 */ if_equal(5, MREMAP_X32, NOTIFY, 6),
        /*  6 */ if_equal(6, MREMAP_X86_64, 7, ALLOW),
        /*  7 */ load(low),
        /*  8 */ if_equal(8, cookie as u32, 9, NOTIFY),
        /*  9 */ load(high),
        /* 10 */ if_equal(10, (cookie >> 32) as u32, ALLOW, NOTIFY),
        /* 11 */ load(nr),
        /* 12 */ if_equal(12, MREMAP_I386, NOTIFY, ALLOW),
        /* 13 */ verdict(libc::SECCOMP_RET_ALLOW),
        /* 14 */ verdict(libc::SECCOMP_RET_USER_NOTIF),
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

fn verdict(action: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

/// Installs the gate in the calling thread, for it and for all its descendants, for ever; returns the listener
/// (close-on-exec).
///
/// From then on a `mremap` here waits until someone answers on the listener, and so does whatever calls it inside
/// (`realloc` of a large block). Allocates nothing and may be used between fork and exec.
///
/// # Errors
///
/// `EACCES`: needs `CAP_SYS_ADMIN` in the user namespace, or [`set_no_new_privs`] first. `EBUSY`: a filter above
/// has a listener already (a container runtime's). `EINVAL`: a kernel before 5.19.
pub fn install_mremap_gate(cookie: u64) -> io::Result<OwnedFd> {
    install(cookie).map_err(io::Error::from_raw_os_error)
}

/// As [`install_mremap_gate`], with the bare error number for the path between fork and exec.
pub(crate) fn install(cookie: u64) -> Result<OwnedFd, Errno> {
    let mut filter = gate_program(cookie);
    let program = sock_fprog { len: GATE_LENGTH as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` names GATE_LENGTH live instructions; the kernel copies and verifies them during the call.
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
/// [`install_mremap_gate`], at the price that `sudo` and other set-user-id programs do not work inside. Cannot be undone.
///
/// # Errors
///
/// None on a kernel this crate can run on.
pub fn set_no_new_privs() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
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
    /// Its arguments: old address, old length, new length, flags, new address. For i386 and x32 the upper halves are
    /// 0 or meaningless.
    pub args: [u64; 6],
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

    fn is_deserted(&self) -> io::Result<bool> {
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
