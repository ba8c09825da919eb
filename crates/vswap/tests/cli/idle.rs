//! What an idle program costs.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::harness::{PATIENCE, within};
use crate::holder::{HOLDER, Holder};

/// How often the threads of a process have gone to sleep.
fn sleeps(pid: u64) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.map_or(0, |count| count.trim().parse::<u64>().unwrap())
        })
        .sum()
}

/// At its limit, too, with most of it away. (It was 225 a second before the governor knew of idle programs.)
#[test]
fn the_pager_of_an_idle_program_rests() {
    let run = Holder::with(&["--quiet", "--memory", "40M"], HOLDER);
    assert!(within(PATIENCE, || run.status()["summary"]["evictions"].as_u64() > Some(0)));
    let pager = run.status()["pager"].as_u64().unwrap();
    let mut seen = Vec::new();
    let rests = within(PATIENCE, || {
        let before = sleeps(pager);
        thread::sleep(Duration::from_secs(2));
        seen.push((sleeps(pager) - before) / 2);
        seen.last() < Some(&60)
    });
    assert!(rests, "wake-ups a second: {seen:?}");
    run.finish();
}
