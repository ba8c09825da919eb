//! With all rules on nothing is found.

use std::time::Duration;

use vswap_sim::{Effort, Options, campaign, of_seed, shrink};

fn clean(options: Options, seeds: u64) {
    let effort = Effort { first: 0, seeds, time: Some(Duration::from_secs(120)), workers: 2 };
    let outcome = campaign(&options, &effort);
    if let Some((seed, failure)) = outcome.failed {
        let (setup, program) = of_seed(seed, &options);
        let small = shrink(&setup, &program, 0);
        panic!("seed {seed}: {}\n{:#?}\n{}", failure.why, small.program, small.history.join("\n"));
    }
    let stats = outcome.stats;
    println!(
        "{} seeds, {} steps, {} pages compared, {:?}",
        outcome.seeds, stats.steps, stats.checks, outcome.time
    );
    // What is not exercised is not tested.
    assert!(outcome.seeds >= seeds / 4, "only {} seeds in two minutes", outcome.seeds);
    for (what, count) in [
        ("pages compared", stats.checks),
        ("faults", stats.faults),
        ("events", stats.events),
        ("evictions", stats.evicted),
        ("installs refused", stats.refused),
        ("forks", stats.forks),
        ("batches taken back", stats.taken_back),
    ] {
        assert!(count > outcome.seeds / 100, "{what}: {count}");
    }
}

#[test]
fn with_the_gate() {
    clean(Options::default(), 10_000);
}

#[test]
fn without_the_gate() {
    clean(Options { gated: false, ..Options::default() }, 5_000);
}

#[test]
fn without_the_gate_and_with_one_thread() {
    let options = Options { gated: false, threads: Some(1), ..Options::default() };
    clean(options, 2_000);
}

fn right(seed: u64, options: Options) {
    let (setup, program) = of_seed(seed, &options);
    let (failure, ..) = vswap_sim::run(&setup, &program, 0, false);
    assert_eq!(failure, None, "seed {seed}");
}

/// Runs that once read what another thread had unmapped, or stopped without a word of the gate.
#[test]
fn what_was_found_without_the_gate() {
    for seed in [211_146, 702_489] {
        right(seed, Options { gated: false, ..Options::default() });
    }
}

/// Runs that once were stopped: a vfork child was killed as it unmapped, between the look at the mapping and the scan.
#[test]
fn what_was_found_with_the_gate() {
    for seed in [777_169_097, 888_148_934] {
        right(seed, Options::default());
    }
}

#[test]
fn a_seed_repeats_itself() {
    for seed in 0..50 {
        let (setup, program) = of_seed(seed, &Options::default());
        let first = vswap_sim::run(&setup, &program, 3, true);
        let second = vswap_sim::run(&setup, &program, 3, true);
        assert_eq!(first.2, second.2, "seed {seed}");
    }
}
