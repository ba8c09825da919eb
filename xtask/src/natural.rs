//! What a program takes and prints when it is left alone; measured once, then remembered.

use crate::cgroup::Group;
use crate::command::{Outcome, Run, tail};
use crate::sample;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A plain run.
#[derive(Clone, Debug)]
pub(crate) struct Natural {
    /// Highest anonymous memory of its processes, in bytes.
    pub(crate) peak: u64,
    pub(crate) seconds: f64,
    pub(crate) status: i32,
    /// The file that holds its standard output.
    pub(crate) stdout: PathBuf,
}

/// Anonymous memory of all our descendants, in bytes, when there is no control group to ask: a page that n processes
/// share counts 1/n for each.
fn of_descendants() -> u64 {
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let mut parents = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_string_lossy().parse().ok() else { continue };
        let parent = stat(pid).and_then(|s| s.rsplit_once(')')?.1.split(' ').nth(2)?.parse().ok());
        parents.insert(pid, parent.unwrap_or(0));
    }
    let ours = |pid: u32| {
        std::iter::successors(Some(pid), |p| parents.get(p).copied()).any(|p| p == std::process::id())
    };
    let mut sum = 0;
    for &pid in parents.keys().filter(|&&pid| pid != std::process::id() && ours(pid)) {
        let memory = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = memory.lines().find_map(|l| l.strip_prefix("Pss_Anon:"));
        sum += line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0)
            * 1024;
    }
    sum
}

fn without_group(run: &Run) -> Result<(Outcome, u64), String> {
    let (stop, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(of_descendants(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let outcome = run.run();
        stop.store(true, Ordering::Relaxed);
        outcome
    })
    .map(|outcome| (outcome, peak.load(Ordering::Relaxed)))
}

/// Runs what `build` makes of a prefix, or remembers it. The prefix goes where vswap would go, so that a client which
/// starts a server is not measured itself.
pub(crate) fn measure(
    name: &str,
    dir: &Path,
    build: &dyn Fn(&[String]) -> Run,
    sources: &[PathBuf],
) -> Result<Natural, String> {
    let plain = build(&[]);
    let mut hasher = DefaultHasher::new();
    plain.words.hash(&mut hasher);
    for source in sources {
        std::fs::read(source).unwrap_or_default().hash(&mut hasher);
    }
    let stem = dir.join(format!("natural-{name}-{:016x}", hasher.finish()));
    let (figures, stdout) = (stem.with_extension("json"), stem.with_extension("out"));
    if let Some(known) = recall(&figures, &stdout) {
        return Ok(known);
    }
    let file = |run: Run| Run { stdout: stdout.clone(), stderr: stem.with_extension("err"), ..run };
    let (outcome, peak) = match Group::new() {
        Ok(group) => {
            let run = file(build(&group.prefix()));
            let outcome = sample::watch(&run, &group, 0, &|| 0)?;
            (outcome.0, outcome.1.peak)
        }
        Err(_) => without_group(&file(plain))?,
    };
    if outcome.timed_out || outcome.status != 0 {
        let how =
            if outcome.timed_out { "does not end".to_owned() } else { format!("status {}", outcome.status) };
        return Err(format!("without vswap: {how}\n{}", tail(&stem.with_extension("err"), 12)));
    }
    let natural = Natural { peak, seconds: outcome.wall.as_secs_f64(), status: outcome.status, stdout };
    let text =
        serde_json::json!({"peak": natural.peak, "seconds": natural.seconds, "status": natural.status});
    std::fs::write(&figures, text.to_string()).map_err(|e| format!("{}: {e}", figures.display()))?;
    Ok(natural)
}

fn recall(figures: &Path, stdout: &Path) -> Option<Natural> {
    let value: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(figures).ok()?).ok()?;
    stdout.is_file().then_some(())?;
    Some(Natural {
        peak: value["peak"].as_u64()?,
        seconds: value["seconds"].as_f64()?,
        status: i32::try_from(value["status"].as_i64()?).ok()?,
        stdout: stdout.to_owned(),
    })
}
