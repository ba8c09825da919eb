//! The simulated userfaultfd: what a read() returns, and the commands. Each is the kernel's, with the kernel's errors;
//! `tests/conformance` compares them with the real ones.

use std::ops::Range;

use crate::memory::Pte;
use crate::oracle::Expect;
use crate::world::{Event, Pending, Wait, World};

pub const ENOENT: i32 = 2;
pub const EAGAIN: i32 = 11;
pub const EFAULT: i32 = 14;
pub const EBUSY: i32 = 16;
pub const EEXIST: i32 = 17;
pub const EINVAL: i32 = 22;

/// What a read() of the userfaultfd returns.
#[derive(Clone, Debug)]
pub enum Message {
    Fault(Pending),
    Event(Event),
}

/// Pages done, and 0 or why not all.
pub type Done = (usize, i32);

impl World<'_> {
    /// One message, faults first.
    pub fn read_message(&mut self, s: usize) -> Option<Message> {
        let space = &mut self.spaces[s];
        if let Some(fault) = space.faults.pop_front() {
            return Some(Message::Fault(fault));
        }
        let (thread, event) = space.events.pop_front()?;
        if let Event::Fork(child) = event {
            space.forking.retain(|&forking| forking != child);
        }
        self.threads[thread].wait = Wait::No;
        self.threads[thread].until = self.delay(3);
        self.stats.events += 1;
        Some(Message::Event(event))
    }

    /// Wakes the threads that wait for one of these pages.
    pub fn wake(&mut self, s: usize, range: Range<usize>) {
        self.spaces[s].faults.retain(|fault| !range.contains(&fault.page));
        for thread in self.threads.iter_mut().filter(|thread| thread.space == s) {
            if let Wait::Fault { page } = thread.wait
                && range.contains(&page)
            {
                thread.wait = Wait::No;
            }
        }
    }

    /// REGISTER: not guarded, and content with any mapping in the range.
    pub fn register(&mut self, s: usize, range: Range<usize>) -> i32 {
        if self.spaces[s].mem.is_free(&range) {
            return EINVAL;
        }
        self.spaces[s].mem.alter(range, |vma| vma.registered = true);
        0
    }

    /// WRITEPROTECT of one page with mode 0, which changes nothing.
    pub fn probe(&self, s: usize, page: usize) -> i32 {
        match self.spaces[s].mem.vma[page] {
            _ if self.spaces[s].changing > 0 => EAGAIN,
            Some(vma) if vma.registered => 0,
            _ => ENOENT,
        }
    }

    /// COPY, and ZEROPAGE where there are no contents. Both look at one mapping only.
    pub fn install(&mut self, s: usize, at: usize, contents: &[Option<u64>]) -> Done {
        if self.spaces[s].changing > 0 {
            return (0, EAGAIN);
        }
        let mut range = at..at + contents.len();
        if !self.spaces[s].mem.single(&range).is_some_and(|vma| vma.registered) {
            return (0, ENOENT);
        }
        if contents.len() > 1 && self.whim(32) {
            range.end = at + 1 + self.rng.below(contents.len() - 1);
        }
        let space = &mut self.spaces[s];
        let mut done = 0;
        let mut guard_lost = None;
        for (p, content) in range.clone().zip(contents) {
            match (space.mem.pte[p], content) {
                (Pte::None, None) => space.mem.pte[p] = Pte::Zero,
                (Pte::None, Some(value)) => space.mem.pte[p] = Pte::page(*value),
                // COPY replaces a marker; ZEROPAGE does not.
                (Pte::Guard, Some(value)) => {
                    space.mem.pte[p] = Pte::page(*value);
                    if space.expect[p] == Expect::Guard {
                        guard_lost = Some(p);
                    }
                }
                _ => break,
            }
            done += 1;
        }
        if let Some(p) = guard_lost {
            self.fail(format!("P{s}: the guard page {p} was replaced by a page"));
        }
        self.wake(s, at..at + done);
        let errno = match done {
            done if done == contents.len() => 0,
            0 => EEXIST,
            _ => EAGAIN,
        };
        (done, errno)
    }

    /// MOVE to the pages of staging from `to` on, which must be registered. It does *not* look whether the source is.
    pub fn move_pages(&mut self, s: usize, from: Range<usize>, to: usize) -> Done {
        if self.spaces[s].changing > 0 {
            return (0, EAGAIN);
        }
        if self.spaces[s].fenced {
            return (0, EINVAL);
        }
        let Some(vma) = self.spaces[s].mem.vma[from.start] else { return (0, ENOENT) };
        if vma.readonly || vma.unlike || vma.locked || self.spaces[s].mem.single(&from).is_none() {
            return (0, EINVAL);
        }
        let pinned = self.whim(64);
        let most = if self.whim(2) { 1 + self.rng.below(from.len()) } else { from.len() };
        let mut done = 0;
        let mut errno = 0;
        for p in from.clone().take(most) {
            let space = &mut self.spaces[s];
            let value = match space.mem.pte[p] {
                Pte::None => Err(ENOENT),
                Pte::Guard => Err(EFAULT),
                Pte::Page { cow: true, .. } => Err(EBUSY),
                Pte::Page { .. } | Pte::Zero if pinned || space.pinned.contains(&p) => Err(EBUSY),
                Pte::Page { value, .. } => Ok(value),
                Pte::Zero => Ok(0),
            };
            match value {
                _ if space.staging[to + done].is_some() => errno = EEXIST,
                Ok(value) => {
                    space.mem.pte[p] = Pte::None;
                    space.staging[to + done] = Some(value);
                }
                Err(why) => errno = why,
            }
            if errno != 0 {
                break;
            }
            done += 1;
        }
        match done {
            done if done == from.len() => (done, 0),
            0 => (0, errno),
            done => (done, EAGAIN),
        }
    }
}
