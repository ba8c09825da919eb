//! Memory of a run as seen from outside: sampled from its control group every few milliseconds.
//!
//! What `--memory` promises is the anonymous memory of the tree and all of ours. The group's anonymous memory has
//! both, but for the pager's shared memory (rings, pool), which is read from the pager's own status.

use crate::args::Args;
use crate::cgroup::{Cpu, Group};
use crate::command::{Outcome, Run};
use crate::{size, workspace};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What the sampler saw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sampled {
    /// Highest sum of anonymous memory and the pager's shared memory, in bytes.
    pub(crate) peak: u64,
    /// The largest sample over the limit, and the time spent there.
    pub(crate) over: u64,
    pub(crate) over_time: Duration,
    /// The longest stretch over the limit.
    pub(crate) longest: Duration,
    pub(crate) samples: u64,
    pub(crate) cpu: Cpu,
}

/// How often a run is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Runs a command whose words put it, or the part of it that matters, into the group, and samples the group and the
/// memory that it is not charged for. `limit` 0: none.
pub(crate) fn watch(
    run: &Run,
    group: &Group,
    limit: u64,
    uncharged: &(dyn Fn() -> u64 + Sync),
) -> Result<(Outcome, Sampled), String> {
    let stop = AtomicBool::new(false);
    let (outcome, mut sampled) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(group, limit, uncharged, &stop));
        let outcome = run.run();
        // The pager may outlive the command by a moment; its processor time belongs to the run.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !group.processes().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
        (outcome, sampler.join().expect("the sampler does not panic"))
    });
    sampled.cpu = group.cpu();
    Ok((outcome?, sampled))
}

fn sample(group: &Group, limit: u64, uncharged: &dyn Fn() -> u64, stop: &AtomicBool) -> Sampled {
    let mut seen = Sampled::default();
    let mut pager = None;
    let mut last = Instant::now();
    let mut stretch = Duration::ZERO;
    let mut tick = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        if pager.is_none() && tick.is_multiple_of(8) {
            pager = group.processes().into_iter().find(|pid| name(*pid) == "vswap-pager");
        }
        tick = tick.wrapping_add(1);
        let total = group.anonymous() + pager.map_or(0, shared) + uncharged();
        let now = Instant::now();
        seen.peak = seen.peak.max(total);
        seen.samples += 1;
        if limit != 0 && total > limit {
            seen.over = seen.over.max(total - limit);
            seen.over_time += now - last;
            stretch += now - last;
            seen.longest = seen.longest.max(stretch);
        } else {
            stretch = Duration::ZERO;
        }
        last = now;
        std::thread::sleep(INTERVAL);
    }
    seen
}

fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Shared memory that a process has mapped, in bytes.
fn shared(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssShmem:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// `cargo xtask sample [--limit SIZE] -- CMD…`
pub(crate) fn main(words: Vec<String>) -> Result<bool, String> {
    let mut args = Args::new(words);
    let limit = args.value("--limit")?.map_or(Ok(0), |text| size::parse(&text))?;
    let command = std::mem::take(&mut args.command);
    args.done()?;
    if command.is_empty() {
        return Err("sample wants a command after --".to_owned());
    }
    let group = Group::new()?;
    let scratch = workspace::scratch()?;
    let command = Run {
        words: [group.prefix(), command].concat(),
        env: vec![],
        stdout: scratch.join("sample.out"),
        stderr: scratch.join("sample.err"),
        timeout: Duration::from_secs(3600),
    };
    let (out, err) = (command.stdout.clone(), command.stderr.clone());
    let (outcome, seen) = watch(&command, &group, limit, &|| 0)?;
    for (file, to_stdout) in [(out, true), (err, false)] {
        let text = String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
        if to_stdout {
            print!("{text}");
        } else {
            eprint!("{text}");
        }
    }
    println!(
        "status {}, {:.2} s, user {:.2} s, system {:.2} s, highest memory {} ({} samples)",
        outcome.status,
        outcome.wall.as_secs_f64(),
        seen.cpu.user,
        seen.cpu.system,
        size::mib(seen.peak),
        seen.samples
    );
    if limit != 0 {
        println!(
            "over {}: by {} at most, {:.2} s in all, {:.2} s at a stretch",
            size::mib(limit),
            size::mib(seen.over),
            seen.over_time.as_secs_f64(),
            seen.longest.as_secs_f64()
        );
    }
    Ok(outcome.status == 0)
}
