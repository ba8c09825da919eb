//! One simulated process and its userfaultfd without a pager: the caller makes each call, reads each message and gives
//! each command. `tests/conformance` runs the same histories here and on the real kernel.

use std::ops::Range;
use std::rc::Rc;

use vswap_pager::proto::Answer;

use crate::kernel::{DONTUNMAP, FIXED, MAYMOVE};
use crate::memory::Pte;
use crate::oracle::Expect;
use crate::program::Child;
use crate::userfaultfd::{EAGAIN, EINVAL, ENOENT, Message};
use crate::world::{Access, Change, Event, Micro, Pending, Role, Wait, World, page, pages};
use crate::{Rules, Setup};

/// Threads of the process, from 0 on.
pub const THREADS: usize = 3;
/// The thread that a vfork child of [`Call::Vfork`] is.
pub const VFORK: usize = THREADS;
/// The thread that a forked child is.
pub const CHILD: usize = THREADS + 1;
/// Where the heap of a forked child ends at first.
const HEAP: usize = 600;
/// Pages that there are addresses for.
pub const PAGES: usize = 1100;

/// A system call or an access, in pages. Files and addresses are the back end's matter.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the fields
pub enum Call {
    /// mmap(MAP_FIXED), over whatever is there.
    Map(Range<usize>),
    /// The same, MAP_GROWSDOWN.
    MapStack(Range<usize>),
    /// The same, MAP_SHARED.
    MapShared(Range<usize>),
    /// munmap.
    Unmap(Range<usize>),
    /// MADV_DONTNEED.
    DontNeed(Range<usize>),
    /// MADV_FREE.
    Free(Range<usize>),
    /// mremap(MREMAP_MAYMOVE).
    Resize { old: Range<usize>, pages: usize },
    /// mremap(MREMAP_FIXED).
    Move { old: Range<usize>, new: Range<usize> },
    /// mremap(MREMAP_DONTUNMAP) to an address of the kernel's choice.
    MoveKeeping(Range<usize>),
    /// MADV_GUARD_INSTALL or MADV_GUARD_REMOVE.
    Guard(Range<usize>, bool),
    /// mprotect: to PROT_READ, or back.
    ReadOnly(Range<usize>, bool),
    /// mprotect: to PROT_EXEC besides, or back.
    Executable(Range<usize>, bool),
    /// Pins pages as a driver does that writes to them (io_uring's registered buffers), or lets them go.
    Pin(Range<usize>, bool),
    /// MADV_POPULATE_WRITE.
    Populate(Range<usize>),
    /// mlock or munlock.
    Lock(Range<usize>, bool),
    /// MADV_DONTFORK.
    DontFork(Range<usize>),
    /// Reads a page: its contents are the result.
    Read(usize),
    /// Writes a page.
    Write(usize, u64),
    /// fork; 0 is the result.
    Fork,
    /// A child that shares the memory (CLONE_VM) munmaps; the thread is [`VFORK`].
    Vfork(Range<usize>),
    /// vfork; the child executes another program, as posix_spawn has it, or exits. Its exit status is the result.
    Spawn { exec: bool },
    /// A forked child moves the end of its heap by so many pages; where it is then is the result.
    Brk(isize),
    /// A forked child becomes another program.
    Exec,
    /// A forked child ends.
    Exit,
}

/// What a read() of the userfaultfd says.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the fields
pub enum Said {
    /// A thread waits for a page.
    Fault { page: usize, write: bool },
    /// Something was unmapped.
    Unmap(Range<usize>),
    /// Something was moved.
    Remap { from: usize, to: usize, len: usize },
    /// Something is going to be discarded.
    Remove(Range<usize>),
    /// The process has forked.
    Fork,
}

/// A command of the userfaultfd.
#[derive(Clone, Debug)]
pub enum Command {
    /// REGISTER.
    Register(Range<usize>),
    /// COPY of pages with these contents.
    Copy(usize, Vec<u64>),
    /// ZEROPAGE.
    Zero(Range<usize>),
    /// WRITEPROTECT of one page with mode 0.
    Probe(usize),
    /// WAKE.
    Wake(Range<usize>),
    /// MOVE to this page of the staging area.
    Move(Range<usize>, usize),
    /// UNREGISTER of the staging area, or REGISTER again.
    Fence(bool),
}

/// What is at a page, as pagemap tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum There {
    /// Nothing.
    Nothing,
    /// A guard marker.
    Guard,
    /// A page.
    Page,
}

/// The process.
pub struct Bare<'a> {
    world: World<'a>,
    results: [Shown; CHILD + 1],
    heap: usize,
}

/// What the result of a thread's last call is.
#[derive(Clone, Copy)]
enum Shown {
    /// As the kernel says.
    Returned,
    /// What is at a page.
    Contents(usize),
    /// A number of its own.
    Number(usize),
}

