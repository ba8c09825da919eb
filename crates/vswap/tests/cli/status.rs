//! Exit statuses: CMD's, and vswap's own.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::{fs, process::Command};

use crate::harness::{Scratch, assert_code, is_root, output, run, stderr, stdout, vswap};

#[test]
fn cmds_own_status_is_vswaps() {
    assert_code(&run(&["true"]), 0);
    assert_code(&run(&["false"]), 1);
    assert_code(&run(&["--", "sh", "-c", "exit 42"]), 42);
    assert_code(&run(&["sh", "-c", "exit 255"]), 255);
}

#[test]
fn a_signal_is_128_and_its_number() {
    assert_code(&run(&["sh", "-c", "kill -TERM $$"]), 128 + 15);
    assert_code(&run(&["sh", "-c", "kill -KILL $$"]), 128 + 9);
    assert_code(&run(&["sh", "-c", "ulimit -c 0; kill -SEGV $$"]), 128 + 11);
}

#[test]
fn what_cannot_be_started_is_126_or_127() {
    let dir = Scratch::new();
    let output = run(&["no-such-program-anywhere"]);
    assert_code(&output, 127);
    assert!(stderr(&output).contains("no-such-program-anywhere"));
    assert_code(&run(&["/no/such/file"]), 127);
    let plain = dir.program("plain", b"text");
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
    assert_code(&run(&[plain.to_str().unwrap()]), 126);
    assert_code(&run(&[dir.path().to_str().unwrap()]), 126);
    let lost = dir.program("lost", b"#!/no/such/interpreter\n");
    assert_code(&run(&[lost.to_str().unwrap()]), 127);
}

#[test]
fn vswaps_own_failures_are_125() {
    for words in [
        &["run"][..],
        &["run", "--memory"],
        &["run", "--memory", "lots", "true"],
        &["run", "--memory", "5MB", "true"],
        &["run", "--memory", "1000", "true"],
        &["run", "--no-such-option", "true"],
        &["run", "--json", "/no/such/dir/file", "true"],
        &["run", "--swap-dir", "/no/such/dir", "true"],
        &["run", "--swap-dir", "/dev/shm", "true"],
        &["no-such-command"],
        &[],
    ] {
        let output = output(vswap().args(words));
        assert_code(&output, 125);
        assert!(output.stdout.is_empty(), "{words:?}");
        assert!(!output.stderr.is_empty(), "{words:?}");
    }
}

/// A 32-bit program: `exit(7)`.
fn foreign_program() -> Vec<u8> {
    let mut elf = vec![0_u8; 0x54];
    elf[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    elf[16] = 2; // ET_EXEC
    elf[18] = 3; // i386
    elf[20] = 1;
    elf[24..28].copy_from_slice(&0x40_0054_u32.to_le_bytes()); // entry
    elf[28] = 52; // program headers
    elf[40] = 52;
    elf[42] = 32;
    elf[44] = 1;
    elf[52] = 1; // PT_LOAD
    elf[60..64].copy_from_slice(&0x40_0000_u32.to_le_bytes());
    elf[64..68].copy_from_slice(&0x40_0000_u32.to_le_bytes());
    elf[68] = 0x60;
    elf[72] = 0x60;
    elf[76] = 5; // r-x
    elf[81] = 0x10; // alignment 0x1000
    // mov ebx, 7; mov eax, 1 (exit); int 0x80
    elf.extend_from_slice(&[0xbb, 7, 0, 0, 0, 0xb8, 1, 0, 0, 0, 0xcd, 0x80]);
    elf
}

#[test]
fn a_foreign_program_needs_permission_to_run_unpaged() {
    let dir = Scratch::new();
    let program = dir.program("foreign", &foreign_program());
    let program = program.to_str().unwrap();
    let refused = run(&[program]);
    assert_code(&refused, 125);
    assert!(
        stderr(&refused).contains("not an x86-64 program") && stderr(&refused).contains("--allow-unpaged")
    );
    // What a kernel without 32-bit programs says is the kernel's business.
    let native = Command::new(program).status().map_or(126, |status| status.code().unwrap_or(-1));
    assert_code(&run(&["--allow-unpaged", program]), native);
}

#[test]
fn scripts_run_by_their_interpreter_or_the_shell() {
    let dir = Scratch::new();
    let script = dir.program("script", b"#!/bin/sh\necho \"first $1\"\nexit 5\n");
    let done = run(&[script.to_str().unwrap(), "word"]);
    assert_code(&done, 5);
    assert_eq!(stdout(&done), "first word\n");
    let old = dir.program("old", b"echo \"old $1\"\nexit 6\n");
    let done = run(&[old.to_str().unwrap(), "word"]);
    assert_code(&done, 6);
    assert_eq!(stdout(&done), "old word\n");
}

#[test]
fn without_permission_nothing_is_started() {
    // Another user's, if we are root; and only if this machine does not allow userfaultfd to everyone.
    let everyone =
        fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|text| text.trim() == "1");
    if !is_root() || everyone {
        return;
    }
    let dir = Scratch::new();
    let program = dir.file("vswap");
    fs::copy(env!("CARGO_BIN_EXE_vswap"), &program).unwrap();
    let mark = dir.file("started");
    let mut command = Command::new(&program);
    command.args(["run", "--allow-unpaged", "touch"]).arg(&mark).uid(65534).gid(65534);
    let refused = output(&mut command);
    assert_code(&refused, 125);
    for word in ["userfaultfd", "sudo sysctl vm.unprivileged_userfaultfd=1", "vswap doctor"] {
        assert!(stderr(&refused).contains(word), "{word}: {}", stderr(&refused));
    }
    assert!(!mark.exists());
    let doctor = output(Command::new(&program).args(["doctor"]).uid(65534).gid(65534));
    assert_code(&doctor, 1);
    assert!(stdout(&doctor).contains("MISSING"));
}
