//! The benchmark: a Python program under vswap and on the kernel's zram swap, with the same memory in all.
//!
//! The kernel's side is a memory control group limited to half of what the program wants, and zram with lz4 beside
//! it, whose memory no group is charged for. What both took together at most is what vswap gets as `--memory`.
//! Runs alternate, so that a change of the machine's mood meets both. Processor time is the whole group's: the
//! program, its children and the pager. Needs root.

use crate::args::Args;
use crate::cgroup::Group;
use crate::command::{Run, tail};
use crate::sample::{self, Sampled};
use crate::size::mib;
use crate::stats::{Spread, spread};
use crate::summary::Summary;
use crate::table::Table;
use crate::zram::Zram;
use crate::{micro, workspace};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One run of one side.
struct Measured {
    wall: f64,
    seen: Sampled,
    /// Highest memory with what the group is not charged for, in bytes.
    total: u64,
    /// vswap's own figures.
    summary: Value,
}

struct Bench {
    vswap: PathBuf,
    vswap_args: Vec<String>,
    scratch: PathBuf,
    program: Vec<String>,
    mib: u64,
    /// The plain program's output.
    expected: Vec<u8>,
}

impl Bench {
    fn run(&self, prefix: Vec<String>, group: &Group, limit: u64) -> Result<(f64, Sampled), String> {
        let run = Run {
            words: [group.prefix(), prefix, self.program.clone()].concat(),
            env: vec![],
            stdout: self.scratch.join("bench.out"),
            stderr: self.scratch.join("bench.err"),
            timeout: Duration::from_secs(1800),
        };
        let (outcome, seen) = sample::watch(&run, group, limit, Duration::from_millis(10))?;
        if outcome.timed_out || outcome.status != 0 {
            return Err(format!("status {}\n{}", outcome.status, tail(&run.stderr, 12)));
        }
        let output = std::fs::read(&run.stdout).unwrap_or_default();
        if !self.expected.is_empty() && output != self.expected {
            return Err("the output differs from the plain run's".to_owned());
        }
        Ok((outcome.wall.as_secs_f64(), seen))
    }

    fn plain(&mut self) -> Result<Measured, String> {
        let (wall, seen) = self.run(vec![], &Group::new()?, 0)?;
        self.expected = std::fs::read(self.scratch.join("bench.out")).unwrap_or_default();
        Ok(Measured { wall, seen, total: seen.peak, summary: Value::Null })
    }

    fn zram(&self, limit: u64) -> Result<Measured, String> {
        let device = Zram::new((self.mib * 2) << 20)?;
        let group = Group::new()?;
        group.limit(limit)?;
        let (wall, seen) = self.run(vec![], &group, 0)?;
        Ok(Measured { wall, seen, total: seen.peak + device.used_max(), summary: Value::Null })
    }

    fn vswap(&self, memory: u64) -> Result<Measured, String> {
        let json = self.scratch.join("bench-vswap.json");
        let words = ["run", "-m", &memory.to_string(), "--json", &json.to_string_lossy()].map(str::to_owned);
        let mut prefix = vec![self.vswap.to_string_lossy().into_owned()];
        prefix.extend(words);
        prefix.extend_from_slice(&self.vswap_args);
        prefix.push("--".to_owned());
        let (wall, seen) = self.run(prefix, &Group::new()?, memory)?;
        Ok(Measured { wall, seen, total: seen.peak, summary: Summary::read(&json)?.into_value() })
    }
}

fn over(runs: &[Measured], value: impl Fn(&Measured) -> f64) -> Spread {
    spread(&runs.iter().map(value).collect::<Vec<_>>())
}

fn report(name: &str, runs: &[Measured], table: &mut Table) -> Value {
    let wall = over(runs, |m| m.wall);
    let user = over(runs, |m| m.seen.cpu.user);
    let system = over(runs, |m| m.seen.cpu.system);
    let total = over(runs, |m| m.total as f64);
    table.row(vec![
        name.to_owned(),
        wall.to_string(),
        user.to_string(),
        system.to_string(),
        mib(total.median as u64),
        mib(total.max as u64),
    ]);
    let figures = |s: Spread| json!({"median": s.median, "min": s.min, "max": s.max});
    json!({
        "wall_s": figures(wall), "user_s": figures(user), "system_s": figures(system), "total_bytes": figures(total),
        "over_limit_bytes": runs.iter().map(|m| m.seen.over).max(),
        "over_limit_s": runs.iter().map(|m| m.seen.over_time.as_secs_f64()).fold(0.0, f64::max),
        "summaries": runs.iter().map(|m| m.summary.clone()).filter(|s| !s.is_null()).collect::<Vec<_>>(),
    })
}

