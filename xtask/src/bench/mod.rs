//! The benchmark that decides: programs alternately without a limit, on the kernel's zram, on its zswap, and under vswap,
//! with the same memory in all.
//!
//! The kernel's sides are a memory control group limited to a share of what the program wants. What its anonymous
//! memory and zram's pool take together at most is what vswap gets as `--memory` in the same round. Sides alternate, so
//! that a change of the machine's mood meets all. Needs root.

mod page;
mod report;
mod sides;
mod work;

use crate::args::Args;
use crate::size::mib;
use crate::{micro, workspace, zswap};
use report::Results;
use serde_json::{Value, json};
use sides::{Place, Side};
use std::path::Path;
use work::Work;

struct Bench {
    place: Place,
    sides: Vec<Side>,
    runs: u64,
    /// Of an ordinary program's natural memory, for the kernel's group.
    percent: u64,
}

impl Bench {
    fn program(&self, work: &Work) -> Result<Results, String> {
        let mut expected = None;
        // The plain run warms up as well.
        let natural = self.place.run(work, Side::Plain, 0, &mut expected)?;
        let limit = work.limit(natural.seen.peak, self.percent);
        eprintln!(
            "{}: {:.1} s in {} alone; the kernel's group gets {}",
            work.name,
            natural.wall,
            mib(natural.seen.peak),
            mib(limit)
        );
        let mut results = Results { name: work.name.clone(), limit, rounds: Vec::new() };
        let mut first = Some(natural);
        for _ in 0..self.runs {
            let mut round = Vec::new();
            // What zram's side takes in all is what vswap gets.
            let mut equal = limit;
            for side in [Side::Zram, Side::Vswap, Side::Zswap, Side::Plain] {
                if !self.sides.contains(&side) {
                    continue;
                }
                let memory = if side == Side::Vswap { equal } else { limit };
                let run = match first.take_if(|_| side == Side::Plain) {
                    Some(natural) => Ok(natural),
                    None => self.place.run(work, side, memory, &mut expected),
                };
                if let (Side::Zram, Ok(run)) = (side, &run) {
                    equal = run.seen.peak;
                }
                match &run {
                    Ok(run) => eprintln!("  {}: {:.2} s in {}", side.name(), run.wall, mib(run.seen.peak)),
                    Err(problem) => eprintln!("  {}: {problem}", side.name()),
                }
                round.push((side, run));
            }
            results.rounds.push(round);
        }
        Ok(results)
    }
}

fn machine(sides: &[Side]) -> Result<Value, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let zswap = sides.contains(&Side::Zswap).then(zswap::compressor).transpose()?;
    Ok(json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model.trim_start_matches(['\t', ' ', ':']),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "load": read("/proc/loadavg").split(' ').next(), "zram_compressor": "lz4", "zswap_compressor": zswap,
    }))
}

fn save(path: &str, text: &str) -> Result<(), String> {
    std::fs::write(Path::new(path), text).map_err(|e| format!("{path}: {e}"))
}

/// `cargo xtask bench`
pub(crate) fn main(words: Vec<String>) -> Result<bool, String> {
    let mut args = Args::new(words);
    if args.flag("--list") {
        println!("micro");
        work::usual().iter().for_each(|name| println!("{name}"));
        return Ok(true);
    }
    let (json_file, html_file) = (args.value("--json")?, args.value("--html")?);
    let (runs, percent) = (args.number("--runs", 5)?.max(1), args.number("--percent", 50)?);
    let (vswap, vswap_args) = (args.value("--vswap")?, args.list("--vswap-args")?);
    let sides = match args.value("--sides")? {
        None => Side::ALL.to_vec(),
        Some(names) => {
            let known = |name: &str| Side::named(name).ok_or_else(|| format!("no side `{name}`"));
            names.split(',').map(known).collect::<Result<_, _>>()?
        }
    };
    let mut names = args.names()?;
    if names.is_empty() {
        names = work::usual();
        names.insert(0, "micro".to_owned());
    }
    let mut result = json!({"machine": machine(&sides)?});
    if let Some(at) = names.iter().position(|name| name == "micro") {
        names.remove(at);
        result["micro"] = micro::run_all()?;
    }
    let images =
        if names.iter().any(|name| name.ends_with(work::IMAGE)) { micro::images()? } else { Vec::new() };
    let programs: Vec<Work> =
        names.iter().map(|name| work::named(name, &images)).collect::<Result<_, _>>()?;
    let place = Place { vswap: workspace::vswap(vswap)?, vswap_args, scratch: workspace::scratch()? };
    let bench = Bench { place, sides, runs, percent };
    let (mut all, mut good) = (Vec::new(), true);
    for work in &programs {
        match bench.program(work) {
            Ok(results) => {
                print!("{}\n{}", results.name, report::sides(&results));
                all.push(results);
            }
            Err(problem) => {
                good = false;
                eprintln!("FAILED {}: {problem}", work.name);
            }
        }
    }
    for failure in all.iter().flat_map(Results::failures) {
        good = false;
        eprintln!("FAILED {failure}");
    }
    if !all.is_empty() {
        print!("{}", report::ratios(&all));
    }
    result["programs"] = all.iter().map(Results::json).collect();
    if let Some(file) = json_file {
        save(&file, &(serde_json::to_string_pretty(&result).expect("plain data") + "\n"))?;
    }
    if let Some(file) = html_file {
        save(&file, &page::page(&result["machine"], &all))?;
    }
    Ok(good)
}
