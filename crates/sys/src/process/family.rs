//! The descendants of a process, followed over time without reading all of `/proc` each time.
//!
//! The kernel gives out process numbers in order and tells the last one in `/proc/loadavg`. So a look only asks those that
//! were given out since the last look for their parents: who descends from the root does so from the start, and an orphan
//! goes to a subreaper of the same family. Once a second everything is read, for what that may miss: numbers that have
//! started anew, or a process that was not to be seen yet when its number was asked for twice.

use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::{descendants_of, status, tgkill_check};
use crate::procfs::{malformed, read_text};

const EVERYTHING: Duration = Duration::from_secs(1);
/// With more new numbers than this, reading everything costs less.
const MANY: u32 = 256;

/// The descendants of one process.
pub struct Family {
    root: u32,
    members: Vec<u32>,
    /// The last number that had been given out, if everything was ever read.
    last: Option<u32>,
    /// Numbers that nobody had yet.
    late: Vec<u32>,
    read: Instant,
}

impl Family {
    /// The family of `root`, which must not end while it is followed.
    pub fn of(root: u32) -> Self {
        Self { root, members: Vec::new(), last: None, late: Vec::new(), read: Instant::now() }
    }

    /// Its members now, as [`descendants_of`] tells them, in no order.
    ///
    /// # Errors
    ///
    /// Those of reading `/proc`.
    pub fn members(&mut self) -> io::Result<&[u32]> {
        let last = last_number()?;
        match self.last {
            Some(before) if self.read.elapsed() < EVERYTHING && (before..=before + MANY).contains(&last) => {
                self.members.retain(|&pid| tgkill_check(pid, pid));
                self.admit(before + 1..=last);
            }
            _ => {
                self.read = Instant::now();
                self.members = descendants_of(self.root)?;
                self.late.clear();
            }
        }
        self.last = Some(last);
        Ok(&self.members)
    }

    /// Takes in the members among these numbers, and among those that were late the time before.
    fn admit(&mut self, numbers: RangeInclusive<u32>) {
        let late = core::mem::take(&mut self.late);
        for pid in late.iter().copied().chain(numbers.clone()) {
            match status(pid) {
                // Threads have numbers, too.
                Ok(found) if found.tgid == pid && !self.members.contains(&pid) => {
                    if found.ppid == self.root || self.members.contains(&found.ppid) {
                        self.members.push(pid);
                    }
                }
                Ok(_) => {}
                Err(_) if numbers.contains(&pid) => self.late.push(pid),
                Err(_) => {}
            }
        }
    }
}

/// The number that was given out last, to a process or a thread.
fn last_number() -> io::Result<u32> {
    let text = read_text("/proc/loadavg")?;
    text.split_ascii_whitespace()
        .nth(4)
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| malformed("/proc/loadavg"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn children_and_theirs_are_members_until_they_are_gone() {
        let own = std::process::id();
        let mut family = Family::of(own);
        let _ = family.members().unwrap();
        for _ in 0..3 {
            let script = "sleep 60 & echo $!; wait";
            let mut shell = Command::new("sh")
                .args(["-c", script])
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()
                .unwrap();
            let mut line = String::new();
            io::BufRead::read_line(&mut io::BufReader::new(shell.stdout.take().unwrap()), &mut line).unwrap();
            let sleeper: u32 = line.trim().parse().unwrap();
            let (members, all) = (family.members().unwrap().to_vec(), descendants_of(own).unwrap());
            for pid in [shell.id(), sleeper] {
                assert!(members.contains(&pid) && all.contains(&pid), "{pid}: {members:?}, {all:?}");
            }
            crate::process::kill(sleeper, libc::SIGKILL).unwrap();
            shell.wait().unwrap();
            let members = family.members().unwrap();
            assert!(!members.contains(&shell.id()) && !members.contains(&sleeper), "{members:?}");
        }
    }
}
