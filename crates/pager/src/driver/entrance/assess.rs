//! Whether a process needs the agent put in from outside, and whether it may be.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use vswap_sys::maps::{Kind, Maps};
use vswap_sys::process;

use super::auxiliary::Auxiliary;
use super::enter::Way;
use super::image::Image;
use crate::Executable;

/// The mode in which nothing but `read`, `write` and `exit` is left to a thread, on pain of death.
const STRICT: u32 = 1;

/// Why a process with a filter stays without.
pub(super) const FILTERED: &str =
    "it has no agent, and a system-call filter of its own that might not let one in";

/// What to do about a process that has no agent.
#[derive(Debug)]
pub enum Verdict {
    /// Put it in.
    Enter(Way),
    /// Its loader brings one.
    Await,
    /// It has no memory of its own.
    Leave,
    /// It stays without; why.
    Never(String),
}

/// Looks at the process of thread `pid`, which has not ended.
///
/// # Errors
///
/// Those of looking; it may have ended meanwhile.
pub fn assess(pid: u32, image: &Image, filters: u32) -> io::Result<Verdict> {
    let status = process::status(pid)?;
    if status.has_ended() || process::share_memory(pid, status.ppid).unwrap_or(false) {
        return Ok(Verdict::Leave);
    }
    let never = |why: &str| Ok(Verdict::Never(why.into()));
    if Auxiliary::of(pid)?.get(libc::AT_SECURE).is_some_and(|secure| secure != 0) {
        return never("it is set-user-id, set-group-id or has been given capabilities");
    }
    if status.seccomp == STRICT || status.seccomp_filters > filters {
        return never(FILTERED);
    }
    if let Some(base) = library(pid, image)? {
        return Ok(Verdict::Enter(Way::Forked(base)));
    }
    match Executable::of(&File::open(format!("/proc/{pid}/exe"))?)? {
        Executable::Static => Ok(Verdict::Enter(Way::Load)),
        Executable::Foreign => never("it is not an x86-64 program"),
        // Its loader brings the library, or is about to.
        _ if preloads(pid, image)? => Ok(Verdict::Await),
        _ => Ok(Verdict::Enter(Way::Load)),
    }
}

/// Where the library is whose agent serves this address space's parent, or this one.
pub(super) fn library(pid: u32, image: &Image) -> io::Result<Option<u64>> {
    let mut maps = Maps::open(pid)?;
    let mut at = 0;
    let mut previous = None;
    while let Some(mapping) = maps.next_at_or_after(at)? {
        at = mapping.range.end;
        let ours = mapping.kind == Kind::File && mapping.inode == image.inode;
        // The first of several mappings that follow each other.
        if ours && previous != Some(mapping.range.start) {
            let base = mapping.range.start;
            let (address, length) = image.config(base);
            let mut found = vec![0; length];
            let read = process::read_memory(pid, address, &mut found).unwrap_or(0);
            if image.beacon(&found[..read]).is_some() {
                return Ok(Some(base));
            }
        }
        previous = ours.then_some(mapping.range.end);
    }
    Ok(None)
}

/// Whether its loader has been told of our library, and finds it there.
fn preloads(pid: u32, image: &Image) -> io::Result<bool> {
    let path = image.path.as_os_str().as_bytes();
    let told = fs::read(format!("/proc/{pid}/environ"))?.split(|&byte| byte == 0).any(|variable| {
        let list = variable.strip_prefix(b"LD_PRELOAD=").unwrap_or_default();
        list.split(|byte| b" :".contains(byte)).any(|entry| entry == path)
    });
    let mut inside = std::path::PathBuf::from(format!("/proc/{pid}/root"));
    inside.push(image.path.strip_prefix("/").unwrap_or(&image.path));
    Ok(told && fs::metadata(inside).is_ok_and(|file| file.ino() == image.inode))
}
