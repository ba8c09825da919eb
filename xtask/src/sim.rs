//! The pager's protocol under the simulated kernel of `crates/sim`: seeds by the thousand, a failure with its seed and
//! a history that was made as short as it could be.

use crate::args::Args;
use std::time::Duration;
use vswap_sim::{Effort, Options, RULES, Rule, campaign, of_seed, shrink};

/// `cargo xtask sim`.
pub(crate) fn main(words: Vec<String>) -> Result<bool, String> {
    let mut args = Args::new(words);
    let mut options = Options { gated: !args.flag("--ungated"), ..Options::default() };
    if let Some(threads) = args.value("--threads")? {
        options.threads =
            Some(threads.parse().map_err(|_| format!("--threads wants a number, not `{threads}`"))?);
    }
    let without = args.value("--without")?;
    let mut first = 0;
    if let Some(name) = &without {
        let rule = Rule::named(name).ok_or_else(|| unknown(name))?;
        println!("without {name}: {}", rule.without);
        options.rules = rule.off();
        options.gated &= rule.gated;
        options.program = rule.program;
        first = rule.first;
    }
    let minutes = args.number("--minutes", 0)?;
    let seed = args.value("--seed")?;
    let seed: Option<u64> = match &seed {
        Some(text) => Some(text.parse().map_err(|_| format!("--seed wants a number, not `{text}`"))?),
        None => None,
    };
    let endless = minutes > 0 || without.is_some();
    let seeds = args.number(
        "--seeds",
        if seed.is_some() {
            1
        } else if endless {
            u64::MAX / 2
        } else {
            10_000
        },
    )?;
    if let Some(word) = args.names()?.first() {
        return Err(format!("no argument `{word}`"));
    }
    let time = match (minutes, &without) {
        (0, None) => None,
        (0, Some(_)) => Some(Duration::from_secs(60)),
        (minutes, _) => Some(Duration::from_secs(60 * minutes)),
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let outcome = campaign(&options, &Effort { first: seed.unwrap_or(first), seeds, time, workers });
    let (stats, took) = (outcome.stats, outcome.time.as_secs_f64());
    println!(
        "{} seeds in {took:.1} s, {} steps ({:.1} million a second): {} pages compared, {} faults, {} events, {} pages \
         evicted, {} installs refused, {} forks, {} lost events, {} fail-stops",
        outcome.seeds,
        stats.steps,
        stats.steps as f64 / took / 1e6,
        stats.checks,
        stats.faults,
        stats.events,
        stats.evicted,
        stats.refused,
        stats.forks,
        stats.lost,
        stats.stops,
    );
    let Some((seed, failure)) = outcome.failed else {
        println!("nothing is wrong");
        return Ok(true);
    };
    println!("seed {seed} fails at step {}: {}", failure.step, failure.why);
    let (setup, program) = of_seed(seed, &options);
    let small = shrink(&setup, &program, 0);
    println!(
        "{} operations of {} are enough, schedule {}: {}\n{:#?}",
        small.program.size(),
        program.size(),
        small.schedule,
        small.failure.why,
        small.program
    );
    for line in &small.history {
        println!("{line}");
    }
    let other = if options.gated { "" } else { " --ungated" };
    let threads = options.threads.map_or(String::new(), |threads| format!(" --threads {threads}"));
    let rule = without.map_or(String::new(), |name| format!(" --without {name}"));
    println!("again: cargo xtask sim --seed {seed}{threads}{rule}{other}");
    Ok(false)
}

fn unknown(name: &str) -> String {
    let mut text = format!("no rule `{name}`; there are:");
    for rule in RULES {
        text += &format!("\n  {:22} {}", rule.name, rule.without);
    }
    text
}