impl<'a> Bare<'a> {
    /// A machine on which nothing happens by chance.
    pub fn setup() -> Setup {
        Setup {
            seed: 0,
            arena: PAGES,
            gated: true,
            rules: Rules::default(),
            processes: 2,
            wipes: false,
            keeps: true,
            sluggish: 1,
            drowsy: 1,
            kill: None,
            whims: false,
            patience: u64::MAX,
        }
    }

    /// A process without memory.
    pub fn new(setup: &'a Setup) -> Self {
        let program = crate::Program { threads: vec![Vec::new(); THREADS] };
        Self {
            world: World::new(setup, &program, 0, false),
            results: [Shown::Returned; CHILD + 1],
            heap: HEAP,
        }
    }

    /// The number that the world has for a thread.
    fn thread(&self, thread: usize) -> Option<usize> {
        let found = |wanted: fn(&Role, usize) -> bool| {
            self.world.threads.iter().position(|thread| wanted(&thread.role, thread.space))
        };
        match thread {
            VFORK => found(|role, _| matches!(role, Role::Vfork { .. })),
            CHILD => found(|role, space| *role == Role::Program && space == 1),
            thread => Some(thread),
        }
    }

    /// Lets a thread begin a call; it goes on until it has to wait.
    pub fn start(&mut self, thread: usize, call: &Call) {
        self.results[thread] = Shown::Returned;
        let micro = match call.clone() {
            Call::Map(range) | Call::MapStack(range) | Call::MapShared(range) => {
                Micro::Change(Change::Over(range))
            }
            Call::Unmap(range) => Micro::Change(Change::Unmap(range)),
            Call::DontNeed(range) => Micro::Change(Change::Remove(range, false)),
            Call::Free(range) => Micro::Change(Change::Remove(range, true)),
            Call::Resize { old, pages } => remap(old, pages, MAYMOVE, 0),
            Call::Move { old, new } => remap(old, new.len(), MAYMOVE | FIXED, new.start),
            Call::MoveKeeping(old) => remap(old.clone(), old.len(), MAYMOVE | DONTUNMAP, 0),
            Call::Guard(range, on) => Micro::Change(Change::Guard(range, on)),
            Call::ReadOnly(range, on) => Micro::Change(Change::Protect(range, on)),
            Call::Lock(range, on) => Micro::Change(Change::Lock(range, on)),
            Call::DontFork(range) => {
                self.world.spaces[0].mem.alter(range, |vma| vma.dontfork = true);
                Micro::Agreed
            }
            Call::Executable(range, on) => {
                self.world.spaces[0].mem.alter(range, |vma| vma.unlike = on);
                Micro::Agreed
            }
            Call::Pin(range, on) => {
                self.world.spaces[0].pinned = if on { range } else { 0..0 };
                Micro::Agreed
            }
            Call::Populate(_) => Micro::Agreed,
            Call::Read(page) => {
                self.results[thread] = Shown::Contents(page);
                Micro::Access(page, Access::Read)
            }
            Call::Write(page, value) => {
                // The next write writes it.
                self.world.stamp = value - 1;
                Micro::Access(page, Access::Write)
            }
            Call::Fork => Micro::Change(Change::Fork(Rc::new(Child {
                ops: Vec::new(),
                greets: None,
                more: Vec::new(),
            }))),
            Call::Vfork(range) => {
                self.shares_memory(0, Micro::Change(Change::Unmap(range)));
                return self.run();
            }
            // By an exec it leaves the memory as by an exit.
            Call::Spawn { .. } => Micro::Vforked(self.shares_memory(thread, Micro::EndVfork)),
            Call::Brk(pages) => {
                let (end, new) = (self.heap, self.heap.saturating_add_signed(pages));
                self.heap = new;
                self.results[thread] = Shown::Number(new);
                Micro::Change(if new > end { Change::Over(end..new) } else { Change::Unmap(new..end) })
            }
            // The memory ends with either.
            Call::Exec | Call::Exit => Micro::Change(Change::Exit),
        };
        let Some(t) = self.thread(thread) else { return };
        let thread = &mut self.world.threads[t];
        (thread.result, thread.finished) = (None, false);
        thread.micros.push_back(micro);
        if let Call::Lock(range, true) | Call::Populate(range) = call {
            thread.micros.extend(range.clone().map(|page| Micro::Access(page, Access::Populate)));
        }
        self.run();
        match call.clone() {
            Call::MapStack(range) => self.world.spaces[0].mem.alter(range, |vma| vma.stack = true),
            Call::MapShared(range) => self.world.spaces[0].mem.alter(range, |vma| vma.unlike = true),
            _ => {}
        }
    }

    /// A child that shares the memory, and what it does.
    fn shares_memory(&mut self, parent: usize, does: Micro) -> usize {
        let child = self.world.new_thread(0, Role::Vfork { parent, killed: true }, Vec::new());
        self.world.threads[child].micros.push_back(does);
        child
    }

