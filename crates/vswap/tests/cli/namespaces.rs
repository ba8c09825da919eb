//! Programs that make user namespaces, for which the kernel wants a process with one thread.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Scratch, assert_code, collect_within, output, quiet, run, stdout, vswap};

#[test]
fn a_program_may_enter_a_user_namespace() {
    // Small: nothing of it was ever registered. What it executes there has an agent again.
    let plain = output(std::process::Command::new("unshare").args(["-Ur", "id", "-u"]));
    assert_code(&plain, 0);
    let inside = run(&["unshare", "-Ur", "id", "-u"]);
    assert_code(&inside, 0);
    assert_eq!(stdout(&inside), stdout(&plain));
    let nested = run(&["unshare", "-Ur", "unshare", "-Um", "sh", "-c", "(echo nested)"]);
    assert_code(&nested, 0);
    assert_eq!(stdout(&nested), "nested\n");
}

const FILL_AND_ENTER: &str = r"
import ctypes, os, sys, threading, time
blocks = [os.urandom(64) * 1024 for _ in range(640)]
sums = [hash(block) for block in blocks]
right = lambda: [hash(bytes(bytearray(block))) for block in blocks] == sums
libc = ctypes.CDLL(None, use_errno=True)
event = threading.Event()
thread = threading.Thread(target=event.wait)
thread.start()
with_two = libc.unshare(0x10000000), ctypes.get_errno()
event.set()
thread.join()
while len(os.listdir('/proc/self/task')) > 2:
    time.sleep(0.01)
alone = libc.unshare(0x10000000)
time.sleep(0.5)
print('two threads:', with_two, 'alone:', alone, 'right:', right())
sys.stdout.flush()
child = os.fork()
if child == 0:
    os._exit(0 if right() else 1)
print('child:', os.waitpid(child, 0)[1], 'right:', right())
";

#[test]
fn what_was_evicted_is_served_in_the_namespace_too() {
    let dir = Scratch::new();
    let json = dir.file("run.json");
    let mut command = vswap();
    command.args(["run", "--quiet", "--memory", "36M", "--json"]).arg(&json);
    command.args(["python3", "-c", FILL_AND_ENTER]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = collect_within(Duration::from_secs(120), command.spawn().unwrap());
    assert_code(&done, 0);
    // With a thread of its own the program is refused as ever: EINVAL.
    assert_eq!(stdout(&done), "two threads: (-1, 22) alone: 0 right: True\nchild: 0 right: True\n");
    let figures: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let summary = &figures["summary"];
    assert!(summary["evictions"].as_u64() > Some(4096), "{summary}");
    let warnings = summary["warnings"].to_string();
    assert!(warnings.contains("entered a user namespace"), "{warnings}");
}

#[test]
fn an_unshare_of_other_things_does_not_cost_the_agent() {
    let dir = Scratch::new();
    let json = dir.file("run.json");
    let mut command = quiet();
    command.arg("--json").arg(&json).args([
        "unshare",
        "--fork",
        "--pid",
        "--mount-proc",
        "sh",
        "-c",
        "(echo $$)",
    ]);
    let done = output(&mut command);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "1\n");
    let figures: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let warnings = figures["summary"]["warnings"].to_string();
    assert!(!warnings.contains("entered a user namespace"), "{warnings}");
}
