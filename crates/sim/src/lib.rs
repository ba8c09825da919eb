//! A simulated kernel for the pager's protocol.
#![forbid(unsafe_code)]

mod campaign;
mod driver;
mod kernel;
mod memory;
mod oracle;
mod program;
mod rng;
mod rules;
mod shrink;
mod threads;
mod world;
pub use campaign::{Effort, Outcome, campaign};
pub use program::{Child, Op, Program, Taste};
use rng::Rng;
pub use rules::{RULES, Rule, Rules};
pub use shrink::{Shrunk, shrink};
use world::World;

/// Why a run is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What was found.
    pub why: String,
    /// At which step.
    pub step: u64,
}

/// What happened in a run.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stats {
    /// Sub-steps.
    pub steps: u64,
    /// Pages compared.
    pub checks: u64,
    /// Faults.
    pub faults: u64,
    /// Events read.
    pub events: u64,
    /// Commands executed.
    pub commands: u64,
    /// Installs refused because a change was counted.
    pub refused: u64,
    /// Pages evicted.
    pub evicted: u64,
    /// Forks.
    pub forks: u64,
    /// Events lost with a killed vfork child.
    pub lost: u64,
    /// Runs given up because an UNMAP was lost between a scan and its MOVE.
    pub holes: u64,
    /// Fail-stops.
    pub stops: u64,
}

impl Stats {
    /// Adds what happened in another run.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.checks += other.checks;
        self.faults += other.faults;
        self.events += other.events;
        self.commands += other.commands;
        self.refused += other.refused;
        self.evicted += other.evicted;
        self.forks += other.forks;
        self.lost += other.lost;
        self.holes += other.holes;
        self.stops += other.stops;
    }
}

/// One run, but for its program.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Everything follows from it.
    pub seed: u64,
    /// Pages that there are addresses for.
    pub arena: usize,
    /// Whether mremap and its kin come through the gate.
    pub gated: bool,
    /// What is switched on.
    pub rules: Rules,
    /// Most processes.
    pub processes: usize,
    /// Mappings that are wiped on fork.
    pub wipes: bool,
    /// Longest time that a thread is held up, as a power of two.
    pub sluggish: usize,
    /// One step of a pager in so many is followed by a pause.
    pub drowsy: usize,
    /// A process that is killed, and when.
    pub kill: Option<(usize, u64)>,
    /// Steps after which nothing more is hoped for.
    pub patience: u64,
}

/// What the caller wants.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads, if they are not to follow from the seed.
    pub threads: Option<usize>,
    /// With the gate.
    pub gated: bool,
    /// The rules.
    pub rules: Rules,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: None, gated: true, rules: Rules::default() }
    }
}

/// The run of a seed.
pub fn of_seed(seed: u64, options: &Options) -> (Setup, Program) {
    let mut rng = Rng::new(seed, 1);
    let threads = options.threads.unwrap_or_else(|| 1 + rng.below(4));
    let mut weights = [6, 8, 10, 3, 2, 1];
    // Every seed has its own taste; some leave out whole kinds of operations.
    for weight in &mut weights {
        *weight = match rng.below(4) {
            0 => 0,
            1 => *weight * 2,
            _ => *weight,
        };
    }
    // One seed in four lets mremaps and unmaps chase each other over very few addresses.
    let storm = rng.one_in(4);
    if storm {
        weights = [rng.below(3), 8 + rng.below(8), 12 + rng.below(16), 0, rng.below(2), rng.below(2)];
    }
    let pages = 1 + rng.below(if storm { 2 } else { 5 });
    let taste = Taste { threads, ops: 8 + rng.below(32), pages, weights, chains: storm };
    let arena = if storm { 3 * threads + rng.below(8) } else { 12 + rng.below(28) };
    let setup = Setup {
        seed,
        arena,
        gated: options.gated,
        rules: options.rules,
        processes: 5,
        wipes: options.gated && weights[3] > 0,
        sluggish: 4 + rng.below(6),
        drowsy: [8, 30, 100, 400][rng.below(4)],
        kill: rng.one_in(16).then(|| (rng.below(3), 200 + rng.below(4000) as u64)),
        patience: 2_000_000,
    };
    let program = Program::new(&mut rng, &taste);
    (setup, program)
}

/// Runs a program once, with one of its schedules. Gives back what is wrong, what happened, and the history if it was
/// asked for.
pub fn run(
    setup: &Setup,
    program: &Program,
    schedule: u64,
    trace: bool,
) -> (Option<Failure>, Stats, Vec<String>) {
    let mut world = World::new(setup, program, schedule, trace);
    let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    if let Err(panic) = step {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()));
        world.fail(format!("panic: {}", text.unwrap_or_default()));
    }
    (world.failure, world.stats, world.log.unwrap_or_default())
}
