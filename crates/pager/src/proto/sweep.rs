//! Going over the mappings of an address space: to register them, to evict from them, and to check what a fork left.
//!
//! A mapping is registered as a whole, then looked up again, then confirmed by a guarded command: REGISTER over a hole
//! succeeds, and a mapping made later in the hole would not be registered; pages moved out of an unregistered mapping
//! would read as zeros.

use std::ops::Range;

use super::message::{Answer, Command, Mapping};
use super::ranges::RangeSet;
use super::space::{AddressSpace, Job, PAGE};
use super::table::Entry;

/// Pages that leave at one time; the agent's staging area holds so many.
pub const BATCH_PAGES: u64 = 128;
/// Steps of a sweep in one turn, so that faults are looked at in between.
const STEPS: u32 = 128;

/// One turn of going over the mappings.
pub(super) struct Sweep {
    /// Pages still to evict; 0: only register.
    evict: u64,
    steps: u32,
    laps: u32,
    step: Step,
}

#[derive(Default)]
enum Step {
    /// The mapping at the hand is asked for.
    #[default]
    Find,
    /// Is it registered as it is? An event can be lost with a killed vfork child, and then what we hold is stale.
    Registered(Mapping),
    /// It is not; and is it still the same mapping, or was that another one?
    Fresh(Mapping),
    Register(Mapping),
    /// Is it still the same mapping?
    Confirm(Mapping),
    /// What would a forked child read here?
    Wiped(Mapping),
    /// Has no event come since?
    Quiet(Mapping),
    Scan(Range<u64>),
    /// A resident page was seen that has a slot: a contradiction, unless an event is unread, or was lost.
    Suspect(u64),
    Move(Vec<Range<u64>>),
}

impl Sweep {
    pub(super) fn new(evict: u64) -> Self {
        Self { evict, steps: 0, laps: 0, step: Step::Find }
    }

    pub(super) fn command(&self, space: &AddressSpace) -> Command {
        match &self.step {
            Step::Find if self.evict > 0 => Command::Mapping(space.evict_hand),
            Step::Find => Command::Mapping(space.register_hand),
            Step::Registered(mapping) => Command::ProbePage(mapping.range.start),
            Step::Register(mapping) => Command::Register(mapping.range.clone()),
            Step::Fresh(mapping) | Step::Confirm(mapping) => Command::Mapping(mapping.range.start),
            Step::Wiped(mapping) => Command::WipedOnFork(mapping.range.clone()),
            Step::Suspect(addr) => Command::ProbePage(*addr),
            Step::Quiet(_) => Command::Probe,
            Step::Scan(range) => Command::Scan(range.clone(), BATCH_PAGES),
            Step::Move(runs) => Command::Move(runs.clone()),
        }
    }
}

impl AddressSpace {
    fn set_hand(&mut self, evicting: bool, hand: u64) {
        if evicting {
            self.evict_hand = hand;
        } else {
            self.register_hand = hand;
        }
    }

    /// One step of a sweep; without a next step the sweep is over.
    pub(super) fn swept(&mut self, mut sweep: Sweep, answer: Answer) {
        if answer == Answer::Changing {
            self.open();
            return;
        }
        sweep.steps += 1;
        let Some(step) = self.sweep_step(&mut sweep, answer) else { return };
        sweep.step = step;
        if sweep.steps < STEPS || !matches!(sweep.step, Step::Find) {
            self.job = Job::Sweeping(sweep);
        } else if sweep.evict == 0 {
            self.register_all = true;
        }
    }

