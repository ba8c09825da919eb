//! One address space: its page table, the window of mapping changes, and what to do next.
//!
//! # The rule that keeps it sound
//!
//! The kernel counts every change of registered mappings from inside the lock that makes the change until the thread
//! that made it has woken from its event, and refuses guarded commands (copy, zeropage, write-protect, move) while
//! the count is not zero. So a guarded command that succeeds proves that every event of every change so far has been
//! read: the moment is *quiet*. It does not prove in which order the changes were made. Between two quiet moments
//! events therefore collect in one *window*, and their meaning is settled when it closes:
//!
//! 1. while a window is open nothing is installed, evicted or registered; faults wait;
//! 2. UNMAP only marks slots dead; REMAP moves the newest slots whatever their mark, and what arrives replaces what
//!    was there; mremap growth is an arrival of zeros. mremaps are granted one at a time, so each page has one newest
//!    arrival;
//! 3. REMOVE comes before its zap: slots go at once, and resident pages of the range are *owed*: not evicted until
//!    we installed the page ourselves or it was unmapped;
//! 4. FORK takes the table as it is at that place of the window, without what is wiped on fork; the child's faults
//!    wait until the window closes;
//! 5. the window closes at a quiet moment: marked slots die, except arrivals, where a probe of the page tells.
//!
//! The caller owns the state (one thread per address space); there is no lock.

use std::collections::VecDeque;
use std::ops::Range;

use vswap_core::{PAGE_SIZE, SlotId};

use super::marks::Marks;
use super::message::{Answer, Call, ChildKey, Command, Effect, Fault, Input, Ticket};
use super::ranges::RangeSet;
use super::rules::Rules;
use super::streams::Streams;
use super::sweep::{Sweep, Verify};
use super::table::{Entry, PageTable};

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
}

#[derive(Clone, Default)]
pub(super) struct Window {
    /// UNMAPs read in this window.
    unmapped: RangeSet,
    /// What mremaps of this window brought.
    arrived: RangeSet,
    /// Both ends of mremaps that no grant of ours covers.
    ungranted: RangeSet,
    /// Children forked in this window.
    children: Vec<ChildKey>,
    /// Nothing was left to read since the last event.
    drained: bool,
}

/// What is being done; each job knows the command it waits for.
#[derive(Default)]
pub(super) enum Job {
    #[default]
    Idle,
    /// Installing pages for a fault, from slots, or zeros where there are none.
    Serving { fault: Fault, slots: Vec<SlotId>, pages: u64 },
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
    settling: RangeSet,
    /// Where a forked child reads zeros. Exact for registered ranges.
    pub(super) wiped: RangeSet,
    pub(super) warm: Marks,
    window: Option<Window>,
    /// Ranges that a fork brought and that were not yet compared with what is mapped.
    pub(super) inherited: RangeSet,
    parent_open: bool,
    gated: bool,
    sole_thread: bool,
    asked: VecDeque<(Ticket, Call)>,
    granted: Option<(Ticket, Call)>,
    pub(super) ready: VecDeque<Fault>,
    pub(super) held: VecDeque<Fault>,
    pub(super) throttled: bool,
    pub(super) streams: Streams,
    pub(super) job: Job,
    pub(super) evict: u64,
    pub(super) register_all: bool,
    pub(super) evict_hand: u64,
    pub(super) register_hand: u64,
    pub(super) effects: VecDeque<Effect>,
    pub(super) counters: Counters,
    pub(super) rules: Rules,
    /// Something was told since a rule that is switched off was last broken.
    poked: bool,
    gone: bool,
}

impl AddressSpace {
    /// A fresh address space. `gated`: mremaps come through [`Input::Asked`].
    pub fn new(gated: bool) -> Self {
        Self { gated, ..Self::default() }
    }

    /// Switches rules off: see [`Rules`].
    #[doc(hidden)]
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
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

    /// Addresses of the evicted pages of a range.
    pub fn evicted_in(&self, range: Range<u64>) -> Vec<u64> {
        self.table.addrs(range)
    }

    /// Whether only one thread of the program runs: then events come in the order of the changes.
    pub fn set_sole_thread(&mut self, sole: bool) {
        self.sole_thread = sole;
    }

