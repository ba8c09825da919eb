//! The real kernel: threads of this process make the calls, and its main thread is the pager.
//!
//! Unsafe because the calls change the very mappings that the histories are about. They lie in an arena at an address
//! where nothing else is, no Rust object lives in it, and it is touched by volatile access to single words only.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use vswap_sim::bare::{CHILD, Call, Command, PAGES, Said, THREADS, There};
use vswap_sys::PAGE_SIZE;
use vswap_sys::maps::Maps;
use vswap_sys::pagemap::{ENTRY_GUARD, Pagemap, is_there};
use vswap_sys::process;
use vswap_sys::uffd::{FEATURES, Message, Partial, RegisterMode, Uffd};

use crate::children::{fork, spawn, vfork};
use crate::history::Kernel;

const PAGE: u64 = PAGE_SIZE as u64;
/// The arena: far from whatever the kernel chooses, and aligned for huge pages.
const BASE: u64 = 0x1000_0000_0000;
const STAGING_PAGES: usize = PAGES;
const PATIENCE: Duration = Duration::from_secs(20);
const UFFDIO_MOVE: libc::Ioctl = libc::_IOWR::<[u64; 5]>(0xaa, 0x05);
const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// No row takes longer; a real thread may be waiting for us then.
pub(crate) const SECONDS: u32 = 30;

/// Ends this process when a row takes too long.
pub(crate) fn limit_time() {
    // SAFETY: takes an integer only; the signal's default effect ends the process.
    unsafe { libc::alarm(SECONDS) };
}

pub(crate) fn addr(page: usize) -> u64 {
    BASE + page as u64 * PAGE
}

pub(crate) fn bytes(range: &Range<usize>) -> Range<u64> {
    addr(range.start)..addr(range.end)
}

pub(crate) fn page(addr: u64) -> usize {
    (addr.wrapping_sub(BASE) / PAGE) as usize
}

fn pages(range: Range<u64>) -> Range<usize> {
    page(range.start)..page(range.end)
}

/// The process with its userfaultfd.
pub(crate) struct Real {
    uffd: Uffd,
    staging: u64,
    workers: Vec<Worker>,
    /// The forked child's descriptor, and the pipes to and from it.
    child: Option<Uffd>,
    pipes: Option<(OwnedFd, OwnedFd)>,
    child_tells: Receiver<(OwnedFd, OwnedFd)>,
    vfork: Receiver<i32>,
    waits_since: Instant,
}

impl Real {
    pub(crate) fn new() -> Self {
        let uffd =
            Uffd::open().expect("this kernel, or this user, has no userfaultfd: nothing can be compared");
        let offered = uffd.api(FEATURES).expect("the features that the pager needs");
        assert_eq!(offered & FEATURES, FEATURES, "the kernel offers {offered:#x}");
        let length = STAGING_PAGES * PAGE_SIZE;
        // SAFETY: a new mapping at an address the kernel chooses.
        let staging = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        } as u64;
        // SAFETY: advice about the mapping just made.
        unsafe { libc::madvise(staging as *mut _, length, libc::MADV_DONTFORK) };
        uffd.register(staging..staging + length as u64, RegisterMode::WP).expect("staging");
        let (tell_child, child_tells) = channel();
        let (tell_vfork, vfork) = channel();
        let workers = (0..THREADS).map(|_| Worker::start(tell_child.clone(), tell_vfork.clone())).collect();
        let waits_since = Instant::now();
        Self { uffd, staging, workers, child: None, pipes: None, child_tells, vfork, waits_since }
    }

    fn uffd(&self, process: usize) -> &Uffd {
        if process == 0 { &self.uffd } else { self.child.as_ref().expect("FORK was read") }
    }

    fn pipes(&mut self) -> &(OwnedFd, OwnedFd) {
        self.pipes.get_or_insert_with(|| self.child_tells.recv_timeout(PATIENCE).expect("a child was forked"))
    }

    fn move_pages(&self, process: usize, from: &Range<usize>, to: usize) -> (usize, i32) {
        let from = bytes(from);
        let mut request = [self.staging + to as u64 * PAGE, from.start, from.end - from.start, 1, 0];
        // SAFETY: the request lives, and has the size that is part of the command; the pages it names are those of the
        // arena and of staging, where no Rust object lives.
        let answer =
            unsafe { libc::ioctl(self.uffd(process).as_fd().as_raw_fd(), UFFDIO_MOVE, request.as_mut_ptr()) };
        let errno = if answer == 0 { 0 } else { last() };
        let done = i64::from_ne_bytes(request[4].to_ne_bytes()).max(0) as usize;
        (done / PAGE_SIZE, errno)
    }
}

