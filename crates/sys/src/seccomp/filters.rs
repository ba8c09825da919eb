//! The part of the gate that stops a program which installs a system call filter of its own: it may end an agent, or whoever
//! sets one up in a child. Who answers can look at the filter first.

use std::mem::offset_of;

use libc::sock_filter;

use super::{ARCH_X86_64, Notification, if_equal, load, verdict};

const SECCOMP: u32 = libc::SYS_seccomp as u32;
const PRCTL: u32 = libc::SYS_prctl as u32;
const SET_SECCOMP: u32 = libc::PR_SET_SECCOMP as u32;

pub(super) const LENGTH: usize = 12;

/// Goes in front of another program, none of whose calls it decides: those fall through. Only the 64-bit table. Strict mode
/// passes: it is the caller's alone, who can neither fork nor execute anything in it.
pub(super) fn program() -> [sock_filter; LENGTH] {
    let argument = |index: usize| offset_of!(libc::seccomp_data, args) + index * 8;
    [
        /*  0 */ load(offset_of!(libc::seccomp_data, arch)),
        /*  1 */ if_equal(1, ARCH_X86_64, 2, LENGTH),
        /*  2 */ load(offset_of!(libc::seccomp_data, nr)),
        /*  3 */ if_equal(3, SECCOMP, 5, 4),
        /*  4 */ if_equal(4, PRCTL, 7, LENGTH),
        /*  5 */ load(argument(0)),
        /*  6 */ if_equal(6, libc::SECCOMP_SET_MODE_FILTER, 11, LENGTH),
        /*  7 */ load(argument(0)),
        /*  8 */ if_equal(8, SET_SECCOMP, 9, LENGTH),
        /*  9 */ load(argument(1)),
        /* 10 */ if_equal(10, libc::SECCOMP_MODE_FILTER, 11, LENGTH),
        /* 11 */ verdict(libc::SECCOMP_RET_USER_NOTIF),
    ]
}

/// Whether this is a call that [`program`] stops.
pub(super) fn is_filter(arch: u32, nr: u32) -> bool {
    arch == ARCH_X86_64 && (nr == SECCOMP || nr == PRCTL)
}

/// What a program is about to install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installs {
    /// Address of a `sock_fprog` in its memory.
    pub program: u64,
    /// For all its threads, not for the caller alone.
    pub all_threads: bool,
}

impl Notification {
    /// What a stopped [`super::GatedCall::Filter`] installs.
    pub fn installs(&self) -> Installs {
        let all = libc::SECCOMP_FILTER_FLAG_TSYNC;
        Installs { program: self.args[2], all_threads: self.nr == SECCOMP && self.args[1] & all != 0 }
    }
}
