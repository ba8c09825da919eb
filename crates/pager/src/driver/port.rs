//! The protocol's commands on the real kernel: one address space's descriptor, its agent, its mappings.
//!
//! Owned by the server thread. Nothing here decides; the protocol does.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::debug;
use vswap_core::{PAGE_SIZE, Page, SlotId, Source};
use vswap_sys::maps::{Kind, Maps};
use vswap_sys::pagemap::{ENTRY_GUARD, Pagemap};
use vswap_sys::poll::{Events, poll};
use vswap_sys::uffd::{Message, Partial, RegisterMode, Uffd};
use vswap_wire as wire;

use super::answers::taken;
use super::pins::Pins;
use super::settle::sleeps_in_madvise;
use super::shared::Shared;
use super::tenant::{Agent, Tenant};
use super::wiped::wiped_on_fork;
use crate::proto::{Answer, BATCH_PAGES, Call, Command, MAX_WINDOW, Mapping, Stop};

const PAGE: u64 = PAGE_SIZE as u64;
/// Mappings smaller than this are left alone: the loader's, the C library's, guard-paged stacks of signal handlers.
const SMALL: u64 = 32 * PAGE;
/// A mapping above a guard may be a thread's stack, if it is not larger than this; the pages at its top hold the
/// thread's control block, also of a thread that was made after we looked at the threads.
const STACK_MAX: u64 = 256 << 20;
const STACK_TOP: u64 = 4 * PAGE;
/// An agent that needs longer for a batch waits for us: see [`Port::await_agent`].
const PATIENCE: Duration = Duration::from_millis(50);
const GIVE_UP: Duration = Duration::from_secs(10);

/// What backed the first page of the last copy.
pub type LastSource = Option<Source>;

/// One address space on the real kernel.
pub struct Port {
    pub shared: Arc<Shared>,
    pub tenant: Arc<Tenant>,
    pub uffd: Arc<Uffd>,
    pub agent: Option<Agent>,
    pub beacon: u64,
    pub last_source: LastSource,
    /// The page that the agent itself waits for.
    agent_waits: Option<u64>,
    /// Messages read while an agent waited for us; only faults, to be handed to the protocol afterwards.
    pub stashed: Vec<Message>,
    /// The program has used MADV_WIPEONFORK.
    pub may_wipe: bool,
    /// The top of the mapping that was asked for last, if a guard below it says that it may be a stack.
    stack_top: Option<Range<u64>>,
    maps: Option<Maps>,
    pagemap: Option<Pagemap>,
    pins: Pins,
    /// Pages on their way in.
    /// The kernel refuses to install pages since.
    refused_since: Option<Instant>,
    sources: Vec<Result<Source, vswap_core::LoadFailure>>,
    evictable: bool,
}

/// With more address spaces than these a ring does not keep its memory until the next batch.
const RINGS: usize = 8;

/// How long the kernel may refuse to install a page (for want of memory) before the tree is ended.
const REFUSED_AT_MOST: Duration = Duration::from_secs(10);

static ZEROS: [Page; MAX_WINDOW as usize] = [[0; PAGE_SIZE]; MAX_WINDOW as usize];

impl Port {
    pub fn new(shared: Arc<Shared>, tenant: Arc<Tenant>, uffd: Uffd, beacon: u64) -> Self {
        let uffd = Arc::new(uffd);
        tenant.watch.reads(&uffd);
        Self {
            shared,
            tenant,
            uffd,
            agent: None,
            beacon,
            last_source: None,
            agent_waits: None,
            stashed: Vec::new(),
            may_wipe: false,
            stack_top: None,
            maps: None,
            pagemap: None,
            pins: Pins::default(),
            refused_since: None,
            sources: Vec::new(),
            evictable: true,
        }
    }