fn last() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn counted(answer: Result<usize, Partial>) -> (usize, i32) {
    match answer {
        Ok(done) => (done / PAGE_SIZE, 0),
        Err(Partial { done, errno }) => (done / PAGE_SIZE, errno),
    }
}

fn single(answer: Result<(), i32>) -> (usize, i32) {
    (0, answer.err().unwrap_or(0))
}

impl Kernel for Real {
    fn start(&mut self, thread: usize, call: Call) {
        self.waits_since = Instant::now();
        if thread == CHILD {
            rustix::io::write(&self.pipes().0, &crate::children::order(&call)).expect("the child listens");
        } else {
            self.workers[thread].ask.send(call).expect("the thread lives");
        }
    }

    fn returned(&mut self, thread: usize) -> Option<i64> {
        if thread == CHILD {
            let pipe = &self.pipes().1;
            if !readable(pipe) {
                return None;
            }
            let mut word = [0; 8];
            return match rustix::io::read(pipe, &mut word).expect("read") {
                0 => Some(0),
                _ => Some(i64::from_ne_bytes(word)),
            };
        }
        match self.workers[thread].answers.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("thread {thread} has died"),
        }
    }

    fn message(&mut self, process: usize) -> Option<Said> {
        let message = self.uffd(process).read_message().expect("read")?;
        self.waits_since = Instant::now();
        Some(match message {
            Message::Fault { addr, write, .. } => Said::Fault { page: page(addr), write },
            Message::Unmap { range } => Said::Unmap(pages(range)),
            Message::Remap { from, to, len } => {
                Said::Remap { from: page(from), to: page(to), len: (len / PAGE) as usize }
            }
            Message::Remove { range } => Said::Remove(pages(range)),
            Message::Fork { child } => {
                self.child = Some(child);
                Said::Fork
            }
        })
    }

    fn command(&mut self, process: usize, command: Command) -> (usize, i32) {
        let uffd = self.uffd(process);
        match command {
            Command::Register(range) => {
                single(uffd.register(bytes(&range), RegisterMode::MISSING | RegisterMode::WP))
            }
            Command::Copy(page, values) => {
                let mut contents = vec![0; values.len() * PAGE_SIZE];
                for (page, value) in contents.chunks_mut(PAGE_SIZE).zip(&values) {
                    page[..8].copy_from_slice(&value.to_ne_bytes());
                }
                counted(uffd.copy(addr(page), &contents, false))
            }
            Command::Zero(range) => counted(uffd.zeropage(bytes(&range), false)),
            Command::Probe(page) => single(uffd.write_protect(addr(page)..addr(page + 1), false, true)),
            Command::Wake(range) => single(uffd.wake(bytes(&range))),
            Command::Move(range, to) => self.move_pages(process, &range, to),
            Command::Fence(on) => {
                let staging = self.staging..self.staging + (STAGING_PAGES * PAGE_SIZE) as u64;
                single(if on { uffd.unregister(staging) } else { uffd.register(staging, RegisterMode::WP) })
            }
        }
    }

    fn there(&mut self, page: usize) -> There {
        let mut entry = [0];
        let pagemap = Pagemap::open(std::process::id()).expect("pagemap");
        pagemap.entries(addr(page) / PAGE, &mut entry).expect("pagemap");
        match entry[0] {
            entry if entry & ENTRY_GUARD != 0 => There::Guard,
            entry if is_there(entry) => There::Page,
            _ => There::Nothing,
        }
    }

    fn scan(&mut self, range: Range<usize>, most: usize) -> (Vec<Range<usize>>, usize) {
        let pagemap = Pagemap::open(std::process::id()).expect("pagemap");
        let mut runs = Vec::new();
        let next = pagemap.scan(bytes(&range), most as u64, &mut runs).expect("scan");
        (runs.into_iter().map(pages).collect(), page(next))
    }

    fn mapping(&mut self, page: usize) -> Option<Range<usize>> {
        let mut maps = Maps::open(std::process::id()).expect("maps");
        maps.next_at_or_after(addr(page)).expect("maps").map(|mapping| pages(mapping.range))
    }

    fn queued(&mut self, messages: usize) {
        // An event is announced by poll; a fault behind it by the number of waiting faults.
        while !readable(&self.uffd) {
            self.rest();
        }
        let info = format!("/proc/self/fdinfo/{}", self.uffd.as_fd().as_raw_fd());
        loop {
            let text = std::fs::read_to_string(&info).expect("fdinfo");
            let pending = text.lines().find_map(|line| line.strip_prefix("pending:")).expect("pending");
            if messages == 1 || pending.trim() == (messages - 1).to_string() {
                return;
            }
            self.rest();
        }
    }

    fn asleep(&mut self, thread: usize) {
        // With the lock of the mappings free again, nothing but its event keeps a thread in the state D.
        let stat = self.workers[thread].task.join("stat");
        loop {
            let text = std::fs::read_to_string(&stat).expect("stat");
            if text.rsplit_once(") ").expect("stat").1.starts_with('D') {
                return;
            }
            self.rest();
        }
    }

    fn kill_vfork(&mut self) {
        let pid = self.vfork.recv_timeout(PATIENCE).expect("a vfork child");
        process::kill(pid as u32, libc::SIGKILL).expect("kill");
        process::wait(pid as u32).expect("wait");
    }

    fn rest(&mut self) {
        assert!(self.waits_since.elapsed() < PATIENCE, "nothing more happens");
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn readable(fd: impl AsFd) -> bool {
    use vswap_sys::poll::{Events, poll};
    let ready = poll(&[(fd.as_fd(), Events::IN)], Some(Duration::ZERO)).expect("poll");
    !ready[0].is_empty()
}

/// A thread that makes calls, one after the other.
struct Worker {
    ask: Sender<Call>,
    answers: Receiver<i64>,
    /// Its directory below /proc.
    task: PathBuf,
}

impl Worker {
    fn start(children: Sender<(OwnedFd, OwnedFd)>, vforks: Sender<i32>) -> Self {
        let (ask, asked) = channel();
        let (answer, answers) = channel();
        let (tell_task, task) = channel();
        std::thread::spawn(move || {
            let task = std::fs::read_link("/proc/thread-self").expect("proc");
            tell_task.send(Path::new("/proc").join(task)).expect("the pager lives");
            let mut ring = None;
            for call in asked {
                let result = match call {
                    Call::Pin(range, true) => {
                        ring = Some(Ring::pinning(&range));
                        0
                    }
                    Call::Pin(_, false) => ring.take().map_or(-1, |ring: Ring| ring.let_go()),
                    Call::Fork => fork(&children),
                    Call::Vfork(range) => vfork(range, &vforks),
                    Call::Spawn { exec } => spawn(exec),
                    call => make(&call),
                };
                if answer.send(result).is_err() {
                    return;
                }
            }
        });
        Self { ask, answers, task: task.recv().expect("the thread lives") }
    }
}

/// An io_uring for the sake of its registered buffers, which are pinned for long.
struct Ring(OwnedFd);

impl Ring {
    fn pinning(range: &Range<usize>) -> Self {
        const REGISTER_BUFFERS: i32 = 0;
        let mut parameters = [0u64; 15];
        let buffer = libc::iovec { iov_base: addr(range.start) as *mut _, iov_len: range.len() * PAGE_SIZE };
        // SAFETY: the kernel writes its parameters, 120 bytes, and reads one iovec; both live. What it pins is in the
        // arena, and no request uses it.
        unsafe {
            let ring = libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr());
            assert!(ring >= 0, "io_uring: {}", last());
            let ring = OwnedFd::from_raw_fd(ring as i32);
            let (fd, buffer) = (ring.as_raw_fd(), &raw const buffer);
            let registered = libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_BUFFERS, buffer, 1);
            assert_eq!(registered, 0, "io_uring: {}", last());
            Self(ring)
        }
    }

    fn let_go(self) -> i64 {
        const UNREGISTER_BUFFERS: i32 = 1;
        let (fd, nothing) = (self.0.as_raw_fd(), std::ptr::null::<u8>());
        // SAFETY: takes no memory.
        unsafe { libc::syscall(libc::SYS_io_uring_register, fd, UNREGISTER_BUFFERS, nothing, 0) }
    }
}

