//! Undoing what a command has set up, even if it is interrupted or killed.
//!
//! A second process of ours, in a process group of its own so that ctrl-C does not reach it, holds the list of
//! what is to be undone and reads from a pipe. When the pipe ends, for whatever reason, it undoes what is left,
//! newest first. No signal handler is needed, and SIGKILL is covered as well.

use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The hidden command that runs the second process.
pub(crate) const COMMAND: &str = "janitor";

/// One thing to undo.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Undo {
    /// Kill a process group.
    Kill(u32),
    /// Kill what is in a control group, then remove it.
    Cgroup(PathBuf),
    /// Remove a file.
    File(PathBuf),
    /// Put a setting of the kernel back: file and value.
    Write(PathBuf, String),
    /// Take a swap device out of use.
    Swap(PathBuf),
    /// Reset a zram device, by name.
    Zram(String),
    /// Remove a zram device that was added, by number.
    ZramDevice(u32),
}

impl Undo {
    fn write(&self) -> String {
        match self {
            Self::Kill(group) => format!("kill {group}"),
            Self::Cgroup(path) => format!("cgroup {}", path.display()),
            Self::File(path) => format!("file {}", path.display()),
            Self::Write(path, value) => format!("write {value} {}", path.display()),
            Self::Swap(path) => format!("swap {}", path.display()),
            Self::Zram(name) => format!("zram {name}"),
            Self::ZramDevice(number) => format!("zram-device {number}"),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (kind, what) = text.split_once(' ')?;
        Some(match kind {
            "kill" => Self::Kill(what.parse().ok()?),
            "cgroup" => Self::Cgroup(what.into()),
            "file" => Self::File(what.into()),
            "write" => {
                let (value, path) = what.split_once(' ')?;
                Self::Write(path.into(), value.to_owned())
            }
            "swap" => Self::Swap(what.into()),
            "zram" => Self::Zram(what.to_owned()),
            "zram-device" => Self::ZramDevice(what.parse().ok()?),
            _ => return None,
        })
    }

    /// Failures are of no use to anybody here: what is already gone needs no undoing.
    fn perform(&self) {
        let quietly = |program: &str, args: &[&str]| {
            let _ = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        };
        match self {
            Self::Kill(group) => quietly("kill", &["-KILL", "--", &format!("-{group}")]),
            Self::Cgroup(path) => {
                let deadline = Instant::now() + Duration::from_secs(10);
                while path.exists() && fs::remove_dir(path).is_err() && Instant::now() < deadline {
                    let pids = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
                    for pid in pids.lines() {
                        quietly("kill", &["-KILL", pid]);
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            Self::File(path) => {
                let _ = fs::remove_file(path);
            }
            Self::Write(path, value) => {
                let _ = fs::write(path, value);
            }
            Self::Swap(path) => quietly("swapoff", &[&path.to_string_lossy()]),
            Self::Zram(name) => {
                let _ = fs::write(format!("/sys/block/{name}/reset"), "1");
            }
            Self::ZramDevice(number) => {
                let _ = fs::write("/sys/class/zram-control/hot_remove", number.to_string());
            }
        }
    }
}

struct Helper {
    process: Child,
    next: u64,
}

static HELPER: Mutex<Option<Helper>> = Mutex::new(None);

fn helper() -> MutexGuard<'static, Option<Helper>> {
    HELPER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does its thing when dropped, or when this process is gone.
#[must_use = "what is not kept is undone at once"]
pub(crate) struct Guard {
    id: u64,
    undo: Undo,
}

/// Remembers to undo something. Call it before the thing is done.
pub(crate) fn guard(undo: Undo) -> Result<Guard, String> {
    let mut slot = helper();
    if slot.is_none() {
        let us = std::env::current_exe().map_err(|e| format!("the path of xtask: {e}"))?;
        let process = Command::new(us)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| format!("the janitor does not start: {e}"))?;
        *slot = Some(Helper { process, next: 0 });
    }
    let helper = slot.as_mut().expect("just started");
    helper.next += 1;
    tell(helper, &format!("+{} {}", helper.next, undo.write()))?;
    Ok(Guard { id: helper.next, undo })
}

fn tell(helper: &mut Helper, line: &str) -> Result<(), String> {
    let pipe = helper.process.stdin.as_mut().expect("its stdin is piped");
    writeln!(pipe, "{line}").map_err(|e| format!("the janitor is gone: {e}"))
}

impl Guard {
    /// It is no longer there, so there is nothing to undo.
    pub(crate) fn forget(self) {
        self.cross_out();
        std::mem::forget(self);
    }

    fn cross_out(&self) {
        if let Some(helper) = helper().as_mut() {
            let _ = tell(helper, &format!("-{}", self.id));
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.undo.perform();
        self.cross_out();
    }
}

/// The second process.
pub(crate) fn main() -> Result<bool, String> {
    let mut list: Vec<(u64, Undo)> = Vec::new();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        if let Some(id) = line.strip_prefix('-').and_then(|id| id.parse::<u64>().ok()) {
            list.retain(|(known, _)| *known != id);
        } else if let Some((id, undo)) = line.strip_prefix('+').and_then(|l| l.split_once(' '))
            && let (Ok(id), Some(undo)) = (id.parse(), Undo::read(undo))
        {
            list.push((id, undo));
        }
    }
    for (_, undo) in list.iter().rev() {
        undo.perform();
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::Undo;

    #[test]
    fn what_is_written_is_read() {
        for undo in [
            Undo::Kill(7),
            Undo::Cgroup("/a b".into()),
            Undo::Swap("/dev/zram0".into()),
            Undo::File("/a b".into()),
            Undo::Write("/sys/x".into(), "lzo".into()),
            Undo::Zram("zram1".into()),
            Undo::ZramDevice(3),
        ] {
            assert_eq!(Undo::read(&undo.write()), Some(undo));
        }
        assert_eq!(Undo::read("burn everything"), None);
    }
}
