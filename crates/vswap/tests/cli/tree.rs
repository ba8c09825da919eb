//! Children, daemons, nesting, containers, and what is left behind.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::harness::{
    PATIENCE, Scratch, assert_code, is_dead, is_root, output, parent, pid_in, quiet, run, stderr, stdout,
    vswap, within,
};

#[test]
fn nothing_is_left_behind() {
    let run = Scratch::new();
    for _ in 0..5 {
        let done = output(quiet().env("XDG_RUNTIME_DIR", run.path()).args(["sh", "-c", "true & wait"]));
        assert_code(&done, 0);
        assert!(run.is_empty(), "the run directory is left");
    }
}

#[test]
fn forked_children_are_paged_like_their_parents() {
    let dir = Scratch::new();
    let json = dir.file("json");
    let script = "import os\n\
                  mine = os.urandom(24 << 20)\n\
                  for _ in range(3):\n    \
                      child = os.fork()\n    \
                      if child == 0:\n        \
                          more = os.urandom(24 << 20)\n        \
                          os._exit(0 if mine[::4096] + more[::4096] == mine[::4096] + more[::4096] else 1)\n    \
                      assert os.waitpid(child, 0)[1] == 0\n";
    let mut command = vswap();
    // The interpreter itself: what a wrapper starts on its way there may be seen without an agent.
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    command.args(["run", "-q", "-m", "32M", "--json"]).arg(&json).args(["--", "python3", "-c", script]);
    assert_code(&output(&mut command), 0);
    let run: serde_json::Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let summary = &run["summary"];
    // Before anything is registered, nobody tells of a fork.
    assert!((1..=3).contains(&summary["forks"].as_u64().unwrap()), "{summary}");
    assert_eq!(summary["unpaged"].as_array().map(Vec::len), Some(0), "{summary}");
}

#[test]
fn daemons_go_on_with_their_pager_and_the_last_one_cleans_up() {
    let (dir, run) = (Scratch::new(), Scratch::new());
    let (daemon, end) = (dir.file("daemon"), dir.file("end"));
    // A daemon that goes on until somebody writes to the fifo.
    let script = "mkfifo \"$1\"; \
                  setsid sh -c 'echo $$ > \"$0\"; read word < \"$1\"' \"$0\" \"$1\" >/dev/null 2>&1 </dev/null & \
                  while [ ! -s \"$0\" ]; do sleep 0.01; done; exit 4";
    let mut command = quiet();
    command.env("XDG_RUNTIME_DIR", run.path()).args(["sh", "-c", script]).arg(&daemon).arg(&end);
    assert_code(&output(&mut command), 4);
    let daemon = pid_in(&daemon);
    assert!(!is_dead(daemon), "the daemon ended with CMD");
    assert!(!run.is_empty(), "the daemon's next child could not be paged");
    let pager = parent(daemon);
    fs::write(end, "word\n").unwrap();
    assert!(within(PATIENCE, || is_dead(daemon)));
    assert!(within(PATIENCE, || run.is_empty() && is_dead(pager)), "the pager stays");
}

#[test]
fn a_nested_run_joins_the_outer_one_and_says_so() {
    let inner = env!("CARGO_BIN_EXE_vswap");
    let done = run(&[inner, "run", "-m", "1G", "sh", "-c", "echo inside; exit 6"]);
    assert_code(&done, 6);
    assert_eq!(stdout(&done), "inside\n");
    assert!(stderr(&done).contains("already inside"), "{}", stderr(&done));
    let done = run(&[inner, "run", "--quiet", "true"]);
    assert_code(&done, 0);
    assert!(done.stderr.is_empty());
    assert_code(&run(&[inner, "run", "-q", "no-such-program"]), 127);
}

#[test]
fn a_mark_of_a_tree_that_is_gone_is_no_nesting() {
    let mut command = vswap();
    command.env("VSWAP_SESSION", "4194304:/run/gone").args([
        "run",
        "-m",
        "256M",
        "sh",
        "-c",
        "echo $VSWAP_SESSION",
    ]);
    let done = output(&mut command);
    assert_code(&done, 0);
    assert!(!stderr(&done).contains("already inside"));
    assert_ne!(stdout(&done).trim(), "4194304:/run/gone");
}

#[test]
fn hundreds_of_short_processes() {
    let start = std::time::Instant::now();
    let script = "i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i+1)); done; exit $((i % 100))";
    assert_code(&run(&["sh", "-c", script]), 0);
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn as_process_1_it_reaps_and_passes_signals_on() {
    if !is_root() {
        return;
    }
    let inside = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", env!("CARGO_BIN_EXE_vswap")]);
        command.args(["run", "--memory", "256M", "--quiet", "sh", "-c", script]);
        output(&mut command)
    };
    assert_code(&inside("exit 4"), 4);
    // An orphan ends before CMD does, and is no zombie then.
    let orphan = "sh -c 'sleep 0.1 & true'; sleep 0.4; \
                  for f in /proc/[0-9]*/stat; do read -r _ _ state _ < $f; [ \"$state\" = Z ] && exit 9; done; exit 5";
    assert_code(&inside(orphan), 5);
    // vswap is process 1; what is sent to it is CMD's.
    assert_code(&inside("trap 'exit 8' TERM; kill -TERM 1; sleep 5 & wait"), 8);
}

#[test]
fn a_program_that_leaves_at_once_is_no_race() {
    for _ in 0..20 {
        assert_code(&run(&["true"]), 0);
    }
    std::thread::sleep(Duration::from_millis(10));
}
