//! Each rule bites: switched off, a wrong byte, a stop or a leak is found within a minute.

use std::time::Duration;

use vswap_sim::{Effort, Options, Rule, campaign};

/// Switches the rule off and expects that something is found.
fn bites(name: &str) {
    let rule = Rule::named(name).expect("no such rule");
    let options =
        Options { rules: rule.off(), gated: rule.gated, program: rule.program, ..Options::default() };
    let effort =
        Effort { first: rule.first, seeds: u64::MAX / 2, time: Some(Duration::from_secs(60)), workers: 2 };
    let outcome = campaign(&options, &effort);
    let (seed, failure) = outcome.failed.expect("nothing was found without this rule");
    println!("{name}: seed {seed} of {}, {:?}: {}", outcome.seeds, outcome.time, failure.why);
}

/// With the rule the same program is right, or stopped.
#[test]
fn two_owners_are_a_stop() {
    let program = Rule::named("two-owners").expect("no such rule").program;
    assert!(program.is_some());
    let options = Options { gated: false, program, ..Options::default() };
    let effort = Effort { first: 0, seeds: 20_000, time: None, workers: 2 };
    let outcome = campaign(&options, &effort);
    assert!(outcome.failed.is_none() && outcome.stats.stops > 0, "{outcome:?}");
}

macro_rules! rules_that_bite {
    ($($test:ident = $name:literal;)*) => {
        $(
            #[test]
            fn $test() {
                bites($name);
            }
        )*

        #[test]
        fn every_rule_has_a_test() {
            let tested = [$($name),*];
            for rule in vswap_sim::RULES {
                assert!(tested.contains(&rule.name), "{}", rule.name);
            }
        }
    };
}

rules_that_bite! {
    window = "window";
    faults_wait = "faults-wait";
    unmap_marks = "unmap-marks";
    remap_proves_source = "remap-proves-source";
    newest_arrival_wins = "newest-arrival-wins";
    close_probes_arrivals = "close-probes-arrivals";
    owed = "owed";
    growth = "growth";
    untold_growth = "untold-growth";
    two_owners = "two-owners";
    fork_verified = "fork-verified";
    fork_beside_move = "fork-beside-move";
    fork_in_place = "fork-in-place";
    fork_marked = "fork-marked";
    register_confirm = "register-confirm";
    register_drops_stale = "register-drops-stale";
    one_mremap = "one-mremap";
    still_while_moving = "still-while-moving";
    fence = "fence";
    tally = "tally";
    staging_truth = "staging-truth";
    guard = "guard";
    wipe = "wipe";
}
