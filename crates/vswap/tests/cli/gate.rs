//! Calls at the gate by those who are no process of ours yet, or never will be.

use serde_json::Value;

use crate::harness::{Scratch, assert_code, compiled, output, stderr, stdout, vswap};

#[test]
fn a_vfork_child_moves_its_parents_memory_and_nobody_waits_for_it() {
    const ROUNDS: u64 = 30;
    let dir = Scratch::new();
    let (program, json) = (compiled(&dir, "vforks.c"), dir.file("json"));
    let mut command = vswap();
    command.args(["run", "--quiet", "-m", "16M", "--json"]).arg(&json).arg(program).arg(ROUNDS.to_string());
    let done = output(&mut command);
    assert_code(&done, 0);
    // Each of its calls once waited for a second at the gate, and all others with it.
    let took: u64 = stdout(&done).trim().parse().unwrap();
    assert!(took < ROUNDS * 1000 / 2, "{took} ms for {ROUNDS} calls: {}", stderr(&done));
    let figures: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let summary = &figures["summary"];
    assert!(summary["evictions"].as_u64().unwrap() > 200, "{summary}");
    assert!(summary["mremaps"].as_u64().unwrap() >= ROUNDS, "{summary}");
    assert_eq!(summary["fail_stops"], 0, "{summary}");
}
