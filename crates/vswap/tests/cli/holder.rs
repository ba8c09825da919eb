//! A run that holds checkable pages until it is told to check them, and questions to it from outside.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};

use serde_json::Value;

use crate::harness::{Scratch, assert_code, collect, output, stderr, stdout, vswap};

/// Fills 64 MiB of checkable pages, says so, waits for a line, and checks them.
pub(crate) const HOLDER: &str = "
import random, sys, zlib
pages = [random.Random(i).randbytes(2048) * 2 for i in range(16384)]
sums = [zlib.crc32(page) for page in pages]
print('ready', flush=True)
sys.stdin.readline()
print('right' if [zlib.crc32(page) for page in pages] == sums else 'wrong')
";

/// A run with a run directory of its own, so that tests do not see each other's.
pub(crate) struct Holder {
    child: Option<Child>,
    pub(crate) dir: Scratch,
    /// CMD.
    pub(crate) pid: u32,
}

impl Holder {
    pub(crate) fn start(program: &str) -> Self {
        Self::with(&["--quiet"], program)
    }

    /// With options of `vswap run`.
    pub(crate) fn with(options: &[&str], program: &str) -> Self {
        Self::in_environment(&[], options, program)
    }

    /// And with variables.
    pub(crate) fn in_environment(variables: &[(&str, &str)], options: &[&str], program: &str) -> Self {
        let dir = Scratch::new();
        let mut command = vswap();
        command.env("XDG_RUNTIME_DIR", dir.path()).args(["run", "-m", "512M"]).args(options);
        command.args(["--", "python3", "-c", program]).envs(variables.iter().copied());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut bytes = [0];
        while std::io::Read::read(child.stdout.as_mut().unwrap(), &mut bytes).unwrap() == 1
            && bytes[0] != b'\n'
        {
            line.push(char::from(bytes[0]));
        }
        if line != "ready" {
            let done = collect(child);
            panic!("{line:?} and not ready; {}: {}", done.status, stderr(&done));
        }
        let mut holder = Self { child: Some(child), dir, pid: 0 };
        holder.pid = holder.status()["pid"].as_u64().unwrap() as u32;
        holder
    }

    pub(crate) fn ask(&self, words: &[&str]) -> Output {
        output(vswap().env("XDG_RUNTIME_DIR", self.dir.path()).args(words))
    }

    pub(crate) fn front(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Our run's part of `vswap status --json`.
    pub(crate) fn status(&self) -> Value {
        let done = self.ask(&["status", "--json", &self.front().to_string()]);
        assert_code(&done, 0);
        let all: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(all["runs"].as_array().unwrap().len(), 1);
        all["runs"][0].clone()
    }

    pub(crate) fn reclaim(&self, size: &str) -> Output {
        self.ask(&["reclaim", size, "--pid", &self.pid.to_string()])
    }

    /// Resident anonymous bytes of CMD, as an outsider sees them.
    pub(crate) fn resident(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).unwrap();
        let line = text.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    pub(crate) fn socket(&self) -> PathBuf {
        let run = fs::read_dir(self.dir.path()).unwrap().next().unwrap().unwrap().path();
        run.join("control")
    }

    /// Lets CMD go on and check its pages. If it has ended, who collects it will see.
    pub(crate) fn go_on(&mut self) {
        let child = self.child.as_mut().unwrap();
        let _ = std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"\n");
    }

    /// How it ends.
    pub(crate) fn collect(mut self) -> Output {
        collect(self.child.take().unwrap())
    }

    /// CMD ends, with right data; what was said on standard error.
    pub(crate) fn end(self) -> String {
        let done = self.collect();
        assert_code(&done, 0);
        assert_eq!(stdout(&done), "right\n");
        stderr(&done)
    }

    /// Both.
    pub(crate) fn finish(mut self) {
        self.go_on();
        self.end();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
