//! A simulated kernel for the pager's protocol.
//!
//! The protocol (`vswap_pager::proto`) is a state machine without I/O. This crate is everything around it: address
//! spaces, threads that race, agents, the gate, and a userfaultfd that keeps the rules that were measured on the real
//! one. From a seed it makes a program and a schedule and runs the production crate through them, one sub-step of one
//! actor at a time. Simulated threads compare every page they read with what they wrote; nothing else decides whether
//! a run is right. `cargo xtask sim` runs seeds, `cargo xtask sim --without RULE` shows that a rule is needed.
//!
//! # Actors and sub-steps
//!
//! Threads, agents and pagers take turns; the next one is drawn at random, and at the points where it matters an actor
//! may be held up for long (`World::delay`). A system call is several sub-steps (`world::Micro`):
//!
//! | the kernel | here |
//! | --- | --- |
//! | a change of mappings below the lock | one step (`kernel.rs`, `Change`); the count of changes goes up in it, by one for each event that is due |
//! | the lock is dropped, the event is queued | `Micro::Queue`, any time later: so events arrive in another order than the changes were made |
//! | read() takes a message: faults first, then events in the order in which they were queued | `read_message` |
//! | the thread wakes, the count goes down | `Micro::Woken`, any time after the read |
//! | madvise: REMOVE, then the zap, which may come long after the thread has woken, for one mapping after the other | `Micro::Zap`, a page at a time; where nothing is registered it is one step with the check |
//! | mremap: UNMAP of the target, REMAP with the old or the new length, UNMAP of tail and source, each slept on | `remap` |
//! | growth, in place or moved; mmap, mprotect, mlock, MADV_GUARD_INSTALL, MADV_WIPEONFORK | no event |
//! | fork: pages shared (MOVE answers EBUSY for ever, until un-shared), FORK if anything registered is inherited, the child starts when it was read | `fork` |
//! | exit | descriptors answer "gone"; what was queued is lost |
//! | a vfork child killed while its munmap waits | its event is lost, the count goes down (`dies`) |
//! | COPY, ZEROPAGE: EAGAIN while changes are counted, one registered mapping or ENOENT, EEXIST, short counts; COPY replaces a guard marker, ZEROPAGE does not | `install` |
//! | WRITEPROTECT of a page as a probe | `Command::ProbePage` |
//! | REGISTER, not guarded, over whatever is there | `Command::Register` |
//! | MOVE: EAGAIN, refuses holes, shared, pinned, read-only and locked pages, and staging that is not registered; takes fewer than asked, does *not* look whether the mapping is registered | `take` |
//! | MOVE says less than it did; the agent looks at staging | `take` |
//! | MADV_FREE: the page may go at any time until it is written | `reclaim` |
//!
//! `tests/conformance` holds this table to the real kernel: each row of it is a small history with the same assertions
//! for both.
//!
//! Mappings are chosen where something was unmapped just before, so that addresses change hands while the thread that
//! had them still waits inside its system call.
//!
//! The driver (`driver.rs`) is written after `crates/pager/src/driver/{server,port,settle}.rs`: one message a read,
//! commands one at a time, nothing read while a Move is in flight, a batch ended without its agent at any of the agent's
//! sub-steps, effects in order, a child served from the FORK on
//! and without an agent until it has greeted and was verified.
//!
//! # What has to be true
//!
//! - Every page reads as it was written last; zero after DONTNEED; old or zero after FREE until it is written; the
//!   fork's moment in a child; zero where it is wiped on fork; a guard page stays one (`oracle.rs`).
//! - A slot is freed once for each holder, never read without one, and none is left when everything has ended.
//! - Every fault is answered, every call returns, every process ends within a bounded number of steps.
//! - With the gate nobody stops. Without it, or in a child that has no agent, the stops are those of two mremaps of one
//!   window that touch and of what an mremap, of which nobody told, may have grown over: their messages name the gate.
//!
//! Programs are free of data races: a page belongs to one thread, which gives it away only between its calls. What a
//! fork finds of pages that another thread's call is changing at that moment is not checked.
//!
//! # What is not modelled
//!
//! - Bytes: a page is one number. Huge pages, file mappings, shared memory. Programs with a heap or a
//!   growing stack: the kernel's part of those is there for `tests/conformance` alone.
//! - An UNMAP that is lost (a killed vfork child) between a scan and its MOVE, with the address mapped anew in
//!   between: MOVE then takes pages out of an unregistered mapping. Such runs are counted (`Stats::holes`) and given up.
//! - Without the gate: guard pages, wipe-on-fork after registration and killed vfork children; and a child without an
//!   agent that grows a mapping over what MADV_DONTFORK kept from it.
//! - A vfork child killed inside madvise, whose REMOVE is lost although the zap is done.
//! - Freezing, deadlines, the agent's own memory, the space below the slots.
#![forbid(unsafe_code)]

mod agent;
pub mod bare;
mod campaign;
mod directed;
mod driver;
mod kernel;
mod memory;
mod oracle;
mod program;
mod rng;
mod rules;
mod shrink;
mod threads;
mod userfaultfd;
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
    /// Batches ended without their agent.
    pub taken_back: u64,
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
        self.taken_back += other.taken_back;
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
    /// Mappings that are kept from children (MADV_DONTFORK).
    pub keeps: bool,
    /// Longest time that a thread is held up, as a power of two.
    pub sluggish: usize,
    /// One step of a pager in so many is followed by a pause.
    pub drowsy: usize,
    /// A process that is killed, and when.
    pub kill: Option<(usize, u64)>,
    /// Whether the kernel does what it may do and need not: short counts, pinned pages, reclaim.
    pub whims: bool,
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
    /// What is run, if it is not to follow from the seed.
    pub program: Option<fn() -> Program>,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: None, gated: true, rules: Rules::default(), program: None }
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
    // One seed in four lets mremaps and unmaps chase each other over very few addresses; one in eight has much to do at
    // the gate while other pages of the same mappings come and go; one in eight maps and unmaps while the pager sleeps.
    let storm = rng.one_in(4);
    let mut drowsy = [8, 30, 100, 400][rng.below(4)];
    match rng.below(6) {
        0 if !storm => weights = [2 + rng.below(8), 1, 4 + rng.below(8), 12 + rng.below(24), rng.below(2), 0],
        1 if !storm => (weights, drowsy) = ([0, 16 + rng.below(16), rng.below(3), 0, rng.below(2), 0], 4),
        _ => {}
    }
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
        keeps: options.gated || rng.one_in(2),
        sluggish: 4 + rng.below(6),
        drowsy,
        kill: rng.one_in(16).then(|| (rng.below(3), 200 + rng.below(4000) as u64)),
        whims: true,
        patience: 2_000_000,
    };
    match options.program {
        // As small as it can be, and threads that are held up for long.
        Some(program) => (Setup { arena: 6, kill: None, sluggish: 9, ..setup }, program()),
        None => (setup, Program::new(&mut rng, &taste)),
    }
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
