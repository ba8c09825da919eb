//! One address space: its state, what comes in, and what to do next. The rule that keeps it sound is in `window.rs`.
//!
//! The caller owns the state (one thread per address space); there is no lock.

use std::collections::VecDeque;
use std::ops::Range;

use vswap_core::{PAGE_SIZE, SlotId};

use super::history::{History, What};
use super::marks::Marks;
use super::message::{Answer, Call, Command, Effect, Fault, Input, Mremap, Ticket};
use super::ranges::RangeSet;
use super::rules::Rules;
use super::streams::Streams;
use super::sweep::{Sweep, Verify};
use super::table::PageTable;
use super::window::Window;

pub(super) const PAGE: u64 = PAGE_SIZE as u64;

/// What happened in an address space so far.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Windows closed.
    pub windows: u64,
    /// Calls granted at the gate.
    pub grants: u64,
    /// FORK events.
    pub forks: u64,
    /// Slots dropped because nothing registered was under them any more (lost events).
    pub stale: u64,
    /// Arrivals whose fate a probe decided.
    pub probed: u64,
    /// Pages that came back because the driver wanted them to.
    pub recalled: u64,
    /// Pages that a sweep passed over because they had come back since its last visit.
    pub passed: u64,
}

/// What is being done; each job knows the command it waits for.
#[derive(Default)]
pub(super) enum Job {
    #[default]
    Idle,
    /// Installing pages for a fault, from slots, or zeros where there are none.
    Serving { fault: Fault, slots: Vec<SlotId>, pages: u64 },
    /// Installing pages that nobody waits for: before a fork, and before a call of which nobody tells.
    Recalling { addr: u64, slots: Vec<SlotId> },
    /// Zeros around a page that was written to.
    Around { fault: Fault, pages: u64 },
    /// A granted call is being handed to the agent.
    Granting(Ticket, Call),
    /// Closing: asking for a quiet moment.
    Quieting,
    /// Closing: these arrivals are still in doubt; the last one is asked for.
    Deciding(Vec<u64>),
    /// Going over the mappings, to register or to evict.
    Sweeping(Sweep),
    /// Going over what a fork brought, before anything of it is trusted.
    Verifying(Verify),
}

/// The state of one address space.
#[derive(Default)]
pub struct AddressSpace {
    pub(super) table: PageTable,
    pub(super) registered: RangeSet,
    pub(super) owed: RangeSet,
    /// What of it was owed when the driver began to look whether the calls behind it have returned.
    pub(super) settling: RangeSet,
    /// Where a forked child reads zeros. Exact for registered ranges.
    pub(super) wiped: RangeSet,
    pub(super) warm: Marks,
    pub(super) window: Option<Window>,
    /// Ranges that a fork brought and that were not yet compared with what is mapped.
    pub(super) inherited: RangeSet,
    pub(super) parent_open: bool,
    /// A forked child that stands still until it was verified.
    pub(super) greeting: bool,
    /// Forked by an address space where nobody tells of growth.
    pub(super) born_untold: bool,
    /// mremaps that their callers were let go with, as long as no REMAP has come of them.
    pub(super) loose: Vec<Mremap>,
    pub(super) gated: bool,
    /// Somebody in there executes what is granted, and tells the result.
    pub(super) has_agent: bool,
    /// It has not answered its last batch, which is over; its thread.
    pub(super) overdue: Option<u32>,
    pub(super) sole_thread: bool,
    pub(super) asked: VecDeque<(Ticket, Call)>,
    pub(super) granted: Option<(Ticket, Call)>,
    pub(super) ready: VecDeque<Fault>,
    pub(super) held: VecDeque<Fault>,
    pub(super) throttled: bool,
    pub(super) streams: Streams,
    pub(super) job: Job,
    pub(super) evict: u64,
    /// So many evicted pages should come back.
    pub(super) recall: u64,
    pub(super) register_all: bool,
    pub(super) evict_hand: u64,
    pub(super) register_hand: u64,
    pub(super) effects: VecDeque<Effect>,
    pub(super) counters: Counters,
    pub(super) history: History,
    pub(super) rules: Rules,
    /// Something was told since a rule that is switched off was last broken.
    pub(super) poked: bool,
    pub(super) gone: bool,
    /// A fail-stop: nothing more is done.
    pub(super) stopped: bool,
}