/// Latency by kind, as the last run's summary has it.
fn faults(summary: &Value) -> Table {
    let mut table = Table::new(&["faults", "count", "p50 µs", "p99 µs", ""]);
    for kind in ["soft", "pool", "file", "zero"] {
        let timed = &summary["faults"][kind];
        let micros = |field: &str| format!("{:.1}", timed[field].as_f64().unwrap_or(0.0) / 1000.0);
        let count = timed["count"].as_u64().unwrap_or(0).to_string();
        table.row(vec![kind.to_owned(), count, micros("p50_ns"), micros("p99_ns"), String::new()]);
    }
    table
}

/// Both sides, alternating.
fn against_zram(bench: &mut Bench, runs: u64) -> Result<Value, String> {
    let natural = bench.plain()?;
    let limit = natural.total / 2;
    eprintln!("plain: {:.2} s, {}; the kernel's group gets {}", natural.wall, mib(natural.total), mib(limit));
    // The first run of the kernel's side says what is equal memory, and warms up.
    let total = bench.zram(limit)?.total;
    eprintln!("zram took {} in all at most: that is vswap's --memory", mib(total));
    let (mut plain, mut zram, mut ours) = (vec![natural], Vec::new(), Vec::new());
    for n in 1..=runs {
        ours.push(bench.vswap(total).map_err(|e| format!("vswap: {e}"))?);
        zram.push(bench.zram(limit).map_err(|e| format!("zram: {e}"))?);
        if n > 1 {
            plain.push(bench.plain()?);
        }
        let (o, z) = (&ours[ours.len() - 1], &zram[zram.len() - 1]);
        eprintln!(
            "run {n}: vswap {:.2} s in {}, zram {:.2} s in {}",
            o.wall,
            mib(o.total),
            z.wall,
            mib(z.total)
        );
    }
    let mut table = Table::new(&["side", "wall s", "user s", "system s", "memory", "at most"]);
    let (plain_json, zram_json, ours_json) = (
        report("plain, no limit", &plain, &mut table),
        report("zram lz4 in a cgroup", &zram, &mut table),
        report("vswap", &ours, &mut table),
    );
    print!("{table}");
    let ratios: Vec<f64> = ours.iter().zip(&zram).map(|(o, z)| o.wall / z.wall).collect();
    let cpu = |m: &Measured| m.seen.cpu.user + m.seen.cpu.system;
    let cpus: Vec<f64> = ours.iter().zip(&zram).map(|(o, z)| cpu(o) / cpu(z)).collect();
    println!("vswap / zram, run by run: wall {}, processor time {}", spread(&ratios), spread(&cpus));
    let worst = ours.iter().max_by_key(|m| m.seen.over).expect("at least one run");
    println!(
        "vswap's total over --memory {}: by {} at most, for {:.2} s",
        mib(total),
        mib(worst.seen.over),
        worst.seen.over_time.as_secs_f64()
    );
    print!("{}", faults(&ours[ours.len() - 1].summary));
    Ok(json!({
        "program_mib": bench.mib, "runs": runs, "cgroup_limit_bytes": limit, "equal_total_bytes": total,
        "plain": plain_json, "zram": zram_json, "vswap": ours_json,
        "wall_ratio": spread(&ratios).median, "cpu_ratio": spread(&cpus).median,
    }))
}

fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model.trim_start_matches(['\t', ' ', ':']),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
    })
}

fn save(path: &Path, value: &Value) -> Result<(), String> {
    let text = serde_json::to_string_pretty(value).expect("plain data");
    std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))
}

/// `cargo xtask bench`
pub(crate) fn main(words: Vec<String>) -> Result<bool, String> {
    let mut args = Args::new(words);
    let (json_file, only) = (args.value("--json")?, args.value("--only")?);
    let (runs, mib) = (args.number("--runs", 5)?.max(1), args.number("--mib", 1024)?);
    let (vswap, vswap_args) = (args.value("--vswap")?, args.list("--vswap-args")?);
    args.done()?;
    if let Some(other) = only.as_deref().filter(|o| !["zram", "micro"].contains(o)) {
        return Err(format!("--only zram or micro, not `{other}`"));
    }
    let mut result = json!({"machine": machine()});
    if only.as_deref() != Some("zram") {
        result["micro"] = micro::run_all()?;
    }
    if only.as_deref() != Some("micro") {
        let objects = workspace::program("objects.py").to_string_lossy().into_owned();
        let mut bench = Bench {
            vswap: workspace::vswap(vswap)?,
            vswap_args,
            scratch: workspace::scratch()?,
            program: vec![workspace::python()?.to_string_lossy().into_owned(), objects, mib.to_string()],
            mib,
            expected: Vec::new(),
        };
        result["python"] = against_zram(&mut bench, runs)?;
    }
    if let Some(file) = json_file {
        save(Path::new(&file), &result)?;
    }
    Ok(true)
}
