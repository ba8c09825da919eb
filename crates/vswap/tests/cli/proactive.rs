//! `--proactive`: what a program does not use leaves far below its limit, and only if its user wants that.

use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Scratch, assert_code, collect, stdout, vswap};

/// 64 MiB that nobody looks at for a while, beside a loop that goes on.
const COLD: &str = "import os, sys, time, zlib
pages = [os.urandom(2048) * 2 for _ in range(16000)]
sums = [zlib.crc32(page) for page in pages]
def resident():
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('RssAnon'))
whole = resident()
end = time.monotonic() + float(sys.argv[1])
while resident() > whole / 2 and time.monotonic() < end:
    time.sleep(0.05)
print('left' if resident() <= whole / 2 else 'stayed')
print(sums == [zlib.crc32(page) for page in pages])";

#[test]
fn what_is_cold_leaves_below_the_limit_if_that_is_wanted() {
    let run = |options: &[&str], seconds: &str, json: &str| {
        let mut command = vswap();
        command.args(["run", "--quiet", "--memory", "1G", "--json", json]).args(options);
        command.args(["--", "python3", "-c", COLD, seconds]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let dir = Scratch::new();
    let (with, without) = (dir.file("with.json"), dir.file("without.json"));
    let asked = run(&["--proactive"], "150", with.to_str().unwrap());
    let left_alone = run(&[], "10", without.to_str().unwrap());
    for (child, json, outcome) in [(left_alone, without, "stayed"), (asked, with, "left")] {
        let output = collect(child);
        assert_code(&output, 0);
        assert_eq!(stdout(&output), format!("{outcome}\nTrue\n"));
        let figures: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        let evictions = figures["summary"]["evictions"].as_u64().unwrap();
        assert_eq!(evictions >= 8000, outcome == "left", "{figures}");
        assert!(outcome == "left" || evictions == 0, "{figures}");
    }
}