    /// Whether the address space is known to be gone.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Everything still held; the address space is over.
    pub fn dissolve(&mut self) -> Vec<SlotId> {
        self.gone = true;
        let late = if self.rules.fork_in_place { None } else { self.window.as_ref() };
        for key in late.map_or(Vec::new(), |window| window.children.clone()) {
            self.cloned(key);
        }
        let slots = self.table.all().map(|(_, entry)| entry.slot).collect();
        self.table = PageTable::default();
        if let Some(window) = self.window.take() {
            self.effects.push_back(Effect::Closed(window.children));
        }
        slots
    }

    /// The next effect, in order.
    pub fn effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Takes in what the driver has read or was told.
    pub fn input(&mut self, input: Input) {
        self.poked = true;
        match input {
            Input::Fault(fault) => self.ready.push_back(fault),
            Input::Unmap(range) => self.unmap(range),
            Input::Remove(range) => self.discard(range),
            Input::Remap { from, to, len } => self.remap(from, to, len),
            Input::Fork(key) => self.fork(key),
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
            Input::ParentClosed => self.parent_open = false,
            Input::Throttle(on) => self.throttled = on,
            Input::Evict(pages) => self.evict = pages,
            Input::RegisterAll(on) => self.register_all = on,
        }
    }

    /// The window, opened if it was not; what was read must be drained again.
    pub(super) fn open(&mut self) -> &mut Window {
        let window = self.window.get_or_insert_with(Window::default);
        window.drained = false;
        window
    }

    pub(super) fn stop(&mut self, why: String) {
        self.effects.push_back(Effect::FailStop(why));
    }

    fn free(&mut self, slots: Vec<SlotId>) {
        if !slots.is_empty() {
            self.effects.push_back(Effect::Free(slots));
        }
    }

    /// Forgets the slots of a range.
    pub(super) fn drop_slots(&mut self, range: Range<u64>) -> usize {
        let slots: Vec<_> = self
            .table
            .addrs(range)
            .into_iter()
            .filter_map(|addr| self.table.remove(addr))
            .map(|entry| entry.slot)
            .collect();
        let dropped = slots.len();
        self.free(slots);
        dropped
    }

    fn unmap(&mut self, range: Range<u64>) {
        let window = self.open();
        window.unmapped.insert(range.clone());
        self.registered.remove(range.clone());
        if !self.rules.unmap_marks {
            self.drop_slots(range);
            return;
        }
        for addr in self.table.addrs(range) {
            if let Some(entry) = self.table.get(addr) {
                self.table.insert(addr, Entry { dead: true, ..entry });
            }
        }
    }

    fn discard(&mut self, range: Range<u64>) {
        self.open();
        self.settling.remove(range.clone());
        self.drop_slots(range.clone());
        if self.rules.owed {
            self.owed.insert(range);
        }
    }

    fn remap(&mut self, from: u64, to: u64, len: u64) {
        let granted = self.gated && self.granted.is_some();
        let (source, target) = (from..from + len, to..to + len);
        let doubtful = !granted && !self.sole_thread && self.rules.touching_stop;
        let window = self.open();
        if !granted {
            if doubtful && (window.ungranted.intersects(&source) || window.ungranted.intersects(&target)) {
                let why = format!(
                    "two mremaps of one window touch {from:#x} or {to:#x} (+{len:#x}) and no gate orders them"
                );
                self.stop(why);
                return;
            }
            window.ungranted.insert(source.clone());
            window.ungranted.insert(target.clone());
        }
        window.arrived.remove(source.clone());
        window.arrived.insert(target.clone());
        window.unmapped.remove(target.clone());
        // With one thread events come in order: what it unmapped and then grew over, of which nobody told, is dead.
        let in_order = !granted && self.sole_thread;
        if doubtful && self.table.iter(source.clone()).any(|(_, entry)| entry.dead && !entry.arrived) {
            // Unmapped, and alive after all, or grown over since: nobody has told.
            let why = format!(
                "an mremap of {from:#x} (+{len:#x}) moves what was unmapped, and no gate orders them"
            );
            self.stop(why);
            return;
        }
        if in_order || !self.rules.remap_proves_source {
            let sure = |entry: &Entry| entry.dead && !(in_order && entry.arrived);
            let dead = self.table.iter(source.clone()).filter(|(_, entry)| sure(entry)).map(|(addr, _)| addr);
            for addr in dead.collect::<Vec<_>>() {
                self.drop_slots(addr..addr + PAGE);
            }
        }
        if self.rules.newest_arrival_wins {
            self.drop_slots(target.clone());
        } else {
            for addr in self.table.addrs(target.clone()) {
                self.drop_slots(addr - to + from..addr - to + from + PAGE);
            }
        }
        for addr in self.table.addrs(source.clone()) {
            if let Some(entry) = self.table.remove(addr) {
                self.table.insert(addr - from + to, Entry { dead: false, arrived: true, ..entry });
            }
        }
        if self.rules.owed_carried {
            self.owed.shift(from, to, len);
            self.settling.shift(from, to, len);
        } else {
            self.owed.remove(source.clone());
            self.owed.remove(target.clone());
        }
        // The source keeps its mark: with DONTUNMAP it lives on as it was; else its UNMAP takes the mark away.
        let wiped: Vec<_> = self.wiped.overlaps(&source).collect();
        self.wiped.remove(target.clone());
        for part in wiped {
            self.wiped.insert(part.start - from + to..part.end - from + to);
        }
        self.registered.remove(source);
        self.registered.insert(target);
    }

