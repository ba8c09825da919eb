//! Signals sent to vswap reach CMD once; SIGKILL and stops behave as if vswap were CMD.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{
    PATIENCE, SOON, Scratch, assert_code, collect, is_dead, kill, parent, pid_in, quiet, state, stderr,
    stdout, within,
};

/// Counts the signals of a list, says so when it is ready, and tells what came when SIGTERM does.
const COUNTER: &str = "
import os, signal, sys
seen = []
def note(number, frame):
    seen.append(number)
for number in [1, 2, 3, 10, 12, 34, 40]:
    signal.signal(number, note)
def tell(number, frame):
    print(sorted(seen))
    sys.exit(7)
signal.signal(signal.SIGTERM, tell)
open(sys.argv[1], 'w').write('%d\\n' % os.getpid())
while True:
    signal.pause()
";

#[test]
fn each_signal_to_vswap_reaches_cmd_once() {
    let dir = Scratch::new();
    let ready = dir.file("ready");
    let mut command = quiet();
    command.args(["python3", "-c", COUNTER]).arg(&ready).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    pid_in(&ready);
    // Real-time ones too, by number.
    for signal in ["HUP", "INT", "QUIT", "USR1", "USR2", "34", "40"] {
        kill(child.id(), signal);
        std::thread::sleep(Duration::from_millis(60));
    }
    kill(child.id(), "TERM");
    let done = collect(child);
    assert_code(&done, 7);
    assert_eq!(stdout(&done), "[1, 2, 3, 10, 12, 34, 40]\n");
}

#[test]
fn a_signal_that_ends_cmd_ends_vswap_with_its_number() {
    let dir = Scratch::new();
    let ready = dir.file("ready");
    let mut command = quiet();
    command.args(["sh", "-c", "echo $$ > \"$0\"; exec sleep 30"]).arg(&ready);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    pid_in(&ready);
    kill(child.id(), "TERM");
    assert_code(&collect(child), 143);
}

#[test]
fn a_signal_to_the_own_group_does_not_come_twice() {
    let dir = Scratch::new();
    let ready = dir.file("ready");
    // Sends SIGUSR1 to its group, which vswap is in; then tells what came.
    let script = COUNTER.replace("while True:", "os.kill(0, signal.SIGUSR1)\nwhile True:");
    let mut command = quiet();
    command.args(["python3", "-c", &script]).arg(&ready).stdout(Stdio::piped()).stderr(Stdio::piped());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command.spawn().unwrap();
    pid_in(&ready);
    std::thread::sleep(Duration::from_millis(200));
    kill(child.id(), "TERM");
    let done = collect(child);
    assert_code(&done, 7);
    assert_eq!(stdout(&done), "[10]\n");
}

#[test]
fn sigkill_to_vswap_kills_cmd_and_leaves_nothing() {
    let (dir, run) = (Scratch::new(), Scratch::new());
    let ready = dir.file("ready");
    let mut command = quiet();
    command.args(["sh", "-c", "echo $$ > \"$0\"; exec sleep 30"]).arg(&ready);
    let mut child = command.env("XDG_RUNTIME_DIR", run.path()).spawn().unwrap();
    let cmd = pid_in(&ready);
    let pager = parent(cmd);
    let guardian = parent(pager);
    assert!(!run.is_empty());
    kill(child.id(), "KILL");
    child.wait().unwrap();
    assert!(within(SOON, || is_dead(cmd)), "CMD lives");
    assert!(within(PATIENCE, || is_dead(pager) && is_dead(guardian)), "pager or guardian lives");
    assert!(within(PATIENCE, || run.is_empty()), "the run directory is left");
}

