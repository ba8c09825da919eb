//! The part of the gate that stops forks, for a pager that no event tells of them.
//!
//! A fork is a `fork`, or a `clone` without `CLONE_VM`: only those copy memory. Threads, `vfork` and `posix_spawn` share it and
//! pass. What `clone3` is asked for is behind a pointer, where no filter can look and where the caller can still change it; it
//! answers `ENOSYS`, as under container runtimes and browsers' sandboxes, and C libraries go on with `clone`.

use std::mem::offset_of;

use libc::sock_filter;

use super::{ARCH_I386, ARCH_X86_64, X32_BIT, if_any_bit, if_equal, load, verdict};

const CLONE_X86_64: u32 = 56;
const FORK_X86_64: u32 = 57;
const CLONE_I386: u32 = 120;
const FORK_I386: u32 = 2;
/// Of all three tables.
const CLONE3: u32 = 435;

pub(super) const LENGTH: usize = 19;
const FLAGS: usize = 14;
const ALLOW: usize = 16;
const REFUSE: usize = 17;
const NOTIFY: usize = 18;

/// Goes in front of another program: what it does not decide falls through.
pub(super) fn program() -> [sock_filter; LENGTH] {
    [
        /*  0 */ load(offset_of!(libc::seccomp_data, arch)),
        /*  1 */ if_equal(1, ARCH_X86_64, 2, 9),
        /*  2 */ load(offset_of!(libc::seccomp_data, nr)),
        /*  3 */ if_equal(3, CLONE_X86_64, FLAGS, 4),
        /*  4 */ if_equal(4, FORK_X86_64, NOTIFY, 5),
        /*  5 */ if_equal(5, CLONE3, REFUSE, 6),
        /*  6 */ if_equal(6, X32_BIT | CLONE_X86_64, FLAGS, 7),
        /*  7 */ if_equal(7, X32_BIT | FORK_X86_64, NOTIFY, 8),
        /*  8 */ if_equal(8, X32_BIT | CLONE3, REFUSE, LENGTH),
        /*  9 */ if_equal(9, ARCH_I386, 10, LENGTH),
        /* 10 */ load(offset_of!(libc::seccomp_data, nr)),
        /* 11 */ if_equal(11, CLONE_I386, FLAGS, 12),
        /* 12 */ if_equal(12, FORK_I386, NOTIFY, 13),
        /* 13 */ if_equal(13, CLONE3, REFUSE, LENGTH),
        /* 14 */ load(offset_of!(libc::seccomp_data, args)), // the flags, in all three tables
        /* 15 */ if_any_bit(15, libc::CLONE_VM as u32, ALLOW, NOTIFY),
        /* 16 */ verdict(libc::SECCOMP_RET_ALLOW),
        /* 17 */ verdict(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        /* 18 */ verdict(libc::SECCOMP_RET_USER_NOTIF),
    ]
}

/// Whether this is a call that [`program`] stops.
pub(super) fn is_fork(arch: u32, nr: u32) -> bool {
    matches!(
        (arch, nr & !X32_BIT),
        (ARCH_X86_64, CLONE_X86_64 | FORK_X86_64) | (ARCH_I386, CLONE_I386 | FORK_I386)
    )
}
