//! `VSWAP_LOG`: what the pager does, line by line; nothing unless asked for.

use std::collections::BTreeSet;
use std::fs;

use crate::harness::{Scratch, assert_code, output, stderr, stdout, vswap};

/// More than the limit allows, moved, forked, and read again.
const PROGRAM: &str = "
import os, zlib
pages = [os.urandom(2048) * 2 for _ in range(12288)]
sums = [zlib.crc32(page) for page in pages]
grows = bytearray(b'x') * (1 << 20)
for _ in range(40): grows += bytes(1 << 16)
if os.fork() == 0: os._exit(0)
os.wait()
assert [zlib.crc32(page) for page in pages] == sums
print('right')";

/// What `log` had written, and what was said on standard error.
fn traced(log: &str) -> (Vec<String>, String) {
    let dir = Scratch::new();
    let file = dir.file("log");
    let mut command = vswap();
    command.args(["run", "-q", "-m", "40M", "--", "python3", "-c", PROGRAM]);
    let done = output(command.env("VSWAP_LOG", log).env("VSWAP_LOG_FILE", &file));
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "right\n");
    let text = fs::read_to_string(file).unwrap_or_default();
    (text.lines().map(String::from).collect(), stderr(&done))
}

/// The targets of some lines, each of which must have the form of one.
fn targets(lines: &[String]) -> BTreeSet<&str> {
    lines
        .iter()
        .map(|line| {
            let mut words = line.split(' ');
            let (name, time, level) = (words.next(), words.next().unwrap(), words.next().unwrap());
            assert!(name == Some("vswap") && time.parse::<f64>().is_ok(), "{line}");
            assert!(["INFO", "DEBUG", "TRACE"].contains(&level), "{line}");
            words.next().unwrap().trim_end_matches(':')
        })
        .collect()
}

#[test]
fn each_doing_has_a_target_and_nothing_is_written_unasked() {
    let (lines, said) = traced("debug,fault=trace");
    let all = targets(&lines);
    for target in ["agent", "evict", "fault", "fork", "gate", "governor", "register", "spill", "window"] {
        assert!(all.contains(target), "{target}: {all:?}");
    }
    assert_eq!(said, "");
    let (lines, _) = traced("evict=debug");
    assert_eq!(targets(&lines), BTreeSet::from(["evict"]));
    assert_eq!(traced(""), (Vec::new(), String::new()));
}

#[test]
fn without_a_file_it_goes_to_standard_error() {
    let mut command = vswap();
    let done = output(command.args(["run", "-q", "true"]).env("VSWAP_LOG", "info"));
    assert_code(&done, 0);
    assert!(stderr(&done).contains(" INFO agent: process "), "{}", stderr(&done));
}

#[test]
fn a_mistake_is_named_and_nothing_is_started() {
    for (name, value) in [("VSWAP_LOG", "window=lots"), ("VSWAP_LOG_FILE", "/no/such/dir/file")] {
        let mut command = vswap();
        let done = output(command.args(["run", "echo", "ran"]).env("VSWAP_LOG", "info").env(name, value));
        assert_code(&done, 125);
        assert!(
            stderr(&done).contains(&format!("{name}: ")) && stdout(&done).is_empty(),
            "{}",
            stderr(&done)
        );
    }
}
