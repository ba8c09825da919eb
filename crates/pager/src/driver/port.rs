//! The protocol's commands on the real kernel: one address space's descriptor, its agent, its mappings.
//!
//! Owned by the server thread. Nothing here decides; the protocol does.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::debug;
use vswap_core::{PAGE_SIZE, Page, SlotId, Source};
use vswap_sys::maps::{Kind, Maps};
use vswap_sys::pagemap::{ENTRY_GUARD, Pagemap};
use vswap_sys::process::{self, Memory};
use vswap_sys::uffd::{Partial, RegisterMode, Uffd};
use vswap_wire as wire;

use super::pins::Pins;
use super::placement::Placement;
use super::shared::Shared;
use super::tenant::{Agent, Tenant};
use super::wiped::wiped_on_fork;
use crate::proto::{Answer, Call, Command, Fault, MAX_WINDOW, Mapping, Stop};

mod batch;
mod take_back;

const PAGE: u64 = PAGE_SIZE as u64;
/// Mappings smaller than this are left alone: the loader's, the C library's, guard-paged stacks of signal handlers.
const SMALL: u64 = 32 * PAGE;
/// A mapping above a guard may be a thread's stack, if it is not larger than this; the pages at its top hold the
/// thread's control block, also of a thread that was made after we looked at the threads.
const STACK_MAX: u64 = 256 << 20;
const STACK_TOP: u64 = 4 * PAGE;

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
    /// The program has used MADV_WIPEONFORK.
    pub may_wipe: bool,
    /// The top of the mapping that was asked for last, if a guard below it says that it may be a stack.
    stack_top: Range<u64>,
    maps: Option<Maps>,
    pagemap: Option<Pagemap>,
    /// None without ptrace permission.
    memory: Option<Memory>,
    pub pins: Pins,
    /// The kernel refuses to install pages since.
    refused_since: Option<Instant>,
    sources: Vec<Result<Source, vswap_core::LoadFailure>>,
    evictable: bool,
    /// Batches sent to the agent.
    batches: u64,
    /// The last one was ended without its agent, whose answer is still to come.
    pub overdue: bool,
    /// Staging is not registered.
    fenced: bool,
    pub placement: Placement,
}

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
            may_wipe: false,
            stack_top: 0..0,
            maps: None,
            pagemap: None,
            memory: None,
            pins: Pins::default(),
            refused_since: None,
            sources: Vec::new(),
            evictable: true,
            batches: 0,
            overdue: false,
            fenced: false,
            placement: Placement::default(),
        }
    }

    /// Opens what tells of the process's mappings and pages.
    pub fn look_into(&mut self) {
        let pid = self.tenant.pid.load(Relaxed);
        let thread = process::thread_with_memory(pid);
        match (Maps::open(thread), Pagemap::open(thread)) {
            (Ok(maps), Ok(pagemap)) => {
                self.maps = Some(maps);
                self.pagemap = Some(pagemap);
                self.memory = Memory::open(thread).ok();
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
        // An agent counts its own batches, and has a staging area of its own.
        (self.batches, self.overdue, self.fenced) = (0, false, false);
    }

    /// Whether asking for evictions makes sense.
    pub fn can_evict(&self) -> bool {
        // Whoever starts an agent may need a page for it: one that has not started must not be waited for.
        self.evictable && !self.overdue && self.agent_tid() != 0 && self.maps.is_some()
    }

    pub fn execute(&mut self, command: Command) -> Answer {
        match command {
            Command::Probe => self.probe(),
            Command::ProbePage(addr) => self.probe_page(addr),
            Command::Copy { addr, slots, fault: None } => self.copy(addr, &slots, None),
            Command::Copy { addr, slots, fault: Some(fault) } => {
                self.tenant.watch.loads(&fault);
                let answer = self.copy(addr, &slots, Some(&fault));
                self.tenant.watch.loaded();
                answer
            }
            Command::Zero { addr, pages, fault } => self.zero(addr, pages, fault.as_ref()),
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

    fn copy(&mut self, addr: u64, slots: &[SlotId], fault: Option<&Fault>) -> Answer {
        let mut bytes = self.shared.buffers.lend(slots.len().min(MAX_WINDOW as usize));
        let answer = self.copy_through(&mut bytes, addr, slots, fault);
        self.shared.buffers.take_back(bytes);
        answer
    }

    fn copy_through(
        &mut self,
        bytes: &mut [Page],
        addr: u64,
        slots: &[SlotId],
        fault: Option<&Fault>,
    ) -> Answer {
        let count = slots.len().min(bytes.len());
        self.sources.clear();
        self.shared.space.load_many(&slots[..count], &mut bytes[..count], &mut self.sources);
        let good = self.sources.iter().take_while(|source| source.is_ok()).count();
        if let Some(Err(failure)) = self.sources.first() {
            // The reader must not go on: its fault is never answered.
            return Answer::Lost(addr, format!("the page at {addr:#x} cannot be brought back: {failure}"));
        }
        self.last_source = self.sources.first().and_then(|source| source.as_ref().ok().copied());
        let anchor = fault.and_then(|fault| self.placement.anchor(fault.tid));
        let copied = self.uffd.copy(addr, bytes[..good].as_flattened(), false);
        drop(anchor);
        self.installed(addr, copied, good)
    }

    fn zero(&mut self, addr: u64, pages: u64, fault: Option<&Fault>) -> Answer {
        self.last_source = None;
        let count = (pages as usize).min(MAX_WINDOW as usize);
        let anchor = fault.and_then(|fault| self.placement.anchor(fault.tid));
        let result = if fault.is_some_and(|fault| fault.write) {
            self.uffd.copy(addr, ZEROS[..count].as_flattened(), false)
        } else {
            self.uffd.zeropage(addr..addr + count as u64 * PAGE, false)
        };
        drop(anchor);
        self.installed(addr, result, count)
    }

    fn count_installed(&self, pages: u64) {
        self.shared.room.fetch_sub((pages * PAGE) as i64, Relaxed);
        self.shared.meters.around.fetch_add(pages.saturating_sub(1), Relaxed);
    }

    fn mapping(&mut self, at: u64) -> Answer {
        let Some(maps) = &mut self.maps else { return Answer::Refused };
        let Ok(found) = maps.next_at_or_after(at) else { return Answer::Refused };
        let Some(mapping) = found else { return Answer::Mapping(None) };
        let range = mapping.range;
        let ours = self.agent.as_ref().is_some_and(|a| a.area.start < range.end && range.start < a.area.end);
        let evictable = mapping.read
            && mapping.write
            && !mapping.exec
            && !mapping.shared
            && matches!(mapping.kind, Kind::Anon | Kind::Heap)
            && range.end - range.start >= SMALL
            && !ours
            && !range.contains(&self.beacon);
        self.stack_top = 0..0;
        if evictable
            && range.end - range.start <= STACK_MAX
            && let Ok(Some(below)) = maps.next_at_or_after(range.start.saturating_sub(1))
            && below.range.end == range.start
            && !below.read
            && !below.write
        {
            self.stack_top = range.end - STACK_TOP..range.end;
        }
        Answer::Mapping(Some(Mapping { range, evictable }))
    }

    fn scan(&mut self, range: Range<u64>, most: u64) -> Answer {
        let mut runs = Vec::new();
        let end = range.end;
        let next = match self.pagemap.as_ref().map(|pagemap| pagemap.scan_present(range, most, &mut runs)) {
            Some(Ok(next)) => next,
            _ => return Answer::Scanned(Vec::new(), end),
        };
        self.pins.refresh(self.tenant.pid.load(Relaxed));
        let runs = runs.iter().flat_map(|run| self.pins.gaps(run, &self.stack_top)).collect();
        Answer::Scanned(runs, next)
    }

    fn send(&self, command: &wire::Command<'_>) -> bool {
        let Some(agent) = &self.agent else { return false };
        agent.conn.send(command.encode(&mut wire::buffer()), &[]).is_ok()
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
