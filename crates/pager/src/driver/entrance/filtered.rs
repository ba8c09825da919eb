//! Processes with a system call filter that no agent could live with, as the gate has found: none is set up any more in what they
//! fork or execute.
//!
//! A child by fork learns it from its own memory, where its fork hook finds no beacon. What is executed would be told by its loader: so it
//! is stopped before its first instruction, and our library taken off the loader's list. That list shows what was taken, as colons.

use std::io;
use std::os::unix::ffi::OsStrExt;

use vswap_sys::process::{self, Remote};

use super::Entrance;
use super::assess::library;

/// Generations that are looked through for whoever installed a filter.
const ANCESTORS: usize = 64;

impl Entrance {
    /// Has no agent set up from now on in what the process of this thread forks and executes; nor in itself, if it is about all its
    /// threads.
    pub fn renounce(&self, tid: u32, all_threads: bool) {
        // It has ended, if that fails.
        let Ok(status) = process::status(tid) else { return };
        *self.filtered.lock().entry(status.tgid).or_default() |= all_threads;
        // Between vfork and exec this is its parent's memory.
        if process::share_memory(status.tgid, status.ppid).unwrap_or(false) {
            return;
        }
        if let Err(error) = self.take_beacon(tid) {
            self.shared.warn(format!(
                "process {}: its forked children will set agents up, which its system call filter may end: {error}",
                status.tgid
            ));
        }
    }

    fn take_beacon(&self, tid: u32) -> io::Result<()> {
        let Some(base) = library(tid, &self.image)? else { return Ok(()) };
        let address = self.image.beacon_at(base);
        process::write_memory(tid, &[Remote { address, bytes: &0_u64.to_ne_bytes() }])
    }

    /// Whether a thread has a filter that no agent could live with.
    pub(super) fn is_filtered(&self, tid: u32) -> bool {
        let Ok(status) = process::status(tid) else { return false };
        let filtered = self.filtered.lock();
        if status.seccomp_filters <= self.filters || filtered.is_empty() {
            return false;
        }
        let parent = |&pid: &u32| process::status(pid).ok().map(|status| status.ppid);
        std::iter::successors(Some(status.tgid), parent)
            .take(ANCESTORS)
            .any(|pid| filtered.contains_key(&pid))
    }

    /// Takes the library off the list of a loader that has not begun.
    pub(super) fn take_preload(&self, pid: u32) -> io::Result<()> {
        let place = process::environment(pid)?;
        let mut bytes = vec![0; (place.end - place.start) as usize];
        let read = process::read_memory(pid, place.start, &mut bytes)?;
        let path = self.image.path.as_os_str().as_bytes();
        let mut start = 0;
        for variable in bytes[..read].split(|&byte| byte == 0) {
            if variable.starts_with(b"LD_PRELOAD=")
                && let Some(at) = variable.windows(path.len()).position(|part| part == path)
            {
                let address = place.start + (start + at) as u64;
                process::write_memory(pid, &[Remote { address, bytes: &vec![b':'; path.len()] }])?;
            }
            start += variable.len() + 1;
        }
        Ok(())
    }
}
