//! Real programs at half of the memory they want: the same bytes, the same exit status, and the evictions and
//! faults that prove that something was tested.

mod check;
mod list;

use crate::args::Args;
use crate::natural::{self, Natural};
use crate::table::Table;
use crate::workspace;
use check::Check;
use list::Compare;
pub(crate) use list::{PREFIX, PROGRAMS, Program, Scale};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where and how the programs are run.
pub(crate) struct Setting {
    pub(crate) vswap: PathBuf,
    /// More options for `vswap run`.
    pub(crate) vswap_args: Vec<String>,
    pub(crate) percent: u64,
    pub(crate) scale: Scale,
    pub(crate) scratch: PathBuf,
    /// How many programs run at a time. More than one needs control groups: without them what a program takes alone is
    /// measured over all our children.
    pub(crate) lanes: usize,
}

/// The plain run of a program.
pub(crate) fn natural(program: &Program, setting: &Setting) -> Result<Natural, String> {
    for (binary, package) in program.needs {
        workspace::need(binary, package)?;
    }
    let mut words = (program.words)(setting.scale)?;
    if program.compare == Compare::Kill {
        // Alone, it is what the judge would have started.
        let at = words.iter().position(|w| w == PREFIX).expect("a program has a place for the prefix");
        words.drain(..at);
    }
    let name = program.name.to_owned() + setting.scale.suffix();
    natural::measure(
        &name,
        &setting.scratch,
        &|prefix| check::run(&words, prefix, &setting.scratch, &name, program.timeout(setting.scale)),
        &(program.sources)()?,
    )
}

fn run_one(program: &Program, setting: &Setting) -> Check {
    eprintln!("{}: {}", program.name, program.what);
    let check = match natural(program, setting) {
        Ok(plain) => check::check(program, &plain, setting),
        Err(problem) => Check::failed(program.name, problem),
    };
    for problem in &check.problems {
        eprintln!("  FAILED {}: {problem}", program.name);
    }
    check
}

/// Runs the programs and prints a row for each, in their order; returns how many passed and failed.
pub(crate) fn run_all(programs: &[&Program], setting: &Setting) -> (usize, usize) {
    let next = AtomicUsize::new(0);
    let lane = || {
        let take = || programs.get(next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(take).map(|p| (p.name, run_one(p, setting))).collect::<Vec<_>>()
    };
    let mut checks: HashMap<&str, Check> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..setting.lanes).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().flat_map(|l| l.join().expect("a lane does not panic")).collect()
    });
    let mut table = Table::new(&[
        "program", "natural", "limit", "plain s", "vswap s", "evicted", "soft", "pool", "file", "zero",
        "result",
    ]);
    let (mut passed, mut failed) = (0, 0);
    for check in programs.iter().filter_map(|p| checks.remove(p.name)) {
        if check.problems.is_empty() {
            passed += 1;
        } else {
            failed += 1;
        }
        table.row(check.row);
    }
    print!("{table}");
    (passed, failed)
}

/// `cargo xtask programs`
pub(crate) fn main(words: Vec<String>) -> Result<bool, String> {
    let mut args = Args::new(words);
    if args.flag("--list") {
        for program in PROGRAMS {
            println!("{:<16}{}", program.name, program.what);
        }
        return Ok(true);
    }
    let percent = args.number("--limit-percent", 50)?;
    let scale = if args.flag("--quick") { Scale::Quick } else { Scale::Full };
    let vswap = args.value("--vswap")?;
    let vswap_args = args.list("--vswap-args")?;
    let names = args.names()?;
    if let Some(unknown) = names.iter().find(|n| PROGRAMS.iter().all(|p| p.name != n.as_str())) {
        return Err(format!("no program `{unknown}`; --list names them"));
    }
    let chosen: Vec<&Program> =
        PROGRAMS.iter().filter(|p| names.is_empty() || names.iter().any(|n| n == p.name)).collect();
    let setting = Setting {
        vswap: workspace::vswap(vswap)?,
        vswap_args,
        percent,
        scale,
        scratch: workspace::scratch()?,
        // So that the seconds in the table say something.
        lanes: 1,
    };
    let (passed, failed) = run_all(&chosen, &setting);
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}
