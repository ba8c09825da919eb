//! The part of the gate that stops calls which the kernel allows to a process with one thread only: entering a user namespace.
//! A process with an agent has two; whoever answers can have the agent leave first.

use std::mem::offset_of;

use libc::sock_filter;

use super::{ARCH_X86_64, if_any_bit, if_equal, load, verdict};

const UNSHARE: u32 = libc::SYS_unshare as u32;
const SETNS: u32 = libc::SYS_setns as u32;
/// Flags of `unshare` that take a single thread.
const FLAGS: u32 = (libc::CLONE_NEWUSER | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u32;

pub(super) const LENGTH: usize = 9;

/// Goes in front of another program: what it does not decide falls through. Only the 64-bit table: from others these calls
/// fail as they would with a thread of the program's own.
pub(super) fn program() -> [sock_filter; LENGTH] {
    [
        /* 0 */ load(offset_of!(libc::seccomp_data, arch)),
        /* 1 */ if_equal(1, ARCH_X86_64, 2, LENGTH),
        /* 2 */ load(offset_of!(libc::seccomp_data, nr)),
        /* 3 */ if_equal(3, SETNS, 8, 4), // of which kind, only the descriptor may tell
        /* 4 */ if_equal(4, UNSHARE, 5, LENGTH),
        /* 5 */ load(offset_of!(libc::seccomp_data, args)),
        /* 6 */ if_any_bit(6, FLAGS, 8, 7),
        /* 7 */ verdict(libc::SECCOMP_RET_ALLOW),
        /* 8 */ verdict(libc::SECCOMP_RET_USER_NOTIF),
    ]
}

/// Whether this is a call that [`program`] stops.
pub(super) fn is_alone(arch: u32, nr: u32) -> bool {
    arch == ARCH_X86_64 && (nr == UNSHARE || nr == SETNS)
}
