//! Files as another process names them: from its root, its directory, its descriptors.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// Opens, for reading, the regular file that thread `tid` means by `path`, relative to its directory or to its descriptor
/// `directory`; an empty path means that descriptor. Nothing else is ever opened: what a device does then is not for `tid`
/// to choose, which may have fewer rights than we.
///
/// A relative path that leads through an absolute symbolic link is followed from our root, not from that of `tid`.
///
/// # Errors
///
/// Those of `open`; `EACCES` also for what is not a regular file, and without ptrace permission over it.
pub fn open_as(tid: u32, directory: Option<i32>, path: &[u8]) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = |path: &str| rustix::fs::open(path, flags, Mode::empty());
    let own = [&b"/proc/self/"[..], b"/proc/thread-self/"];
    let found = if let Some(rest) = own.iter().find_map(|own| path.strip_prefix(*own)) {
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
            rustix::fs::openat(open(&base)?, OsStr::from_bytes(path), flags, Mode::empty())
        }
    }?;
    if !FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_file() {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    let found = format!("/proc/self/fd/{}", found.as_raw_fd());
    // Nor is waited for who holds a lease on it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::open(found, flags, Mode::empty())?))
}

/// Whether executing this file gives capabilities (`setcap`).
pub fn gives_capabilities(file: &File) -> bool {
    rustix::fs::fgetxattr(file, "security.capability", &mut [0_u8; 64]).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn files_are_found_as_the_process_names_them_and_nothing_else_is_opened() {
        let own = std::process::id();
        let exe = fs::metadata("/proc/self/exe").unwrap().ino();
        let inode = |directory, path: &[u8]| {
            open_as(own, directory, path)
                .map(|file| file.metadata().unwrap().ino())
                .map_err(|e| e.raw_os_error())
        };
        let path = std::env::current_exe().unwrap();
        assert_eq!(inode(None, path.as_os_str().as_bytes()), Ok(exe));
        assert_eq!(inode(None, b"/proc/self/exe"), Ok(exe));
        let directory = File::open(path.parent().unwrap()).unwrap();
        let name = path.file_name().unwrap().as_bytes();
        assert_eq!(inode(Some(directory.as_raw_fd()), name), Ok(exe));
        let file = File::open(&path).unwrap();
        assert_eq!(inode(Some(file.as_raw_fd()), b""), Ok(exe));
        assert_eq!(inode(None, b"/no/such/file"), Err(Some(libc::ENOENT)));
        // A terminal of ours would become the one that controls us; others reset machines.
        for refused in [&b"/dev/null"[..], b"/dev/ptmx", b"/"] {
            assert_eq!(inode(None, refused), Err(Some(libc::EACCES)));
        }
    }
}
