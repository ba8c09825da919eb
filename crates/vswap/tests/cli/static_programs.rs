//! Programs without a dynamic loader: as CMD, as children, with children of their own; of C, of Go, of a shell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{
    PATIENCE, Scratch, assert_code, collect_within, compiled, output, program, quiet, stderr, stdout, vswap,
};

/// Of 64 MiB, and the least that there is.
const HALF: &str = "32M";
const QUARTER: &str = "16M";

/// `tests/programs/fixed.c` by this compiler, linked statically.
pub(crate) fn built(dir: &Scratch, compiler: &str) -> PathBuf {
    let binary = dir.file(compiler);
    let status =
        Command::new(compiler).args(["-O2", "-static", "-o"]).arg(&binary).arg(program("fixed.c")).status();
    assert!(status.expect("a C compiler").success(), "{compiler}");
    binary
}

/// Runs it within at most half the memory of one process, and gives the summary. All is right, and `paged` programs were paged.
pub(crate) fn paged_within(limit: &str, dir: &Scratch, words: &[&str], paged: u64) -> serde_json::Value {
    let json = dir.file("run.json");
    let mut command = vswap();
    command.args(["run", "--memory", limit, "--quiet", "--json"]).arg(&json).args(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // Each page leaves and comes back several times.
    let done = collect_within(6 * PATIENCE, command.spawn().unwrap());
    assert_code(&done, 0);
    assert!(stdout(&done).contains("ok"), "{}", stderr(&done));
    let run: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let summary = run["summary"].clone();
    assert_eq!(summary["unpaged"].as_array().unwrap().len(), 0, "{}", summary["unpaged"]);
    // 64 MiB are 16,384 pages, of which no more than 8,192 are ever resident.
    let evictions = summary["evictions"].as_u64().unwrap();
    assert!(evictions > paged * 1024, "{evictions} evictions of {paged} programs");
    summary
}

/// The same, and the agent was put into each of them.
fn within(limit: &str, dir: &Scratch, words: &[&str], paged: u64) -> serde_json::Value {
    let summary = paged_within(limit, dir, words, paged);
    assert!(summary["entered"].as_u64().unwrap() >= paged, "{summary}");
    summary
}

fn within_half(dir: &Scratch, words: &[&str], paged: u64) -> serde_json::Value {
    within(HALF, dir, words, paged)
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_static_program_is_paged_like_any_other() {
    let dir = Scratch::new();
    for compiler in ["cc", "musl-gcc"] {
        for limit in [HALF, QUARTER] {
            within(limit, &dir, &[text(&built(&dir, compiler)), "64", "rest"], 1);
        }
    }
}

#[test]
fn a_go_program_and_its_child_are_paged() {
    let dir = Scratch::new();
    let binary = dir.file("collected");
    let mut compiler = Command::new("go");
    compiler.arg("build").arg("-o").arg(&binary).arg(program("collected.go"));
    compiler.env("CGO_ENABLED", "0").env("GO111MODULE", "off").env("GOCACHE", dir.file("cache"));
    assert!(compiler.status().expect("a Go compiler").success());
    // With what its collector leaves for later, 64 MiB of data are about 128.
    for limit in ["64M", "32M"] {
        within(limit, &dir, &[text(&binary), "64"], 2);
    }
}

/// A shell without a loader, whose forks nobody's hook sees, and whose commands are itself executed anew.
const SHELL: &str = r#"
busybox awk 'BEGIN { for (i = 0; i < 300000; i++) a[i] = i * 7 "-"; for (i in a) n += length(a[i]); print n }'
for word in a b c; do list="$list $(echo $word | busybox tr abc ABC | (read x; echo "<$x>"))"; done
echo $list
busybox seq 20000 | busybox sort -nr | busybox sed 's/7/seven/' | busybox md5sum
(exit 3) || echo ok $?
"#;

#[test]
fn a_static_shell_and_its_pipelines_are_right_and_paged() {
    let plain = output(Command::new("busybox").args(["sh", "-c", SHELL]));
    assert_code(&plain, 0);
    let dir = Scratch::new();
    let json = dir.file("run.json");
    let mut command = vswap();
    command.args(["run", "--memory", "16M", "--quiet", "--json"]).arg(&json);
    command.args(["busybox", "sh", "-c", SHELL]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = collect_within(6 * PATIENCE, command.spawn().unwrap());
    assert_code(&done, 0);
    assert_eq!(stdout(&done), stdout(&plain));
    let run: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let number = |key: &str| run["summary"][key].as_u64().unwrap();
    // The shell itself and what has most to do; the others may have ended before.
    assert!(number("entered") >= 2 && number("evictions") > 1024, "{run}");
}

#[test]
fn a_program_with_as_many_files_as_it_may_have_is_paged() {
    let dir = Scratch::new();
    let program = built(&dir, "cc");
    let script = "exec 3<&0 4<&0 5<&0 6<&0 7<&0; ulimit -n 8; exec \"$0\" 64 rest raw";
    // The shell, which is not one of them, has its agent from before.
    within_half(&dir, &["sh", "-c", script, text(&program)], 2);
}

#[test]
fn a_static_program_may_enter_a_user_namespace_at_once() {
    // Its agent is on its way by then, and has to come before it can leave.
    let dir = Scratch::new();
    let program = built(&dir, "cc");
    let script = "for i in $(seq 30); do \"$0\" 1 alone || exit; done";
    let done = output(quiet().args(["sh", "-c", script, text(&program)]));
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "ok\n".repeat(30), "{}", stderr(&done));
}

#[test]
fn a_call_that_nobody_restarts_is_not_interrupted() {
    // A child without a fork hook is entered when it is found: here it waits by then.
    let dir = Scratch::new();
    within_half(&dir, &[text(&built(&dir, "cc")), "64", "wait"], 2);
}

#[test]
fn static_children_of_a_shell_and_of_python_are_paged() {
    let dir = Scratch::new();
    let (glibc, musl) = (built(&dir, "cc"), built(&dir, "musl-gcc"));
    within_half(&dir, &["sh", "-c", "\"$0\" 64 && \"$1\" 64", text(&glibc), text(&musl)], 2);
    let spawn = "import subprocess, sys; sys.exit(any(subprocess.call([p, '64']) for p in sys.argv[1:]))";
    within_half(&dir, &["python3", "-c", spawn, text(&glibc), text(&musl)], 2);
}

#[test]
fn children_that_a_static_program_forks_are_paged() {
    let dir = Scratch::new();
    for (compiler, how) in [("musl-gcc", "fork"), ("cc", "raw")] {
        let summary = within_half(&dir, &[text(&built(&dir, compiler)), "64", how], 3);
        // The program may be faster with its first than the agent.
        let forks = summary["forks"].as_u64().unwrap();
        assert!((3..=4).contains(&forks), "{compiler} {how}: {forks}");
    }
}

#[test]
fn a_static_program_that_executes_itself_is_paged_again() {
    let dir = Scratch::new();
    within_half(&dir, &[text(&built(&dir, "cc")), "64", "rest", "exec"], 2);
}

#[test]
fn a_program_that_knows_nothing_of_us_is_paged() {
    // Without LD_PRELOAD its loader does not bring the agent.
    let dir = Scratch::new();
    let program = compiled(&dir, "fixed.c");
    within_half(&dir, &["env", "-i", text(&program), "64", "rest"], 1);
}
