//! Forks whose child runs a closure and never comes back, and what such a child sets first.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::errno::check;

/// The exit code of a child whose closure panicked.
const EXIT_PANIC: i32 = 101;

/// Forks; the child runs `child` and exits with what it returns, without the exit handlers of this process and
/// without flushing its buffers. Returns the child's process id.
///
/// Only a process with a single thread may do that: a fork copies the locks that other threads hold, but not the threads that would
/// release them. Fork before starting threads; a child with threads around needs [`super::spawn`].
///
/// # Errors
///
/// `Unsupported` (with a message) if this process has several threads; `EAGAIN`, `ENOMEM`.
pub fn fork_with(child: impl FnOnce() -> i32) -> io::Result<u32> {
    require_single_thread()?;
    // SAFETY: there is one thread (just checked, and only it could start another), so the child is a complete copy
    // of the process, in which everything may be used; it ends inside `run_child`.
    match check(unsafe { libc::fork() }.into()).map_err(io::Error::from_raw_os_error)? {
        0 => run_child(child),
        pid => Ok(pid as u32),
    }
}

/// As [`fork_with`], but parent and child share one table of file descriptors (`CLONE_FILES`) and nothing else: what one
/// opens or closes, the other has open or closed. The table lives as long as one of them.
///
/// Of a guardian and what it guards: neither may drop what the other still uses (that would close it for both). The C
/// library is not told of this fork: its cached thread id of the child's main thread is the parent's, so that thread
/// must not use what depends on it (`raise`, robust or recursive mutexes of pthreads).
///
/// # Errors
///
/// As for [`fork_with`].
pub fn fork_sharing_files(child: impl FnOnce() -> i32) -> io::Result<u32> {
    require_single_thread()?;
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: as in `fork_with`; without CLONE_VM and without a stack of its own the child continues on its copy of
    // ours. No fork handlers run: with a single thread no lock of the C library is held here.
    match check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })
        .map_err(io::Error::from_raw_os_error)?
    {
        0 => run_child(child),
        pid => Ok(pid as u32),
    }
}

/// Never returns and never unwinds: the caller's frames belong to the parent's life.
fn run_child(child: impl FnOnce() -> i32) -> ! {
    let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(EXIT_PANIC);
    // SAFETY: ends the process at once; needs nothing.
    unsafe { libc::_exit(code) }
}

fn require_single_thread() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads == 1 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, format!("fork in a process with {threads} threads")))
}

/// Makes this process the parent of all orphans below it.
///
/// # Errors
///
/// None on a kernel this crate can run on.
pub fn set_child_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Has `signal` sent to this process when its parent dies (0: none). "Parent" means the *thread* that forked us. If it is gone
/// already, nothing comes: compare `getppid` afterwards.
///
/// # Errors
///
/// `EINVAL`: no such signal.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong, 0, 0, 0) }.into())
        .map(drop)
        .map_err(io::Error::from_raw_os_error)
}
