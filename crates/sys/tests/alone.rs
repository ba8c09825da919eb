//! Tests that need a process of their own: forks, the gate, signals, figures of a whole process.
//!
//! Each test is a function that runs in a forked child of this (single-threaded) program; a test succeeds if its
//! child exits with 0, and fails if it panics, is killed, or takes longer than [`SECONDS`]. Arguments that are not
//! options select tests by a part of their name.

mod common;
#[path = "alone/events.rs"]
mod events;
#[path = "alone/fork_gate.rs"]
mod fork_gate;
#[path = "alone/gate.rs"]
mod gate;
#[path = "alone/processes.rs"]
mod processes;
#[path = "alone/spawning.rs"]
mod spawning;
#[path = "alone/tracing.rs"]
mod tracing;

use vswap_sys::process;

const SECONDS: u32 = 30;

type Test = (&'static str, fn());

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let listed = std::env::args().any(|argument| argument == "--list");
    let tests: Vec<Test> =
        [events::TESTS, fork_gate::TESTS, gate::TESTS, processes::TESTS, spawning::TESTS, tracing::TESTS]
            .into_iter()
            .flatten()
            .copied()
            .collect();
    let mut failed = Vec::new();
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        if listed {
            println!("{name}: test");
            continue;
        }
        let child = process::fork_with(|| {
            // SAFETY: takes an integer only; the signal's default effect ends this child.
            unsafe { libc::alarm(SECONDS) };
            test();
            0
        })
        .expect("fork");
        let status = process::wait(child).expect("wait");
        println!("test {name} ... {}", if status.success() { "ok" } else { "FAILED" });
        if !status.success() {
            failed.push(format!("{name}: {status}"));
        }
    }
    assert!(failed.is_empty(), "failed: {failed:#?}");
}