    fn sweep_step(&mut self, sweep: &mut Sweep, answer: Answer) -> Option<Step> {
        let evicting = sweep.evict > 0;
        match (core::mem::take(&mut sweep.step), answer) {
            (Step::Find, Answer::Refused) => None,
            (Step::Find, Answer::Mapping(None)) => {
                sweep.laps += 1;
                self.set_hand(evicting, 0);
                (evicting && sweep.laps < 2).then_some(Step::Find)
            }
            (Step::Find, Answer::Mapping(Some(mapping))) => {
                let known = self.registered.covers(&mapping.range);
                if !mapping.evictable || (!evicting && known) {
                    self.set_hand(evicting, mapping.range.end);
                    return Some(Step::Find);
                }
                Some(Step::Registered(mapping))
            }
            (Step::Registered(mapping), Answer::Done) if self.registered.covers(&mapping.range) => {
                self.scan(&mapping)
            }
            (Step::Registered(mapping), Answer::Done) => Some(Step::Confirm(mapping)),
            (Step::Registered(mapping), Answer::Refused) if !self.holds(&mapping.range) => {
                Some(Step::Register(mapping))
            }
            (Step::Registered(mapping), Answer::Refused) => Some(Step::Fresh(mapping)),
            (Step::Fresh(mapping), Answer::Mapping(Some(again))) if again == mapping => {
                // The refusal was guarded, so no event was unread: all that the model holds here is of former times.
                if self.rules.register_drops_stale {
                    self.counters.stale += self.drop_slots(mapping.range.clone()) as u64;
                    self.owed.remove(mapping.range.clone());
                    self.registered.remove(mapping.range.clone());
                }
                Some(Step::Register(mapping))
            }
            (Step::Register(mapping), Answer::Done) => {
                Some(if self.rules.register_confirm { Step::Confirm(mapping) } else { Step::Wiped(mapping) })
            }
            (Step::Confirm(mapping), Answer::Mapping(Some(again))) if again == mapping => {
                Some(Step::Wiped(mapping))
            }
            (Step::Wiped(mapping), Answer::Wiped(parts)) => {
                self.wiped_on_fork(mapping.range.clone(), parts);
                Some(Step::Quiet(mapping))
            }
            (Step::Quiet(mapping), Answer::Done) => {
                let unknown = if self.rules.register_drops_stale {
                    self.registered.gaps(&mapping.range)
                } else {
                    Vec::new()
                };
                for gap in unknown {
                    self.counters.stale += self.drop_slots(gap) as u64;
                }
                self.registered.insert(mapping.range.clone());
                if evicting {
                    return self.scan(&mapping);
                }
                self.set_hand(evicting, mapping.range.end);
                Some(Step::Find)
            }
            (Step::Fresh(mapping) | Step::Register(mapping) | Step::Confirm(mapping), _) => {
                self.set_hand(evicting, mapping.range.end);
                Some(Step::Find)
            }
            (Step::Scan(_), Answer::Scanned(runs, next)) => {
                self.evict_hand = next;
                if let Some(suspect) = runs.iter().find_map(|run| self.table.iter(run.clone()).next()) {
                    return Some(Step::Suspect(suspect.0));
                }
                let runs = self.victims(runs, sweep.evict.min(BATCH_PAGES));
                Some(if runs.is_empty() { Step::Find } else { Step::Move(runs) })
            }
            (Step::Suspect(addr), Answer::Done)
                if self.table.get(addr).is_some_and(|entry| entry.inherited) =>
            {
                self.counters.stale += self.drop_slots(addr..addr + PAGE) as u64;
                self.evict_hand = addr;
                Some(Step::Find)
            }
            (Step::Suspect(addr), Answer::Done) => {
                self.stop_at_present(addr);
                None
            }
            // What we knew is gone, its event with somebody who was killed, and this came after the mapping was looked at.
            (Step::Suspect(addr), Answer::Refused) => {
                self.evict_hand = addr;
                Some(Step::Find)
            }
            (Step::Move(runs), Answer::Moved(pages, changing)) => {
                sweep.evict = sweep.evict.saturating_sub(pages.len() as u64);
                self.history.note_evicted(pages.iter().map(|&(addr, _)| addr));
                for (addr, slot) in pages {
                    let entry = Entry { slot, dead: false, arrived: false, inherited: false };
                    if let Some(old) = self.table.insert(addr, entry) {
                        self.table.insert(addr, old);
                        self.stop_at_present(addr);
                    }
                }
                if changing {
                    // What was not taken is looked at first, the next time: it may have been un-shared already.
                    self.evict_hand = runs.first().map_or(self.evict_hand, |run| run.start);
                    self.open();
                    return None;
                }
                (sweep.evict > 0).then_some(Step::Find)
            }
            (_, answer) => {
                self.stop_at_answer(&answer, "a step of a sweep");
                None
            }
        }
    }

