//! Threads of the program and agents: each operation becomes a list of sub-steps, and between two of them anybody
//! else may run.

use std::ops::Range;
use std::rc::Rc;

use vswap_pager::proto::{Call, Mremap};

use crate::kernel::{DONTUNMAP, FIXED, GUARD_INSTALL, GUARD_REMOVE, KEEPONFORK, MAYMOVE, WIPEONFORK, plain};
use crate::memory::{Pte, Vma};
use crate::oracle::Expect;
use crate::program::Op;
use crate::world::{
    Access, Change, Event, Micro, Note, PAGE, Pending, Role, Wait, World, addr, addrs, note, page, pages,
};

impl World<'_> {
    /// Lets a thread take one sub-step.
    pub fn step_thread(&mut self, t: usize) {
        let s = self.threads[t].space;
        if self.whim(64) {
            self.reclaim();
        }
        let Some(micro) = self.threads[t].micros.pop_front() else { return self.next(t) };
        match micro {
            Micro::Access(page, access) => self.access(t, page, access),
            Micro::Change(change) => self.make(t, &change),
            Micro::Queue(event) => {
                note!(self, "P{s} T{t}: queues {event:?}");
                self.spaces[s].events.push_back((t, event));
                self.threads[t].wait = Wait::Event;
            }
            Micro::Woken => {
                self.spaces[s].changing -= 1;
                note!(self, "P{s} T{t}: wakes; {} changes are counted", self.spaces[s].changing);
                // A REMOVE's zap may come long after: nothing is counted meanwhile, and the window may close.
                if let Some(Micro::Zap(..)) = self.threads[t].micros.front() {
                    self.threads[t].until = self.delay(2);
                }
            }
            Micro::Zap(page, free) => self.zap(s, page, free),
            Micro::Discarded(range, free) => {
                for p in range.filter(|&p| self.spaces[s].mem.pte[p] != Pte::Guard).collect::<Vec<_>>() {
                    let expect = &mut self.spaces[s].expect[p];
                    *expect = expect.discarded(free);
                }
            }
            Micro::Ask(call) => self.ask(t, call),
            Micro::Replied(call) => {
                if self.threads[t].result.is_none() {
                    let change = change_of(&call);
                    self.make(t, &change);
                }
            }
            Micro::Agreed => self.threads[t].dispute.clear(),
            Micro::Greet => {
                self.threads[t].wait = Wait::Greeting;
                self.tell(s, Note::Greeting(t));
            }
            Micro::Spawn => self.spawn(t),
            Micro::StartChild(child) => {
                for thread in self.threads.iter_mut().filter(|thread| thread.space == child) {
                    thread.wait = Wait::No;
                }
            }
            Micro::Take(take) => self.take(t, take),
            Micro::Copied => self.copied(t),
            Micro::Emptied => self.emptied(t),
            Micro::Answered => self.answered(t),
            Micro::Called(ticket) => {
                let result = self.threads[t].result.unwrap_or(0);
                self.spaces[s].pager.called.push_back((ticket, result));
                self.rest(t);
            }
            Micro::Vforked(child) => {
                self.threads[child].wait = Wait::No;
                self.threads[t].wait = Wait::Vfork;
            }
            Micro::EndVfork => self.end_vfork(t),
        }
    }

    /// The change itself, and what of it comes after the lock.
    fn make(&mut self, t: usize, change: &Change) {
        let s = self.threads[t].space;
        if let Change::Remove(range, free) = change {
            // One mapping after the other, each with its own event and zap.
            let end = self.spaces[s].mem.mapping(range.start).map_or(range.end, |(vma, _)| vma.end);
            if end < range.end {
                let rest = Change::Remove(end..range.end, *free);
                self.threads[t].micros.push_front(Micro::Change(rest));
                return self.make(t, &Change::Remove(range.start..end, *free));
            }
        }
        let (result, events) = self.change(s, self.caller(t), change);
        if !self.threads[t].alive {
            return;
        }
        if let Change::Remove(range, free) = change {
            for p in range.clone().rev() {
                if events.is_empty() {
                    // Not registered: zapped below the same lock.
                    self.zap(s, p, *free);
                } else {
                    self.threads[t].micros.push_front(Micro::Zap(p, *free));
                }
            }
        }
        let thread = &mut self.threads[t];
        thread.result = Some(result);
        if let Change::Fork(_) = change {
            thread.micros.push_front(Micro::StartChild(result as usize));
        }
        for event in events.into_iter().rev() {
            thread.micros.push_front(Micro::Woken);
            thread.micros.push_front(Micro::Queue(event));
        }
        // Between the change and its event a thread may sleep for long.
        self.threads[t].until = self.delay(4);
    }

    /// The thread of the program on whose behalf a thread acts: an agent acts for the one whose call was granted.
    fn caller(&self, t: usize) -> usize {
        let granted = self.spaces[self.threads[t].space].pager.space.granted();
        match (self.threads[t].role, granted) {
            (Role::Agent, Some((ticket, _))) => ticket.0 as usize,
            (Role::Vfork { parent, .. }, _) => parent,
            _ => t,
        }
    }

    fn access(&mut self, t: usize, p: usize, access: Access) {
        let s = self.threads[t].space;
        let Some(vma) = self.spaces[s].mem.vma[p].or_else(|| self.grow_stack(s, t, p)) else {
            if !matches!(access, Access::Populate) {
                self.fail(format!("P{s} T{t} touches page {p}, which is not mapped: the simulator is wrong"));
            }
            return;
        };
        let space = &mut self.spaces[s];
        let write = !matches!(access, Access::Read);
        if write && vma.readonly {
            return;
        }
        match space.mem.pte[p] {
            Pte::Guard => {
                let right = matches!(space.expect[p], Expect::Guard | Expect::Any);
                if !matches!(access, Access::Populate) && !right {
                    self.fail(format!("P{s} T{t}: page {p} has become a guard page"));
                }
                return;
            }
            Pte::None if vma.registered => {
                space.faults.push_back(Pending { thread: t, page: p, write });
                note!(self, "P{s} T{t}: faults at page {p}");
                self.stats.faults += 1;
                let thread = &mut self.threads[t];
                thread.wait = Wait::Fault { page: p };
                thread.micros.push_front(Micro::Access(p, access));
                return;
            }
            Pte::None => space.mem.pte[p] = if write { Pte::page(0) } else { Pte::Zero },
            _ => {}
        }
        let value = match space.mem.pte[p] {
            Pte::Page { value, .. } => value,
            _ => 0,
        };
        match access {
            Access::Read => {
                let before = space.expect[p];
                self.stats.checks += 1;
                if !space.expect[p].meets(value) {
                    self.fail(format!("P{s} T{t} reads {value} from page {p}, and not {before:?}"));
                }
            }
            Access::Write => {
                self.stamp += 1;
                let stamp = self.stamp;
                let space = &mut self.spaces[s];
                space.mem.pte[p] = Pte::page(stamp);
                space.expect[p] = Expect::Value(stamp);
                note!(self, "P{s} T{t}: writes {stamp} to page {p}");
            }
            Access::Populate => space.mem.pte[p] = Pte::page(value),
        }
    }

    fn zap(&mut self, s: usize, p: usize, free: bool) {
        let pte = &mut self.spaces[s].mem.pte[p];
        match pte {
            // MADV_FREE leaves a page alone that is shared.
            Pte::Page { lazy, cow: false, .. } if free => *lazy = true,
            Pte::Page { .. } if free => {}
            Pte::Page { .. } | Pte::Zero => *pte = Pte::None,
            Pte::None | Pte::Guard => return,
        }
        note!(self, "P{s}: page {p} is {}", if free { "freed" } else { "zapped" });
    }

    fn ask(&mut self, t: usize, call: Call) {
        let s = self.threads[t].space;
        self.threads[t].micros.push_front(Micro::Replied(call));
        if self.setup.gated {
            note!(self, "P{s} T{t}: asks for {}", describe(&call));
            self.threads[t].wait = Wait::Gate;
            self.tell(s, Note::Call(t, call));
        } else {
            self.threads[t].result = None;
        }
    }

    /// A vfork child may be killed where it waits: its event is lost, and the count goes down all the same.
    pub fn dies(&mut self, t: usize) -> bool {
        let thread = &self.threads[t];
        let waits = thread.alive && thread.wait == Wait::Event;
        if !waits || !matches!(thread.role, Role::Vfork { killed: true, .. }) || !self.rng.one_in(3) {
            return false;
        }
        let s = thread.space;
        self.spaces[s].events.retain(|(thread, _)| *thread != t);
        self.spaces[s].changing -= 1;
        note!(self, "P{s} T{t}: is killed, and its event with it");
        self.stats.lost += 1;
        self.spaces[s].lost = true;
        self.end_vfork(t);
        true
    }

    fn end_vfork(&mut self, t: usize) {
        self.threads[t].alive = false;
        self.threads[t].micros.clear();
        if let Role::Vfork { parent, .. } = self.threads[t].role {
            self.threads[parent].wait = Wait::No;
        }
    }

    fn spawn(&mut self, t: usize) {
        let s = self.threads[t].space;
        for ops in std::mem::take(&mut self.threads[t].more) {
            let new = self.new_thread(s, Role::Program, ops);
            for region in self.regions(t) {
                if self.rng.one_in(2) {
                    self.spaces[s].owner[region].fill(Some(new));
                }
            }
        }
    }

    /// The mappings of a thread.
    fn regions(&self, t: usize) -> Vec<Range<usize>> {
        let space = &self.spaces[self.threads[t].space];
        let mut regions = Vec::new();
        let mut p = 0;
        while p < space.owner.len() {
            if space.owner[p] != Some(t) {
                p += 1;
                continue;
            }
            let start = p;
            while p < space.owner.len()
                && space.owner[p] == Some(t)
                && space.mem.vma[p] == space.mem.vma[start]
            {
                p += 1;
            }
            regions.push(start..p);
        }
        regions
    }

    fn region(&self, t: usize, pick: u32) -> Option<Range<usize>> {
        let regions = self.regions(t);
        let index = (pick as usize >> 2) % regions.len().max(1);
        regions.get(index).cloned()
    }

    /// A mapping, or a part of it.
    fn part(&self, t: usize, pick: u32) -> Option<Range<usize>> {
        let region = self.region(t, pick)?;
        if pick & 1 == 0 {
            return Some(region);
        }
        let start = region.start + (pick >> 10) as usize % region.len();
        let len = 1 + (pick >> 16) as usize % (region.end - start);
        Some(start..start + len)
    }

    fn next(&mut self, t: usize) {
        let s = self.threads[t].space;
        let thread = &mut self.threads[t];
        let greets = thread.greets.unwrap_or(2) <= thread.at;
        if greets && (thread.greets.is_some() || !thread.more.is_empty()) {
            if thread.greets.take().is_some() {
                thread.micros.push_back(Micro::Greet);
            }
            thread.micros.push_back(Micro::Spawn);
            return;
        }
        let ops = thread.ops.clone();
        let Some(op) = ops.get(thread.at) else { return self.finish(t) };
        thread.at += 1;
        note!(self, "P{s} T{t}: {}", brief(op));
        let micros = self.expand(t, op);
        self.threads[t].micros.extend(micros);
    }

    /// The thread is through. The last one looks at everything once more and ends the process.
    fn finish(&mut self, t: usize) {
        let s = self.threads[t].space;
        self.threads[t].finished = true;
        let busy = |thread: &crate::world::Thread| {
            let program = thread.role == Role::Program && !thread.finished;
            thread.space == s && thread.alive && (program || matches!(thread.role, Role::Vfork { .. }))
        };
        if self.threads.iter().any(busy) {
            self.threads[t].wait = Wait::Idle;
            return;
        }
        let space = &self.spaces[s];
        let mapped =
            (0..space.expect.len()).filter(|&p| !matches!(space.expect[p], Expect::Nothing | Expect::Guard));
        let checks: Vec<_> = mapped.map(|p| Micro::Access(p, Access::Read)).collect();
        let micros = &mut self.threads[t].micros;
        micros.extend(checks);
        micros.push_back(Micro::Change(Change::Exit));
    }

    fn touch(&self, t: usize, region: Range<usize>, access: Access) -> Vec<Micro> {
        let space = &self.spaces[self.threads[t].space];
        region.filter(|&p| space.expect[p] != Expect::Guard).map(|p| Micro::Access(p, access)).collect()
    }

    fn expand(&mut self, t: usize, op: &Op) -> Vec<Micro> {
        let s = self.threads[t].space;
        match *op {
            Op::Map { pages, pick } => {
                let flags = Vma {
                    wipe: self.setup.wipes && (pick >> 20) % 16 == 0,
                    dontfork: self.setup.keeps && (pick >> 24) % 16 == 0,
                    ..plain()
                };
                vec![Micro::Change(Change::Map { pages, flags })]
            }
            Op::Fill { pick } => {
                self.region(t, pick).map_or(Vec::new(), |region| self.touch(t, region, Access::Write))
            }
            Op::Verify { pick } => {
                self.region(t, pick).map_or(Vec::new(), |region| self.touch(t, region, Access::Read))
            }
            Op::Touch { pick, write } => {
                let Some(region) = self.region(t, pick) else { return Vec::new() };
                let page = region.start + (pick >> 8) as usize % region.len();
                self.touch(t, page..page + 1, if write { Access::Write } else { Access::Read })
            }
            Op::Discard { pick, free } => self.discard(t, pick, free),
            Op::Unmap { pick } => self.one(t, pick, Change::Unmap),
            Op::Over { pick } => self.one(t, pick, Change::Over),
            Op::Protect { pick, on } => self.one(t, pick, |range| Change::Protect(range, on)),
            Op::Lock { pick, on } => {
                let Some(part) = self.part(t, pick) else { return Vec::new() };
                let mut micros = vec![Micro::Change(Change::Lock(part.clone(), on))];
                if on {
                    micros.extend(self.touch(t, part, Access::Read));
                }
                micros
            }
            Op::Resize { pick, pages, may_move } => {
                let Some(part) = self.part(t, pick) else { return Vec::new() };
                let pages = if self.may_grow(s) { pages } else { pages.min(part.len()) };
                let flags = if may_move { MAYMOVE } else { 0 };
                self.call(t, remap_call(part.clone(), pages, flags, 0), vec![part])
            }
            Op::Move { pick, onto, keep } => self.moved(t, pick, onto, keep),
            Op::Guard { pick, install } if self.setup.gated => {
                let Some(part) = self.part(t, pick) else { return Vec::new() };
                let advice = if install { GUARD_INSTALL } else { GUARD_REMOVE };
                self.call(t, advice_call(part.clone(), advice), vec![part])
            }
            Op::Wipe { pick, on } if self.setup.gated => {
                let Some(part) = self.part(t, pick) else { return Vec::new() };
                let advice = if on { WIPEONFORK } else { KEEPONFORK };
                self.call(t, advice_call(part.clone(), advice), vec![part])
            }
            Op::Guard { .. } | Op::Wipe { .. } => Vec::new(),
            Op::Give { pick, to } => {
                let heirs: Vec<_> = (0..self.threads.len())
                    .filter(|&other| {
                        let thread = &self.threads[other];
                        thread.alive && !thread.finished && thread.role == Role::Program && thread.space == s
                    })
                    .collect();
                if let Some(region) = self.region(t, pick) {
                    self.spaces[s].owner[region].fill(Some(heirs[to as usize % heirs.len()]));
                }
                Vec::new()
            }
            Op::Fork(ref child) => {
                if self.spaces.len() >= self.setup.processes {
                    return Vec::new();
                }
                vec![Micro::Change(Change::Fork(Rc::new((**child).clone())))]
            }
            Op::Vfork { pick, killed } => {
                let Some(part) = self.part(t, pick) else { return Vec::new() };
                // Without the gate, growth beside a lost UNMAP cannot be told: see "what is not modelled".
                let killed = killed && self.setup.gated;
                let child = self.new_thread(s, Role::Vfork { parent: t, killed }, Vec::new());
                self.threads[child].wait = Wait::Unborn { parent: t };
                self.threads[child].micros.extend([Micro::Change(Change::Unmap(part)), Micro::EndVfork]);
                vec![Micro::Vforked(child)]
            }
        }
    }

    /// Whether growth can be told from what a fork has brought: see "what is not modelled".
    fn may_grow(&self, s: usize) -> bool {
        self.setup.gated || !self.setup.keeps || self.spaces[s].agent.is_some()
    }

    fn one(&self, t: usize, pick: u32, change: impl Fn(Range<usize>) -> Change) -> Vec<Micro> {
        self.part(t, pick).map_or(Vec::new(), |part| vec![Micro::Change(change(part))])
    }

    fn discard(&mut self, t: usize, pick: u32, free: bool) -> Vec<Micro> {
        let s = self.threads[t].space;
        let Some(part) = self.part(t, pick) else { return Vec::new() };
        let mut touched = self.spaces[s].forking.clone();
        touched.push(s);
        for space in touched {
            for p in part.clone() {
                let expect = &mut self.spaces[space].expect[p];
                *expect = expect.discarding();
            }
        }
        vec![Micro::Change(Change::Remove(part.clone(), free)), Micro::Discarded(part, free)]
    }

    fn moved(&mut self, t: usize, pick: u32, onto: u32, keep: bool) -> Vec<Micro> {
        let Some(part) = self.part(t, pick) else { return Vec::new() };
        if keep {
            return self.call(t, remap_call(part.clone(), part.len(), MAYMOVE | DONTUNMAP, 0), vec![part]);
        }
        let Some(target) = self.part(t, onto) else { return Vec::new() };
        let s = self.threads[t].space;
        if !self.may_grow(s) && target.len() > part.len() {
            return Vec::new();
        }
        if target.start < part.end && part.start < target.end {
            return Vec::new();
        }
        let call = remap_call(part.clone(), target.len(), MAYMOVE | FIXED, target.start);
        self.call(t, call, vec![part, target])
    }

    fn call(&mut self, t: usize, call: Call, ranges: Vec<Range<usize>>) -> Vec<Micro> {
        let s = self.threads[t].space;
        for range in &ranges {
            self.dispute(s, range.clone());
        }
        self.threads[t].dispute = ranges;
        vec![Micro::Ask(call), Micro::Agreed]
    }
}

