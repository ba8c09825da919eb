//! Running a program with a time limit, its output kept in files.

use crate::janitor::{self, Undo};
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A program to run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Program and arguments.
    pub(crate) words: Vec<String>,
    /// Environment on top of ours.
    pub(crate) env: Vec<(String, String)>,
    /// Where standard output and standard error go.
    pub(crate) stdout: PathBuf,
    pub(crate) stderr: PathBuf,
    pub(crate) timeout: Duration,
}

/// How it ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Exit status as a shell gives it: 128+n for signal n.
    pub(crate) status: i32,
    pub(crate) timed_out: bool,
    pub(crate) wall: Duration,
}

impl Run {
    /// Runs it in a process group of its own; the whole group is killed at the time limit, and with us.
    pub(crate) fn run(&self) -> Result<Outcome, String> {
        let create = |path: &PathBuf| File::create(path).map_err(|e| format!("{}: {e}", path.display()));
        let started = Instant::now();
        let mut child = Command::new(&self.words[0])
            .args(&self.words[1..])
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(create(&self.stdout)?)
            .stderr(create(&self.stderr)?)
            .process_group(0)
            .spawn()
            .map_err(|e| format!("{}: {e}", self.words[0]))?;
        let group = janitor::guard(Undo::Kill(child.id()))?;
        let mut pause = Duration::from_micros(500);
        loop {
            if let Some(status) = child.try_wait().map_err(|e| format!("wait: {e}"))? {
                let wall = started.elapsed();
                group.forget();
                let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
                return Ok(Outcome { status, timed_out: false, wall });
            }
            if started.elapsed() > self.timeout {
                drop(group);
                let _ = child.wait();
                return Ok(Outcome { status: 137, timed_out: true, wall: started.elapsed() });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
}

/// Runs a tool of the system; what it complained about is the error.
pub(crate) fn quietly(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// The last lines of a file, indented, for a report.
pub(crate) fn tail(path: &std::path::Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|l| format!("    {l}\n")).collect()
}