impl AddressSpace {
    /// A fresh address space. `gated`: mremaps come through [`Input::Asked`].
    pub fn new(gated: bool) -> Self {
        Self { gated, has_agent: true, ..Self::default() }
    }

    /// Switches rules off: see [`Rules`].
    #[doc(hidden)]
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// The driver's time, for what is remembered of changes.
    pub fn set_now(&mut self, nanoseconds: u64) {
        self.history.set_now(nanoseconds);
    }

    /// The last changes of a range, in words that go on a sentence.
    pub fn history_of(&self, range: &Range<u64>) -> String {
        self.history.of(range)
    }

    /// Evicted pages.
    pub fn evicted(&self) -> u64 {
        self.table.len()
    }

    /// Bytes of the page table and the sets beside it, about.
    pub fn footprint(&self) -> usize {
        self.table.footprint() + self.owed.footprint() + self.registered.footprint() + self.warm.footprint()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether a window is open.
    pub fn window_open(&self) -> bool {
        self.window.is_some()
    }

    /// Whether the driver should look again soon: a window waits for a quiet moment.
    pub fn wants_quiet(&self) -> bool {
        self.window.is_some() && self.granted.is_none() && !self.parent_open && !self.gone
    }

    /// Whether pages stay because a REMOVE was read whose zap may still come.
    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// The call that is being executed.
    pub fn granted(&self) -> Option<(Ticket, Call)> {
        self.granted
    }

    /// Faults that wait because memory is short.
    pub fn held_faults(&self) -> usize {
        self.held.len()
    }

    /// The page that a slot is for. Slow.
    pub fn place_of(&self, slot: SlotId) -> Option<u64> {
        self.table.all().find(|(_, entry)| entry.slot == slot).map(|(addr, _)| addr)
    }

    /// Whether only one thread of the program runs: then events come in the order of the changes.
    pub fn set_sole_thread(&mut self, sole: bool) {
        self.sole_thread = sole;
    }

    /// Whether somebody in there executes what is granted. A forked child begins without.
    pub fn set_agent(&mut self, has: bool) {
        self.has_agent = has;
    }

    /// The agent's thread, if it has yet to answer a batch that was ended without it. It may wait for a page. Pages wait while a call
    /// is granted, so nothing is granted to it; and its own first touches do not wait for memory, which only it can give.
    pub fn set_overdue(&mut self, agent: Option<u32>) {
        self.overdue = agent;
    }

    /// Whether what a fork brought was compared with what is mapped: only then may its agent go on.
    pub fn verified(&self) -> bool {
        !self.parent_open && !self.unverified()
    }

    pub(super) fn unverified(&self) -> bool {
        !self.inherited.is_empty() && self.rules.fork_verified
    }

    /// Whether the order of events matters: then the driver says, before an UNMAP, a REMAP or a FORK, whether one thread runs.
    pub fn asks_for_order(&self) -> bool {
        self.granted.is_none() && !(self.gated && self.has_agent)
    }

    /// Whether growth is told: by who executes it, or because nobody could make the call yet.
    pub(super) fn growth_is_told(&self) -> bool {
        let no_call_yet = self.unverified() && self.gated && !self.born_untold;
        no_call_yet || (self.gated && self.has_agent) || !self.rules.untold_growth
    }

    /// Whether the address space is known to be gone.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Lets go of everything still held; the address space is over.
    pub fn dissolve(&mut self) {
        self.gone = true;
        let late = if self.rules.fork_in_place { None } else { self.window.as_ref() };
        for key in late.map_or(Vec::new(), |window| window.children.clone()) {
            self.cloned(key);
        }
        let (addrs, slots) = self.table.all().map(|(addr, entry)| (addr, entry.slot)).unzip();
        self.table = PageTable::default();
        self.free(slots, addrs);
        if let Some(window) = self.window.take() {
            // What several threads did and nobody has read is lost.
            let mut gone = window.gone;
            if !self.gated && !self.sole_thread {
                gone.insert(0..!(PAGE - 1));
            }
            self.effects.push_back(Effect::Closed(window.children, gone.iter().collect()));
        }
    }

    /// The next effect, in order.
    pub fn effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Takes in what the driver has read or was told.
    pub fn input(&mut self, input: Input) {
        self.poked = true;
        match input {
            Input::Fault(fault) => self.fault(fault),
            Input::Unmap(range) => self.unmap(range),
            Input::Remove(range) => self.discard(range),
            Input::Remap { from, to, len } => self.remap(from, to, len),
            Input::Fork(key) => {
                self.history.note(What::Forked, &(0..u64::MAX));
                self.fork(key);
            }
            Input::Drained => {
                if let Some(window) = &mut self.window {
                    window.drained = true;
                }
            }
            Input::Asked(ticket, call) => self.asked.push_back((ticket, call)),
            Input::Returned(ticket, result) => self.returned(ticket, result),
            Input::Guarded(range) if self.rules.guard => self.guarded(range),
            Input::Guarded(_) => {}
            Input::SettleBegin => self.settling = self.owed.clone(),
            Input::Settled => {
                for range in core::mem::take(&mut self.settling).iter() {
                    self.owed.remove(range);
                }
            }
            Input::WipedOnFork(range, parts) => self.wiped_on_fork(range, parts),
            Input::ParentClosed(unmapped) => self.parent_closed(unmapped),
            Input::Greeting => self.greeting = true,
            Input::Throttle(on) => self.throttled = on,
            Input::Evict(pages) => self.evict = pages,
            Input::Recall(pages) => self.recall = pages,
            Input::RegisterAll(on) => self.register_all = on,
        }
    }

    /// Nothing more is done: `why`, of what is in `range`.
    pub(super) fn stop(&mut self, range: Range<u64>, why: String) {
        self.stopped = true;
        self.effects.push_back(Effect::FailStop(why + &self.history.of(&range)));
    }

    /// The same for a page that is present although its contents are in a slot.
    pub(super) fn stop_at_present(&mut self, addr: u64) {
        let slot = self.table.get(addr).map_or(0, |entry| entry.slot.get());
        let why = format!("a page is present at {addr:#x}, whose contents are in swap slot {slot}");
        self.stop(addr..addr + PAGE, why);
    }

    /// The same for an answer that makes no sense.
    pub(super) fn stop_at_answer(&mut self, answer: &Answer, to: &str) {
        self.stop(0..u64::MAX, format!("unexpected answer {answer:?} to {to}"));
    }

    fn free(&mut self, slots: Vec<SlotId>, addrs: Vec<u64>) {
        if !slots.is_empty() {
            self.effects.push_back(Effect::Free(slots, addrs));
        }
    }

    /// Forgets the slots of a range.
    pub(super) fn drop_slots(&mut self, range: Range<u64>) -> usize {
        let addrs = self.table.addrs(range);
        let slots: Vec<_> =
            addrs.iter().filter_map(|&addr| self.table.remove(addr)).map(|entry| entry.slot).collect();
        let dropped = slots.len();
        self.free(slots, addrs);
        dropped
    }

    /// The next command, if there is something to do now. Ask again only after its answer.
    pub fn next_command(&mut self) -> Option<Command> {
        if self.gone || self.stopped {
            return None;
        }
        if matches!(self.job, Job::Idle) {
            self.job = self.choose()?;
        }
        Some(match &self.job {
            Job::Idle => return None,
            Job::Serving { fault, slots, pages } => self.install(*fault, slots, *pages),
            Job::Recalling { addr, slots } => {
                Command::Copy { addr: *addr, slots: slots.clone(), fault: None }
            }
            Job::Around { fault, pages } => Command::Zero { addr: fault.addr, pages: *pages, fault: None },
            Job::Granting(ticket, call) => Command::Execute(*ticket, *call),
            Job::Quieting => Command::Probe,
            Job::Deciding(doubts) => Command::ProbePage(*doubts.last()?),
            Job::Sweeping(sweep) => sweep.command(self),
            Job::Verifying(verify) => verify.command(),
        })
    }

    fn choose(&mut self) -> Option<Job> {
        let unverified = self.unverified();
        if self.granted.is_none()
            && !unverified
            && self.overdue.is_none()
            && let Some(&(ticket, call)) = self.asked.front()
            && (self.window.is_none() || (self.has_agent && !self.takes_untold(&call)))
        {
            if let Some(job) = self.bring_back(&call) {
                return Some(job);
            }
            self.asked.pop_front();
            if !self.has_agent {
                return Some(self.let_go(ticket, call));
            }
            self.open();
            self.granted = Some((ticket, call));
            self.counters.grants += 1;
            return Some(Job::Granting(ticket, call));
        }
        if let Some(window) = &self.window {
            let settled = !self.parent_open && self.granted.is_none() && window.drained;
            if settled || (self.rules.window && self.rules.faults_wait) {
                return settled.then_some(Job::Quieting);
            }
            return self.unruly();
        }
        if unverified && (self.greeting || !self.ready.is_empty() || !self.asked.is_empty()) {
            return Some(Job::Verifying(Verify::default()));
        }
        if self.throttled && self.evict > 0 {
            // At the limit, pages leave before others come.
            return Some(self.sweep());
        }
        if !self.throttled {
            self.ready.append(&mut self.held);
        }
        while let Some(fault) = self.ready.pop_front() {
            if let Some(job) = self.serve(fault) {
                return Some(job);
            }
        }
        if let Some(job) = self.recall() {
            return Some(job);
        }
        if self.evict == 0 && !self.register_all {
            return None;
        }
        Some(self.sweep())
    }

    /// What is done in an open window by who does not keep the rules of the window: once for each input.
    fn unruly(&mut self) -> Option<Job> {
        if !core::mem::take(&mut self.poked) || (self.parent_open && self.rules.faults_wait) {
            return None;
        }
        if !self.rules.window && self.granted.is_none() {
            self.quieted(Answer::Done);
            if !matches!(self.job, Job::Idle) {
                return Some(core::mem::take(&mut self.job));
            }
        }
        self.ready.pop_front().and_then(|fault| self.serve(fault))
    }

    /// A sweep over the mappings, after a fork only once what it brought was checked.
    fn sweep(&mut self) -> Job {
        if !self.inherited.is_empty() && self.rules.fork_verified {
            return Job::Verifying(Verify::default());
        }
        let evict = core::mem::take(&mut self.evict);
        if evict == 0 {
            self.register_all = false;
        }
        Job::Sweeping(Sweep::new(evict))
    }

    /// Takes the answer to the last command.
    pub fn answer(&mut self, answer: Answer) {
        let job = core::mem::take(&mut self.job);
        match answer {
            Answer::Gone => {
                self.gone = true;
                return;
            }
            Answer::Lost(addr, why) => return self.stop(addr..addr + PAGE, why),
            _ => {}
        }
        match job {
            Job::Idle | Job::Granting(..) => {}
            Job::Serving { fault, slots, pages } => self.served(fault, slots.len(), pages, answer),
            Job::Recalling { addr, slots } => self.recalled(addr, &slots, answer),
            Job::Around { fault, .. } => self.served_around(fault, answer),
            Job::Quieting => self.quieted(answer),
            Job::Deciding(doubts) => self.decided(doubts, answer),
            Job::Sweeping(sweep) => self.swept(sweep, answer),
            Job::Verifying(verify) => self.compared(verify, answer),
        }
    }
}

impl core::fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AddressSpace")
            .field("evicted", &self.table.len())
            .field("registered", &self.registered)
            .field("owed", &self.owed)
            .field("window", &self.window.is_some())
            .field("waiting", &self.ready.len())
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}
