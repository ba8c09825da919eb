//! What the front door needs of the system beyond the other modules: its first disposition of SIGPIPE, descriptors it
//! inherited, and whether a directory lets files be executed.
//!
//! Owner: the process set-up of `vswap run`, before any thread.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use crate::PAGE_SIZE;
use crate::process::signals;

static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Runs before `main`, and before Rust's runtime ignores SIGPIPE.
extern "C" fn remember_sigpipe() {
    SIGPIPE_WAS_IGNORED.store(signals::is_ignored(libc::SIGPIPE), Ordering::Relaxed);
}

// SAFETY: the section holds pointers to functions that the C library calls with (argc, argv, envp), which a function
// without arguments may ignore on this architecture; it uses neither the heap nor anything that Rust's runtime sets up.
#[used]
#[unsafe(link_section = ".init_array")]
static REMEMBER_SIGPIPE: extern "C" fn() = remember_sigpipe;

/// Whether SIGPIPE was ignored when this process was executed. Rust's runtime ignores it before `main`; a program we
/// start should get what we were given.
pub fn sigpipe_was_ignored() -> bool {
    SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed)
}

/// Closes every descriptor above 2 that is not in `keep`: what the parent left open for the program, which would keep pipes and
/// files of other people open as long as we live.
///
/// Owners of a closed descriptor must not be used any more: `keep` names every one that will be.
///
/// # Errors
///
/// `ENOSYS` on a kernel before 5.9.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).filter(|&fd| fd > 2).collect();
    kept.sort_unstable();
    kept.dedup();
    let mut first = 3;
    for fd in kept {
        if first < fd {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes integers only. The descriptors have no user any more: the caller's promise in `close_all_but`.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Maps one page of `file` executable and lets it go again: what the dynamic loader will do with it.
///
/// # Errors
///
/// `EPERM`: the file system is mounted noexec; `EACCES`: a security module forbids it.
pub fn probe_map_exec(file: &File) -> io::Result<()> {
    let protection = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: a new mapping at an address that the kernel chooses, never read and removed at once.
    unsafe {
        let at = rustix::mm::mmap(std::ptr::null_mut(), PAGE_SIZE, protection, MapFlags::PRIVATE, file, 0)?;
        rustix::mm::munmap(at, PAGE_SIZE)?;
    }
    Ok(())
}