    /// Opens what tells of the process's mappings and pages.
    pub fn look_into(&mut self) {
        let pid = self.tenant.pid.load(Relaxed);
        match (Maps::open(pid), Pagemap::open(pid)) {
            (Ok(maps), Ok(pagemap)) => {
                self.maps = Some(maps);
                self.pagemap = Some(pagemap);
            }
            (Err(error), _) | (_, Err(error)) => {
                // Of a process that is ending, /proc says that it is root's.
                let ended = matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT));
                let foreign = matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM));
                if !ended && foreign && self.alive() {
                    self.shared.warn(
                        "what changed its user is not evicted from without CAP_SYS_PTRACE (docker run --cap-add \
                         SYS_PTRACE ...)"
                            .into(),
                    );
                } else if !ended && self.alive() {
                    self.shared.warn(format!("process {pid} cannot be evicted from: {error}"));
                }
            }
        }
    }

    /// Gives the address space its agent: from now on pages can leave.
    pub fn set_agent(&mut self, agent: Agent) {
        self.look_into();
        self.agent = Some(agent);
    }

    /// Whether asking for evictions makes sense.
    pub fn can_evict(&self) -> bool {
        self.evictable && self.agent.is_some() && self.maps.is_some()
    }

    pub fn execute(&mut self, command: Command) -> Answer {
        match command {
            Command::Probe => self.probe(),
            Command::ProbePage(addr) => self.probe_page(addr),
            Command::Copy { addr, slots, fault: None } => self.copy(addr, &slots),
            Command::Copy { addr, slots, fault: Some(fault) } => {
                self.tenant.watch.loads(&fault);
                let answer = self.copy(addr, &slots);
                self.tenant.watch.loaded();
                answer
            }
            Command::Zero { addr, pages, fault } => self.zero(addr, pages, fault.write),
            Command::Mapping(at) => self.mapping(at),
            Command::Register(range) => {
                let registered = self.uffd.register(range.clone(), RegisterMode::MISSING | RegisterMode::WP);
                debug!(target: "register", "process {}: {range:x?}: {registered:?}", self.tenant.pid.load(Relaxed));
                match registered {
                    Ok(()) => Answer::Done,
                    Err(libc::ESRCH) => Answer::Gone,
                    Err(_) => Answer::Refused,
                }
            }
            Command::Scan(range, most) => self.scan(range, most),
            Command::Move(runs) => self.take_out(&runs),
            Command::WipedOnFork(range) => Answer::Wiped(self.wiped(&range)),
            Command::Execute(_, call) => match self.send(&wire_call(call)) {
                true => Answer::Done,
                false => Answer::Gone,
            },
        }
    }

    /// The parts of `range` that a forked child reads as zeros.
    pub fn wiped(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        if !self.may_wipe {
            return Vec::new();
        }
        let all = wiped_on_fork(self.tenant.pid.load(Relaxed)).unwrap_or_default();
        let clipped = all.iter().map(|part| part.start.max(range.start)..part.end.min(range.end));
        clipped.filter(|part| !part.is_empty()).collect()
    }

    /// Whether the page at `addr` is a guard page now.
    pub fn is_guard(&self, addr: u64) -> bool {
        let mut entry = [0];
        self.pagemap.as_ref().is_some_and(|pagemap| {
            pagemap.entries(addr / PAGE, &mut entry).is_ok_and(|read| read == 1)
                && entry[0] & ENTRY_GUARD != 0
        })
    }

    /// A guarded command that changes nothing. The kernel looks at the count of changes first, so a page that is not
    /// registered proves a quiet moment as well.
    fn probe(&mut self) -> Answer {
        match self.probe_page(self.beacon) {
            Answer::Refused => Answer::Done,
            answer => answer,
        }
    }

    /// The same for a page of the program: is it registered?
    fn probe_page(&mut self, addr: u64) -> Answer {
        match self.uffd.write_protect(addr..addr + PAGE, false, true) {
            Ok(()) => Answer::Done,
            Err(libc::EAGAIN) => Answer::Changing,
            Err(libc::ESRCH) => Answer::Gone,
            Err(libc::ENOENT) => Answer::Refused,
            // Nothing is known: ask again.
            Err(errno) => self.refused(addr, errno),
        }
    }

    /// What became of an attempt to install `count` pages at `addr`.
    fn installed(&mut self, addr: u64, result: Result<usize, Partial>, count: usize) -> Answer {
        let (done, stop) = match result {
            Ok(_) => (count, Stop::Complete),
            Err(Partial { done, errno }) => {
                let stop = match errno {
                    libc::EAGAIN if done > 0 => Stop::Short,
                    libc::EAGAIN => Stop::Changing,
                    libc::EEXIST => Stop::Exists,
                    libc::ENOENT => Stop::Missing,
                    libc::ESRCH => return Answer::Gone,
                    // No memory for the page, say: nothing is known of the place, so it is asked again.
                    _ => match self.refused(addr, errno) {
                        Answer::Changing => Stop::Changing,
                        lost => return lost,
                    },
                };
                (done / PAGE_SIZE, stop)
            }
        };
        if done > 0 {
            self.refused_since = None;
            self.count_installed(done as u64);
        }
        Answer::Installed(done as u64, stop)
    }

    /// The kernel refuses for a reason of its own. That may pass; if it does not, nobody shall wait for ever.
    fn refused(&mut self, addr: u64, errno: i32) -> Answer {
        let since = *self.refused_since.get_or_insert_with(Instant::now);
        if since.elapsed() <= REFUSED_AT_MOST {
            return Answer::Changing;
        }
        let error = std::io::Error::from_raw_os_error(errno);
        Answer::Lost(addr, format!("the page at {addr:#x} cannot be brought back: {error}"))
    }

    fn copy(&mut self, addr: u64, slots: &[SlotId]) -> Answer {
        let mut bytes = self.shared.buffers.lend(slots.len().min(MAX_WINDOW as usize));
        let answer = self.copy_through(&mut bytes, addr, slots);
        self.shared.buffers.take_back(bytes);
        answer
    }

    fn copy_through(&mut self, bytes: &mut [Page], addr: u64, slots: &[SlotId]) -> Answer {
        let count = slots.len().min(bytes.len());
        self.sources.clear();
        self.shared.space.load_many(&slots[..count], &mut bytes[..count], &mut self.sources);
        let good = self.sources.iter().take_while(|source| source.is_ok()).count();
        if let Some(Err(failure)) = self.sources.first() {
            // The reader must not go on: its fault is never answered.
            return Answer::Lost(addr, format!("the page at {addr:#x} cannot be brought back: {failure}"));
        }
        self.last_source = self.sources.first().and_then(|source| source.as_ref().ok().copied());
        let copied = self.uffd.copy(addr, bytes[..good].as_flattened(), false);
        self.installed(addr, copied, good)
    }

    fn zero(&mut self, addr: u64, pages: u64, write: bool) -> Answer {
        self.last_source = None;
        let count = (pages as usize).min(MAX_WINDOW as usize);
        let result = if write {
            self.uffd.copy(addr, ZEROS[..count].as_flattened(), false)
        } else {
            self.uffd.zeropage(addr..addr + count as u64 * PAGE, false)
        };
        self.installed(addr, result, count)
    }

    fn count_installed(&self, pages: u64) {
        self.shared.room.fetch_sub((pages * PAGE) as i64, Relaxed);
        self.shared.meters.around.fetch_add(pages.saturating_sub(1), Relaxed);
    }

    fn mapping(&mut self, at: u64) -> Answer {
        let Some(maps) = &mut self.maps else { return Answer::Refused };
        let Ok(found) = maps.next_at_or_after(at) else { return Answer::Refused };
        self.stack_top = None;
        if let Some(mapping) = &found
            && mapping.range.end - mapping.range.start <= STACK_MAX
            && let Ok(Some(below)) = maps.next_at_or_after(mapping.range.start.saturating_sub(1))
            && below.range.end == mapping.range.start
            && !below.read
            && !below.write
        {
            self.stack_top = Some(mapping.range.end - STACK_TOP..mapping.range.end);
        }
        Answer::Mapping(found.map(|mapping| {
            let range = mapping.range;
            let ours =
                self.agent.as_ref().is_some_and(|a| a.area.start < range.end && range.start < a.area.end);
            let evictable = mapping.read
                && mapping.write
                && !mapping.exec
                && !mapping.shared
                && matches!(mapping.kind, Kind::Anon | Kind::Heap)
                && range.end - range.start >= SMALL
                && !ours
                && !range.contains(&self.beacon);
            Mapping { range, evictable }
        }))
    }

    fn scan(&mut self, range: Range<u64>, most: u64) -> Answer {
        let mut runs = Vec::new();
        let end = range.end;
        let next = match self.pagemap.as_ref().map(|pagemap| pagemap.scan_present(range, most, &mut runs)) {
            Some(Ok(next)) => next,
            _ => return Answer::Scanned(Vec::new(), end),
        };
        self.pins.refresh(self.tenant.pid.load(Relaxed), self.stack_top.clone());
        let runs = runs.iter().flat_map(|run| self.pins.gaps(run)).collect();
        Answer::Scanned(runs, next)
    }

    fn send(&self, command: &wire::Command<'_>) -> bool {
        let Some(agent) = &self.agent else { return false };
        agent.conn.send(command.encode(&mut wire::buffer()), &[]).is_ok()
    }

    /// Moves pages into the agent's staging area and from there into slots.
    fn take_out(&mut self, runs: &[Range<u64>]) -> Answer {
        let nothing = Answer::Moved(Vec::new(), false);
        if self.shared.space.free_frames() < BATCH_PAGES as usize {
            self.shared.call_worker();
            let written = self.shared.space.write_out(BATCH_PAGES as usize);
            if self.shared.space.free_frames() < BATCH_PAGES as usize {
                self.shared.stuck.store(written.stuck.is_some(), Relaxed);
                return nothing;
            }
        }
        let list: Vec<_> = runs
            .iter()
            .map(|run| wire::Run { address: run.start, pages: ((run.end - run.start) / PAGE) as u32 })
            .collect();
        let Ok(batch) = wire::Runs::new(&list) else { return nothing };
        let pages: u64 = batch.pages() as u64;
        let mut slots = Vec::with_capacity(pages as usize);
        if self.shared.space.alloc_n(self.shared.group, pages as usize, &mut slots).is_err() {
            self.shared.warn("no memory for slots: pages stay resident".into());
            return nothing;
        }
        let (moved, again) = if self.send(&wire::Command::Evict { runs: batch }) {
            self.tenant.watch.awaits_agent(self.shared.now_ns());
            let answer = self.await_agent();
            self.tenant.watch.awaits_agent(0);
            answer
        } else {
            self.agent = None;
            ([0; wire::MOVED_WORDS], false)
        };
        match self.keep(&list, slots, moved) {
            Ok(pages) => Answer::Moved(pages, again),
            Err(lost) => lost,
        }
    }

    /// Stores what the agent took out and gives back the slots that were not needed.
    fn keep(
        &mut self,
        runs: &[wire::Run],
        slots: Vec<SlotId>,
        moved: [u64; wire::MOVED_WORDS],
    ) -> Result<Vec<(u64, SlotId)>, Answer> {
        let Some(agent) = &self.agent else {
            self.shared.space.free_n(&slots);
            return Ok(Vec::new());
        };
        let Some(taken) = taken(runs, &moved) else {
            // No honest agent says that: nothing more is believed.
            self.agent = None;
            self.shared.space.free_n(&slots);
            return Ok(Vec::new());
        };
        let (used, unused) = slots.split_at(taken.len());
        self.shared.space.free_n(unused);
        // Copied once: the target may write to the ring at any time.
        let mut buffer = self.shared.buffers.lend(taken.len());
        let bytes = &mut buffer[..taken.len()];
        for (page, &(_, index)) in bytes.iter_mut().zip(&taken) {
            agent.ring.copy_page_out(index, page);
        }
        if let Some((_, last)) = taken.last() {
            self.tenant.ring_pages.fetch_max(*last as u64 + 1, Relaxed);
        }
        let pages: Vec<_> = used.iter().copied().zip(bytes.iter()).collect();
        let cached = self.shared.space.cache_many(&pages);
        if cached < pages.len() {
            let mut stored = Vec::new();
            self.shared.space.store_many(&pages[cached..], &mut stored);
            let failed = stored
                .iter()
                .zip(&taken[cached..])
                .find_map(|(stored, &(addr, _))| stored.as_ref().err().map(|failure| (addr, failure)));
            if let Some((addr, failure)) = failed {
                let why = format!("the page at {addr:#x} was evicted and finds no place: {failure}");
                return Err(Answer::Lost(addr, why));
            }
        }
        self.shared.buffers.take_back(buffer);
        if self.shared.tenants.lock().len() > RINGS {
            self.empty_ring();
        }
        let count = taken.len() as u64;
        let (pid, tried) = (self.tenant.pid.load(Relaxed), slots.len());
        debug!(target: "evict", "process {pid}: {count} of {tried} pages, {cached} of them cached");
        self.shared.meters.evictions.fetch_add(count, Relaxed);
        self.tenant.evictions.fetch_add(count, Relaxed);
        Ok(taken.iter().map(|&(addr, _)| addr).zip(used.iter().copied()).collect())
    }

    /// Gives the memory of the agent's ring back.
    pub fn empty_ring(&self) {
        let used = self.tenant.ring_pages.swap(0, Relaxed) as usize;
        if let Some(agent) = &self.agent {
            // If it fails the pages stay, and are counted again with the next batch.
            let _ = agent.ring.punch(0..used);
        }
    }

    /// Waits for the agent's answer. Nothing is read from the descriptor meanwhile: what moved is then known to have
    /// moved before every change whose event is still unread. Only an agent that itself waits for a page (it vanished
    /// between the scan and the agent's attempt to un-share it) makes us read.
    fn await_agent(&mut self) -> ([u64; wire::MOVED_WORDS], bool) {
        let nothing = ([0; wire::MOVED_WORDS], false);
        let began = Instant::now();
        let mut buffer = wire::buffer();
        loop {
            let Some(agent) = &self.agent else { return nothing };
            match poll(&[(agent.conn.as_fd(), Events::IN)], Some(PATIENCE)) {
                Ok(ready) if ready.first().is_some_and(|events| !events.is_empty()) => {}
                _ => {
                    if began.elapsed() > GIVE_UP && !self.alive() {
                        self.agent = None;
                        return nothing;
                    }
                    self.answer_agent();
                    continue;
                }
            }
            let received = agent.conn.recv(&mut buffer);
            match received.map(|(length, _)| wire::Answer::decode(&buffer[..length])) {
                Ok(Ok(wire::Answer::Started { tid })) if agent.tid == 0 => self.started(tid),
                Ok(Ok(wire::Answer::Evicted { moved, again, emptied, .. })) => {
                    self.evictable &= emptied;
                    return (moved, again);
                }
                Ok(_) => {
                    // The end of the agent, and with it of the address space; or nonsense, which ends it as well.
                    self.agent = None;
                    return nothing;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.agent = None;
                    return nothing;
                }
            }
        }
    }

    /// The agent has said which thread it is.
    pub fn started(&mut self, tid: u32) {
        if let Some(agent) = &mut self.agent {
            agent.tid = tid;
        }
    }

    /// The agent's thread; 0 if there is none, or it has not said yet.
    pub fn agent_tid(&self) -> u32 {
        self.agent.as_ref().map_or(0, |agent| agent.tid)
    }

    /// Whether the address space still exists.
    pub fn alive(&self) -> bool {
        self.uffd.write_protect(self.beacon..self.beacon + PAGE, false, true) != Err(libc::ESRCH)
    }

    /// Serves the agent's own fault, if that is what it waits for.
    fn answer_agent(&mut self) {
        if let Some(addr) = self.agent_waits {
            match self.uffd.zeropage(addr..addr + PAGE, false) {
                Err(Partial { errno: libc::EAGAIN, .. }) => return,
                // Unmapped, or there again: it has to look itself.
                Err(_) => drop(self.uffd.wake(addr..addr + PAGE)),
                Ok(_) => {}
            }
            self.agent_waits = None;
            return;
        }
        // A stopped or a busy machine makes an agent late, too; then nothing may be read.
        let agent_tid = self.agent_tid();
        if !sleeps_in_madvise(self.tenant.pid.load(Relaxed), agent_tid) {
            return;
        }
        match self.uffd.read_message() {
            Ok(Some(Message::Fault { addr, tid, .. })) if tid == agent_tid => {
                self.agent_waits = Some(addr & !(PAGE - 1));
                self.answer_agent();
            }
            Ok(Some(fault @ Message::Fault { .. })) => self.stashed.push(fault),
            Ok(Some(event)) => {
                self.shared.meters.fail_stops.fetch_add(1, Relaxed);
                self.shared.fail(format!("an agent stood still while {event:?} was under way"));
                self.agent = None;
            }
            _ => {}
        }
    }
}

/// A call as the agent is asked to execute it.
pub fn wire_call(call: Call) -> wire::Command<'static> {
    match call {
        Call::Mremap(call) => {
            wire::Command::Mremap { args: [call.old, call.old_len, call.new_len, call.flags, call.new] }
        }
        Call::Madvise { start, len, advice } => wire::Command::Madvise { args: [start, len, advice] },
    }
}