    pub(super) fn wiped_on_fork(&mut self, range: Range<u64>, parts: Vec<Range<u64>>) {
        self.wiped.remove(range);
        for part in parts {
            self.wiped.insert(part);
        }
    }

    fn fork(&mut self, key: ChildKey) {
        self.counters.forks += 1;
        self.open().children.push(key);
        if self.rules.fork_in_place {
            self.cloned(key);
        }
    }

    /// The child's state, as it follows from the window so far.
    fn cloned(&mut self, key: ChildKey) {
        let window = self.window.as_ref().cloned().unwrap_or_default();
        let mut table = self.table.clone();
        let beside = self.granted.is_some() || !window.arrived.is_empty() || !self.gated;
        let mut arrived = window.arrived;
        for range in window.unmapped.iter() {
            // Delivered before the fork, but perhaps made after it: the child's own pages tell.
            arrived.insert(range.clone());
            for addr in table.addrs(range) {
                if !self.rules.fork_marked {
                    table.remove(addr);
                }
                if let Some(entry) = table.get(addr) {
                    table.insert(addr, Entry { arrived: true, ..entry });
                }
            }
        }
        // A fork beside an mremap: nobody knows which of the two the child has seen. The pages that the call touches
        // are of interest only to a program that races; but where one is resident, it is right and the slot is not.
        if beside {
            for addr in table.addrs(0..!(PAGE - 1)) {
                if let Some(entry) = table.get(addr) {
                    table.insert(addr, Entry { inherited: true, ..entry });
                }
            }
        }
        for range in self.wiped.iter().filter(|_| self.rules.wipe) {
            for addr in table.addrs(range) {
                table.remove(addr);
            }
        }
        let slots: Vec<_> = table.all().map(|(_, entry)| entry.slot).collect();
        let child = Self {
            table,
            registered: self.registered.clone(),
            inherited: self.registered.clone(),
            owed: self.owed.clone(),
            wiped: self.wiped.clone(),
            window: Some(Window { unmapped: window.unmapped, arrived, ..Window::default() }),
            parent_open: true,
            gated: self.gated,
            rules: self.rules,
            ..Self::default()
        };
        if !slots.is_empty() {
            self.effects.push_back(Effect::Dup(slots));
        }
        self.effects.push_back(Effect::Forked(key, Box::new(child)));
    }

    fn returned(&mut self, ticket: Ticket, result: i64) {
        let Some((granted, call)) = self.granted.take() else { return };
        debug_assert_eq!(granted, ticket, "one call at a time");
        self.open();
        let (Ok(to), Call::Mremap(call)) = (u64::try_from(result), call) else { return };
        let (old_end, new_end) = (to + round_up(call.old_len), to + round_up(call.new_len));
        if new_end <= old_end || !self.rules.growth {
            return;
        }
        let registered = self.registered.contains(to);
        self.drop_slots(old_end..new_end);
        self.owed.remove(old_end..new_end);
        if registered {
            self.registered.insert(old_end..new_end);
        }
        self.wiped.remove(old_end..new_end);
        if self.wiped.contains(to) {
            self.wiped.insert(old_end..new_end);
        }
        if let Some(window) = &mut self.window {
            window.unmapped.remove(old_end..new_end);
        }
    }

