//! A long torture: 1, 2, 4 and 8 threads, at several limits, with the mremap gate and without it.
//!
//! Without the gate means as a user has it who wants `--allow-new-privs`: no CAP_SYS_ADMIN. There the program is stopped where two
//! readings of what it did remain; such a stop is counted, and the torture begins anew. Every other end is a failure.
//! Prints the table that SPECIFICATION.md quotes: what was verified, and how much of it was paged.

use crate::args::Args;
use crate::command::{Run, tail};
use crate::natural;
use crate::size::mib;
use crate::summary::Summary;
use crate::table::Table;
use crate::workspace;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const THREADS: [u64; 4] = [1, 2, 4, 8];
const PERCENTS: [u64; 2] = [50, 30];
/// MiB that the threads map together.
const MIB: u64 = 384;
/// Figures of the summary, in the table's order.
const FIGURES: [&str; 8] = [
    "evictions",
    "faults.soft.count",
    "faults.pool.count",
    "faults.file.count",
    "windows",
    "mremaps",
    "forks",
    "freezes",
];
/// Takes the gate's permission away, and leaves that to follow forks.
const UNGATED: [&str; 3] = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
/// What nobody follows without the gate (README, limits).
const UNTOLD: &str = "guard,wipe";
/// How every message begins or ends that explains a stop for want of the gate.
const NO_ORDER: &str = "no gate orders them";
/// The shortest round that is worth its start.
const ROUND: u64 = 3;

struct Soak {
    vswap: PathBuf,
    vswap_args: Vec<String>,
    torture: String,
    scratch: PathBuf,
    seconds: u64,
}

/// The sums of one combination, and what went wrong.
#[derive(Default)]
struct Cell {
    seconds: f64,
    operations: u64,
    pages: u64,
    figures: [u64; FIGURES.len()],
    stops: u64,
    problem: Option<String>,
}

