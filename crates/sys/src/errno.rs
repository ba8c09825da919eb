//! Raw error numbers, for callers that decide by them.

use std::io;

/// A positive error number as in `libc::EAGAIN`. The hot calls return it bare, because the pager matches on it and
/// never prints it.
pub type Errno = i32;

/// The error number of the C library call that has just failed in this thread.
pub(crate) fn last() -> Errno {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Turns the `-1 and errno` convention into a result.
pub(crate) fn check(answer: libc::c_long) -> Result<libc::c_long, Errno> {
    if answer < 0 { Err(last()) } else { Ok(answer) }
}
