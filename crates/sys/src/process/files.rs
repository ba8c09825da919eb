//! Files as another process names them: from its root, its directory, its descriptors.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Opens, for reading, the file that thread `tid` means by `path`, relative to its directory or to its descriptor
/// `directory`; an empty path means that descriptor. Never waits for a writer of a fifo.
///
/// A relative path that leads through an absolute symbolic link is followed from our root, not from that of `tid`.
///
/// # Errors
///
/// Those of `open`; `EACCES` also without ptrace permission over it.
pub fn open_as(tid: u32, directory: Option<i32>, path: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = |path: &str| rustix::fs::open(path, flags, Mode::empty());
    let own = [&b"/proc/self/"[..], b"/proc/thread-self/"];
    let opened = if let Some(rest) = own.iter().find_map(|own| path.strip_prefix(*own)) {
        // Links like `exe` lead to the file itself, whatever the root.
        let base = open(&format!("/proc/{tid}"))?;
        rustix::fs::openat(base, OsStr::from_bytes(rest), flags, Mode::empty())
    } else if path.starts_with(b"/") {
        let root = open(&format!("/proc/{tid}/root"))?;
        rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), ResolveFlags::IN_ROOT)
    } else {
        let base = match directory {
            Some(number) => format!("/proc/{tid}/fd/{number}"),
            None => format!("/proc/{tid}/cwd"),
        };
        if path.is_empty() {
            open(&base)
        } else {
            let base = rustix::fs::openat(CWD, base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            rustix::fs::openat(base, OsStr::from_bytes(path), flags, Mode::empty())
        }
    };
    Ok(File::from(opened?))
}

/// Whether executing this file gives capabilities (`setcap`).
pub fn gives_capabilities(file: &File) -> bool {
    rustix::fs::fgetxattr(file, "security.capability", &mut [0_u8; 64]).is_ok()
}
