//! A long torture: 1, 2, 4 and 8 threads, at several limits, with the mremap gate and without it.
//!
//! Prints the table that SPECIFICATION.md quotes: what was verified, and how much of it was paged.

use crate::args::Args;
use crate::command::{Run, tail};
use crate::natural;
use crate::size::mib;
use crate::summary::Summary;
use crate::table::Table;
use crate::workspace;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const THREADS: [u64; 4] = [1, 2, 4, 8];
const PERCENTS: [u64; 2] = [50, 30];
/// MiB that the threads map together.
const MIB: u64 = 384;
/// The figures that are summed up.
const FREEZES: &str = "freezes";
const FAIL_STOPS: &str = "fail_stops";
/// The option that turns the gate off, if this vswap has it.
const UNGATED: &str = "--no-gate";

struct Soak {
    vswap: PathBuf,
    vswap_args: Vec<String>,
    torture: String,
    scratch: PathBuf,
    seconds: u64,
}

/// The figures of one combination, or what went wrong.
struct Cell {
    row: Vec<String>,
    problem: Option<String>,
    pages: u64,
    freezes: u64,
    stops: u64,
}

/// The number before `word` in the counts that torture prints.
fn count(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap_or_default();
    before.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl Soak {
    fn torture(&self, threads: u64, seconds: u64, seed: u64) -> Vec<String> {
        let words =
            [&self.torture, "-t", &threads.to_string(), "-m", &MIB.to_string(), "-s", &seconds.to_string()];
        let mut words: Vec<String> = words.map(str::to_owned).to_vec();
        words.extend(["-S".to_owned(), seed.to_string()]);
        words
    }

    fn natural(&self, threads: u64) -> Result<u64, String> {
        let build = |prefix: &[String]| Run {
            words: [prefix, &self.torture(threads, 8, 1)].concat(),
            env: vec![],
            stdout: self.scratch.join("soak.out"),
            stderr: self.scratch.join("soak.err"),
            timeout: Duration::from_secs(120),
        };
        let name = format!("soak-{threads}");
        natural::measure(&name, &self.scratch, &build, &[PathBuf::from(&self.torture)]).map(|n| n.peak)
    }

    fn cell(&self, threads: u64, percent: u64, gate: bool, seed: u64) -> Result<Cell, String> {
        let limit = self.natural(threads)? * percent / 100;
        let json = self.scratch.join("soak.json");
        let _ = std::fs::remove_file(&json);
        let mut words = vec![self.vswap.to_string_lossy().into_owned()];
        let pool = (limit >> 20).div_ceil(4);
        words.extend(["run".to_owned(), "-m".to_owned(), format!("{}M", limit >> 20)]);
        words.extend(["--pool-max".to_owned(), format!("{pool}M")]);
        words.extend(["--json".to_owned(), json.to_string_lossy().into_owned()]);
        words.extend_from_slice(&self.vswap_args);
        if !gate {
            words.push(UNGATED.to_owned());
        }
        words.push("--".to_owned());
        words.extend(self.torture(threads, self.seconds, seed));
        let run = Run {
            words,
            env: vec![],
            stdout: self.scratch.join("soak.out"),
            stderr: self.scratch.join("soak.err"),
            timeout: Duration::from_secs(self.seconds * 3 + 120),
        };
        let outcome = run.run()?;
        let text = std::fs::read_to_string(&run.stderr).unwrap_or_default();
        let mut problem = None;
        if outcome.timed_out || outcome.status != 0 {
            let how = if outcome.timed_out {
                "does not end".to_owned()
            } else {
                format!("status {}", outcome.status)
            };
            problem = Some(format!("{how}, seed {seed}\n{}", tail(&run.stderr, 30)));
        }
        let pages = count(&text, " pages verified");
        let mut row = vec![
            format!("{threads} threads"),
            format!("{percent} %"),
            mib(limit),
            if gate { "gate" } else { "no gate" }.to_owned(),
            format!("{:.0}", outcome.wall.as_secs_f64()),
            count(&text, " ops,").to_string(),
            pages.to_string(),
        ];
        row.extend(figures(&json));
        let counted = Summary::read(&json).and_then(|s| Ok((s.number(FREEZES)?, s.number(FAIL_STOPS)?)));
        let (freezes, stops) = counted.unwrap_or_else(|why| {
            problem.get_or_insert(why);
            (0, 0)
        });
        row.push(if problem.is_none() { "ok" } else { "WRONG" }.to_owned());
        Ok(Cell { row, problem, pages, freezes, stops })
    }
}

fn figures(json: &Path) -> Vec<String> {
    let summary = Summary::read(json);
    let number = |path: &str| match &summary {
        Ok(s) => s.number(path).map_or_else(|_| "-".to_owned(), |n| n.to_string()),
        Err(_) => "-".to_owned(),
    };
    [
        "evictions",
        "faults.soft.count",
        "faults.pool.count",
        "faults.file.count",
        "windows",
        "mremaps",
        "forks",
        FREEZES,
        FAIL_STOPS,
    ]
    .map(number)
    .to_vec()
}

fn has_option(vswap: &Path, option: &str) -> bool {
    let output = Command::new(vswap).args(["run", "--help"]).output();
    output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(option))
}