/// The number before the last `word` in the counts that torture prints.
fn count(text: &str, word: &str) -> u64 {
    let before = text.rsplit_once(word).map_or("", |(before, _)| before);
    before.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl Soak {
    fn torture(&self, threads: u64, seconds: u64, seed: u64, gate: bool) -> Vec<String> {
        let words =
            [&self.torture, "-t", &threads.to_string(), "-m", &MIB.to_string(), "-s", &seconds.to_string()];
        let mut words: Vec<String> = words.map(str::to_owned).to_vec();
        words.extend(["-S".to_owned(), seed.to_string()]);
        if !gate {
            // What is stopped has said by then how far it was.
            words.extend(["-p", "--no", UNTOLD].map(str::to_owned));
        }
        words
    }

    fn natural(&self, threads: u64) -> Result<u64, String> {
        let build = |prefix: &[String]| Run {
            words: [prefix, &self.torture(threads, 8, 1, true)].concat(),
            env: vec![],
            stdout: self.scratch.join("soak.out"),
            stderr: self.scratch.join("soak.err"),
            timeout: Duration::from_secs(120),
        };
        let name = format!("soak-{threads}");
        natural::measure(&name, &self.scratch, &build, &[PathBuf::from(&self.torture)]).map(|n| n.peak)
    }

    /// Rounds of torture until the time is up or something is wrong.
    fn cell(&self, threads: u64, limit: u64, gate: bool, seed: u64) -> Result<Cell, String> {
        let mut cell = Cell::default();
        let (begun, mut round) = (Instant::now(), 0);
        loop {
            let left = self.seconds.saturating_sub(begun.elapsed().as_secs());
            if round > 0 && left < ROUND {
                break;
            }
            self.round(threads, limit, gate, seed + round, left.max(ROUND), &mut cell)?;
            if cell.problem.is_some() {
                break;
            }
            round += 1;
        }
        cell.seconds = begun.elapsed().as_secs_f64();
        if cell.pages == 0 && cell.problem.is_none() {
            cell.problem = Some("every round was stopped before it had verified a page".to_owned());
        }
        Ok(cell)
    }

    fn round(
        &self,
        threads: u64,
        limit: u64,
        gate: bool,
        seed: u64,
        seconds: u64,
        cell: &mut Cell,
    ) -> Result<(), String> {
        let json = self.scratch.join("soak.json");
        let _ = std::fs::remove_file(&json);
        let mut words: Vec<String> = if gate { vec![] } else { UNGATED.map(str::to_owned).to_vec() };
        words.push(self.vswap.to_string_lossy().into_owned());
        let pool = (limit >> 20).div_ceil(4);
        words.extend(["run".to_owned(), "-m".to_owned(), format!("{}M", limit >> 20)]);
        words.extend(["--pool-max".to_owned(), format!("{pool}M")]);
        words.extend(["--json".to_owned(), json.to_string_lossy().into_owned()]);
        if !gate {
            words.push("--allow-new-privs".to_owned());
        }
        words.extend_from_slice(&self.vswap_args);
        words.push("--".to_owned());
        words.extend(self.torture(threads, seconds, seed, gate));
        let run = Run {
            words,
            env: vec![],
            stdout: self.scratch.join("soak.out"),
            stderr: self.scratch.join("soak.err"),
            timeout: Duration::from_secs(seconds * 3 + 120),
        };
        let outcome = run.run()?;
        let text = std::fs::read_to_string(&run.stderr).unwrap_or_default();
        let stopped = !gate && outcome.status == 125 && text.contains(NO_ORDER);
        cell.stops += u64::from(stopped);
        cell.operations += count(&text, " ops,");
        cell.pages += count(&text, " pages verified");
        let failed = outcome.timed_out || (outcome.status != 0 && !stopped);
        match Summary::read(&json).and_then(|summary| self.add(&summary, gate, cell)) {
            // A tree that was stopped may have no figures.
            Err(why) if !stopped && !failed => cell.problem = Some(format!("{why}, seed {seed}")),
            _ => {}
        }
        if failed {
            let how = if outcome.timed_out {
                "does not end".to_owned()
            } else {
                format!("status {}", outcome.status)
            };
            cell.problem = Some(format!("{how}, seed {seed}\n{}", tail(&run.stderr, 30)));
        }
        Ok(())
    }

    /// Adds the figures of a round that was what it should be.
    fn add(&self, summary: &Summary, gate: bool, cell: &mut Cell) -> Result<(), String> {
        if summary.is("gate") != Some(gate) {
            return Err(format!("it was to run {} the gate", if gate { "with" } else { "without" }));
        }
        for (sum, name) in cell.figures.iter_mut().zip(FIGURES) {
            *sum += summary.number(name)?;
        }
        Ok(())
    }
}

impl Cell {
    fn row(&self, threads: u64, percent: u64, limit: u64, gate: bool) -> Vec<String> {
        let mut row = vec![
            format!("{threads} threads"),
            format!("{percent} %"),
            mib(limit),
            if gate { "gate" } else { "no gate" }.to_owned(),
            format!("{:.0}", self.seconds),
            self.operations.to_string(),
            self.pages.to_string(),
        ];
        row.extend(self.figures.map(|figure| figure.to_string()));
        row.push(self.stops.to_string());
        row.push(if self.problem.is_none() { "ok" } else { "WRONG" }.to_owned());
        row
    }
}

/// `cargo xtask soak`
pub(crate) fn main(words: Vec<String>) -> Result<bool, String> {
    let mut args = Args::new(words);
    let minutes = args.number("--minutes", 30)?.max(1);
    let gates: &[bool] = if args.flag("--ungated") { &[false] } else { &[true, false] };
    let cells = (THREADS.len() * PERCENTS.len() * gates.len()) as u64;
    let seconds = args.number("--seconds", minutes * 60 / cells)?.max(ROUND);
    let seed = args.number("--seed", 1)?;
    let (vswap, vswap_args) = (args.value("--vswap")?, args.list("--vswap-args")?);
    args.done()?;
    workspace::need(UNGATED[0], "util-linux")?;
    let soak = Soak {
        vswap: workspace::vswap(vswap)?,
        vswap_args,
        torture: workspace::torture()?.to_string_lossy().into_owned(),
        scratch: workspace::scratch()?,
        seconds,
    };
    eprintln!("{cells} combinations of {seconds} s each");
    let head =
        ["threads", "limit", "", "", "s", "operations", "pages verified", "evicted", "soft", "pool", "file"];
    let mut table =
        Table::new(&[&head[..], &["windows", "mremaps", "forks", "freezes", "stops", "result"]].concat());
    let (mut passed, mut failed, mut pages, mut stops) = (0, 0, 0, 0);
    let mut number = seed;
    for &gate in gates {
        for threads in THREADS {
            for percent in PERCENTS {
                number += 1;
                let limit = soak.natural(threads)? * percent / 100;
                let cell = soak.cell(threads, limit, gate, number * 1000)?;
                let row = cell.row(threads, percent, limit, gate);
                eprintln!("{}", row.join("  "));
                if let Some(problem) = &cell.problem {
                    eprintln!("  FAILED: {problem}");
                    failed += 1;
                } else {
                    passed += 1;
                }
                pages += cell.pages;
                stops += cell.stops;
                table.row(row);
            }
        }
    }
    print!("{table}");
    println!("{pages} pages verified, {stops} stops for want of the gate");
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts_are_found_before_their_word() {
        let text = "torture: 2 threads 0.2 s seed 9: 3 ops, 5 pages verified, 0 slots stolen\ntorture: 2 threads 4.0 s seed 9: 47937 ops, 527390 pages verified, 29 slots stolen";
        assert_eq!(super::count(text, " pages verified"), 527_390);
        assert_eq!(super::count(text, " ops,"), 47937);
        assert_eq!(super::count("torture:", " ops,"), 0);
    }
}