fn make(call: &Call) -> i64 {
    let number = |value: *mut libc::c_void| if value == libc::MAP_FAILED { -1 } else { value as i64 };
    let at = |page: usize| addr(page) as *mut libc::c_void;
    let len = |range: &Range<usize>| range.len() * PAGE_SIZE;
    let advise = |range: &Range<usize>, advice| {
        // SAFETY: advice about the arena (see the top).
        i64::from(unsafe { libc::madvise(at(range.start), len(range), advice) })
    };
    let remap = |old: &Range<usize>, new_len: usize, flags, new: Option<usize>| {
        let new = new.map_or(std::ptr::null_mut(), at);
        // SAFETY: moves parts of the arena (see the top) within it, or to where the kernel chooses.
        let moved = number(unsafe { libc::mremap(at(old.start), len(old), new_len, flags, new) });
        if moved < 0 { moved } else { page(moved as u64) as i64 }
    };
    let map = |range: &Range<usize>, flags| {
        let flags = libc::MAP_ANONYMOUS | libc::MAP_FIXED | flags;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a mapping in the arena (see the top).
        let mapped = number(unsafe { libc::mmap(at(range.start), len(range), rights, flags, -1, 0) });
        if mapped < 0 { mapped } else { page(mapped as u64) as i64 }
    };
    let protect = |range: &Range<usize>, rights| {
        // SAFETY: a part of the arena (see the top).
        i64::from(unsafe { libc::mprotect(at(range.start), len(range), rights) })
    };
    let result = match call {
        Call::Map(range) => map(range, libc::MAP_PRIVATE),
        Call::MapStack(range) => map(range, libc::MAP_PRIVATE | libc::MAP_GROWSDOWN),
        Call::MapShared(range) => map(range, libc::MAP_SHARED),
        // SAFETY: a part of the arena (see the top).
        Call::Unmap(range) => i64::from(unsafe { libc::munmap(at(range.start), len(range)) }),
        Call::DontNeed(range) => advise(range, libc::MADV_DONTNEED),
        Call::Free(range) => advise(range, libc::MADV_FREE),
        Call::DontFork(range) => advise(range, libc::MADV_DONTFORK),
        Call::Guard(range, on) => advise(range, if *on { MADV_GUARD_INSTALL } else { MADV_GUARD_REMOVE }),
        Call::Resize { old, pages } => remap(old, pages * PAGE_SIZE, libc::MREMAP_MAYMOVE, None),
        Call::Move { old, new } => {
            remap(old, len(new), libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, Some(new.start))
        }
        Call::MoveKeeping(old) => remap(old, len(old), libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP, None),
        Call::ReadOnly(range, true) => protect(range, libc::PROT_READ),
        Call::Executable(range, true) => protect(range, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC),
        Call::ReadOnly(range, false) | Call::Executable(range, false) => {
            protect(range, libc::PROT_READ | libc::PROT_WRITE)
        }
        Call::Populate(range) => advise(range, libc::MADV_POPULATE_WRITE),
        // SAFETY: a part of the arena (see the top).
        Call::Lock(range, true) => i64::from(unsafe { libc::mlock(at(range.start), len(range)) }),
        // SAFETY: a part of the arena (see the top).
        Call::Lock(range, false) => i64::from(unsafe { libc::munlock(at(range.start), len(range)) }),
        // SAFETY: the history reads what it has mapped; or the process dies, and the row fails.
        Call::Read(page) => unsafe { (addr(*page) as *const i64).read_volatile() },
        Call::Write(page, value) => {
            // SAFETY: as for Read.
            unsafe { (addr(*page) as *mut u64).write_volatile(*value) };
            0
        }
        Call::Fork
        | Call::Vfork(_)
        | Call::Spawn { .. }
        | Call::Pin(..)
        | Call::Brk(_)
        | Call::Exec
        | Call::Exit => {
            unreachable!("made elsewhere")
        }
    };
    if result == -1 { -i64::from(last()) } else { result }
}
