//! A `vswap run` inside of another one, and what `/proc` says of ancestors.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vswap_sys::process;

/// Marks the processes of a tree: `<pid of the pager>:<run directory>`.
pub(crate) const VARIABLE: &str = "VSWAP_SESSION";

/// The mark of the tree whose pager is this process.
pub(crate) fn mark(run_dir: &Path) -> OsString {
    let mut mark = OsString::from(format!("{}:", std::process::id()));
    mark.push(run_dir);
    mark
}

/// The pager of the tree that this process is in, if it is in one. The mark alone proves nothing: a terminal
/// multiplexer or a job queue may have kept it from a tree that is gone.
pub(crate) fn outer_pager(mark: Option<&OsStr>) -> Option<u32> {
    let mark = mark?.as_bytes();
    let colon = mark.iter().position(|&byte| byte == b':')?;
    let pager: u32 = std::str::from_utf8(&mark[..colon]).ok()?.parse().ok()?;
    let run_dir = &mark[colon + 1..];
    // In a pid namespace of its own the tree does not see the pager; but it has the agent in its memory.
    (process::descends_from(std::process::id(), pager).unwrap_or(false) || has_mapped(run_dir))
        .then_some(pager)
}

fn has_mapped(run_dir: &[u8]) -> bool {
    if run_dir.is_empty() {
        return false;
    }
    let maps = fs::read("/proc/self/maps").unwrap_or_default();
    let agent = [run_dir, b"/agent.so"].concat();
    maps.split(|&byte| byte == b'\n').any(|line| line.ends_with(&agent))
}

/// Some fields of `/proc/PID/stat`.
pub(crate) struct Stat {
    /// `R`, `S`, `D`, `T`, `Z`, ...
    pub(crate) state: char,
    pub(crate) parent: u32,
    /// Process group.
    pub(crate) group: u32,
    pub(crate) session: u32,
}

/// What `/proc` says of `pid`; `None` if it is gone.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // The name, in parentheses, may hold anything.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        session: fields.next()?.parse().ok()?,
    })
}

/// The state letter of `pid`; `None` if it is gone.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    stat(pid).map(|stat| stat.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_mark_is_no_tree() {
        assert_eq!(outer_pager(None), None);
        for mark in ["", "x", ":", "4194303999:/run/gone", "4194303:/run/gone", "4194303:"] {
            assert_eq!(outer_pager(Some(OsStr::new(mark))), None, "{mark}");
        }
    }

    #[test]
    fn a_live_mark_is() {
        let mark = mark(Path::new("/run/x"));
        assert_eq!(outer_pager(Some(&mark)), Some(std::process::id()));
    }
}
