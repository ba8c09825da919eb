//! The memory of another process, read and written from here.
//!
//! A page that a pager has taken out is brought back on the way, as if the process itself had touched it: so never from a
//! thread that the pager of that process waits for.

use std::io;

use super::pid as checked;
use crate::errno::check;

/// Pieces of memory that one call writes at most.
const PARTS_MAX: usize = 64;

/// Bytes for an address of another process.
#[derive(Clone, Copy, Debug)]
pub struct Remote<'a> {
    /// Where.
    pub address: u64,
    /// What.
    pub bytes: &'a [u8],
}

/// Reads from `address` on in process `pid`, as much of `into` as is mapped without a gap; that much.
///
/// # Errors
///
/// `EFAULT`: nothing is readable there; `ESRCH`; `EPERM` without ptrace permission over it.
pub fn read_memory(pid: u32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let pid = checked(pid)?.as_raw_nonzero().get();
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: the local part is the live buffer, the remote one is an address of the other process, which the kernel checks.
    check(unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) } as libc::c_long)
        .map(|read| read as usize)
        .map_err(io::Error::from_raw_os_error)
}

/// Writes all `parts` to process `pid`, which is not this one.
///
/// # Errors
///
/// As for [`read_memory`]; `EFAULT` also when only some of it could be written; `E2BIG` for too many parts.
pub fn write_memory(pid: u32, parts: &[Remote<'_>]) -> io::Result<()> {
    let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let (mut local, mut remote) = ([empty; PARTS_MAX], [empty; PARTS_MAX]);
    if parts.len() > PARTS_MAX || pid == std::process::id() {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    for ((part, local), remote) in parts.iter().zip(&mut local).zip(&mut remote) {
        *local = libc::iovec { iov_base: part.bytes.as_ptr().cast_mut().cast(), iov_len: part.bytes.len() };
        *remote = libc::iovec { iov_base: part.address as *mut libc::c_void, iov_len: part.bytes.len() };
    }
    let pid = checked(pid)?.as_raw_nonzero().get();
    let count = parts.len() as libc::c_ulong;
    // SAFETY: the local parts are live and only read; the remote ones are addresses of another process (checked), which
    // may be changed at will.
    let written =
        check(unsafe { libc::process_vm_writev(pid, local.as_ptr(), count, remote.as_ptr(), count, 0) }
            as libc::c_long)
        .map_err(io::Error::from_raw_os_error)?;
    if written as usize != parts.iter().map(|part| part.bytes.len()).sum::<usize>() {
        return Err(io::Error::from_raw_os_error(libc::EFAULT));
    }
    Ok(())
}
