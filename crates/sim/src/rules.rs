//! The rules, by name, and what switches each off.

use vswap_pager::proto;

use crate::{Program, directed};

/// What is switched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// The protocol's.
    pub proto: proto::Rules,
    /// The driver's: nothing is read while a Move is in flight.
    pub still: bool,
    /// The driver's: staging is unregistered where a batch is ended without its agent.
    pub fence: bool,
    /// The driver's: it looks at the tally before it looks at staging.
    pub tally: bool,
    /// The agent's: what is in staging has moved, whatever MOVE says.
    pub staging_truth: bool,
    /// The gate's: mremaps are granted one at a time. Off: callers go on by themselves, and nobody stops.
    pub one_mremap: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            proto: proto::Rules::default(),
            still: true,
            fence: true,
            tally: true,
            staging_truth: true,
            one_mremap: true,
        }
    }
}

/// A rule that can be switched off.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens without it.
    pub without: &'static str,
    /// A seed not far below one that needs it.
    pub first: u64,
    /// Whether it is needed with the gate; else it is without.
    pub gated: bool,
    /// A program that needs it, where those that follow from seeds hardly ever do.
    pub program: Option<fn() -> Program>,
    off: fn(&mut Rules),
}

impl Rule {
    /// The rule of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        RULES.iter().find(|rule| rule.name == name)
    }

    /// All rules but this one.
    pub fn off(&self) -> Rules {
        let mut rules = Rules::default();
        (self.off)(&mut rules);
        rules
    }
}

macro_rules! rules {
    ($($name:literal, $without:literal $(, $($field:ident).+)+;)*) => {
        /// All rules that have a switch.
        pub const RULES: &[Rule] = &[$(
            Rule { name: $name, without: $without, first: first($name), gated: gated($name), program: program($name), off: |rules| { $(rules.$($field).+ = false;)+ } },
        )*];
    };
}

rules! {
    "window", "each event is acted on when it is read", proto.window;
    "faults-wait", "pages are installed while a window is open", proto.faults_wait;
    "unmap-marks", "UNMAP drops slots when it is read", proto.unmap_marks;
    "remap-proves-source", "a slot that an UNMAP marked does not move with a REMAP", proto.remap_proves_source;
    "newest-arrival-wins", "what a REMAP lands on stays", proto.newest_arrival_wins;
    "close-probes-arrivals", "arrivals with an UNMAP are kept unasked", proto.close_probes_arrivals;
    "owed", "pages are evicted between their REMOVE and its zap", proto.owed;
    "growth", "what an mremap grew over keeps its slots", proto.growth;
    "fork-in-place", "the child's table is cloned at the close", proto.fork_in_place;
    "fork-marked", "the child does not get slots that an UNMAP marked", proto.fork_marked;
    "fork-verified", "what a fork brought is trusted", proto.fork_verified;
    "register-confirm", "a mapping is not looked up again after it was registered", proto.register_confirm;
    "register-drops-stale", "slots below an unknown mapping stay", proto.register_drops_stale;
    "untold-growth", "what is mapped has not grown, though nobody would tell", proto.untold_growth;
    "two-owners", "what has moved is the first owner's, though nobody would tell of growth", proto.two_owners;
    "fork-beside-move", "what moved about the time of a fork has moved for the child, though nobody would tell of growth", proto.fork_beside_move;
    "one-mremap", "mremaps run as they come, and nobody stops", one_mremap, proto.touching_stop;
    "still-while-moving", "events are read while a Move is in flight", still;
    "fence", "an agent goes on to move, whose batch was ended", fence;
    "tally", "what an agent has copied to the ring is looked for in staging", tally;
    "staging-truth", "MOVE is believed", staging_truth;
    "guard", "guard pages leave slots behind", proto.guard;
    "wipe", "a child gets what should be wiped", proto.wipe;
}

/// Growth is told by whoever executes the calls that the gate stops; then the model is right before a window closes, too.
const fn gated(name: &str) -> bool {
    !matches!(
        name.as_bytes(),
        b"faults-wait" | b"untold-growth" | b"two-owners" | b"fork-beside-move" | b"fork-verified"
    )
}

/// Most are found within a second from seed 0. These are slow, so they start nearer.
const fn first(name: &str) -> u64 {
    match name.as_bytes() {
        b"register-confirm" => 10_500,
        b"faults-wait" => 13_000,
        b"remap-proves-source" => 29_000,
        b"untold-growth" => 23_000,
        b"fork-beside-move" => 3_793_000,
        _ => 0,
    }
}

const fn program(name: &str) -> Option<fn() -> Program> {
    match name.as_bytes() {
        b"two-owners" => Some(directed::two_owners),
        _ => None,
    }
}
