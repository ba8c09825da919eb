//! One program under vswap: run, compare, and ask the summary whether enough was paged.

use super::Setting;
use super::list::{Compare, PREFIX, Program};
use crate::command::{Run, tail};
use crate::natural::Natural;
use crate::size::mib;
use crate::summary::Summary;
use crate::workspace;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What came of it.
pub(crate) struct Check {
    pub(crate) row: Vec<String>,
    pub(crate) problems: Vec<String>,
}

impl Check {
    pub(crate) fn failed(name: &str, problem: String) -> Self {
        let mut row = vec![String::new(); 10];
        row[0] = name.to_owned();
        row.push("FAILED".to_owned());
        Self { row, problems: vec![problem] }
    }
}

/// A command with the prefix in its place; its outputs go to files named after it.
pub(crate) fn run(words: &[String], prefix: &[String], scratch: &Path, name: &str, timeout: Duration) -> Run {
    let mut all: Vec<String> = Vec::new();
    for word in words {
        if word == PREFIX {
            all.extend_from_slice(prefix);
        } else {
            all.push(word.clone());
        }
    }
    Run {
        words: all,
        env: vec![("VSWAP_TEST_DIR".to_owned(), scratch.to_string_lossy().into_owned())],
        stdout: scratch.join(format!("{name}.out")),
        stderr: scratch.join(format!("{name}.err")),
        timeout,
    }
}

/// Paths in messages start at the repository.
fn short(word: &str) -> String {
    word.replace(&format!("{}/", workspace::root().display()), "")
}

fn compare(natural: &Natural, run: &Run, problems: &mut Vec<String>) {
    let (plain, ours) =
        (std::fs::read(&natural.stdout).unwrap_or_default(), std::fs::read(&run.stdout).unwrap_or_default());
    if plain == ours {
        return;
    }
    let at = plain.iter().zip(&ours).position(|(a, b)| a != b).unwrap_or(plain.len().min(ours.len()));
    let excerpt = |bytes: &[u8]| {
        String::from_utf8_lossy(&bytes[at.min(bytes.len())..bytes.len().min(at + 80)]).into_owned()
    };
    problems.push(format!(
        "output differs from the plain run at byte {at} ({} against {} bytes): expected {:?}, got {:?}",
        plain.len(),
        ours.len(),
        excerpt(&plain),
        excerpt(&ours)
    ));
}

struct Counts {
    evictions: u64,
    soft: u64,
    pool: u64,
    file: u64,
    zero: u64,
}

fn counts(json: &Path) -> Result<Counts, String> {
    let summary = Summary::read(json)?;
    Ok(Counts {
        evictions: summary.number("evictions")?,
        soft: summary.faults("soft")?,
        pool: summary.faults("pool")?,
        file: summary.faults("file")?,
        zero: summary.faults("zero")?,
    })
}

fn floors(program: &Program, natural: &Natural, counts: &Counts, problems: &mut Vec<String>) {
    let pages = natural.peak / 4096;
    let floor = program.floor;
    for (what, got, percent) in [
        ("evictions", counts.evictions, floor.evictions),
        ("pool faults", counts.pool, floor.pool),
        ("file faults", counts.file, floor.file),
    ] {
        let least = pages * percent / 100;
        if got < least {
            problems.push(format!("{got} {what}, but {least} ({percent} % of its natural pages) are the least that tests anything"));
        }
    }
}

/// The words that put a program under vswap, with a small pool so that the spill file is used as well.
fn prefix(program: &Program, setting: &Setting, limit: u64, json: &Path) -> Vec<String> {
    let vswap = setting.vswap.to_string_lossy().into_owned();
    let memory = format!("{}M", limit >> 20);
    if program.compare == Compare::Kill {
        return [&["--vswap".to_owned(), vswap, "--limit".to_owned(), memory, "--".to_owned()][..]].concat();
    }
    let pool = format!("{}M", ((limit >> 20) * program.pool / 100).max(2));
    let json = json.to_string_lossy().into_owned();
    let mut words: Vec<String> =
        ["run", "-m", &memory, "--pool-max", &pool, "--json", &json].map(str::to_owned).to_vec();
    words.insert(0, vswap);
    words.extend_from_slice(&setting.vswap_args);
    words.push("--".to_owned());
    words
}

/// Runs the program under vswap.
pub(crate) fn check(program: &Program, natural: &Natural, setting: &Setting) -> Check {
    match try_check(program, natural, setting) {
        Ok(check) => check,
        Err(problem) => Check::failed(program.name, problem),
    }
}

fn try_check(program: &Program, natural: &Natural, setting: &Setting) -> Result<Check, String> {
    let name = format!("vswap-{}{}", program.name, setting.scale.suffix());
    let json: PathBuf = setting.scratch.join(format!("{name}.json"));
    let _ = std::fs::remove_file(&json);
    let limit = natural.peak * setting.percent / 100;
    let words = (program.words)(setting.scale)?;
    let prefix = prefix(program, setting, limit, &json);
    let run = run(&words, &prefix, &setting.scratch, &name, program.timeout(setting.scale));
    let outcome = run.run()?;
    let mut problems = Vec::new();
    if outcome.timed_out {
        problems.push(format!(
            "does not end within {} s (plain: {:.1} s)",
            run.timeout.as_secs(),
            natural.seconds
        ));
    } else if outcome.status != natural.status {
        problems.push(format!("exit status {}, plain {}", outcome.status, natural.status));
    } else if program.compare == Compare::Output {
        compare(natural, &run, &mut problems);
    }
    let mut row = vec![
        program.name.to_owned(),
        mib(natural.peak),
        mib(limit),
        format!("{:.1}", natural.seconds),
        format!("{:.1}", outcome.wall.as_secs_f64()),
    ];
    match counts(&json) {
        Ok(counts) => {
            row.extend(
                [counts.evictions, counts.soft, counts.pool, counts.file, counts.zero].map(|n| n.to_string()),
            );
            if problems.is_empty() {
                floors(program, natural, &counts, &mut problems);
            }
        }
        Err(problem) => {
            row.extend(std::iter::repeat_n(String::new(), 5));
            if problems.is_empty() && program.compare != Compare::Kill {
                problems.push(problem);
            }
        }
    }
    if let Some(last) = problems.last_mut() {
        let command: Vec<String> = run.words.iter().map(|w| short(w)).collect();
        *last += &format!("\n    {}\n{}", command.join(" "), short(&tail(&run.stderr, 16)));
    }
    row.push(if problems.is_empty() { "ok" } else { "FAILED" }.to_owned());
    Ok(Check { row, problems })
}
