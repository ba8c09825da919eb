//! Holding threads of other processes still.

use std::io;

use super::pid as checked;
use crate::errno::check;

/// Stops thread `tid` of another process before its next instruction of user space, until **the calling thread ends**;
/// then it goes on as if nothing had been, and gets the signals that were sent to it meanwhile. A system call that
/// waits interruptibly is restarted as after a signal without a handler, but for the few that never are
/// (`epoll_wait`: `EINTR`). Nobody may wait for its stops meanwhile: to take such a status takes the signal too.
///
/// # Errors
///
/// `EPERM`: somebody traces it already, or we may not. `ESRCH`: it has ended.
pub fn hold_while_this_thread_lives(tid: u32) -> io::Result<()> {
    let tid = checked(tid)?.as_raw_nonzero().get();
    for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
        // SAFETY: both requests take integers only: no options, no data.
        check(unsafe { libc::ptrace(request, tid, 0_usize, 0_usize) })
            .map_err(io::Error::from_raw_os_error)?;
    }
    Ok(())
}
