//! Each rule bites: switched off, a wrong byte, a stop or a leak is found within a minute.

use std::time::Duration;

use vswap_sim::{Effort, Op, Options, Program, Rule, Rules, Setup, campaign, of_seed, run};

/// Switches the rule off and expects that something is found.
fn bites(name: &str) {
    let rule = Rule::named(name).expect("no such rule");
    let options = Options { rules: rule.off(), gated: rule.gated, ..Options::default() };
    let effort =
        Effort { first: rule.first, seeds: u64::MAX / 2, time: Some(Duration::from_secs(60)), workers: 2 };
    let outcome = campaign(&options, &effort);
    let (seed, failure) = outcome.failed.expect("nothing was found without this rule");
    println!("{name}: seed {seed} of {}, {:?}: {}", outcome.seeds, outcome.time, failure.why);
}

/// One thread grows its mapping over what the other one is about to unmap, and moves it on: too rare among seeds, so here
/// is the program, and schedules decide.
#[test]
fn two_owners() {
    let old = vec![
        Op::Map { pages: 1, pick: 0 },
        Op::Fill { pick: 0 },
        Op::Map { pages: 1, pick: 0 },
        Op::Unmap { pick: 0 },
    ];
    let rest = std::iter::repeat_n(Op::Touch { pick: 0, write: false }, 12);
    let new = [Op::Map { pages: 1, pick: 0 }, Op::Fill { pick: 0 }].into_iter().chain(rest).chain([
        Op::Resize { pick: 0, pages: 2, may_move: false },
        Op::Move { pick: 0, onto: 0, keep: true },
    ]);
    let program = Program { threads: vec![new.collect(), old] };
    let outcomes = |rules| {
        let options = Options { rules, gated: false, ..Options::default() };
        let setup = Setup { arena: 6, kill: None, sluggish: 9, ..of_seed(0, &options).0 };
        let outcomes = (0..20_000).map(|schedule| run(&setup, &program, schedule, false));
        outcomes.fold((0, 0), |(wrong, stops), (failure, stats, _)| {
            (wrong + u64::from(failure.is_some()), stops + stats.stops)
        })
    };
    let (wrong, stops) = outcomes(Rules::default());
    assert!(wrong == 0 && stops > 0, "{wrong} wrong, {stops} stops");
    let (wrong, fewer) = outcomes(Rule::named("two-owners").expect("no such rule").off());
    assert!(wrong > 0, "nothing is wrong without it");
    println!("two-owners: {stops} stops; without it {wrong} wrong, {fewer} stops");
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
            let tested = ["two-owners", $($name),*];
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
