//! Makes a failing run smaller: leaves out threads and operations as long as some schedule still fails.
//!
//! Leaving something out changes the interleaving, so each candidate is run with several schedules.

use crate::program::Program;
use crate::{Failure, Setup, run};

/// Schedules tried for each candidate.
const SCHEDULES: u64 = 60;

/// A failing run that is as small as we could make it.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// How it is set up.
    pub setup: Setup,
    /// What is left of the program.
    pub program: Program,
    /// The schedule with which it fails.
    pub schedule: u64,
    /// How.
    pub failure: Failure,
    /// What happened.
    pub history: Vec<String>,
}

/// Shrinks the failing run of a seed.
pub fn shrink(setup: &Setup, program: &Program, schedule: u64) -> Shrunk {
    let mut setup = setup.clone();
    let mut best = (program.clone(), schedule);
    let attempt = |setup: &Setup, program: &Program, most: u64| {
        let mut setup = setup.clone();
        setup.patience = setup.patience.min(200_000);
        let mut shortest: Option<(u64, u64)> = None;
        for schedule in 0..most {
            if let (Some(failure), ..) = run(&setup, program, schedule, false)
                && shortest.is_none_or(|(_, step)| failure.step < step)
            {
                shortest = Some((schedule, failure.step));
            }
        }
        shortest.map(|(schedule, _)| schedule)
    };
    if setup.kill.is_some() {
        let spared = Setup { kill: None, ..setup.clone() };
        if let Some(schedule) = attempt(&spared, &best.0, SCHEDULES) {
            (setup, best.1) = (spared, schedule);
        }
    }
    let mut thread = best.0.threads.len();
    while thread > 0 && best.0.threads.len() > 1 {
        thread -= 1;
        let candidate = best.0.without_thread(thread);
        if let Some(schedule) = attempt(&setup, &candidate, SCHEDULES) {
            best = (candidate, schedule);
        }
    }
    let mut chunk = best.0.size().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut smaller = false;
        while at < best.0.size() {
            let keep: Vec<bool> = (0..best.0.size()).map(|i| i < at || i >= at + chunk).collect();
            let candidate = best.0.keeping(&keep);
            match attempt(&setup, &candidate, SCHEDULES) {
                Some(schedule) => {
                    best = (candidate, schedule);
                    smaller = true;
                }
                None => at += chunk,
            }
        }
        if chunk == 1 && !smaller {
            break;
        }
        chunk = (chunk / 2).max(1);
    }
    if let Some(schedule) = attempt(&setup, &best.0, 20 * SCHEDULES) {
        best.1 = schedule;
    }
    let (failure, _, history) = run(&setup, &best.0, best.1, true);
    let failure =
        failure.unwrap_or_else(|| Failure { why: "it fails no longer: not deterministic".into(), step: 0 });
    Shrunk { setup, program: best.0, schedule: best.1, failure, history }
}
