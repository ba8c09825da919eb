//! Who descends from whom, and which threads a process has.

use std::fs;
use std::io;

use crate::procfs::{malformed, read_text, stat_fields};

/// The children of process `pid`, from one pass over `/proc` (so: not the child that is made meanwhile).
///
/// # Errors
///
/// Those of reading `/proc`; processes that end meanwhile are left out.
pub fn children_of(pid: u32) -> io::Result<Vec<u32>> {
    Ok(parents()?.into_iter().filter(|&(_, parent)| parent == pid).map(|(child, _)| child).collect())
}

/// All descendants of process `pid`, parents before children, from one pass over `/proc`. To kill them all, repeat until there are
/// none, as a child subreaper: processes may be made meanwhile.
///
/// # Errors
///
/// As for [`children_of`].
pub fn descendants_of(pid: u32) -> io::Result<Vec<u32>> {
    let mut rest = parents()?;
    let mut found = Vec::new();
    let mut generation = vec![pid];
    while !generation.is_empty() {
        let (children, others): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|(_, parent)| generation.contains(parent));
        rest = others;
        generation = children.into_iter().map(|(child, _)| child).collect();
        found.extend_from_slice(&generation);
    }
    Ok(found)
}

/// Whether `ancestor` is `pid`, its parent, its parent's parent, ... A process that is gone descends from nobody.
///
/// # Errors
///
/// Those of reading `/proc` (`EMFILE`): nothing is known then.
pub fn descends_from(mut pid: u32, ancestor: u32) -> io::Result<bool> {
    while pid > 1 && pid != ancestor {
        match parent_of(pid) {
            Ok(parent) => pid = parent,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(pid == ancestor && pid != 0)
}

fn parent_of(pid: u32) -> io::Result<u32> {
    let text = read_text(&format!("/proc/{pid}/stat"))?;
    let parent = || stat_fields(&text)?.nth(1)?.parse().ok();
    parent().ok_or_else(|| malformed("stat"))
}

/// Every process with its parent.
fn parents() -> io::Result<Vec<(u32, u32)>> {
    let mut all = Vec::new();
    for pid in numeric_names("/proc")? {
        all.extend(parent_of(pid).map(|parent| (pid, parent)));
    }
    Ok(all)
}

/// Replaces the content of `out` by the threads of process `pid`.
///
/// # Errors
///
/// `ENOENT` or `ESRCH` when there is no such process.
pub fn threads(pid: u32, out: &mut Vec<u32>) -> io::Result<()> {
    out.clear();
    out.extend(numeric_names(&format!("/proc/{pid}/task"))?);
    Ok(())
}

fn numeric_names(directory: &str) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors() {
        let own = std::process::id();
        let parent = std::os::unix::process::parent_id();
        let descends = |pid, ancestor| descends_from(pid, ancestor).unwrap();
        assert!(descends(own, own) && descends(own, parent));
        assert!(!descends(parent, own) && !descends(own, u32::MAX) && !descends(0, 0));
        assert!(!descends(u32::MAX, own));
        assert!(descendants_of(parent).unwrap().contains(&own));
    }
}