fn remap_call(old: Range<usize>, new_len: usize, flags: u64, new: usize) -> Call {
    Call::Mremap(Mremap {
        old: addr(old.start),
        old_len: old.len() as u64 * PAGE,
        new_len: new_len as u64 * PAGE,
        flags,
        new: addr(new),
    })
}

fn advice_call(range: Range<usize>, advice: u64) -> Call {
    Call::Madvise { start: addr(range.start), len: range.len() as u64 * PAGE, advice }
}

/// What a call does.
pub fn change_of(call: &Call) -> Change {
    match *call {
        Call::Mremap(call) => Change::Remap {
            old: page(call.old),
            old_len: (call.old_len / PAGE) as usize,
            new_len: (call.new_len / PAGE) as usize,
            flags: call.flags,
            new: page(call.new),
        },
        Call::Madvise { start, len, advice } => {
            let range = pages(&(start..start + len));
            match advice {
                GUARD_INSTALL | GUARD_REMOVE => Change::Guard(range, advice == GUARD_INSTALL),
                _ => Change::Wipe(range, advice == WIPEONFORK),
            }
        }
    }
}

/// A call in the words of the trace.
pub fn describe(call: &Call) -> String {
    format!("{:?}", change_of(call))
}

/// An operation without what its child does.
fn brief(op: &Op) -> String {
    match op {
        Op::Fork(_) => "Fork".into(),
        op => format!("{op:?}"),
    }
}

/// The addresses of an event's range, for the protocol.
pub fn told(event: &Event) -> Option<Range<u64>> {
    match event {
        Event::Unmap(range) | Event::Remove(range) => Some(addrs(range)),
        Event::Remap { .. } | Event::Fork(_) => None,
    }
}
