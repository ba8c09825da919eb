//! Many seeds, on several threads, until something is found or the time is up.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::{Failure, Options, Stats, of_seed, run};

/// How much is run.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// The first seed.
    pub first: u64,
    /// Seeds.
    pub seeds: u64,
    /// Longest time; what is not run by then is not run.
    pub time: Option<Duration>,
    /// Threads of the machine.
    pub workers: usize,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Seeds run.
    pub seeds: u64,
    /// What happened in all of them.
    pub stats: Stats,
    /// How long it took.
    pub time: Duration,
    /// The lowest seed that failed among those run, and how.
    pub failed: Option<(u64, Failure)>,
}

/// Runs seeds until one fails.
pub fn campaign(options: &Options, effort: &Effort) -> Outcome {
    let began = Instant::now();
    let next = AtomicU64::new(effort.first);
    let end = effort.first.saturating_add(effort.seeds);
    let stop = AtomicBool::new(false);
    let outcome =
        Mutex::new(Outcome { seeds: 0, stats: Stats::default(), time: Duration::ZERO, failed: None });
    let work = || {
        let (mut seeds, mut stats, mut failed) = (0, Stats::default(), None);
        while !stop.load(Relaxed) && effort.time.is_none_or(|time| began.elapsed() < time) {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= end {
                break;
            }
            let (setup, program) = of_seed(seed, options);
            let (failure, happened, _) = run(&setup, &program, 0, false);
            seeds += 1;
            stats.add(&happened);
            if let Some(failure) = failure {
                stop.store(true, Relaxed);
                failed = Some((seed, failure));
            }
        }
        let mut outcome = outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        outcome.seeds += seeds;
        outcome.stats.add(&stats);
        if let Some((seed, failure)) = failed
            && outcome.failed.as_ref().is_none_or(|(other, _)| seed < *other)
        {
            outcome.failed = Some((seed, failure));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..effort.workers {
            scope.spawn(work);
        }
        work();
    });
    let mut outcome = outcome.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    outcome.time = began.elapsed();
    outcome
}
