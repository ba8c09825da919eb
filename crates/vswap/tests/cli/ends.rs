//! Programs that do not end by `exit_group`, so that the agent's thread would outlive them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Scratch, assert_code, compiled, output, program, quiet, stderr, stdout, vswap};

/// `tests/programs/ends.c`, linked dynamically and statically.
fn both(dir: &Scratch) -> [PathBuf; 2] {
    let linked = dir.file("ends-static");
    let status = Command::new("cc")
        .args(["-O2", "-static", "-pthread", "-o"])
        .arg(&linked)
        .arg(program("ends.c"))
        .status();
    assert!(status.expect("a C compiler").success());
    [compiled(dir, "ends.c"), linked]
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_last_threads_end_is_the_programs() {
    let dir = Scratch::new();
    for ends in both(&dir) {
        for rounds in ["1", "20"] {
            let script = "for i in $(seq \"$1\"); do \"$0\" exit 1 >/dev/null; s=$?; [ $s = 7 ] || exit $s; done; \"$0\" exit 1";
            let done = output(quiet().args(["sh", "-c", script, text(&ends), rounds]));
            assert_code(&done, 7);
            assert_eq!(stdout(&done), "ok\n");
        }
        assert_code(&output(quiet().args([text(&ends), "exit", "1"])), 7);
    }
}

#[test]
fn a_program_goes_on_paged_without_its_first_thread() {
    let dir = Scratch::new();
    for ends in both(&dir) {
        // Of a last thread that was not the first, the status is lost.
        for (how, code) in [("join", 0), ("leave", 7)] {
            let json = dir.file("run.json");
            let mut command = vswap();
            command.args(["run", "--memory", "32M", "--quiet", "--json"]).arg(&json);
            let done = output(command.args([text(&ends), how, "64"]));
            assert_code(&done, code);
            assert_eq!(stdout(&done), "ok\n", "{}", stderr(&done));
            let run: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
            // 64 MiB are 16,384 pages, of which no more than 8,192 are ever resident.
            let evictions = run["summary"]["evictions"].as_u64().unwrap();
            assert!(evictions > 1024, "{how}: {evictions}");
        }
    }
}
