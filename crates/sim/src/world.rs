//! The whole simulated machine: address spaces, threads, pagers, and the scheduler that lets one of them take one
//! step at a time.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use vswap_core::SlotId;
use vswap_pager::proto::{AddressSpace, Call, Ticket};

use crate::agent::Take;
use crate::memory::{Memory, Vma};
use crate::oracle::{Expect, Slots};
use crate::program::{Child, Op, Program};
use crate::rng::Rng;
use crate::{Failure, Setup, Stats};

/// Address of the first page: the arena lies across two chunks of the page table.
pub const BASE: u64 = (0x7f00_0000_0000 / PAGE + 488) * PAGE;
/// Bytes in a page.
pub const PAGE: u64 = vswap_core::PAGE_SIZE as u64;

/// The address of a page of the arena.
pub fn addr(page: usize) -> u64 {
    BASE + page as u64 * PAGE
}

/// The page of the arena at an address.
pub fn page(addr: u64) -> usize {
    (addr.saturating_sub(BASE) / PAGE) as usize
}

/// The addresses of pages.
pub fn addrs(pages: &Range<usize>) -> Range<u64> {
    addr(pages.start)..addr(pages.end)
}

/// The pages at addresses.
pub fn pages(addrs: &Range<u64>) -> Range<usize> {
    page(addrs.start)..page(addrs.end)
}

/// A message that a thread sleeps on until it was read.
#[derive(Clone, Debug)]
pub enum Event {
    Unmap(Range<usize>),
    Remap {
        from: usize,
        to: usize,
        len: usize,
    },
    Remove(Range<usize>),
    /// The child's address space.
    Fork(usize),
}

/// A fault that was not read yet.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    pub thread: usize,
    pub page: usize,
    pub write: bool,
}

/// One address space and its userfaultfd.
pub struct Space {
    pub mem: Memory,
    /// The kernel's count of changes (mmap_changing).
    pub changing: u32,
    pub faults: VecDeque<Pending>,
    pub events: VecDeque<(usize, Event)>,
    /// The thread that a page belongs to, so far as the program is concerned.
    pub owner: Vec<Option<usize>>,
    pub expect: Vec<Expect>,
    /// The agent's staging area.
    pub staging: Vec<Option<u64>>,
    /// It is not registered.
    pub fenced: bool,
    /// The fork raced with a call that changes the page, and perhaps whether it is wiped on fork: what its own
    /// children find is open.
    pub unsure: Vec<bool>,
    /// An event of it was lost with a killed vfork child.
    pub lost: bool,
    /// Exited.
    pub gone: bool,
    /// Children whose FORK was not read.
    pub forking: Vec<usize>,
    pub agent: Option<usize>,
    /// Where a driver writes: pinned for long, as io_uring's registered buffers are.
    pub pinned: Range<usize>,
    /// Where something was unmapped last.
    pub freed: usize,
    pub pager: Pager,
}

/// A note to a pager.
pub enum Note {
    Call(usize, Call),
    ParentClosed(Vec<Range<u64>>),
    Greeting(usize),
}

/// The driver of one address space.
pub struct Pager {
    pub space: AddressSpace,
    pub on: bool,
    pub done: bool,
    pub until: u64,
    pub notes: VecDeque<Note>,
    /// A Move is in flight.
    pub moving: bool,
    pub batch: Batch,
    /// The last batch was ended without the agent, which will answer it.
    pub overdue: bool,
    pub called: VecDeque<(Ticket, i64)>,
    /// The thread whose agent waits until the address space was verified.
    pub greeting: Option<usize>,
    pub throttled: bool,
    /// Threads that may still be inside an madvise.
    pub inside: Option<Vec<usize>>,
}

/// What an agent took out.
#[derive(Default)]
pub struct Batch {
    /// The pages asked for; each goes to the page of staging with its index.
    pub pages: Vec<usize>,
    pub taken: Vec<(usize, u64)>,
    pub again: bool,
    /// The tally says that all of it is in the ring.
    pub copied: bool,
    pub done: bool,
    /// When the pager's patience ends, if the agent does not run just then.
    pub patience: Option<u64>,
}

/// What a thread is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Program,
    Agent,
    /// A vfork child; it may be killed while it waits.
    Vfork {
        parent: usize,
        killed: bool,
    },
}

/// What a thread waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    No,
    Fault {
        page: usize,
    },
    Event,
    Gate,
    Greeting,
    Vfork,
    /// An agent without work.
    Idle,
    /// Its fork has not returned.
    Unborn {
        parent: usize,
    },
}

