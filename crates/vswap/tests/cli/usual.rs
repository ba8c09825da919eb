//! What programs do beside mapping and touching memory: `tests/programs/usual` on memory that has left, check by check.
//!
//! Each check says how many of its pages were away before each step; so a run in which nothing left is a failure.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Scratch, assert_code, collect_within, compiled, output, stderr, stdout, vswap};

/// MiB that a check goes over to drive 4 to 8 MiB out, and the limit.
const BALLAST: &str = "24";
const LIMIT: &str = "20M";
/// Enough for a machine with ten times too much to do.
const TIME: Duration = Duration::from_secs(240);

/// Runs the check; all steps but those that begin with one of `resident` must have found most pages away.
#[track_caller]
fn check(name: &str, resident: &[&str]) {
    let dir = Scratch::new();
    let usual = compiled(&dir, "usual");
    let mut command = vswap();
    command.args(["run", "--quiet", "--memory", LIMIT]).arg(&usual).args([BALLAST, name]);
    let done = collect_within(TIME, command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let said = stderr(&done);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), format!("{name} ok\n"));
    let mut steps = 0;
    for line in said.lines().filter_map(|line| line.strip_prefix("usual: ")) {
        let (step, rest) = line.rsplit_once(": ").unwrap();
        let away: u32 = rest.split(' ').next().unwrap().parse().unwrap();
        assert!(away >= 512 || resident.iter().any(|start| step.starts_with(start)), "{said}");
        steps += 1;
    }
    assert!(steps > 0, "{said}");
}

#[test]
fn io_uring_reads_and_writes_what_is_away_and_pins_what_it_registers() {
    check("uring", &[]);
}

#[test]
fn direct_io_and_borrowed_pages_hold_what_they_should() {
    check("direct", &[]);
    check("vmsplice", &[]);
    check("remote", &[]);
}

#[test]
fn shared_memory_of_all_kinds_stays_shared() {
    check("memfd", &[]);
    check("shm", &[]);
}

#[test]
fn names_dumpability_and_limits_may_change() {
    check("prctl", &[]);
}

#[test]
fn a_program_may_have_a_userfaultfd_of_its_own() {
    // What the program gave up, the pager finds when it looks the next time.
    check("userfaultfd", &["userfaultfd afterwards"]);
}

#[test]
fn locked_and_droppable_memory_is_what_the_kernel_makes_of_it() {
    check("locked", &["unlocked"]);
    check("droppable", &[]);
}

#[test]
fn another_root_and_closed_descriptors_take_nothing_away() {
    check("chroot", &[]);
    check("descriptors", &[]);
}

#[test]
fn children_of_a_stack_that_has_left_start() {
    check("deepfork", &[]);
}

#[test]
fn a_filter_of_a_threads_own_is_kept() {
    check("filter", &[]);
}

/// Each such filter would end the agent, or whoever sets one up in a child: the program goes on without, and right, children by
/// fork and what it executes included.
#[test]
fn filters_for_all_threads_end_nobody() {
    for action in ["kill-process", "kill-thread", "trap", "errno", "by-int80"] {
        check(&format!("all-{action}"), &[]);
    }
}

/// Whose filter comes while an agent is being put in: to what it executes, at its exec; to its children by the bare system
/// call, some time later.
#[test]
fn a_filter_for_all_threads_and_an_entry_do_not_meet() {
    let dir = Scratch::new();
    for options in [&["-pthread"][..], &["-pthread", "-static"]] {
        let program = dir.file("entered");
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-o"]).arg(&program).arg(crate::harness::program("entered.c")).args(options);
        assert!(cc.status().expect("a C compiler").success());
        for way in ["clone", "exec"] {
            let mut command = vswap();
            command.args(["run", "--quiet", "--memory", LIMIT]).arg(&program).args([way, "20"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let done = collect_within(TIME, command.spawn().unwrap());
            assert_code(&done, 0);
            assert_eq!(stdout(&done), "ok\n");
        }
    }
}

#[test]
fn a_filter_ends_no_child_that_its_program_may_have() {
    check("own-kill-process", &[]);
}

#[test]
fn each_check_notices_damage() {
    let dir = Scratch::new();
    let usual = compiled(&dir, "usual");
    for name in [
        "uring",
        "direct",
        "vmsplice",
        "remote",
        "memfd",
        "shm",
        "prctl",
        "userfaultfd",
        "locked",
        "droppable",
        "chroot",
        "deepfork",
        "descriptors",
        "filter",
        "all-trap",
        "own-kill-process",
    ] {
        let done = output(Command::new(&usual).args(["-x", "1", name]));
        assert_code(&done, 1);
        assert!(stderr(&done).contains("WRONG"), "{name}: {}", stderr(&done));
    }
}
