//! Running vswap, and waiting with a limit.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What no test should take, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// What the death of a tree should not take where the machine has hardly time for it. The promise is a second, but
/// to hold that to the clock would be to test the machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The program, in an environment without settings of ours.
pub(crate) fn vswap() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vswap"));
    for name in [
        "VSWAP_MEMORY",
        "VSWAP_ARGS",
        "VSWAP_SESSION",
        "VSWAP_LOG",
        "VSWAP_LOG_FILE",
        "NO_COLOR",
        "LD_PRELOAD",
    ] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// `vswap run --memory 256M --quiet`, to be completed.
pub(crate) fn quiet() -> Command {
    let mut command = vswap();
    command.args(["run", "--memory", "256M", "--quiet"]);
    command
}

/// `quiet` with these words.
pub(crate) fn run(words: &[&str]) -> Output {
    output(quiet().args(words))
}

/// Runs it, at most [`PATIENCE`] long.
pub(crate) fn output(command: &mut Command) -> Output {
    collect(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vswap starts"))
}

/// The end of a child with piped outputs, at most [`PATIENCE`] away: its end, and that of its pipes.
pub(crate) fn collect(child: Child) -> Output {
    collect_within(PATIENCE, child)
}

/// The same for one that has a lot to do.
pub(crate) fn collect_within(time: Duration, mut child: Child) -> Output {
    fn reader(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut bytes);
            }
            bytes
        })
    }
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let mut status = None;
    let ended = within(time, || {
        status = status.or_else(|| child.try_wait().expect("a child"));
        status.is_some() && stdout.is_finished() && stderr.is_finished()
    });
    if !ended {
        let _ = child.kill();
        panic!("vswap did not end (status {status:?})");
    }
    Output {
        status: status.expect("just seen"),
        stdout: stdout.join().expect("a reader"),
        stderr: stderr.join().expect("a reader"),
    }
}

/// Whether `condition` comes true in time.
pub(crate) fn within(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > time {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The exit status, with what was said on standard error if it is another one.
#[track_caller]
pub(crate) fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "stderr: {}", stderr(output));
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The source of a test program.
pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/programs").join(name)
}

/// A test program in C, a file or a directory of them, built.
pub(crate) fn compiled(dir: &Scratch, name: &str) -> PathBuf {
    let binary = dir.file(name.trim_end_matches(".c"));
    let sources = match fs::read_dir(program(name)) {
        Ok(entries) => entries.map(|entry| entry.expect("our sources").path()).collect(),
        Err(_) => vec![program(name)],
    };
    let sources = sources.iter().filter(|path| path.extension().is_some_and(|kind| kind == "c"));
    let built = Command::new("cc").args(["-O2", "-pthread", "-o"]).arg(&binary).args(sources).status();
    assert!(built.expect("a C compiler").success(), "{name}");
    binary
}

/// A directory of one test, removed with it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/tmp/vswap-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("/tmp is writable");
        // Other users of the tree must be able to enter (see the run directory).
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("our directory");
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes an executable file.
    pub(crate) fn program(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, bytes).expect("our directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our file");
        path
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        fs::read_dir(&self.0).expect("our directory").next().is_none()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A field of `/proc/PID/stat`, counted from the state (0); `None` when the process has gone.
pub(crate) fn stat(pid: u32, field: usize) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text[text.rfind(')')? + 1..].split_ascii_whitespace().nth(field)?.to_owned())
}

/// The state letter of a process; `None` when it has gone.
pub(crate) fn state(pid: u32) -> Option<String> {
    stat(pid, 0)
}

/// The parent of a process.
pub(crate) fn parent(pid: u32) -> u32 {
    stat(pid, 1).expect("a process").parse().expect("a number")
}

/// Whether a process has gone, or is a zombie.
pub(crate) fn is_dead(pid: u32) -> bool {
    state(pid).is_none_or(|state| state == "Z" || state == "X")
}

/// Sends a signal by name, from outside of the tree.
pub(crate) fn kill(pid: u32, signal: &str) {
    // A shell's own: the program of that name is not on every machine.
    let status = Command::new("bash")
        .args(["-c", "kill -s \"$0\" \"$1\"", signal, &pid.to_string()])
        .status()
        .expect("bash");
    assert!(status.success(), "kill -s {signal} {pid}");
}

/// Waits until a program of the tree has written its number to `file`.
pub(crate) fn pid_in(file: &Path) -> u32 {
    let mut pid = None;
    let found = within(PATIENCE, || {
        let text = fs::read_to_string(file).unwrap_or_default();
        pid = text.strip_suffix('\n').and_then(|text| text.trim().parse().ok());
        pid.is_some()
    });
    assert!(found, "nothing was written to {}", file.display());
    pid.expect("just found")
}

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    fs::read_to_string("/proc/self/status").expect("/proc").lines().any(|line| line.starts_with("Uid:\t0\t"))
}
