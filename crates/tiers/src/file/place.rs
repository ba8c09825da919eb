//! Where a spill file may live when the user did not say.

use rustix::fs::Access;
use std::env;
use std::path::{Path, PathBuf};

/// Magic numbers of file systems whose files are memory (linux/magic.h).
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;
const HUGETLBFS: u64 = 0x9584_58f6;

/// The first writable directory of `$TMPDIR`, `/var/tmp`, and `$XDG_CACHE_HOME` (or `~/.cache`) that is on a disk, and
/// the bytes that are free there for this user. `None` if there is none.
pub fn default_dir() -> Option<(PathBuf, u64)> {
    let var = |name| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = || var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
    let candidates = [var("TMPDIR"), Some(PathBuf::from("/var/tmp")), cache()];
    candidates.into_iter().flatten().find_map(|dir| free_on_disk(&dir).map(|free| (dir, free)))
}

/// Bytes free for this user in `dir`, if it is a writable directory with room that is not in memory.
fn free_on_disk(dir: &Path) -> Option<u64> {
    if !dir.is_dir() || rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return None;
    }
    let magic = rustix::fs::statfs(dir).ok()?.f_type as u64 & 0xffff_ffff;
    if [TMPFS, RAMFS, HUGETLBFS].contains(&magic) {
        return None;
    }
    let space = rustix::fs::statvfs(dir).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize)).filter(|free| *free > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_not_a_disk() {
        for dir in ["/dev/shm", "/proc", "/nonexistent"] {
            assert_eq!(free_on_disk(Path::new(dir)), None, "{dir}");
        }
    }
}