    /// The next command, if there is something to do now. Ask again only after its answer.
    pub fn next_command(&mut self) -> Option<Command> {
        if self.gone {
            return None;
        }
        if matches!(self.job, Job::Idle) {
            self.job = self.choose()?;
        }
        Some(match &self.job {
            Job::Idle => return None,
            Job::Serving { fault, slots, pages } => self.install(*fault, slots, *pages),
            Job::Around { fault, pages } => Command::Zero { addr: fault.addr, pages: *pages, fault: *fault },
            Job::Granting(ticket, call) => Command::Execute(*ticket, *call),
            Job::Quieting => Command::Probe,
            Job::Deciding(doubts) => Command::ProbePage(*doubts.last()?),
            Job::Sweeping(sweep) => sweep.command(self),
            Job::Verifying(verify) => verify.command(),
        })
    }

    fn choose(&mut self) -> Option<Job> {
        if self.granted.is_none()
            && let Some((ticket, call)) = self.asked.pop_front()
        {
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
        if answer == Answer::Gone {
            self.gone = true;
            return;
        }
        match job {
            Job::Idle | Job::Granting(..) => {}
            Job::Serving { fault, slots, pages } => self.served(fault, slots.len(), pages, answer),
            Job::Around { fault, .. } => self.served_around(fault, answer),
            Job::Quieting => self.quieted(answer),
            Job::Deciding(doubts) => self.decided(doubts, answer),
            Job::Sweeping(sweep) => self.swept(sweep, answer),
            Job::Verifying(verify) => self.verified(verify, answer),
        }
    }

    fn quieted(&mut self, answer: Answer) {
        if answer != Answer::Done {
            self.open();
            return;
        }
        let Some(window) = &self.window else { return };
        let (unmapped, arrived) = (window.unmapped.clone(), window.arrived.clone());
        let (mut doubts, mut dead) = (Vec::new(), Vec::new());
        for range in unmapped.iter() {
            for (addr, entry) in self.table.iter(range) {
                match entry {
                    Entry { dead: true, arrived: true, .. } => doubts.push(addr),
                    Entry { dead: true, .. } => dead.push(addr),
                    _ => {}
                }
            }
        }
        for addr in dead {
            self.drop_slots(addr..addr + PAGE);
        }
        for range in unmapped.iter() {
            for gone in arrived.gaps(&range) {
                self.owed.remove(gone.clone());
                self.wiped.remove(gone);
            }
        }
        if !self.rules.close_probes_arrivals {
            doubts.clear();
        }
        self.counters.probed += doubts.len() as u64;
        self.settle(doubts);
    }

    fn decided(&mut self, mut doubts: Vec<u64>, answer: Answer) {
        let Some(addr) = doubts.pop() else { return };
        match answer {
            Answer::Done => {
                if let Some(entry) = self.table.get(addr) {
                    self.table.insert(addr, Entry { dead: false, ..entry });
                }
                self.registered.insert(addr..addr + PAGE);
            }
            Answer::Refused => {
                self.drop_slots(addr..addr + PAGE);
                self.owed.remove(addr..addr + PAGE);
                self.wiped.remove(addr..addr + PAGE);
            }
            _ => {
                self.open();
                return;
            }
        }
        self.settle(doubts);
    }

    /// Closes the window unless arrivals are in doubt.
    fn settle(&mut self, doubts: Vec<u64>) {
        if !doubts.is_empty() {
            self.job = Job::Deciding(doubts);
            return;
        }
        if !self.rules.fork_in_place {
            let children = self.window.as_ref().map_or(Vec::new(), |window| window.children.clone());
            for key in children {
                self.cloned(key);
            }
        }
        let Some(window) = self.window.take() else { return };
        for range in window.arrived.iter() {
            for addr in self.table.addrs(range) {
                if let Some(entry) = self.table.get(addr) {
                    self.table.insert(addr, Entry { arrived: false, ..entry });
                }
            }
        }
        self.counters.windows += 1;
        if !window.children.is_empty() {
            self.effects.push_back(Effect::Closed(window.children));
        }
    }
}

fn round_up(len: u64) -> u64 {
    len.div_ceil(PAGE) * PAGE
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