/// Access to one page.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    Read,
    Write,
    /// Breaks the sharing of a page, as MADV_POPULATE_WRITE does; writes nothing.
    Populate,
}

/// A change of mappings, made in one piece below the lock.
#[derive(Clone, Debug)]
pub enum Change {
    Map {
        pages: usize,
        flags: Vma,
    },
    Over(Range<usize>),
    Unmap(Range<usize>),
    Remap {
        old: usize,
        old_len: usize,
        new_len: usize,
        flags: u64,
        new: usize,
    },
    /// The first half of a discard (MADV_FREE or not): counted, and zapped only after the event where one is due.
    Remove(Range<usize>, bool),
    Guard(Range<usize>, bool),
    Wipe(Range<usize>, bool),
    Protect(Range<usize>, bool),
    Lock(Range<usize>, bool),
    Fork(Rc<Child>),
    Exit,
}

/// A sub-step of a thread. Between two of them anybody else may run.
#[derive(Clone, Debug)]
pub enum Micro {
    Access(usize, Access),
    Change(Change),
    /// Queues an event and sleeps until it was read.
    Queue(Event),
    /// The thread has woken from its event: the count goes down.
    Woken,
    /// The second half of a discard, page by page.
    Zap(usize, bool),
    /// A discard is over.
    Discarded(Range<usize>, bool),
    Ask(Call),
    /// The gate has answered.
    Replied(Call),
    /// The changes in dispute are over.
    Agreed,
    Greet,
    /// Starts the further threads of a child.
    Spawn,
    StartChild(usize),
    /// An agent moves pages out.
    Take(Take),
    Copied,
    Emptied,
    Answered,
    /// An agent has made a call.
    Called(Ticket),
    Vforked(usize),
    EndVfork,
}

/// A thread.
pub struct Thread {
    pub space: usize,
    pub role: Role,
    pub alive: bool,
    pub finished: bool,
    pub ops: Rc<Vec<Op>>,
    pub at: usize,
    pub micros: VecDeque<Micro>,
    pub wait: Wait,
    pub until: u64,
    /// What the last call has returned; `None`: the gate said "go on yourself".
    pub result: Option<i64>,
    /// Ranges of a call under way whose contents a fork at the same time cannot rely on.
    pub dispute: Vec<Range<usize>>,
    pub greets: Option<usize>,
    pub more: Vec<Vec<Op>>,
}

impl Thread {
    fn new(space: usize, role: Role, ops: Vec<Op>) -> Self {
        Self {
            space,
            role,
            alive: true,
            finished: false,
            ops: Rc::new(ops),
            at: 0,
            micros: VecDeque::new(),
            wait: if role == Role::Agent { Wait::Idle } else { Wait::No },
            until: 0,
            result: None,
            dispute: Vec::new(),
            greets: None,
            more: Vec::new(),
        }
    }
}

/// The machine.
pub struct World<'a> {
    pub setup: &'a Setup,
    pub rng: Rng,
    pub step: u64,
    pub spaces: Vec<Space>,
    pub threads: Vec<Thread>,
    pub slots: Slots,
    pub stamp: u64,
    pub vmas: u32,
    pub failure: Option<Failure>,
    /// A fail-stop that is allowed ended the run.
    pub stopped: bool,
    pub log: Option<Vec<String>>,
    pub stats: Stats,
}

/// Notes what happens, where somebody wants to know.
macro_rules! note {
    ($world:expr, $($arg:tt)*) => {
        if $world.log.is_some() {
            let line = format!($($arg)*);
            let step = $world.step;
            if let Some(log) = &mut $world.log {
                log.push(format!("{step:>6}  {line}"));
            }
        }
    };
}
pub(crate) use note;

impl<'a> World<'a> {
    /// A machine on which the program is about to start.
    pub fn new(setup: &'a Setup, program: &Program, schedule: u64, trace: bool) -> Self {
        let mut world = Self {
            setup,
            rng: Rng::new(setup.seed ^ schedule.wrapping_mul(0xD6E8_FEB8_6659_FD93), 2),
            step: 0,
            spaces: Vec::new(),
            threads: Vec::new(),
            slots: Slots::default(),
            stamp: 0,
            vmas: 0,
            failure: None,
            stopped: false,
            log: trace.then(Vec::new),
            stats: Stats::default(),
        };
        let space = world.new_space(Memory::new(setup.arena), AddressSpace::new(setup.gated));
        world.spaces[space].pager.on = true;
        for ops in &program.threads {
            world.new_thread(space, Role::Program, ops.clone());
        }
        world.new_agent(space);
        world
    }