/// `cargo xtask soak`
pub(crate) fn main(words: Vec<String>) -> Result<bool, String> {
    let mut args = Args::new(words);
    let minutes = args.number("--minutes", 30)?.max(1);
    let seed = args.number("--seed", 1)?;
    let (vswap, vswap_args) = (args.value("--vswap")?, args.list("--vswap-args")?);
    args.done()?;
    let vswap = workspace::vswap(vswap)?;
    let gates: &[bool] = if has_option(&vswap, UNGATED) { &[true, false] } else { &[true] };
    if gates.len() == 1 {
        eprintln!("this vswap has no {UNGATED}: every run is with the gate, where the system allows it");
    }
    let cells = (THREADS.len() * PERCENTS.len() * gates.len()) as u64;
    let soak = Soak {
        vswap,
        vswap_args,
        torture: workspace::torture()?.to_string_lossy().into_owned(),
        scratch: workspace::scratch()?,
        seconds: (minutes * 60 / cells).max(5),
    };
    eprintln!("{cells} combinations of {} s each", soak.seconds);
    let mut table = Table::new(&[
        "threads",
        "limit",
        "",
        "",
        "s",
        "operations",
        "pages verified",
        "evicted",
        "soft",
        "pool",
        "file",
        "windows",
        "mremaps",
        "forks",
        "freezes",
        "fail-stops",
        "result",
    ]);
    let (mut passed, mut failed, mut pages, mut freezes, mut stops) = (0, 0, 0, 0, 0);
    let mut number = seed * 1000;
    for &gate in gates {
        for threads in THREADS {
            for percent in PERCENTS {
                number += 1;
                let cell = soak.cell(threads, percent, gate, number)?;
                eprintln!("{}", cell.row.join("  "));
                if let Some(problem) = &cell.problem {
                    eprintln!("  FAILED: {problem}");
                    failed += 1;
                } else {
                    passed += 1;
                }
                pages += cell.pages;
                freezes += cell.freezes;
                stops += cell.stops;
                table.row(cell.row);
            }
        }
    }
    print!("{table}");
    println!("{pages} pages verified, {freezes} freezes, {stops} fail-stops");
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts_are_found_before_their_word() {
        let text = "torture: 2 threads 4.0 s seed 9: 47937 ops, 527390 pages verified, 29 slots stolen";
        assert_eq!(super::count(text, " pages verified"), 527_390);
        assert_eq!(super::count(text, " ops,"), 47937);
        assert_eq!(super::count("", " ops,"), 0);
    }
}
