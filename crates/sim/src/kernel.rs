//! The kernel: changes of mappings below the lock, and the count of changes.
//!
//! A change is one step: the kernel makes it below the lock of the address space. In the same step the count goes up by
//! the number of events that the change will queue. Everything after the lock is dropped (queueing, sleeping, waking,
//! zapping) is a step of its own: see `threads.rs`.

use std::ops::Range;

use crate::memory::{Memory, Pte, Vma};
use crate::oracle::Expect;
use crate::program::Child;
use crate::world::{Change, Event, Note, Role, Wait, World, note};

pub const MAYMOVE: u64 = 1;
pub const FIXED: u64 = 2;
pub const DONTUNMAP: u64 = 4;
pub const WIPEONFORK: u64 = 18;
pub const KEEPONFORK: u64 = 19;
pub const GUARD_INSTALL: u64 = 102;
pub const GUARD_REMOVE: u64 = 103;

const ENOMEM: i64 = -12;
const EFAULT: i64 = -14;
const EINVAL: i64 = -22;

impl World<'_> {
    /// Makes a change on behalf of a thread of the program. Returns the call's result and the events that are due.
    pub fn change(&mut self, s: usize, by: usize, change: &Change) -> (i64, Vec<Event>) {
        let mut events = Vec::new();
        let result = match change {
            Change::Map { pages, flags } => self.map(s, by, *pages, *flags),
            Change::Over(range) => {
                self.unmap(s, range.clone(), &mut events);
                self.vmas += 1;
                let flags = Vma { id: self.vmas, ..plain() };
                self.place(s, by, range.clone(), flags);
                range.start as i64
            }
            Change::Unmap(range) => {
                self.unmap(s, range.clone(), &mut events);
                0
            }
            Change::Remap { old, old_len, new_len, flags, new } => {
                self.remap(s, by, [*old, *old_len, *new_len, *new], *flags, &mut events)
            }
            Change::Remove(range, _) => {
                if self.spaces[s].mem.any_registered(range) {
                    events.push(Event::Remove(range.clone()));
                }
                0
            }
            Change::Guard(range, install) => self.guard(s, range.clone(), *install),
            Change::Wipe(range, on) => self.alter(s, range, |vma| vma.wipe = *on),
            Change::Protect(range, on) => self.alter(s, range, |vma| vma.readonly = *on),
            Change::Lock(range, on) => self.alter(s, range, |vma| vma.locked = *on),
            Change::Fork(child) => {
                let child = self.fork(s, by, child);
                if self.spaces[child].mem.any_registered(&(0..self.setup.arena)) {
                    self.spaces[s].forking.push(child);
                    events.push(Event::Fork(child));
                } else {
                    // Nobody is told: its agent, if it gets one, greets like that of a new program.
                    self.spaces[child].pager.on = true;
                }
                child as i64
            }
            Change::Exit => {
                self.exit(s);
                0
            }
        };
        self.spaces[s].changing += events.len() as u32;
        note!(self, "P{s} T{by}: {change:?} = {result}, due: {events:?}");
        (result, events)
    }

    fn alter(&mut self, s: usize, range: &Range<usize>, change: impl Fn(&mut Vma)) -> i64 {
        self.spaces[s].mem.alter(range.clone(), change);
        0
    }

    fn place(&mut self, s: usize, by: usize, range: Range<usize>, flags: Vma) {
        let space = &mut self.spaces[s];
        for p in range {
            space.mem.vma[p] = Some(flags);
            space.mem.pte[p] = Pte::None;
            space.owner[p] = Some(by);
            space.expect[p] = Expect::Value(0);
            space.unsure[p] = false;
        }
    }

    /// A thread touches a page that is not mapped: it may be the next one of a stack.
    pub fn grow_stack(&mut self, s: usize, by: usize, page: usize) -> Option<Vma> {
        let (grown, vma) = self.spaces[s].mem.stack_above(page)?;
        self.place(s, by, grown, vma);
        Some(vma)
    }

    /// A free range of the kernel's choice: often just where something was unmapped.
    fn choose(&mut self, s: usize, pages: usize) -> Option<usize> {
        let arena = self.setup.arena;
        if pages > arena {
            return None;
        }
        let freed = self.spaces[s].freed;
        if !self.rng.one_in(3) && self.spaces[s].mem.is_free(&(freed..freed + pages)) {
            return Some(freed);
        }
        let first = self.rng.below(arena);
        (0..arena).map(|i| (first + i) % arena).find(|&p| self.spaces[s].mem.is_free(&(p..p + pages)))
    }

    fn map(&mut self, s: usize, by: usize, pages: usize, flags: Vma) -> i64 {
        let Some(at) = self.choose(s, pages) else { return ENOMEM };
        self.vmas += 1;
        let mut flags = Vma { id: self.vmas, ..flags };
        // The kernel merges neighbours that are alike; registered ones are not like unregistered ones.
        let neighbour = at.checked_sub(1).and_then(|before| self.spaces[s].mem.vma[before]);
        if let Some(neighbour) = neighbour
            && (Vma { id: neighbour.id, ..flags }) == neighbour
            && self.rng.one_in(2)
        {
            flags = neighbour;
        }
        self.place(s, by, at..at + pages, flags);
        at as i64
    }

    fn unmap(&mut self, s: usize, range: Range<usize>, events: &mut Vec<Event>) {
        let space = &mut self.spaces[s];
        if space.mem.any_registered(&range) {
            events.push(Event::Unmap(range.clone()));
        }
        space.mem.clear(range.clone());
        space.owner[range.clone()].fill(None);
        space.expect[range.clone()].fill(Expect::Nothing);
        space.freed = range.start;
    }

    fn remap(&mut self, s: usize, by: usize, call: [usize; 4], flags: u64, events: &mut Vec<Event>) -> i64 {
        let [old, old_len, new_len, new] = call;
        let source = old..old + old_len;
        if flags & FIXED != 0 && old_len == new_len && self.spaces[s].mem.single(&source).is_none() {
            return self.remap_several(s, by, source, new, events);
        }
        let Some(vma) = self.spaces[s].mem.single(&source) else { return EFAULT };
        let tail = old + new_len.min(old_len)..old + old_len;
        if flags & (FIXED | DONTUNMAP) == 0 {
            if new_len <= old_len {
                if !tail.is_empty() {
                    self.unmap(s, tail, events);
                }
                return old as i64;
            }
            let grown = old + old_len..old + new_len;
            if self.spaces[s].mem.is_free(&grown) {
                // In place: no event, and what is new is registered as what was there.
                self.place(s, by, grown.clone(), vma);
                self.dispute(s, grown.clone());
                self.threads[by].dispute.push(grown);
                return old as i64;
            }
        }
        if flags & MAYMOVE == 0 {
            return ENOMEM;
        }
        let mut target = new;
        let mut kept = old_len;
        if flags & FIXED != 0 {
            if new < old + old_len && old < new + new_len {
                return EINVAL;
            }
            self.unmap(s, new..new + new_len, events);
            if !tail.is_empty() {
                // The event of the tail comes after the REMAP.
                kept = new_len;
            }
        } else {
            match self.choose(s, new_len) {
                Some(free) => target = free,
                None => return ENOMEM,
            }
        }
        let mut late = Vec::new();
        if kept < old_len {
            self.unmap(s, tail, &mut late);
        }
        if vma.registered {
            events.push(Event::Remap { from: old, to: target, len: kept });
        }
        self.vmas += 1;
        let id = self.vmas;
        let space = &mut self.spaces[s];
        for i in 0..new_len {
            let (from, to) = (old + i, target + i);
            space.mem.vma[to] = Some(Vma { id, ..vma });
            space.owner[to] = Some(by);
            space.unsure[to] = space.unsure[old + i.min(kept - 1)];
            (space.mem.pte[to], space.expect[to]) = if i < kept {
                (
                    std::mem::replace(&mut space.mem.pte[from], Pte::None),
                    std::mem::replace(&mut space.expect[from], Expect::Value(0)),
                )
            } else {
                (Pte::None, Expect::Value(0))
            };
        }
        if flags & DONTUNMAP == 0 {
            self.unmap(s, old..old + kept, &mut late);
        }
        events.extend(late);
        self.dispute(s, target..target + new_len);
        self.threads[by].dispute.push(target..target + new_len);
        target as i64
    }

    /// Moves several mappings at one stroke (Linux 6.17), but none that is registered, unless it is alone.
    fn remap_several(
        &mut self,
        s: usize,
        by: usize,
        source: Range<usize>,
        new: usize,
        events: &mut Vec<Event>,
    ) -> i64 {
        let mut at = source.start;
        if self.spaces[s].mem.mapping(at).is_none() {
            return EFAULT;
        }
        while let Some((part, vma)) =
            self.spaces[s].mem.mapping_from(at).filter(|(part, _)| part.start < source.end)
        {
            if vma.registered {
                return EFAULT;
            }
            let part = part.start.max(at)..part.end.min(source.end);
            at = part.end;
            let call = [part.start, part.len(), part.len(), part.start - source.start + new];
            self.remap(s, by, call, MAYMOVE | FIXED, events);
        }
        new as i64
    }

    /// A child that was forked, but not reported yet, may or may not see a change that is being made now.
    pub fn dispute(&mut self, s: usize, range: Range<usize>) {
        for child in self.spaces[s].forking.clone() {
            let space = &mut self.spaces[child];
            for p in range.clone() {
                if space.expect[p] != Expect::Nothing {
                    space.expect[p] = Expect::Any;
                    space.unsure[p] = true;
                }
            }
        }
    }

    fn guard(&mut self, s: usize, range: Range<usize>, install: bool) -> i64 {
        let space = &mut self.spaces[s];
        for p in range {
            if install {
                space.mem.pte[p] = Pte::Guard;
                space.expect[p] = Expect::Guard;
            } else if space.mem.pte[p] == Pte::Guard {
                space.mem.pte[p] = Pte::None;
                space.expect[p] = Expect::Value(0);
            }
        }
        0
    }

    fn fork(&mut self, s: usize, by: usize, child: &Child) -> usize {
        let parent = &mut self.spaces[s];
        for pte in &mut parent.mem.pte {
            if let Pte::Page { cow, .. } = pte {
                *cow = true;
            }
        }
        let mut mem: Memory = parent.mem.clone();
        let mut expect = parent.expect.clone();
        let mut unsure = parent.unsure.clone();
        for (p, expect) in expect.iter_mut().enumerate() {
            match mem.vma[p] {
                Some(vma) if vma.dontfork => {
                    mem.clear(p..p + 1);
                    *expect = Expect::Nothing;
                }
                Some(vma) if vma.wipe => {
                    mem.pte[p] = Pte::None;
                    if *expect != Expect::Any {
                        *expect = Expect::Value(0);
                    }
                }
                _ => {}
            }
        }
        for thread in self.threads.iter().filter(|thread| thread.alive && thread.space == s) {
            for p in thread.dispute.iter().cloned().flatten() {
                if expect[p] != Expect::Nothing {
                    expect[p] = Expect::Any;
                    unsure[p] = true;
                }
            }
        }
        for p in (0..expect.len()).filter(|&p| unsure[p]) {
            if !matches!(expect[p], Expect::Nothing | Expect::Guard) {
                expect[p] = Expect::Any;
            }
        }
        // Its state comes with the FORK event.
        let mut state = vswap_pager::proto::AddressSpace::new(self.setup.gated);
        state.set_agent(false);
        let space = self.new_space(mem, state);
        let thread = self.new_thread(space, Role::Program, child.ops.clone());
        self.threads[thread].wait = Wait::Unborn { parent: by };
        self.threads[thread].greets = child.greets;
        self.threads[thread].more.clone_from(&child.more);
        let born = &mut self.spaces[space];
        for p in 0..expect.len() {
            born.owner[p] = born.mem.vma[p].map(|_| thread);
        }
        born.expect = expect;
        born.unsure = unsure;
        self.stats.forks += 1;
        space
    }

    /// The end of an address space: its threads die where they are, and what they had queued is gone.
    pub fn exit(&mut self, s: usize) {
        if std::mem::replace(&mut self.spaces[s].gone, true) {
            return;
        }
        let space = &mut self.spaces[s];
        space.faults.clear();
        space.events.clear();
        if !space.pager.on {
            space.pager.done = true;
        }
        let dead: Vec<_> = (0..self.threads.len()).filter(|&t| self.threads[t].space == s).collect();
        for &t in &dead {
            self.threads[t].alive = false;
            self.threads[t].micros.clear();
        }
        let unborn = |t: &usize| match self.threads[*t].wait {
            Wait::Unborn { parent } => self.threads[*t].alive && dead.contains(&parent),
            _ => false,
        };
        for t in (0..self.threads.len()).filter(unborn).collect::<Vec<_>>() {
            self.exit(self.threads[t].space);
        }
    }

    /// Kernel reclaim takes a page that was freed and not written since.
    pub fn reclaim(&mut self) {
        let s = self.rng.below(self.spaces.len());
        let p = self.rng.below(self.setup.arena);
        if let Pte::Page { lazy: true, .. } = self.spaces[s].mem.pte[p] {
            self.spaces[s].mem.pte[p] = Pte::None;
            note!(self, "P{s}: the kernel takes the freed page {p}");
        }
    }

    /// Tells a pager something.
    pub fn tell(&mut self, s: usize, note: Note) {
        self.spaces[s].pager.notes.push_back(note);
    }
}

/// A mapping without flags.
pub fn plain() -> Vma {
    Vma {
        id: 0,
        registered: false,
        readonly: false,
        unlike: false,
        locked: false,
        wipe: false,
        dontfork: false,
        stack: false,
    }
}
