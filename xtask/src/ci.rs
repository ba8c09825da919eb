//! The whole test run, in one order, each step with its own time limit; what the test machine and a person run.
//!
//! A step that cannot run is a failure. The closing line counts tests: those of the test harness one by one,
//! every other step and every real program as one.

use crate::args::Args;
use crate::cgroup::Group;
use crate::command::{Run, tail};
use crate::programs::{self, PROGRAMS, Program, Scale, Setting};
use crate::workspace;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One step: a cargo command, or the real programs.
struct Step {
    name: String,
    words: Vec<String>,
    env: Vec<(String, String)>,
    seconds: u64,
    /// Whether it must have run at least one test of the test harness.
    harness: bool,
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
}

/// The output goes to files.
const PLAIN: [(&str, &str); 2] = [("TERM", "dumb"), ("CARGO_TERM_COLOR", "never")];

/// A step that is not a cargo command.
type Own = fn() -> Result<Tally, String>;

fn step(name: &str, line: &str, env: &[(&str, &str)], seconds: u64) -> Step {
    Step {
        name: name.to_owned(),
        words: line.split(' ').map(str::to_owned).collect(),
        env: env.iter().chain(&PLAIN).map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
        seconds,
        harness: line.contains(" test "),
    }
}

/// Whether this toolchain has Miri.
fn has_miri() -> bool {
    Command::new("cargo").args(["+nightly", "miri", "--version"]).output().is_ok_and(|o| o.status.success())
}

/// It knows neither system calls nor compressors written in C: those are for AddressSanitizer.
fn miri() -> Step {
    step(
        "Miri, core",
        "cargo +nightly miri test --package vswap-core --lib",
        &[("MIRIFLAGS", "-Zmiri-disable-isolation"), ("CARGO_TARGET_DIR", &separate("miri"))],
        600,
    )
}

/// Needs no other toolchain.
fn address_sanitizer() -> Step {
    step(
        "AddressSanitizer on the core, the tiers and the system crate",
        // Unit tests only: the integration tests look at the layout and size of the process itself.
        "cargo test --package vswap-core --package vswap-tiers --package vswap-sys --lib --no-fail-fast --target x86_64-unknown-linux-gnu",
        &[
            ("RUSTC_BOOTSTRAP", "1"),
            ("RUSTFLAGS", "-Zsanitizer=address"),
            ("PROPTEST_CASES", "32"),
            ("CARGO_TARGET_DIR", &separate("asan")),
        ],
        600,
    )
}

/// Other flags rebuild everything, so they get a directory of their own.
fn separate(name: &str) -> String {
    workspace::target().join(name).to_string_lossy().into_owned()
}

fn steps() -> Vec<Step> {
    let mut steps = vec![
        step("format", "cargo fmt --all --check", &[], 60),
        step("format of the agent", "rustfmt --edition 2024 --check crates/agent/src/lib.rs", &[], 60),
        step("lints", "cargo clippy --workspace --all-targets -- -D warnings", &[], 400),
        step("documentation", "cargo doc --workspace --no-deps", &[("RUSTDOCFLAGS", "-Dwarnings")], 400),
        step("tests", "cargo test --workspace --no-fail-fast", &[], 900),
        step(
            "loom, core",
            "cargo test --release --package vswap-core --test loom",
            &[("RUSTFLAGS", "--cfg loom"), ("CARGO_TARGET_DIR", &separate("loom"))],
            600,
        ),
        address_sanitizer(),
    ];
    steps.extend(simulator());
    if has_miri() {
        steps.push(miri());
    }
    steps
}

/// With the gate, seeds of the simulator that no day before has run. Without it the same ones each time: wrong orders that
/// are found there only once in millions say nothing of the change under test, and longer campaigns look for them.
fn simulator() -> [Step; 2] {
    let day = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400;
    let line = |first: u64, seeds: u64| format!("cargo xtask sim --seed {first} --seeds {seeds}");
    let first = day * 200_000;
    [
        step(&format!("simulator, the day's seeds from {first}"), &line(first, 200_000), &[], 600),
        step("simulator without the gate", &(line(0, 100_000) + " --ungated"), &[], 600),
    ]
}

/// Sums of the test harness's closing lines.
fn harness(text: &str) -> Tally {
    let mut tally = Tally::default();
    for line in text.lines().filter(|l| l.starts_with("test result:")) {
        let number = |word: &str| -> usize {
            let before = line.split(word).next().unwrap_or_default();
            before.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        tally.passed += number(" passed");
        tally.failed += number(" failed");
    }
    tally
}

/// Which tests failed, the names first, and the end of what each of them said.
fn failures(text: &str) -> String {
    const LINES: usize = 30;
    let mut names = String::new();
    let mut told = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----")) else {
            continue;
        };
        names += &format!("    failed: {name}\n");
        let mut said = Vec::new();
        while let Some(line) = lines.next_if(|l| !l.starts_with("---- ") && *l != "failures:") {
            said.push(line);
        }
        told += &format!("    {line}\n");
        said[said.len().saturating_sub(LINES)..].iter().for_each(|l| told += &format!("    {l}\n"));
    }
    names + &told
}