    /// Whether the model knows anything of a range.
    pub(super) fn holds(&self, range: &Range<u64>) -> bool {
        self.registered.intersects(range)
            || self.owed.intersects(range)
            || self.table.iter(range.clone()).next().is_some()
    }

    fn scan(&mut self, mapping: &Mapping) -> Option<Step> {
        let start = self.evict_hand.clamp(mapping.range.start, mapping.range.end);
        Some(Step::Scan(start..mapping.range.end))
    }

    /// What may leave of the resident `runs`, at most so many pages: not what is owed, and what came back by a soft
    /// fault only at the next visit.
    fn victims(&mut self, runs: Vec<Range<u64>>, most: u64) -> Vec<Range<u64>> {
        let mut victims = RangeSet::default();
        let mut pages = 0;
        for run in runs {
            for part in self.owed.gaps(&run) {
                for addr in (part.start..part.end).step_by(PAGE as usize) {
                    if pages == most {
                        self.evict_hand = addr;
                        return victims.iter().collect();
                    }
                    if self.warm.take(addr) {
                        self.counters.passed += 1;
                    } else {
                        victims.insert(addr..addr + PAGE);
                        pages += 1;
                    }
                }
            }
        }
        victims.iter().collect()
    }

    /// One step of comparing what a fork brought with what is mapped and registered in the child: ranges that the
    /// parent kept from its children (MADV_DONTFORK) are holes, or something else by now.
    pub(super) fn compared(&mut self, mut verify: Verify, answer: Answer) {
        if answer == Answer::Changing {
            self.open();
            return;
        }
        let end = self.inherited.iter().last().map_or(0, |range| range.end);
        match (core::mem::take(&mut verify.step), answer) {
            // Nobody may look into it: then what the events say has to do.
            (VerifyStep::Find, Answer::Refused) => {
                self.inherited.clear();
                return;
            }
            (VerifyStep::Find, Answer::Mapping(found)) => {
                let next = found.as_ref().map_or(end, |mapping| mapping.range.start.min(end)).max(verify.at);
                verify.gone.extend(self.inherited.overlaps(&(verify.at..next)));
                verify.at = next;
                verify.step = match found {
                    Some(mapping) if mapping.range.start < end => {
                        let part = self.inherited.overlaps(&mapping.range).next();
                        verify.at = mapping.range.end;
                        match part {
                            Some(part) => VerifyStep::Probe(part.start, mapping.range),
                            None => VerifyStep::Find,
                        }
                    }
                    _ => VerifyStep::Quiet,
                };
            }
            (VerifyStep::Probe(..), Answer::Done) => {}
            (VerifyStep::Probe(_, range), Answer::Refused) => {
                verify.gone.extend(self.inherited.overlaps(&range))
            }
            (VerifyStep::Quiet, Answer::Done) => {
                for range in verify.gone {
                    self.drop_slots(range.clone());
                    self.owed.remove(range.clone());
                    self.registered.remove(range);
                }
                self.inherited.clear();
                return;
            }
            (_, answer) => return self.stop_at_answer(&answer, "a check after fork"),
        }
        self.job = Job::Verifying(verify);
    }
}

/// The comparison after a fork.
#[derive(Default)]
pub(super) struct Verify {
    at: u64,
    step: VerifyStep,
    gone: Vec<Range<u64>>,
}

#[derive(Default)]
enum VerifyStep {
    /// The mapping at the hand is asked for.
    #[default]
    Find,
    /// Is this page, and so the mapping around it, registered?
    Probe(u64, Range<u64>),
    /// Has no event come since?
    Quiet,
}

impl Verify {
    pub(super) fn command(&self) -> Command {
        match &self.step {
            VerifyStep::Find => Command::Mapping(self.at),
            VerifyStep::Probe(addr, _) => Command::ProbePage(*addr),
            VerifyStep::Quiet => Command::Probe,
        }
    }
}
