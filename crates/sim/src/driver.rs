//! The pager's driver, as `crates/pager/src/driver/server.rs` and `port.rs` run the protocol: one message a read, what
//! the protocol wants done after each, commands one at a time, nothing read while a Move is in flight.

use std::ops::Range;

use vswap_pager::proto::{Answer, Call, ChildKey, Command, Effect, Fault, Input, Mapping, Stop, Ticket};

use crate::agent::Take;
use crate::kernel::{GUARD_INSTALL, GUARD_REMOVE};
use crate::memory::Pte;
use crate::threads::{change_of, told};
use crate::userfaultfd::{EAGAIN, EEXIST, Message};
use crate::world::{Batch, Event, Micro, Note, Pending, Role, Wait, World, addr, addrs, note, page, pages};

impl World<'_> {
    /// Whether a pager has anything to do but wait for its agent.
    pub fn pager_can_run(&self, s: usize) -> bool {
        let space = &self.spaces[s];
        !space.pager.moving
            || space.gone
            || space.pager.batch.done
            || self.is_late(s)
            || !self.setup.rules.still
    }

    /// Whether the agent does not get on: it waits for a page, or is stopped at any of its sub-steps.
    fn is_late(&self, s: usize) -> bool {
        let waits = |agent: usize| matches!(self.threads[agent].wait, Wait::Fault { .. });
        self.spaces[s].agent.is_some_and(waits)
            || self.spaces[s].pager.batch.patience.is_some_and(|end| self.step >= end)
    }

    /// Lets the pager of an address space take one step.
    pub fn step_pager(&mut self, s: usize) {
        if self.rng.one_in(self.setup.drowsy) {
            self.spaces[s].pager.until = self.delay(1);
        }
        if self.spaces[s].pager.moving {
            return self.await_agent(s);
        }
        if self.effects(s) {
            return;
        }
        self.welcome(s);
        if let Some(command) = self.spaces[s].pager.space.next_command() {
            if let Some(answer) = self.execute(s, command.clone()) {
                note!(self, "P{s} pager: {} -> {}", show(&command), reply(&answer));
                self.spaces[s].pager.space.answer(answer);
            }
            return;
        }
        if self.spaces[s].gone {
            self.spaces[s].pager.space.dissolve();
            self.effects(s);
            self.spaces[s].pager.done = true;
            return;
        }
        if let Some((ticket, result)) = self.spaces[s].pager.called.pop_front() {
            return self.called(s, ticket, result);
        }
        match self.rng.below(9) {
            0 | 1 => self.notes(s),
            2 => self.wish(s),
            3 => self.settle(s),
            _ => self.read(s),
        }
    }

    /// What a fork brought was compared with what is mapped: the child's agent may go on.
    fn welcome(&mut self, s: usize) {
        if !self.spaces[s].pager.space.verified() {
            return;
        }
        let Some(thread) = self.spaces[s].pager.greeting.take() else { return };
        self.new_agent(s);
        self.threads[thread].wait = Wait::No;
        note!(self, "P{s}: its agent has greeted");
        self.spaces[s].pager.space.set_agent(true);
        let all = 0..self.setup.arena;
        let parts = self.wiped(s, &all);
        self.input(s, Input::WipedOnFork(addrs(&all), parts));
    }

    fn input(&mut self, s: usize, input: Input) {
        note!(self, "P{s} pager: {}", show(&input));
        self.spaces[s].pager.space.input(input);
    }

    fn read(&mut self, s: usize) {
        match self.read_message(s) {
            None => {
                if self.spaces[s].pager.space.window_open() {
                    self.input(s, Input::Drained);
                }
            }
            Some(message) => self.message(s, message),
        }
    }

    fn message(&mut self, s: usize, message: Message) {
        let input = match message {
            Message::Fault(Pending { thread, page, write }) => {
                if let Some(inside) = &mut self.spaces[s].pager.inside {
                    inside.retain(|&other| other != thread);
                }
                Input::Fault(Fault { addr: addr(page), write, tid: thread as u32, stamp: 0 })
            }
            Message::Event(event) => {
                if matches!(event, Event::Remap { .. } | Event::Unmap(_) | Event::Fork(_))
                    && self.spaces[s].pager.space.asks_for_order()
                {
                    let live = |thread: &&crate::world::Thread| {
                        thread.alive && thread.space == s && thread.role == Role::Program
                    };
                    let sole = self.threads.iter().filter(live).count() == 1;
                    self.spaces[s].pager.space.set_sole_thread(sole);
                }
                match (told(&event), event) {
                    (_, Event::Fork(child)) => Input::Fork(ChildKey(child as u64)),
                    (_, Event::Remap { from, to, len }) => {
                        Input::Remap { from: addr(from), to: addr(to), len: addr(len) - addr(0) }
                    }
                    (Some(range), Event::Unmap(_)) => Input::Unmap(range),
                    (Some(range), _) => Input::Remove(range),
                    (None, _) => return,
                }
            }
        };
        self.input(s, input);
    }

    fn notes(&mut self, s: usize) {
        match self.spaces[s].pager.notes.pop_front() {
            None => {}
            Some(Note::ParentClosed(unmapped)) => self.input(s, Input::ParentClosed(unmapped)),
            Some(Note::Greeting(thread)) => {
                self.spaces[s].pager.greeting = Some(thread);
                self.input(s, Input::Greeting);
            }
            Some(Note::Call(thread, call)) => {
                let free = !self.setup.rules.one_mremap && matches!(call, Call::Mremap(_));
                if free {
                    self.answer_caller(thread, None);
                } else {
                    self.input(s, Input::Asked(Ticket(thread as u64), call));
                }
            }
        }
    }

    /// Lets a caller at the gate go on, with a result or to make the call itself.
    fn answer_caller(&mut self, thread: usize, result: Option<i64>) {
        self.threads[thread].result = result;
        self.threads[thread].wait = Wait::No;
        self.threads[thread].until = self.delay(4);
    }

    /// Finds out whether every thread has left the madvise that a REMOVE came from (`driver/settle.rs`).
    fn settle(&mut self, s: usize) {
        let threads: Vec<_> = (0..self.threads.len())
            .filter(|&t| self.threads[t].space == s && self.threads[t].role == Role::Program)
            .collect();
        if let Some(mut inside) = self.spaces[s].pager.inside.take() {
            inside.retain(|&t| self.may_be_inside(t));
            if inside.is_empty() {
                self.input(s, Input::Settled);
            } else {
                self.spaces[s].pager.inside = Some(inside);
            }
        } else if self.spaces[s].pager.space.owes() && self.rng.one_in(4) {
            self.spaces[s].pager.inside = Some(threads);
            self.input(s, Input::SettleBegin);
        }
    }

    /// What /proc tells of a thread: the call that it sleeps in, and of one that runs nothing.
    fn may_be_inside(&self, t: usize) -> bool {
        let thread = &self.threads[t];
        let discards =
            thread.micros.iter().any(|micro| matches!(micro, Micro::Zap(..) | Micro::Discarded(..)));
        thread.alive && (discards || thread.wait == Wait::No)
    }

    /// What the governor wants.
    fn wish(&mut self, s: usize) {
        if self.spaces[s].agent.is_none() {
            return;
        }
        if self.spaces[s].pager.overdue {
            return self.input(s, Input::Evict(0));
        }
        match self.rng.below(8) {
            0 => self.input(s, Input::RegisterAll(true)),
            1 => {
                let on = !self.spaces[s].pager.throttled && self.rng.one_in(4);
                self.spaces[s].pager.throttled = on;
                self.input(s, Input::Throttle(on));
            }
            // One seed in so many has forks that no event tells of prepared for.
            _ if self.setup.seed % 32 == 31 && self.rng.one_in(4) => self.input(s, Input::Recall(4)),
            _ => {
                let pages = 1 + self.rng.below(8) as u64;
                self.input(s, Input::Evict(pages));
            }
        }
    }

    /// The agent has made the granted call: what of it no event tells, then its result.
    fn called(&mut self, s: usize, ticket: Ticket, result: i64) {
        let Some((_, call)) = self.spaces[s].pager.space.granted() else { return };
        if let Call::Madvise { start, len, advice } = call {
            let range = start..start + len;
            if advice == GUARD_INSTALL {
                for guards in self.guards(s, &pages(&range)) {
                    self.input(s, Input::Guarded(addrs(&guards)));
                }
            } else if advice != GUARD_REMOVE {
                let parts = self.wiped(s, &pages(&range));
                self.input(s, Input::WipedOnFork(range, parts));
            }
        }
        self.answer_caller(ticket.0 as usize, Some(result));
        let result = if matches!(call, Call::Mremap(_)) && result >= 0 {
            addr(result as usize) as i64
        } else {
            result
        };
        self.input(s, Input::Returned(ticket, result));
    }

    fn guards(&self, s: usize, range: &Range<usize>) -> Vec<Range<usize>> {
        let guard = |p: &usize| self.spaces[s].mem.pte[*p] == Pte::Guard;
        range.clone().filter(guard).map(|p| p..p + 1).collect()
    }

    fn wiped(&self, s: usize, range: &Range<usize>) -> Vec<Range<u64>> {
        let wiped = |p: &usize| self.spaces[s].mem.vma[*p].is_some_and(|vma| vma.wipe);
        range.clone().filter(wiped).map(|p| addr(p)..addr(p + 1)).collect()
    }

    /// Counts slots held, or no longer held.
    fn hold(&mut self, s: usize, slots: &[vswap_core::SlotId], by: i32) {
        for &slot in slots {
            if !self.slots.hold(slot, by) {
                self.fail(format!(
                    "P{s}: {slot:?} is {} that nobody holds",
                    if by > 0 { "shared" } else { "freed" }
                ));
            }
        }
    }

    /// Does what the protocol wants done; says whether there was anything.
    fn effects(&mut self, s: usize) -> bool {
        let mut any = false;
        while let Some(effect) = self.spaces[s].pager.space.effect() {
            any = true;
            match effect {
                Effect::Free(slots, _) => self.hold(s, &slots, -1),
                Effect::Dup(slots) => self.hold(s, &slots, 1),
                Effect::Forked(key, state) => {
                    let child = key.0 as usize;
                    note!(self, "P{s} pager: P{child} is served: {state:?}");
                    self.spaces[child].pager.space = *state;
                    self.spaces[child].pager.on = true;
                    self.spaces[child].pager.done = false;
                    self.spaces[child].pager.until = self.delay(2);
                }
                Effect::Closed(keys, unmapped) => {
                    for key in keys {
                        self.tell(key.0 as usize, Note::ParentClosed(unmapped.clone()));
                    }
                }
                Effect::Served(_) => {}
                Effect::Wake(at) => self.wake(s, page(at)..page(at) + 1),
                Effect::FailStop(why) => {
                    self.stats.stops += 1;
                    let named = why.contains("no gate orders them");
                    if named && (!self.setup.gated || self.spaces[s].agent.is_none()) {
                        self.stopped = true;
                    } else {
                        self.fail(format!("P{s} is stopped: {why}"));
                    }
                }
            }
        }
        any
    }

    fn execute(&mut self, s: usize, command: Command) -> Option<Answer> {
        if self.spaces[s].gone {
            return Some(Answer::Gone);
        }
        self.stats.commands += 1;
        let changing = self.spaces[s].changing > 0;
        Some(match command {
            Command::Probe if changing => Answer::Changing,
            Command::Probe => Answer::Done,
            Command::ProbePage(at) => match self.probe(s, page(at)) {
                0 => Answer::Done,
                EAGAIN => Answer::Changing,
                _ => {
                    self.spaces[s].pager.until = self.delay(2);
                    Answer::Refused
                }
            },
            Command::Copy { addr: at, slots, .. } => {
                let mut contents = Vec::with_capacity(slots.len());
                for slot in slots {
                    let value = self.slots.load(slot);
                    if value.is_none() {
                        self.fail(format!("P{s}: {slot:?} is read, which nobody holds"));
                    }
                    contents.push(Some(value.unwrap_or(0)));
                }
                self.installed(s, page(at), &contents)
            }
            Command::Zero { addr: at, pages, fault } => {
                let content = if fault.is_some_and(|fault| fault.write) { Some(0) } else { None };
                self.installed(s, page(at), &vec![content; pages as usize])
            }
            Command::Mapping(at) => Answer::Mapping(
                self.spaces[s]
                    .mem
                    .mapping_from(page(at))
                    .map(|(range, vma)| Mapping { range: addrs(&range), evictable: !vma.readonly }),
            ),
            Command::Register(range) => {
                let range = pages(&range);
                // Not guarded: what is registered may be gone again when the pager goes on.
                self.spaces[s].pager.until = self.delay(3);
                if self.register(s, range) == 0 { Answer::Done } else { Answer::Refused }
            }
            Command::Scan(range, most) => self.scan(s, &pages(&range), most as usize),
            Command::WipedOnFork(range) => Answer::Wiped(self.wiped(s, &pages(&range))),
            Command::Move(runs) => {
                note!(self, "P{s} pager: {}", show(&Command::Move(runs.clone())));
                let agent = self.spaces[s].agent?;
                if self.spaces[s].pager.overdue {
                    return Some(Answer::Moved(Vec::new(), false));
                }
                let patience = self.whim(16).then(|| self.step + self.rng.below(60) as u64);
                let pager = &mut self.spaces[s].pager;
                (pager.moving, pager.batch) = (true, Batch { patience, ..Batch::default() });
                let thread = &mut self.threads[agent];
                for run in &runs {
                    let (run, to) = (pages(run), pager.batch.pages.len());
                    pager.batch.pages.extend(run.clone());
                    thread.micros.push_back(Micro::Take(Take { run, to, unshared: 0 }));
                }
                thread.micros.extend([Micro::Copied, Micro::Emptied, Micro::Answered]);
                thread.wait = Wait::No;
                self.threads[agent].until = self.delay(4);
                return None;
            }
            Command::Execute(ticket, call) => {
                let Some(agent) = self.spaces[s].agent else {
                    self.answer_caller(ticket.0 as usize, None);
                    return Some(Answer::Refused);
                };
                let thread = &mut self.threads[agent];
                thread.micros.extend([Micro::Change(change_of(&call)), Micro::Called(ticket)]);
                if thread.wait == Wait::Idle {
                    thread.wait = Wait::No;
                }
                self.threads[agent].until = self.delay(4);
                Answer::Done
            }
        })
    }

    fn installed(&mut self, s: usize, at: usize, contents: &[Option<u64>]) -> Answer {
        let (done, errno) = self.install(s, at, contents);
        let stop = match errno {
            0 => Stop::Complete,
            EAGAIN if done > 0 => Stop::Short,
            EAGAIN => Stop::Changing,
            EEXIST => Stop::Exists,
            _ => Stop::Missing,
        };
        if stop == Stop::Changing {
            self.stats.refused += 1;
        }
        Answer::Installed(done as u64, stop)
    }

    /// PAGEMAP_SCAN: pages that are there, but for the zero page.
    pub fn scan(&self, s: usize, range: &Range<usize>, most: usize) -> Answer {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut found = 0;
        for p in range.clone() {
            if found == most {
                return Answer::Scanned(runs, addr(p));
            }
            if let Pte::Page { .. } = self.spaces[s].mem.pte[p] {
                found += 1;
                match runs.last_mut() {
                    Some(last) if last.end == addr(p) => last.end = addr(p + 1),
                    _ => runs.push(addr(p)..addr(p + 1)),
                }
            }
        }
        Answer::Scanned(runs, addr(range.end))
    }

    /// A Move is in flight.
    fn await_agent(&mut self, s: usize) {
        if self.spaces[s].gone {
            // The agent's socket ends; what it took is lost with everything else.
            self.spaces[s].pager.moving = false;
            self.spaces[s].pager.space.answer(Answer::Moved(Vec::new(), false));
            return;
        }
        if self.spaces[s].pager.batch.done {
            let Batch { taken, again, .. } = std::mem::take(&mut self.spaces[s].pager.batch);
            self.batch_over(s, taken, again);
        } else if self.is_late(s) {
            self.take_back(s);
        } else if let Some(message) = self.read_message(s) {
            // Only without the rule that nothing is read now.
            self.message(s, message);
        }
    }

    /// Ends a batch without its agent (`driver/port/take_back.rs`): its pages are in staging, or all of them in the ring.
    fn take_back(&mut self, s: usize) {
        let space = &mut self.spaces[s];
        let batch = std::mem::take(&mut space.pager.batch);
        space.pager.overdue = true;
        space.pager.space.set_overdue(space.agent.map(|agent| agent as u32));
        let taken = if batch.copied && self.setup.rules.tally {
            batch.taken
        } else {
            space.fenced = self.setup.rules.fence;
            let staged = batch.pages.iter().zip(&space.staging);
            // Zeros are left out: what nobody answers for reads as zeros.
            staged
                .filter_map(|(&page, &value)| Some((page, value?)))
                .filter(|&(_, value)| value != 0)
                .collect()
        };
        note!(self, "P{s} pager: takes back {taken:?}");
        self.stats.taken_back += 1;
        self.batch_over(s, taken, true);
    }

    /// A Move is over.
    fn batch_over(&mut self, s: usize, taken: Vec<(usize, u64)>, again: bool) {
        self.spaces[s].pager.moving = false;
        self.stats.evicted += taken.len() as u64;
        let moved = taken.into_iter().map(|(p, value)| (addr(p), self.slots.store(value))).collect();
        let answer = Answer::Moved(moved, again);
        note!(self, "P{s} pager: -> {}", reply(&answer));
        self.spaces[s].pager.space.answer(answer);
    }
}

/// Addresses as pages, which are easier to read.
fn show(what: &impl std::fmt::Debug) -> String {
    let text = format!("{what:?}");
    let mut out = String::new();
    let mut number = String::new();
    for c in text.chars().chain([' ']) {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        if !number.is_empty() {
            match number.parse::<u64>() {
                Ok(n) if (addr(0)..addr(1 << 20)).contains(&n) => out += &format!("p{}", page(n)),
                _ => out += &number,
            }
            number.clear();
        }
        out.push(c);
    }
    out.trim_end().to_string()
}

fn reply(answer: &Answer) -> String {
    show(answer)
}
