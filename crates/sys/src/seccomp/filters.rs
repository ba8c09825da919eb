//! The part of the gate that stops a program which installs a system call filter of its own: it may end an agent, or whoever
//! sets one up in a child. Who answers can look at the filter first.

use std::mem::offset_of;

use libc::sock_filter;

use super::{ARCH_I386, ARCH_X86_64, Notification, X32_BIT, if_equal, load, verdict};

const SECCOMP: u32 = libc::SYS_seccomp as u32;
const PRCTL: u32 = libc::SYS_prctl as u32;
const SECCOMP_I386: u32 = 354;
const PRCTL_I386: u32 = 172;
const SET_SECCOMP: u32 = libc::PR_SET_SECCOMP as u32;

pub(super) const LENGTH: usize = 18;
const BY_SECCOMP: usize = 11;
const BY_PRCTL: usize = 13;
const NOTIFY: usize = 17;

/// Goes in front of another program, none of whose calls it decides: those fall through. Of all three tables. Strict mode
/// passes: it is the caller's alone, who can neither fork nor execute anything in it.
pub(super) fn program() -> [sock_filter; LENGTH] {
    let argument = |index: usize| offset_of!(libc::seccomp_data, args) + index * 8;
    [
        /*  0 */ load(offset_of!(libc::seccomp_data, arch)),
        /*  1 */ if_equal(1, ARCH_X86_64, 2, 7),
        /*  2 */ load(offset_of!(libc::seccomp_data, nr)),
        /*  3 */ if_equal(3, SECCOMP, BY_SECCOMP, 4),
        /*  4 */ if_equal(4, PRCTL, BY_PRCTL, 5),
        /*  5 */ if_equal(5, X32_BIT | SECCOMP, BY_SECCOMP, 6),
        /*  6 */ if_equal(6, X32_BIT | PRCTL, BY_PRCTL, LENGTH),
        /*  7 */ if_equal(7, ARCH_I386, 8, LENGTH),
        /*  8 */ load(offset_of!(libc::seccomp_data, nr)),
        /*  9 */ if_equal(9, SECCOMP_I386, BY_SECCOMP, 10),
        /* 10 */ if_equal(10, PRCTL_I386, BY_PRCTL, LENGTH),
        /* 11 */ load(argument(0)),
        /* 12 */ if_equal(12, libc::SECCOMP_SET_MODE_FILTER, NOTIFY, LENGTH),
        /* 13 */ load(argument(0)),
        /* 14 */ if_equal(14, SET_SECCOMP, 15, LENGTH),
        /* 15 */ load(argument(1)),
        /* 16 */ if_equal(16, libc::SECCOMP_MODE_FILTER, NOTIFY, LENGTH),
        /* 17 */ verdict(libc::SECCOMP_RET_USER_NOTIF),
    ]
}

/// Whether this is a call that [`program`] stops.
pub(super) fn is_filter(arch: u32, nr: u32) -> bool {
    matches!((arch, nr & !X32_BIT), (ARCH_X86_64, SECCOMP | PRCTL) | (ARCH_I386, SECCOMP_I386 | PRCTL_I386))
}

/// What a program is about to install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installs {
    /// Address of a `sock_fprog` in its memory.
    pub program: u64,
    /// The pointer in that has 32 bits, and the address, too.
    pub narrow: bool,
    /// For all its threads, not for the caller alone.
    pub all_threads: bool,
}

impl Notification {
    /// What a stopped [`super::GatedCall::Filter`] installs.
    pub fn installs(&self) -> Installs {
        let narrow = self.arch == ARCH_I386 || self.nr & X32_BIT != 0;
        let by_seccomp = self.nr & !X32_BIT == if self.arch == ARCH_I386 { SECCOMP_I386 } else { SECCOMP };
        Installs {
            program: if narrow { self.args[2] & u64::from(u32::MAX) } else { self.args[2] },
            narrow,
            all_threads: by_seccomp && self.args[1] & libc::SECCOMP_FILTER_FLAG_TSYNC != 0,
        }
    }
}
