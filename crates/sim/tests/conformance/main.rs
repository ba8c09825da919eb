//! Conformance: each row of what is known of the kernel is one small history, run on the simulated kernel and on the
//! real one with the same assertions. What they say differently is a fault of the simulation.
//!
//! The rows follow the design notes: what MOVE answers, what each change says and leaves registered, what the count
//! of changes refuses. Each row runs in a child process of its own, so that a userfaultfd sees nobody else's forks.

mod changes;
mod commands;
mod history;
mod processes;
mod real;

use history::{Kernel, Simulated};
use real::Real;
use vswap_sim::bare::Bare;

/// A row: what it shows, and its history.
type Row = (&'static str, fn(&mut dyn Kernel));

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let listed = std::env::args().any(|word| word == "--list");
    let rows = [commands::ROWS, changes::ROWS, processes::ROWS].into_iter().flatten();
    let (mut passed, mut failed) = (0, 0);
    for &(name, history) in rows {
        for real in [false, true] {
            let name = format!("{} {name}", if real { "real" } else { "simulated" });
            if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
                continue;
            }
            if listed {
                println!("{name}: test");
                continue;
            }
            let child = vswap_sys::process::fork_with(|| {
                real::limit_time();
                if real {
                    history(&mut Real::new());
                } else {
                    let setup = Bare::setup();
                    history(&mut Simulated::new(&setup));
                }
                0
            });
            let status = vswap_sys::process::wait(child.expect("fork")).expect("wait");
            println!("test {name} ... {}", if status.success() { "ok" } else { "FAILED" });
            *(if status.success() { &mut passed } else { &mut failed }) += 1;
        }
    }
    println!(
        "test result: {}. {passed} passed; {failed} failed; 0 ignored",
        if failed == 0 { "ok" } else { "FAILED" }
    );
    assert_eq!(failed, 0, "see above");
}
