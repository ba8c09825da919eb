//! Programs without a dynamic loader: as CMD, as children, with children of their own, under a debugger.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{
    PATIENCE, Scratch, assert_code, collect_within, compiled, is_root, output, program, quiet, run, stderr,
    stdout, vswap,
};

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

/// `tests/programs/fixed.c` by this compiler, linked statically.
fn built(dir: &Scratch, compiler: &str) -> PathBuf {
    let binary = dir.file(compiler);
    let status =
        Command::new(compiler).args(["-O2", "-static", "-o"]).arg(&binary).arg(program("fixed.c")).status();
    assert!(status.expect("a C compiler").success(), "{compiler}");
    binary
}

/// Runs it within half the memory of one process, and gives the summary. All is right, and `paged` programs were paged.
fn paged_within_half(dir: &Scratch, words: &[&str], paged: u64) -> serde_json::Value {
    let json = dir.file("run.json");
    let mut command = vswap();
    command.args(["run", "--memory", "32M", "--quiet", "--json"]).arg(&json).args(words);
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
    assert!(evictions > paged * 8192, "{evictions} evictions of {paged} programs");
    summary
}

/// The same, and the agent was put into each of them.
fn within_half(dir: &Scratch, words: &[&str], paged: u64) -> serde_json::Value {
    let summary = paged_within_half(dir, words, paged);
    assert!(summary["entered"].as_u64().unwrap() >= paged, "{summary}");
    summary
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_static_program_is_paged_like_any_other() {
    let dir = Scratch::new();
    for compiler in ["cc", "musl-gcc"] {
        within_half(&dir, &[text(&built(&dir, compiler)), "64", "rest"], 1);
    }
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
    let run: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let unpaged = run["summary"]["unpaged"].as_array().unwrap();
    let named = |process: &serde_json::Value| {
        process["name"] == "cc" && process["reason"].as_str().unwrap().contains("chroot")
    };
    assert!(unpaged.iter().any(named), "{unpaged:?}");
}

/// Whether a summary names this program as unpaged because of a debugger.
fn is_left_to_its_debugger(summary: &serde_json::Value, name: &str) -> bool {
    let named = |process: &serde_json::Value| {
        process["name"] == name && process["reason"].as_str().unwrap().contains("debugger")
    };
    summary["unpaged"].as_array().unwrap().iter().any(named)
}

#[test]
fn a_dynamic_program_is_paged_under_strace() {
    let dir = Scratch::new();
    let (program, trace) = (compiled(&dir, "fixed.c"), dir.file("trace"));
    paged_within_half(&dir, &["strace", "-f", "-o", text(&trace), text(&program), "64", "rest"], 1);
    let trace = fs::read_to_string(trace).unwrap();
    assert!(trace.contains("+++ exited with 0 +++"), "{trace}");
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
        let run: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        let summary = &run["summary"];
        let name = program.file_name().unwrap().to_str().unwrap();
        assert_eq!(is_left_to_its_debugger(summary, name), is_static, "{summary}");
        assert!(is_static || summary["evictions"].as_u64().unwrap() > 8192, "{summary}");
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
    let run: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
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
    let run: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let unpaged = run["summary"]["unpaged"].as_array().unwrap();
    let named = |process: &serde_json::Value| {
        process["name"] == "other" && process["reason"].as_str().unwrap().contains("set-user-id")
    };
    assert!(unpaged.iter().any(named), "{unpaged:?}");
}
