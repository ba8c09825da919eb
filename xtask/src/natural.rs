//! What a program takes and prints when it is left alone; measured once, then remembered.

use crate::cgroup::Group;
use crate::command::{Run, tail};
use crate::sample;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
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

/// Anonymous memory of the processes with a mark in their environment, in bytes, when there is no control group to
/// ask; what processes share counts for each.
fn of_marked(marker: &str) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(environment) = std::fs::read(path.join("environ")) else { continue };
        if !environment.windows(marker.len()).any(|w| w == marker.as_bytes()) {
            continue;
        }
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        sum += line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0)
            * 1024;
    }
    sum
}

fn without_group(run: &Run) -> Result<(crate::command::Outcome, u64), String> {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let marker = format!("VSWAP_XTASK_RUN={}", std::process::id());
    let mut run = run.clone();
    let (key, value) = marker.split_once('=').expect("it has a sign");
    run.env.push((key.to_owned(), value.to_owned()));
    let (stop, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(of_marked(&marker), Ordering::Relaxed);
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
            let outcome = sample::watch(&run, &group, 0, Duration::from_millis(5))?;
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