    /// Lets everybody go on who can.
    fn run(&mut self) {
        loop {
            let ready = self.world.threads.iter().position(|thread| {
                let waits = thread.wait != Wait::No || !thread.alive;
                !waits && !thread.micros.is_empty()
            });
            let Some(t) = ready else { return };
            // The caller judges what is read.
            for space in &mut self.world.spaces {
                for (expect, vma) in space.expect.iter_mut().zip(&space.mem.vma) {
                    *expect = if vma.is_some() { Expect::Any } else { Expect::Nothing };
                }
            }
            self.world.step_thread(t);
        }
    }

    /// The result of a thread's call, if it has returned.
    pub fn returned(&self, thread: usize) -> Option<i64> {
        let t = self.thread(thread)?;
        let state = &self.world.threads[t];
        if state.wait != Wait::No || !state.micros.is_empty() {
            return None;
        }
        Some(match self.results[thread] {
            Shown::Contents(page) => match self.world.spaces[state.space].mem.pte[page] {
                Pte::Page { value, .. } => value as i64,
                _ => 0,
            },
            Shown::Number(number) => number as i64,
            // A fork's result names the child.
            Shown::Returned if self.world.spaces.len() > 1 && thread == 0 => 0,
            Shown::Returned => state.result.unwrap_or(0),
        })
    }

    /// Whether a thread sleeps until its event is read.
    pub fn sleeps(&self, thread: usize) -> bool {
        self.thread(thread).is_some_and(|t| self.world.threads[t].wait == Wait::Event)
    }

    /// What a read() says.
    pub fn message(&mut self, process: usize) -> Option<Said> {
        let message = self.world.read_message(process)?;
        self.run();
        Some(match message {
            Message::Fault(Pending { page, write, .. }) => Said::Fault { page, write },
            Message::Event(Event::Unmap(range)) => Said::Unmap(range),
            Message::Event(Event::Remap { from, to, len }) => Said::Remap { from, to, len },
            Message::Event(Event::Remove(range)) => Said::Remove(range),
            Message::Event(Event::Fork(_)) => Said::Fork,
        })
    }

    /// Executes a command: the pages done, and 0 or an errno.
    pub fn command(&mut self, process: usize, command: &Command) -> (usize, i32) {
        if self.world.spaces[process].gone {
            return (0, libc_esrch(command));
        }
        let answer = match command {
            Command::Register(range) => (0, self.world.register(process, range.clone())),
            Command::Copy(page, values) => {
                let contents: Vec<_> = values.iter().copied().map(Some).collect();
                self.world.install(process, *page, &contents)
            }
            Command::Zero(range) => self.world.install(process, range.start, &vec![None; range.len()]),
            Command::Probe(page) => (0, self.world.probe(process, *page)),
            Command::Wake(range) => {
                self.world.wake(process, range.clone());
                (0, 0)
            }
            // The caller is in process 0, and nobody moves pages of another one.
            Command::Move(..) if process != 0 => (0, EINVAL),
            Command::Move(range, to) => self.world.move_pages(process, range.clone(), *to),
            Command::Fence(on) => {
                self.world.spaces[process].fenced = *on;
                (0, 0)
            }
        };
        debug_assert!(matches!(answer.1, 0 | EAGAIN | ENOENT) || answer.0 == 0);
        self.run();
        answer
    }

    /// What is at a page.
    pub fn there(&self, page: usize) -> There {
        match self.world.spaces[0].mem.pte[page] {
            Pte::None => There::Nothing,
            Pte::Guard => There::Guard,
            Pte::Zero | Pte::Page { .. } => There::Page,
        }
    }

    /// PAGEMAP_SCAN: runs of so many pages at most, and where it goes on.
    pub fn scan(&self, range: Range<usize>, most: usize) -> (Vec<Range<usize>>, usize) {
        match self.world.scan(0, &range, most) {
            Answer::Scanned(runs, next) => (runs.iter().map(pages).collect(), page(next)),
            other => unreachable!("a scan does not answer {other:?}"),
        }
    }

    /// The mapping at a page, or the next one above.
    pub fn mapping(&self, page: usize) -> Option<Range<usize>> {
        self.world.spaces[0].mem.mapping_from(page).map(|(range, _)| range)
    }

    /// Messages that wait to be read.
    pub fn queued(&self) -> usize {
        self.world.spaces[0].faults.len() + self.world.spaces[0].events.len()
    }

    /// Kills the vfork child where it waits.
    pub fn kill_vfork(&mut self) {
        if let Some(t) = self.thread(VFORK) {
            while !self.world.dies(t) {}
        }
    }
}

/// What commands answer after the process has gone.
fn libc_esrch(command: &Command) -> i32 {
    const ESRCH: i32 = 3;
    const ENOMEM: i32 = 12;
    if matches!(command, Command::Register(_)) { ENOMEM } else { ESRCH }
}

fn remap(old: Range<usize>, new_len: usize, flags: u64, new: usize) -> Micro {
    Micro::Change(Change::Remap { old: old.start, old_len: old.len(), new_len, flags, new })
}
