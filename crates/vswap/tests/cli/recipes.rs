//! What the README tells to copy.

use std::fs;
use std::process::Command;

use crate::harness::{Scratch, output, stderr};

/// The one block of the README in this language.
fn block(language: &str) -> String {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let start = format!("```{language}\n");
    let mut blocks = readme.split(&start).skip(1).map(|rest| rest.split("```").next().unwrap());
    let block = blocks.next().unwrap_or_else(|| panic!("no {language} in the README"));
    assert_eq!(blocks.next(), None);
    block.to_owned()
}

#[test]
fn systemd_accepts_the_unit() {
    let dir = Scratch::new();
    // It looks whether the program is there.
    let unit = block("ini").replace("/usr/local/bin/vswap", env!("CARGO_BIN_EXE_vswap"));
    fs::write(dir.file("job.service"), &unit).unwrap();
    let verified = output(Command::new("systemd-analyze").arg("verify").arg(dir.file("job.service")));
    assert!(verified.status.success() && verified.stderr.is_empty(), "{}", stderr(&verified));
    // And it would have found a mistake.
    fs::write(dir.file("wrong.service"), unit.replace("KillMode=mixed", "KillMode=none-such")).unwrap();
    let verified = output(Command::new("systemd-analyze").arg("verify").arg(dir.file("wrong.service")));
    assert!(!verified.stderr.is_empty());
}

#[test]
fn options_of_the_recipes_exist() {
    // Everything after `vswap` up to CMD is parsed; the program is another.
    for line in block("yaml").lines().chain(block("ini").lines()) {
        let Some((_, words)) = line.split_once("vswap run ") else { continue };
        let options = words.split_once("--json").unwrap().0;
        let mut command = crate::harness::vswap();
        command.arg("run").args(options.split_whitespace()).args(["--quiet", "true"]);
        let done = output(&mut command);
        assert!(done.status.success(), "{line}: {}", stderr(&done));
    }
}