    pub fn new_space(&mut self, mem: Memory, mut state: AddressSpace) -> usize {
        let pages = mem.vma.len();
        state.set_rules(self.setup.rules.proto);
        self.spaces.push(Space {
            mem,
            changing: 0,
            faults: VecDeque::new(),
            events: VecDeque::new(),
            owner: vec![None; pages],
            expect: vec![Expect::Nothing; pages],
            staging: vec![None; pages],
            fenced: false,
            unsure: vec![false; pages],
            lost: false,
            gone: false,
            forking: Vec::new(),
            agent: None,
            pinned: 0..0,
            freed: 0,
            pager: Pager {
                space: state,
                on: false,
                done: false,
                until: 0,
                notes: VecDeque::new(),
                moving: false,
                batch: Batch::default(),
                overdue: false,
                called: VecDeque::new(),
                greeting: None,
                throttled: false,
                inside: None,
            },
        });
        self.spaces.len() - 1
    }

    pub fn new_thread(&mut self, space: usize, role: Role, ops: Vec<Op>) -> usize {
        self.threads.push(Thread::new(space, role, ops));
        self.threads.len() - 1
    }

    pub fn new_agent(&mut self, space: usize) {
        let agent = self.new_thread(space, Role::Agent, Vec::new());
        self.spaces[space].agent = Some(agent);
    }

    pub fn fail(&mut self, why: String) {
        note!(self, "FAILED: {why}");
        if self.failure.is_none() {
            self.failure = Some(Failure { why, step: self.step });
        }
    }

    /// Runs until everything has ended or something is wrong.
    pub fn run(&mut self) {
        while self.failure.is_none() && !self.stopped && self.turn() {
            if self.step > self.setup.patience {
                let stuck = self.stuck();
                self.fail(format!("nothing more happens, or nothing ends: {stuck}"));
            }
        }
        self.stats.steps = self.step;
        if self.failure.is_none()
            && !self.stopped
            && let Some(slot) = self.slots.leaked()
        {
            self.fail(format!("slot {slot} is still held when everything has ended"));
        }
    }

    fn stuck(&self) -> String {
        let mut stuck = String::new();
        for (t, thread) in self.threads.iter().enumerate().filter(|(_, thread)| thread.alive) {
            stuck += &format!("T{t} of P{} waits for {:?}; ", thread.space, thread.wait);
        }
        for (s, space) in
            self.spaces.iter().enumerate().filter(|(_, space)| space.pager.on && !space.pager.done)
        {
            stuck += &format!("P{s} counts {} changes, {:?}; ", space.changing, space.pager.space);
        }
        stuck
    }

    fn turn(&mut self) -> bool {
        self.step += 1;
        if let Some((space, step)) = self.setup.kill
            && step == self.step
            && space < self.spaces.len()
        {
            note!(self, "P{space} is killed");
            self.exit(space);
        }
        let actors = self.threads.len() + self.spaces.len();
        let first = self.rng.below(actors);
        let mut wakes = u64::MAX;
        for offset in 0..actors {
            let actor = (first + offset) % actors;
            if actor < self.threads.len() {
                let thread = &self.threads[actor];
                if !thread.alive || thread.wait != Wait::No {
                    if self.dies(actor) {
                        return true;
                    }
                    continue;
                }
                if thread.until > self.step {
                    wakes = wakes.min(thread.until);
                    continue;
                }
                self.step_thread(actor);
                return true;
            }
            let space = actor - self.threads.len();
            let pager = &self.spaces[space].pager;
            if !pager.on || pager.done || !self.pager_can_run(space) {
                continue;
            }
            if pager.until > self.step {
                wakes = wakes.min(pager.until);
                continue;
            }
            self.step_pager(space);
            return true;
        }
        if wakes == u64::MAX {
            if self.threads.iter().any(|thread| thread.alive && thread.role == Role::Program) {
                let stuck = self.stuck();
                self.fail(format!("everybody waits: {stuck}"));
            }
            return false;
        }
        self.step = wakes;
        true
    }

    /// Once in `n` times the kernel does what it may do and need not: a short count, a pinned page, reclaim.
    pub fn whim(&mut self, n: usize) -> bool {
        self.setup.whims && self.rng.one_in(n)
    }

    /// How long a thread or a pager may be held up at a point where that matters.
    pub fn delay(&mut self, often: usize) -> u64 {
        if !self.rng.one_in(often) {
            return 0;
        }
        let longest = 1 << self.rng.below(self.setup.sluggish);
        self.step + 1 + self.rng.below(longest) as u64
    }
}

/// The slot with this number.
pub fn slot(number: u64) -> SlotId {
    SlotId::new(number).unwrap_or_else(|| unreachable!("slots are numbered from 1"))
}
