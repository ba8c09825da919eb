//! Programs that no agent can be put into, and what goes wrong while one is: the program is as without us, and named; the pager's
//! death in between is the program's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::deaths::{KILL, dies_at};
use crate::harness::{Scratch, assert_code, compiled, is_root, output, quiet, run, stderr, stdout, vswap};
use crate::static_programs::{built, paged_within, text};

/// A program without a loader: sleeps for this many seconds, then `exit(7)`.
fn static_program(seconds: u64) -> Vec<u8> {
    let mut elf = vec![0_u8; 0x80];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 2; // ET_EXEC
    elf[18] = 62; // x86-64
    elf[20] = 1;
    elf[24..32].copy_from_slice(&0x40_0078_u64.to_le_bytes()); // entry
    elf[32] = 64; // program headers
    elf[52] = 64;
    elf[54] = 56;
    elf[56] = 1;
    elf[64] = 1; // PT_LOAD
    elf[68] = 5; // r-x
    elf[80..88].copy_from_slice(&0x40_0000_u64.to_le_bytes());
    elf[88..96].copy_from_slice(&0x40_0000_u64.to_le_bytes());
    elf.truncate(0x78);
    // lea rdi, [rip + 28]; xor esi, esi; mov eax, 35 (nanosleep); syscall
    elf.extend_from_slice(&[0x48, 0x8d, 0x3d, 28, 0, 0, 0, 0x31, 0xf6, 0xb8, 35, 0, 0, 0, 0x0f, 0x05]);
    // mov edi, 7; mov eax, 60 (exit); syscall; and the time follows, aligned
    elf.extend_from_slice(&[0xbf, 7, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    elf.resize(0x78 + 35, 0x90);
    elf.extend_from_slice(&seconds.to_le_bytes());
    elf.extend_from_slice(&[0; 8]);
    let size = (elf.len() as u64).to_le_bytes();
    elf[96..104].copy_from_slice(&size);
    elf[104..112].copy_from_slice(&size);
    elf[113] = 0x10; // alignment 0x1000
    elf
}

#[test]
fn a_static_program_that_leaves_at_once_is_no_race() {
    let dir = Scratch::new();
    let program = dir.program("static", &static_program(0));
    for _ in 0..20 {
        assert_code(&run(&[text(&program)]), 7);
    }
    assert_code(&run(&["--allow-unpaged", text(&program)]), 7);
}

#[test]
fn killed_in_the_middle_of_an_entry_the_pager_takes_everything_along() {
    // One static program after the other, each of which forks by the bare system call: entered at exec and late. Counted for
    // each entry, the calls are: seize, interrupt, after the exec; taking over; mmap and clone; giving back; the library's
    // mappings, made by our own thread; letting go.
    let dir = Scratch::new();
    let program = built(&dir, "cc");
    let script = "while :; do \"$0\" 4 raw || echo WRONG; done >/dev/null";
    for nth in ["1", "2", "4", "6", "9", "13", "16", "19", "22", "26", "31", "38", "50", "60"] {
        dies_at("ptrace", nth, KILL, &["sh", "-c", script, text(&program)], Path::new(""));
    }
}

#[test]
fn where_ptrace_is_refused_a_static_program_needs_permission_to_run_unpaged() {
    assert!(is_root(), "without no_new_privs only root sets the filter");
    let dir = Scratch::new();
    let (filter, program) = (compiled(&dir, "container.c"), built(&dir, "cc"));
    let json = dir.file("run.json");
    let under = |words: &[&str]| {
        let mut command = Command::new(&filter);
        command.args([
            "untraced",
            env!("CARGO_BIN_EXE_vswap"),
            "run",
            "--memory",
            "64M",
            "--quiet",
            "--json",
        ]);
        command.arg(&json).args(words).env_remove("VSWAP_SESSION").env_remove("LD_PRELOAD");
        let done = output(command.stdin(Stdio::null()));
        let run: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        (done, run)
    };
    let (done, _) = under(&[text(&program), "8", "rest"]);
    assert_code(&done, 125);
    for word in ["may not put one in by ptrace", "--allow-unpaged"] {
        assert!(stderr(&done).contains(word), "{}", stderr(&done));
    }
    // A child runs as ever.
    for words in [
        &["--allow-unpaged", text(&program), "8", "rest"][..],
        &["sh", "-c", "\"$0\" 8 rest; exit $?", text(&program)],
    ] {
        let (done, run) = under(words);
        assert_code(&done, 0);
        assert_eq!(stdout(&done), "ok\n");
        let unpaged = run["summary"]["unpaged"].as_array().unwrap();
        let named = |process: &Value| {
            process["name"] == "cc" && process["reason"].as_str().unwrap().contains("by ptrace")
        };
        assert!(unpaged.iter().any(named), "{unpaged:?}");
    }
}

#[test]
fn who_cannot_see_the_library_is_named() {
    assert!(is_root(), "roots are changed by root");
    let dir = Scratch::new();
    built(&dir, "cc");
    let json = dir.file("run.json");
    let mut command = quiet();
    command.arg("--json").arg(&json).args(["chroot", text(dir.path()), "/cc", "8", "rest"]);
    let done = output(&mut command);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "ok\n");
    let run: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let unpaged = run["summary"]["unpaged"].as_array().unwrap();
    let named =
        |process: &Value| process["name"] == "cc" && process["reason"].as_str().unwrap().contains("chroot");
    assert!(unpaged.iter().any(named), "{unpaged:?}");
}

/// Whether a summary names this program as unpaged because of a debugger.
fn is_left_to_its_debugger(summary: &Value, name: &str) -> bool {
    let named =
        |process: &Value| process["name"] == name && process["reason"].as_str().unwrap().contains("debugger");
    summary["unpaged"].as_array().unwrap().iter().any(named)
}

#[test]
fn a_dynamic_program_is_paged_under_strace() {
    let dir = Scratch::new();
    let (program, trace) = (compiled(&dir, "fixed.c"), dir.file("trace"));
    paged_within("32M", &dir, &["strace", "-f", "-o", text(&trace), text(&program), "64", "rest"], 1);
    let trace = fs::read_to_string(trace).unwrap();
    assert!(trace.contains("+++ exited with 0 +++"), "{trace}");
}

#[test]
fn strace_keeps_the_static_children_of_what_it_follows() {
    let dir = Scratch::new();
    let (program, trace, json) = (built(&dir, "cc"), dir.file("trace"), dir.file("run.json"));
    let script = "\"$0\" 8 rest raw; exit $(($? + 3))";
    let mut command = quiet();
    command.arg("--json").arg(&json).args(["strace", "-f", "-o", text(&trace), "sh", "-c", script]);
    let done = output(command.arg(&program));
    assert_code(&done, 3);
    assert_eq!(stdout(&done), "ok\n");
    // All of them: what it forks as well, of which each verifies what it inherited.
    let trace = fs::read_to_string(trace).unwrap();
    assert!(trace.matches("+++ exited with 0 +++").count() >= 5, "{trace}");
    let run: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert!(is_left_to_its_debugger(&run["summary"], "cc"), "{run}");
}

#[test]
fn gdb_runs_dynamic_programs_paged_and_static_ones_as_they_are() {
    let dir = Scratch::new();
    let json = dir.file("run.json");
    for (program, is_static) in [(compiled(&dir, "fixed.c"), false), (built(&dir, "cc"), true)] {
        let mut command = vswap();
        command.args(["run", "--memory", "96M", "--quiet", "--json"]).arg(&json);
        command.args([
            "gdb",
            "-nx",
            "-batch",
            "-ex",
            "break puts",
            "-ex",
            "run",
            "-ex",
            "bt",
            "-ex",
            "cont",
            "--args",
        ]);
        let done = output(command.args([text(&program), "128", "rest"]));
        assert_code(&done, 0);
        let said = stdout(&done);
        assert!(said.contains("in main ()") && said.contains("exited normally"), "{said} {}", stderr(&done));
        assert!(said.contains("\nok\n"), "{said}");
        let run: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        let summary = &run["summary"];
        let name = program.file_name().unwrap().to_str().unwrap();
        assert_eq!(is_left_to_its_debugger(summary, name), is_static, "{summary}");
        assert!(is_static || summary["evictions"].as_u64().unwrap() > 1024, "{summary}");
    }
}

#[test]
fn a_debugger_keeps_its_static_program() {
    let dir = Scratch::new();
    let (program, trace) = (dir.program("traced", &static_program(2)), dir.file("trace"));
    let json = dir.file("run.json");
    let mut command = quiet();
    command.arg("--json").arg(&json).args(["strace", "-o", text(&trace), text(&program)]);
    assert_code(&output(&mut command), 7);
    let trace = fs::read_to_string(trace).unwrap();
    let calls: Vec<&str> = trace.lines().filter_map(|line| line.split('(').next()).collect();
    assert_eq!(calls, ["execve", "nanosleep", "exit", "+++ exited with 7 +++"], "{trace}");
    let run: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert!(is_left_to_its_debugger(&run["summary"], "traced"), "{run}");
}

#[test]
fn a_set_user_id_program_runs_with_its_rights_and_is_named() {
    // Only root can make such a file, and see a difference.
    if !is_root() {
        return;
    }
    let dir = Scratch::new();
    let program = dir.program("other", &static_program(1));
    std::os::unix::fs::chown(&program, Some(12345), None).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let json = dir.file("run.json");
    let script = "\"$0\" & sleep 0.5; grep ^Uid: /proc/$!/status; wait $!; exit $(($? + 1))";
    let mut command = quiet();
    command.arg("--json").arg(&json).args(["sh", "-c", script]).arg(&program);
    let done = output(&mut command);
    assert_code(&done, 8);
    assert_eq!(
        stdout(&done).split_whitespace().collect::<Vec<_>>(),
        ["Uid:", "0", "12345", "12345", "12345"]
    );
    let run: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let unpaged = run["summary"]["unpaged"].as_array().unwrap();
    let named = |process: &Value| {
        process["name"] == "other" && process["reason"].as_str().unwrap().contains("set-user-id")
    };
    assert!(unpaged.iter().any(named), "{unpaged:?}");
}