fn run(step: &Step, scratch: &Path) -> Result<Tally, String> {
    let file = |end: &str| {
        let stem: String =
            step.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        scratch.join(format!("ci-{stem}.{end}"))
    };
    let run = Run {
        words: step.words.clone(),
        env: step.env.clone(),
        stdout: file("out"),
        stderr: file("err"),
        timeout: Duration::from_secs(step.seconds),
    };
    let outcome = run.run()?;
    let said = std::fs::read_to_string(&run.stdout).unwrap_or_default();
    let mut tally = harness(&said);
    let mut problem = None;
    if outcome.timed_out {
        problem = Some(format!("not done within {} s", step.seconds));
    } else if outcome.status != 0 {
        problem = Some(format!("status {}", outcome.status));
    } else if step.harness && tally.passed == 0 {
        problem = Some("it ran no test".to_owned());
    }
    let Some(problem) = problem else {
        tally.passed += usize::from(!step.harness);
        return Ok(tally);
    };
    let output = match failures(&said) {
        told if told.is_empty() => tail(&run.stdout, 60) + &tail(&run.stderr, 40),
        told => told,
    };
    let output = output.replace(&format!("{}/", workspace::root().display()), "");
    eprintln!("  FAILED: {problem}: {}\n{output}", step.words.join(" "));
    tally.failed = tally.failed.max(1);
    Ok(tally)
}

/// The torture must notice what a broken pager would do: zeros, a lost write, an older page; and each operation that looks
/// at other memory than its regions must notice what happens there.
fn controls() -> Result<Tally, String> {
    let (torture, scratch) = (workspace::torture()?, workspace::scratch()?);
    let mut tally = Tally::default();
    for kind in ["zero", "lost", "stale", "file", "stack", "signal", "jump", "idle", "shift", "orphan"] {
        let mut words = vec![torture.to_string_lossy().into_owned()];
        words.extend(["-t", "2", "-m", "64", "-s", "20", "--sabotage", kind].map(str::to_owned));
        let run = Run {
            words,
            env: vec![],
            stdout: scratch.join("control.out"),
            stderr: scratch.join("control.err"),
            timeout: Duration::from_secs(60),
        };
        let outcome = run.run()?;
        let report = std::fs::read_to_string(&run.stderr).unwrap_or_default();
        if outcome.status == 1 && report.contains("WRONG") {
            tally.passed += 1;
        } else {
            eprintln!("  FAILED: damage `{kind}` went unnoticed: status {}", outcome.status);
            tally.failed += 1;
        }
    }
    Ok(tally)
}

fn real_programs() -> Result<Tally, String> {
    let setting = Setting {
        vswap: workspace::vswap(None)?,
        vswap_args: vec![],
        percent: 50,
        scale: Scale::Quick,
        scratch: workspace::scratch()?,
        lanes: if Group::new().is_ok() { 2 } else { 1 },
    };
    let all: Vec<&Program> = PROGRAMS.iter().collect();
    let (passed, failed) = programs::run_all(&all, &setting);
    Ok(Tally { passed, failed })
}

/// `cargo xtask ci`
pub(crate) fn main(words: Vec<String>) -> Result<bool, String> {
    const CONTROLS_STEP: &str = "torture notices damage";
    const PROGRAMS_STEP: &str = "real programs at half of their memory";
    let mut args = Args::new(words);
    let list = args.flag("--list");
    let only = args.value("--only")?;
    args.done()?;
    let steps = steps();
    let wanted = |name: &str| only.as_deref().is_none_or(|o| name.contains(o));
    if list {
        steps
            .iter()
            .map(|s| s.name.as_str())
            .chain([CONTROLS_STEP, PROGRAMS_STEP])
            .for_each(|name| println!("{name}"));
        return Ok(true);
    }
    std::env::set_current_dir(workspace::root()).map_err(|e| format!("the repository: {e}"))?;
    let scratch = workspace::scratch()?;
    let started = Instant::now();
    let mut total = Tally::default();
    let mut report = |name: &str, begun: Instant, tally: Result<Tally, String>| {
        let tally = tally.unwrap_or_else(|problem| {
            eprintln!("  FAILED: {problem}");
            Tally { passed: 0, failed: 1 }
        });
        let seconds = begun.elapsed().as_secs();
        println!("{name}: {} passed, {} failed, {seconds} s", tally.passed, tally.failed);
        total.passed += tally.passed;
        total.failed += tally.failed;
    };
    for step in steps.iter().filter(|s| wanted(&s.name)) {
        println!("==> {}", step.name);
        let begun = Instant::now();
        report(&step.name, begun, run(step, &scratch));
    }
    let others: [(&str, Own); 2] = [(CONTROLS_STEP, controls), (PROGRAMS_STEP, real_programs)];
    for (name, run) in others.into_iter().filter(|(name, _)| wanted(name)) {
        println!("==> {name}");
        let begun = Instant::now();
        report(name, begun, run());
    }
    if total.passed + total.failed == 0 {
        return Err(format!("no step is called `{}`; --list names them", only.unwrap_or_default()));
    }
    println!("in {} s", started.elapsed().as_secs());
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn failed_tests_are_named_before_what_they_said() {
        let text = "test a ... ok\ntest b::c ... FAILED\n\nfailures:\n\n---- b::c stdout ----\nwhy\n\n---- d stdout ----\n\n\nfailures:\n    b::c\n    d\n\ntest result: FAILED. 1 passed; 2 failed\n\nrunning 1 test\ntest e ... ok\n";
        let told = super::failures(text);
        assert!(
            told.starts_with("    failed: b::c\n    failed: d\n    ---- b::c stdout ----\n    why\n"),
            "{told}"
        );
        assert!(!told.contains("running"), "{told}");
        assert_eq!(super::failures("test a ... ok\n"), "");
    }

    #[test]
    fn the_harness_lines_are_summed() {
        let text = "test a ... ok\ntest result: ok. 12 passed; 0 failed; 0 ignored\n\ntest result: FAILED. 3 passed; 2 failed; 1 ignored\n";
        let tally = super::harness(text);
        assert_eq!((tally.passed, tally.failed), (15, 2));
    }
}
