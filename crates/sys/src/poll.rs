//! Waiting for several descriptors, and waking a thread that waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno as RawErrno;

/// What to wait for, and what happened: a set of `POLL*` flags.
pub use rustix::event::PollFlags as Events;

/// A counter that one thread raises and another waits for.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, quiet.
    ///
    /// # Errors
    ///
    /// `EMFILE` and the like.
    pub fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes it readable. Never blocks: at the (unreachable) end of the counter it is readable anyway.
    pub fn notify(&self) {
        // EAGAIN means that the counter is full, EINTR cannot happen: either way a reader is woken.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes it quiet again and returns how many notifications there were.
    pub fn drain(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until a descriptor is ready for its events, or `timeout` has passed (`None`: for ever). Returns what happened to each, in
/// order; `ERR`, `HUP` and `NVAL` are reported unasked. All are empty after the time-out and after a signal.
///
/// # Errors
///
/// `EINVAL` for more descriptors than the process may have.
pub fn poll(wanted: &[(BorrowedFd<'_>, Events)], timeout: Option<Duration>) -> io::Result<Vec<Events>> {
    let mut fds: Vec<PollFd<'_>> =
        wanted.iter().map(|(fd, events)| PollFd::from_borrowed_fd(*fd, *events)).collect();
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) => Ok(fds.iter().map(PollFd::revents).collect()),
        Err(RawErrno::INTR) => Ok(vec![PollFlags::empty(); fds.len()]),
        Err(errno) => Err(errno.into()),
    }
}
