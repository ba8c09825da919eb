//! A process of the tree that lies to the pager, or leaves it waiting, harms itself only.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{PATIENCE, Scratch, assert_code, collect_within, stdout, vswap};

const HOSTILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/programs/hostile.py");

/// Runs the tree of `hostile.py`; the figures.
fn run(limit: &str, words: &[&str]) -> Value {
    let dir = Scratch::new();
    let json = dir.file("json");
    let mut command = vswap();
    command.args(["run", "--quiet", "-m", limit, "--json"]).arg(&json).args(["python3", HOSTILE]).args(words);
    // A dozen processes, most of them busy with nonsense.
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let done = collect_within(Duration::from_secs(180), child);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "right\n");
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

#[test]
fn forged_greetings_and_answers_hurt_nobody_else() {
    let figures = run("1G", &["tree", env!("CARGO_BIN_EXE_vswap")]);
    let summary = &figures["summary"];
    assert_eq!(summary["fail_stops"], 0, "{summary}");
    assert!(summary["evictions"].as_u64().unwrap() > 1000, "pages left meanwhile: {summary}");
    // What attackers say of themselves is kept, but not without end.
    let unpaged = summary["unpaged"].as_array().unwrap().len();
    assert!((1..=256).contains(&unpaged), "{unpaged}");
}

#[test]
fn an_agent_that_executes_nothing_holds_up_no_other_call() {
    let begun = Instant::now();
    run("1G", &["gate", env!("CARGO_BIN_EXE_vswap")]);
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}
