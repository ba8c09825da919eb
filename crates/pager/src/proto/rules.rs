//! One switch per rule of the protocol, for the simulator alone: a rule that is switched off has to be found.
//!
//! Everything is on; nothing outside tests has a way to switch it off. Each switch is read at the one place that
//! holds its rule.

/// The rules, all on by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Events collect in a window until a quiet moment; off: each is acted on when it is read.
    pub window: bool,
    /// Faults wait while a window is open; off: whatever the kernel lets through is installed.
    pub faults_wait: bool,
    /// UNMAP only marks; off: it drops slots when it is read.
    pub unmap_marks: bool,
    /// REMAP moves marked slots too; off: a marked slot is dead.
    pub remap_proves_source: bool,
    /// What a REMAP brings replaces what was there; off: the older slot stays.
    pub newest_arrival_wins: bool,
    /// Arrivals with an UNMAP are probed at the close; off: they are kept.
    pub close_probes_arrivals: bool,
    /// Resident pages below a REMOVE are not evicted.
    pub owed: bool,
    /// mremap growth is an arrival of zeros.
    pub growth: bool,
    /// The child's table is the parent's at FORK's place; off: as it is at the close.
    pub fork_in_place: bool,
    /// Marked slots are the child's too, as doubtful arrivals.
    pub fork_marked: bool,
    /// What a fork brought is compared with what is mapped before anything is registered in the child.
    pub fork_verified: bool,
    /// A mapping is looked up again after it was registered.
    pub register_confirm: bool,
    /// Slots below a mapping that the model does not know are dropped before it counts as registered.
    pub register_drops_stale: bool,
    /// What was unmapped, may have arrived, and is mapped is a stop where nobody tells of growth.
    pub untold_growth: bool,
    /// What an mremap took from where there were two owners in one window is a stop, where nobody tells of growth.
    pub two_owners: bool,
    /// What an mremap of another thread brought about the time of a fork is in doubt in the child, where nobody tells of growth.
    pub fork_beside_move: bool,
    /// mremaps that no grant orders and that touch are a stop.
    pub touching_stop: bool,
    /// Guard pages take what was under them.
    pub guard: bool,
    /// What is wiped on fork is not the child's.
    pub wipe: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            window: true,
            faults_wait: true,
            unmap_marks: true,
            remap_proves_source: true,
            newest_arrival_wins: true,
            close_probes_arrivals: true,
            owed: true,
            growth: true,
            fork_in_place: true,
            fork_marked: true,
            fork_verified: true,
            register_confirm: true,
            register_drops_stale: true,
            untold_growth: true,
            two_owners: true,
            fork_beside_move: true,
            touching_stop: true,
            guard: true,
            wipe: true,
        }
    }
}
