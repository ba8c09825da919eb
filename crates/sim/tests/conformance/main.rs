//! Conformance: each row of what is known of the kernel is one small history, run on the simulated kernel and on the
//! real one with the same assertions. What they say differently is a fault of the simulation.
//!
//! Each row runs in a child process of its own, so that a userfaultfd sees nobody else's forks.
//!
//! # The notes, row by row
//!
//! Section 2, who can do what (no table, but a sentence for each answer):
//!
//! | the notes | here |
//! | --- | --- |
//! | the pager can REGISTER, COPY, ZEROPAGE, WRITEPROTECT, and not MOVE | `processes.rs`: commands on another process; what each answers: `commands.rs` |
//! | WAKE; UNREGISTER | `commands.rs`: WAKE brings nothing; MOVE to staging that is not registered |
//! | PAGEMAP_SCAN, PROCMAP_QUERY | `commands.rs`: the rows of those names |
//! | MADV_POPULATE_WRITE by the agent | `processes.rs`: the row of that name |
//! | MOVE: EAGAIN while a change is under way | `assert_counted` in the rows of `changes.rs` |
//! | MOVE: EBUSY, pinned; shared by fork, even when the child is dead | `commands.rs`: MOVE of what is pinned; `processes.rs`: MOVE of what a fork shares |
//! | MOVE: ENOENT, a hole; EEXIST | `commands.rs`: MOVE and a hole, MOVE to where something is |
//! | MOVE: EINVAL, read-only, mlocked, RWX, shared, crosses a mapping, other address space | `commands.rs`: MOVE of read-only.., of executable..; `processes.rs`: commands on another process |
//! | MOVE out of an unregistered mapping succeeds, the program reads zeros | `commands.rs`: the row of that name |
//! | POISON, process_vm_readv | the protocol has no command for either |
//! | MOVE says less than it did | no small history: a race that the kernel loses in one call of 5,000. `--without staging-truth` shows what believing it costs |
//!
//! Section 3, events:
//!
//! | form | here |
//! | --- | --- |
//! | munmap, MAP_FIXED over | `changes.rs`: munmap (two rows), several mappings in one munmap, MAP_FIXED over |
//! | MADV_DONTNEED, MADV_FREE | `changes.rs`: MADV_DONTNEED, MADV_FREE, several mappings in one DONTNEED |
//! | mremap grow in place | `changes.rs`: mremap grows in place |
//! | mremap move, with or without growth | `changes.rs`: mremap moves, of a part, grows and moves, FIXED and longer |
//! | mremap FIXED and shrink | `changes.rs`: mremap FIXED and shorter, shrinks in place |
//! | mremap FIXED onto a registered range | `changes.rs`: the row of that name |
//! | unregistered moved onto registered | `changes.rs`: mremap of what is not registered (two rows) |
//! | DONTUNMAP | `changes.rs`: mremap DONTUNMAP |
//! | fork | `processes.rs`: fork (two rows) |
//! | brk | `processes.rs`: brk |
//! | stack growth | `changes.rs`: a stack grows |
//! | mmap, mprotect | `changes.rs`: mmap, mprotect, mlock |
//! | vfork, posix_spawn | `processes.rs`: vfork and posix_spawn |
//! | exec, exit | `processes.rs`: exec, exit |
//! | MADV_GUARD_INSTALL | `commands.rs`: guard pages |
//!
//! and what is said below that table:
//!
//! | the notes | here |
//! | --- | --- |
//! | faults are read before events | `commands.rs`: the row of that name |
//! | a killed CLONE_VM child loses its UNMAP | `processes.rs`: a child on our memory (two rows) |
//! | a move of several mappings, one of them registered | `changes.rs`: mremap of several mappings |
//! | the count refuses COPY, ZEROPAGE, WRITEPROTECT, MOVE, and not REGISTER | `assert_counted`; `commands.rs`: REGISTER is not refused |
//! | REGISTER over a hole | `commands.rs`: REGISTER takes a range with a hole |
//! | events do not come in the order of their changes | `changes.rs`: the row of that name |
//!
//! The second table of section 3 compares rules of a pager, not the kernel's. Its rows are tests of the simulation:
//! "apply each event when read" is `tests/rules.rs`, `window`; what "debts" gets wrong is `remap_proves_source` and
//! `newest_arrival_wins`; the gate is `one_mremap`, and `with_the_gate` in `tests/clean.rs`. Generations were not built.
//!
//! No row of either section is about huge pages, and the simulation has none: there is nothing to compare.

mod changes;
mod children;
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
