//! `--max-stall`: a program that crawls is ended if its user wants that, and only then.

use std::process::{Child, Stdio};

use serde_json::Value;

use crate::harness::{Scratch, assert_code, collect, stderr, stdout, vswap};

/// 80 MiB, touched at random for some seconds.
const CRAWLS: &str = "import os, random, sys, time
pages = [os.urandom(2048) * 2 for _ in range(20000)]
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for page in random.choices(pages, k=1000):
        assert page[0] == page[2048]
print('done')";

fn crawls(options: &[&str], seconds: &str) -> Child {
    let mut command = vswap();
    command.args(["run", "--quiet", "--memory", "40M"]).args(options);
    command.args(["--", "python3", "-c", CRAWLS, seconds]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_program_that_crawls_is_ended_if_its_user_wants_that() {
    let dir = Scratch::new();
    let json = dir.file("run.json");
    // Longer than the ten seconds that are looked at.
    let free = crawls(&["--json", json.to_str().unwrap()], "13");
    let bound = crawls(&["--max-stall", "3"], "1000");
    let bound = collect(bound);
    assert_code(&bound, 125);
    let text = stderr(&bound);
    assert!(text.contains("more than --max-stall 3") && text.contains("--memory"), "{text}");
    let free = collect(free);
    assert_code(&free, 0);
    assert_eq!(stdout(&free), "done\n");
    let figures: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let ms = |name: &str| figures["summary"][name].as_u64().unwrap();
    assert!(ms("stalled_some_ms") > ms("wall_ms") * 3 / 100, "{figures}");
    assert!(ms("stalled_some_ms") <= ms("wall_ms"), "{figures}");
}