#[test]
fn a_killed_pager_takes_the_tree_along() {
    let (dir, run) = (Scratch::new(), Scratch::new());
    let (ready, grandchild) = (dir.file("ready"), dir.file("grandchild"));
    let script = "setsid sh -c 'echo $$ > \"$0\"; exec sleep 30' \"$1\" & echo $$ > \"$0\"; wait";
    let mut command = quiet();
    command.args(["sh", "-c", script]).arg(&ready).arg(&grandchild).env("XDG_RUNTIME_DIR", run.path());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (cmd, grandchild) = (pid_in(&ready), pid_in(&grandchild));
    kill(parent(cmd), "KILL");
    assert!(within(SOON, || is_dead(cmd) && is_dead(grandchild)), "the tree lives");
    let done = collect(child);
    assert_code(&done, 125);
    assert!(stderr(&done).contains("pager died"), "{}", stderr(&done));
    assert!(run.is_empty(), "the run directory is left");
}

#[test]
fn a_killed_guardian_ends_the_tree_for_nobody_else_would_if_the_pager_died() {
    let (dir, run) = (Scratch::new(), Scratch::new());
    let ready = dir.file("ready");
    let mut command = quiet();
    command.args(["sh", "-c", "echo $$ > \"$0\"; sleep 30; exit 6"]).arg(&ready);
    let child = command.env("XDG_RUNTIME_DIR", run.path()).stderr(Stdio::piped()).spawn().unwrap();
    let cmd = pid_in(&ready);
    kill(parent(parent(cmd)), "KILL");
    assert!(within(SOON, || is_dead(cmd)), "the tree lives");
    let done = collect(child);
    assert_code(&done, 125);
    assert!(stderr(&done).contains("guardian was killed"), "{}", stderr(&done));
    assert!(run.is_empty(), "the run directory is left");
}

#[test]
fn stale_run_directories_are_swept() {
    let (dir, run) = (Scratch::new(), Scratch::new());
    let ready = dir.file("ready");
    let mut command = quiet();
    command.args(["sh", "-c", "echo $$ > \"$0\"; exec sleep 30"]).arg(&ready);
    let mut child = command.env("XDG_RUNTIME_DIR", run.path()).stderr(Stdio::null()).spawn().unwrap();
    let cmd = pid_in(&ready);
    let pager = parent(cmd);
    // The guardian first: then nobody is left to clean up. (The pager sees that, and ends the tree.)
    let guardian = parent(pager);
    kill(guardian, "KILL");
    kill(pager, "KILL");
    kill(child.id(), "KILL");
    child.wait().unwrap();
    let script = "kill -s KILL \"$0\"";
    let _ = Command::new("bash").args(["-c", script, &cmd.to_string()]).stderr(Stdio::null()).status();
    assert!(within(PATIENCE, || is_dead(pager) && is_dead(guardian)));
    // Threads of theirs may outlive them for a moment, and hold the lock; then the run after the next sweeps.
    assert!(within(PATIENCE, || {
        let next = crate::harness::output(quiet().env("XDG_RUNTIME_DIR", run.path()).arg("true"));
        assert_code(&next, 0);
        run.is_empty()
    }));
}

#[test]
fn a_stopped_cmd_is_a_stopped_vswap() {
    let dir = Scratch::new();
    let ready = dir.file("ready");
    let mut command = quiet();
    command.args(["sh", "-c", "echo $$ > \"$0\"; while :; do sleep 0.05; done"]).arg(&ready);
    // A group whose parent is in the session but not in the group: in an orphaned one SIGTSTP does nothing.
    command.process_group(0);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (vswap, cmd) = (child.id(), pid_in(&ready));
    let is = |pid: u32, wanted: &'static str| within(PATIENCE, || state(pid).as_deref() == Some(wanted));
    let runs = |pid: u32| within(PATIENCE, || state(pid).is_some_and(|state| state != "T"));
    // Stopped from outside, continued from outside: vswap follows.
    kill(cmd, "STOP");
    assert!(is(vswap, "T"), "vswap does not stop");
    kill(cmd, "CONT");
    assert!(runs(vswap), "vswap does not go on");
    // Stopped by way of vswap, continued by way of vswap.
    kill(vswap, "TSTP");
    assert!(is(cmd, "T") && is(vswap, "T"));
    kill(vswap, "CONT");
    assert!(runs(cmd) && runs(vswap));
    kill(vswap, "TERM");
    assert_code(&collect(child), 143);
}
