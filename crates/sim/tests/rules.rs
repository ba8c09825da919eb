//! Each rule bites: switched off, a wrong byte, a stop or a leak is found within a minute.

use std::time::Duration;

use vswap_sim::{Effort, Options, Rule, campaign};

/// Switches the rule off and expects that something is found.
fn bites(name: &str) {
    let rule = Rule::named(name).expect("no such rule");
    let options = Options { rules: rule.off(), gated: rule.gated, ..Options::default() };
    // Three take some seconds of an optimised build from seed 0; this one is slow, so it starts nearer.
    let first = match name {
        "register-confirm" => 10_500,
        "faults-wait" => 180_500,
        "remap-proves-source" => 19_500,
        _ => 0,
    };
    let effort = Effort { first, seeds: u64::MAX / 2, time: Some(Duration::from_secs(60)), workers: 2 };
    let outcome = campaign(&options, &effort);
    let (seed, failure) = outcome.failed.expect("nothing was found without this rule");
    println!("{name}: seed {seed} of {}, {:?}: {}", outcome.seeds, outcome.time, failure.why);
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
        fn every_rule_has_a_test_or_a_reason() {
            let tested = [$($name),*];
            for rule in vswap_sim::RULES {
                assert_ne!(tested.contains(&rule.name), rule.spare.is_some(), "{}", rule.name);
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
    fork_verified = "fork-verified";
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
