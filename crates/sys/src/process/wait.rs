//! Ends of processes, and signals sent to them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{PidfdFlags, Resource, Rlimit, WaitOptions};

use super::{pid as checked, signals};
use crate::errno::check;

/// Takes the status of one child of this thread that has ended, without waiting: its id and status, or `None` if none
/// has ended. Orphans that a subreaper inherits are children of its main thread.
///
/// Looks before it takes: a child that another thread of ours traces shows its stops here as well, whatever is asked for,
/// and taking one away would leave the tracer waiting for ever. Until it has it, `None` may be wrong.
///
/// # Errors
///
/// `ECHILD`: this thread has no children at all.
pub fn reap() -> io::Result<Option<(u32, ExitStatus)>> {
    // SAFETY: plain integers, for which zero is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WNOTHREAD;
    // SAFETY: `info` is live for the call; where it tells of nobody its process id stays 0.
    let pid = unsafe {
        check(libc::waitid(libc::P_ALL, 0, &raw mut info, options).into())
            .map_err(io::Error::from_raw_os_error)?;
        info.si_pid()
    };
    if pid == 0 || !matches!(info.si_code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED) {
        return Ok(None);
    }
    let mut status = 0;
    // SAFETY: `status` is live for the call. A child that has ended stays so.
    let ended =
        check(unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG | libc::__WNOTHREAD) }.into())
            .map_err(io::Error::from_raw_os_error)?;
    Ok((ended != 0).then(|| (ended as u32, ExitStatus::from_raw(status))))
}

/// Waits until the child `pid` has ended.
///
/// # Errors
///
/// `ECHILD`: not a child of ours, or already reaped.
pub fn wait(pid: u32) -> io::Result<ExitStatus> {
    let pid = checked(pid)?;
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Sends `signal` to the process `pid` (never to a group or to everyone); 0 only asks.
///
/// # Errors
///
/// `ESRCH`, `EPERM`, `EINVAL`.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = checked(pid)?;
    // SAFETY: takes integers only.
    check(unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) }.into())
        .map(drop)
        .map_err(io::Error::from_raw_os_error)
}

/// Whether thread `tid` exists and belongs to process `tgid`.
pub fn tgkill_check(tgid: u32, tid: u32) -> bool {
    let (Ok(tgid), Ok(tid)) = (checked(tgid), checked(tid)) else { return false };
    // SAFETY: takes integers only; signal 0 sends nothing.
    let answer = check(unsafe {
        libc::syscall(libc::SYS_tgkill, tgid.as_raw_nonzero().get(), tid.as_raw_nonzero().get(), 0)
    });
    // EPERM: it exists.
    !matches!(answer, Err(libc::ESRCH | libc::EINVAL))
}

/// A descriptor that stands for process `pid` and becomes readable when it ends.
///
/// # Errors
///
/// `ESRCH`, `EMFILE`.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(checked(pid)?, PidfdFlags::empty())?)
}

/// Ends this process as `status` says: by the same signal (without a core dump of its own) or with the same exit
/// code. Exit handlers run only in the second case.
pub fn raise_like(status: ExitStatus) -> ! {
    if let Some(signal) = status.signal() {
        let _ = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
        let _ = signals::reset(signal);
        signals::unblock_all();
        let _ = kill(std::process::id(), signal);
        // Not reached unless the signal does not kill; then the shell's convention.
        std::process::exit(128 + signal);
    }
    std::process::exit(status.code().unwrap_or(1))
}
