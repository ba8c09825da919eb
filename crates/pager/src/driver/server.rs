//! The thread that serves one address space: reads faults and events, asks the protocol, executes.
//!
//! It owns the page table. A thread starts when something of the address space is registered for the first time, and
//! ends with the address space; processes that stay small never get one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::{debug, error, info, trace};
use vswap_core::{PAGE_SIZE, Source};
use vswap_sys::poll::{Events, poll};
use vswap_sys::process::{self, ThreadFile};
use vswap_sys::seccomp::{Gate, Notification, Reply};
use vswap_sys::uffd::{Message, RegisterMode, Uffd};
use vswap_wire as wire;

use super::alone::retire;
use super::answers::plausible;
use super::forks::Stopped;
use super::freeze::Freezer;
use super::gate::{GUARD_INSTALL, gated_call, wipes};
use super::port::Port;
use super::settle::Settler;
use super::shared::Shared;
use super::tenant::{Agent, Equipment, Note, Tenant};
use crate::proto::{
    AddressSpace, Answer, BATCH_PAGES, Call, ChildKey, Command, Counters, Effect, Fault, Input, Ticket,
};

const PAGE: u64 = PAGE_SIZE as u64;
/// Messages read in one turn, one per read(2): a busy munmap loop never lets a read-until-empty end.
const MESSAGES: usize = 64;
/// How often an address space without an agent is asked whether it still exists.
const LIVENESS: Duration = Duration::from_millis(100);
/// How often the CPU of a faulting thread is looked up, in faults.
const PLACE_EVERY: u32 = 64;
/// Turns without a page that left before asking is pointless for now.
const BARREN_TURNS: u32 = 3;
/// How long such an address space is not asked again.
const BARREN_NS: u64 = 50_000_000;
const CACHED_THREADS: usize = 64;
/// A ring that was not used for so long gives its memory back.
const RING_IDLE: Duration = Duration::from_millis(500);
/// Pages that come back in one turn while a fork waits.
const RECALL_PAGES: u64 = 1024;

/// Serves one address space until it is gone.
pub struct Server {
    shared: Arc<Shared>,
    tenant: Arc<Tenant>,
    gate: Option<Arc<Gate>>,
    space: AddressSpace,
    port: Port,
    children: HashMap<ChildKey, Uffd>,
    living: HashMap<ChildKey, Arc<Tenant>>,
    calls: HashMap<Ticket, Notification>,
    /// Forks that wait until everything is resident.
    forking: Vec<Arc<Stopped>>,
    /// The agent has left so that its process could enter a user namespace.
    retired: bool,
    beacon_waits: bool,
    /// The agent of a forked child, which waits until what it inherited was compared.
    greeting: Option<Agent>,
    throttled: bool,
    faults: u32,
    /// The thread served last, and its CPU, where this thread runs as well.
    placed: (u32, u32),
    threads: HashMap<u32, ThreadFile>,
    settler: Settler,
    freezer: Freezer,
    counted: Counters,
    quiet_tries: u32,
    barren: u32,
}

impl Server {
    /// Takes over an address space: registers its beacon, so that from now on forks are reported.
    pub fn adopt(
        shared: Arc<Shared>,
        tenant: Arc<Tenant>,
        gate: Option<Arc<Gate>>,
        equipment: Equipment,
    ) -> Self {
        let Equipment { uffd, agent, beacon, may_wipe } = equipment;
        let registered = uffd.register(beacon..beacon + PAGE, RegisterMode::MISSING | RegisterMode::WP);
        let space = AddressSpace::new(shared.gated);
        let mut server = Self::new(shared, tenant, gate, space, uffd, beacon);
        if let Err(errno) = registered
            && server.port.alive()
        {
            let error = std::io::Error::from_raw_os_error(errno);
            let pid = server.tenant.pid.load(Relaxed);
            server.shared.warn(format!("process {pid}: forks cannot be followed: {error}"));
        }
        server.port.may_wipe = may_wipe;
        if let Some(agent) = agent {
            server.port.set_agent(agent);
        }
        server
    }

    fn new(
        shared: Arc<Shared>,
        tenant: Arc<Tenant>,
        gate: Option<Arc<Gate>>,
        space: AddressSpace,
        uffd: Uffd,
        beacon: u64,
    ) -> Self {
        Self {
            port: Port::new(shared.clone(), tenant.clone(), uffd, beacon),
            shared,
            tenant,
            gate,
            space,
            children: HashMap::new(),
            living: HashMap::new(),
            calls: HashMap::new(),
            forking: Vec::new(),
            retired: false,
            beacon_waits: false,
            greeting: None,
            throttled: false,
            faults: 0,
            placed: (0, u32::MAX),
            threads: HashMap::new(),
            settler: Settler::default(),
            freezer: Freezer::default(),
            counted: Counters::default(),
            quiet_tries: 0,
            barren: 0,
        }
    }

    /// Starts the thread.
    pub fn start(self) -> std::io::Result<()> {
        let pid = self.tenant.pid.load(Relaxed);
        std::thread::Builder::new()
            .name(format!("serve-{pid}"))
            .stack_size(256 << 10)
            .spawn(|| self.run())?;
        Ok(())
    }

    fn run(mut self) {
        // A thread of the program waits for each of our turns. Without the right to it, as it comes.
        let _ = process::set_nice_self(-5);
        while !self.space.is_gone() && self.shared.failure().is_none() {
            self.notes();
            let evicted = self.ask();
            self.read();
            self.advance();
            self.let_forks_go();
            self.account(evicted);
            self.publish();
            if !self.space.is_gone() {
                self.rest();
            }
        }
        if self.shared.failure().is_some() {
            // The tree is being ended; until it is, the descriptor must not be closed.
            loop {
                std::thread::park();
            }
        }
        self.end();
    }

    /// Messages from other threads.
    fn notes(&mut self) {
        while let Some(note) = self.tenant.note() {
            match note {
                Note::ParentClosed(unmapped) => self.space.input(Input::ParentClosed(unmapped)),
                Note::Agent(agent) => {
                    self.port.look_into();
                    self.greeting = Some(agent);
                    self.space.input(Input::Greeting);
                }
                Note::Call(call) => self.gated(call),
                Note::Alone(call) => self.alone(call),
                Note::Fork(stopped) => self.forking.push(stopped),
            }
            self.advance();
        }
        let throttled = self.shared.is_throttled();
        if throttled != self.throttled {
            self.throttled = throttled;
            self.space.input(Input::Throttle(throttled));
            self.advance();
        }
    }

    /// A bounded number of faults and events.
    fn read(&mut self) {
        for _ in 0..MESSAGES {
            let message = match self.port.stashed.pop() {
                Some(message) => Ok(Some(message)),
                None => self.port.uffd.read_message(),
            };
            match message {
                Ok(Some(message)) => self.message(message),
                Ok(None) | Err(libc::EINTR) => {
                    self.space.input(Input::Drained);
                    self.advance();
                    return;
                }
                Err(errno) => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    let pid = self.tenant.pid.load(Relaxed);
                    self.shared.fail(format!("the events of process {pid} cannot be read: {error}"));
                    return;
                }
            }
            self.advance();
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Fault { addr, .. } if addr & !(PAGE - 1) == self.port.beacon => {
                if let Message::Fault { tid, .. } = message {
                    self.seen(tid);
                }
                self.beacon_waits = true;
                self.answer_beacon();
            }
            Message::Fault { addr, write, tid, .. } => {
                self.seen(tid);
                self.place(tid);
                self.settler.faulted(tid);
                let stamp = self.shared.now_ns();
                self.space.input(Input::Fault(Fault { addr, write, tid, stamp }));
            }
            Message::Fork { child } => {
                let key = ChildKey(self.shared.new_id());
                self.children.insert(key, child);
                self.tenant.shares.store(true, Relaxed);
                self.shared.meters.forks.fetch_add(1, Relaxed);
                debug!(target: "fork", "process {}: a child, number {}", self.pid(), key.0);
                self.space.input(Input::Fork(key));
            }
            Message::Remap { from, to, len } => {
                if self.space.asks_for_order() {
                    self.space.set_sole_thread(self.sole_thread());
                }
                self.space.input(Input::Remap { from, to, len });
            }
            Message::Remove { range } => self.space.input(Input::Remove(range)),
            Message::Unmap { range } => {
                if self.space.asks_for_order() {
                    self.space.set_sole_thread(self.sole_thread());
                }
                self.space.input(Input::Unmap(range));
            }
        }
    }

    /// Whether the program has one thread beside the agent.
    fn sole_thread(&self) -> bool {
        let most = 1 + u32::from(self.port.agent.is_some());
        process::status(self.pid()).is_ok_and(|status| status.threads <= most)
    }

    /// A thread of the address space was seen: of a forked child, that tells which process it is.
    fn seen(&mut self, tid: u32) {
        if self.tenant.pid.load(Relaxed) != 0 {
            return;
        }
        if let Ok(status) = process::status(tid) {
            self.tenant.pid.store(status.tgid, Relaxed);
            self.port.look_into();
        }
    }

    /// Runs on the CPU of the thread that faults: a wake-up across CPUs costs more than the whole fault.
    fn place(&mut self, tid: u32) {
        self.faults = self.faults.wrapping_add(1);
        if tid == self.placed.0 && !self.faults.is_multiple_of(PLACE_EVERY) {
            return;
        }
        if self.threads.len() >= CACHED_THREADS {
            self.threads.clear();
        }
        let cpu = match self.threads.entry(tid) {
            Entry::Occupied(entry) => entry.get().cpu(),
            Entry::Vacant(entry) => match ThreadFile::open(tid) {
                Ok(file) => entry.insert(file).cpu(),
                Err(error) => Err(error),
            },
        };
        match cpu {
            Ok(cpu) if cpu != self.placed.1 => {
                // If it fails, the thread is served from where it is.
                let _ = process::set_affinity_self(cpu);
                self.placed = (tid, cpu);
            }
            Ok(cpu) => self.placed = (tid, cpu),
            Err(_) => {
                self.threads.remove(&tid);
            }
        }
    }

    /// A forked child asks who it is.
    fn answer_beacon(&mut self) {
        let mut page = [0u8; PAGE_SIZE];
        page[..8].copy_from_slice(&self.tenant.token.to_ne_bytes());
        let beacon = self.port.beacon;
        match self.port.uffd.copy(beacon, &page, false) {
            Err(partial) if partial.errno == libc::EAGAIN => return,
            Err(_) => {
                let _ = self.port.uffd.wake(beacon..beacon + PAGE);
            }
            Ok(_) => {}
        }
        self.beacon_waits = false;
    }

    /// The agent of a forked child has come: it gets the descriptor that FORK brought.
    fn welcome(&mut self, agent: Agent) {
        let staging = agent.staging..agent.staging + wire::BATCH_PAGES as u64 * PAGE;
        let accepted = match self.port.uffd.register(staging, RegisterMode::WP) {
            Ok(()) => true,
            Err(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                self.shared.warn(format!("a forked child is not evicted from: {error}"));
                false
            }
        };
        let welcome = wire::Welcome { accepted, reason: 0 };
        let mut buffer = wire::buffer();
        let bytes = welcome.encode(&mut buffer);
        let sent = if accepted {
            agent.conn.send(bytes, &[self.port.uffd.as_fd()])
        } else {
            agent.conn.send(bytes, &[])
        };
        if accepted && sent.is_ok() {
            self.port.set_agent(agent);
            // What its calls have changed so far, nobody has told.
            if self.port.may_wipe {
                let parts = self.port.wiped(&(0..wire::USER_END));
                self.space.input(Input::WipedOnFork(0..wire::USER_END, parts));
            }
        }
    }

    fn gated(&mut self, call: Notification) {
        self.seen(call.tid);
        let ticket = Ticket(call.id);
        let what = gated_call(&call);
        self.port.may_wipe |= wipes(&what);
        debug!(target: "gate", "process {}, thread {}: {what:x?} waits", self.pid(), call.tid);
        self.calls.insert(ticket, call);
        self.shared.meters.mremaps.fetch_add(u64::from(matches!(what, Call::Mremap(_))), Relaxed);
        self.space.input(Input::Asked(ticket, what));
    }

    /// The agent leaves before its process enters a user namespace.
    fn alone(&mut self, call: Notification) {
        let pid = self.tenant.pid.load(Relaxed);
        if let Some(agent) = &self.port.agent
            && retire(agent, pid)
        {
            self.port.agent = None;
            self.retired = true;
        }
        self.reply(call, Reply::Continue);
    }

    /// The agent has executed the granted call: what of it no event tells, then its result.
    fn called(&mut self, result: i64) {
        let Some((ticket, what)) = self.space.granted() else { return };
        debug!(target: "gate", "process {}: {what:x?} returned {result:#x}", self.pid());
        if let Call::Madvise { start, len, advice } = what {
            let range =
                start & !(PAGE - 1)..start.saturating_add(len).min(wire::USER_END).next_multiple_of(PAGE);
            if advice == GUARD_INSTALL {
                // A call that failed may have been half done.
                for addr in self.space.evicted_in(range) {
                    if result == 0 || self.port.is_guard(addr) {
                        self.space.input(Input::Guarded(addr..addr + PAGE));
                    }
                }
            } else {
                let parts = self.port.wiped(&range);
                self.space.input(Input::WipedOnFork(range, parts));
            }
        }
        if let Some(call) = self.calls.remove(&ticket) {
            self.reply(call, Reply::Value(result));
        }
        self.space.input(Input::Returned(ticket, result));
        self.advance();
    }

    /// Nobody in there can execute a call for its caller.
    fn let_go(&mut self, ticket: Ticket) -> Answer {
        if let Some(call) = self.calls.remove(&ticket) {
            self.reply(call, Reply::Continue);
        }
        Answer::Refused
    }

    fn reply(&self, call: Notification, reply: Reply) {
        if let Some(gate) = &self.gate {
            // The caller may have been killed meanwhile.
            let _ = gate.respond(call.id, reply);
        }
    }

    /// Lets the protocol go on until it has nothing more to do.
    fn advance(&mut self) {
        loop {
            self.effects();
            self.space.set_agent(self.port.agent.is_some());
            let Some(command) = self.space.next_command() else { break };
            if matches!(command, Command::Move(_)) {
                self.show();
            }
            let answer = match command {
                Command::Execute(ticket, _) if self.port.agent.is_none() => self.let_go(ticket),
                command => self.port.execute(command),
            };
            self.space.answer(answer);
        }
        if self.space.verified()
            && let Some(agent) = self.greeting.take()
        {
            self.welcome(agent);
        }
        if self.beacon_waits {
            self.answer_beacon();
        }
    }

    fn effects(&mut self) {
        while let Some(effect) = self.space.effect() {
            match effect {
                Effect::Free(slots) => self.shared.space.free_n(&slots),
                Effect::Dup(slots) => self.shared.space.dup_n(&slots),
                Effect::Forked(key, child) => self.forked(key, *child),
                Effect::Closed(keys, unmapped) => {
                    for key in keys {
                        if let Some(child) = self.living.remove(&key) {
                            child.tell(Note::ParentClosed(unmapped.clone()));
                        }
                    }
                }
                Effect::Served(fault) => self.served(fault),
                Effect::Wake(addr) => {
                    let _ = self.port.uffd.wake(addr..addr + PAGE);
                }
                Effect::FailStop(why) => {
                    error!(target: "stop", "process {}: {why}", self.pid());
                    self.shared.meters.fail_stops.fetch_add(1, Relaxed);
                    self.shared.fail(format!("process {}: {why}", self.tenant.pid.load(Relaxed)));
                }
            }
        }
    }

    fn served(&mut self, fault: Fault) {
        let time = Duration::from_nanos(self.shared.now_ns().saturating_sub(fault.stamp));
        let meters = &self.shared.meters;
        let histogram = match self.port.last_source.take() {
            Some(Source::Cached) => &meters.soft,
            Some(Source::Pool) => &meters.pool,
            Some(Source::Tier(_)) => &meters.file,
            Some(Source::Zero | Source::Filled) | None => &meters.zero,
        };
        histogram.add(time);
        trace!(target: "fault", "process {}: {fault:x?} answered after {time:?}", self.pid());
        meters.stalled_ns.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// A child was forked: another thread serves it from now on.
    fn forked(&mut self, key: ChildKey, space: AddressSpace) {
        let Some(uffd) = self.children.remove(&key) else { return };
        let started = Tenant::new(key.0, self.shared.new_token(), 0, None).and_then(|tenant| {
            let tenant = Arc::new(tenant);
            tenant.beacon.store(self.port.beacon, Relaxed);
            tenant.active.store(true, Relaxed);
            self.shared.tenants.lock().insert(tenant.id, tenant.clone());
            self.shared.meters.address_spaces.fetch_add(1, Relaxed);
            let mut server = Self::new(
                self.shared.clone(),
                tenant.clone(),
                self.gate.clone(),
                space,
                uffd,
                self.port.beacon,
            );
            server.port.may_wipe = self.port.may_wipe;
            // By it the child finds out who it is, and the gate which one is calling.
            server.answer_beacon();
            self.living.insert(key, tenant);
            server.start()
        });
        if let Err(error) = started {
            // Its descriptor must not be closed while it lives.
            self.shared.abort(&format!("a forked child cannot be served: {error}"));
        }
    }

    /// Asks the protocol for one batch, if pages should leave: it takes the first moment without a window, which may
    /// be a short one between two messages. Says how many pages have left so far.
    fn ask(&mut self) -> u64 {
        self.space.input(Input::Recall(if self.forking.is_empty() { 0 } else { RECALL_PAGES }));
        if !self.forking.is_empty() || self.shared.forks.hold(&self.tenant) {
            self.space.input(Input::Evict(0));
        } else if self.port.can_evict() {
            if self.tenant.register.swap(false, Relaxed) {
                self.space.input(Input::RegisterAll(true));
            }
            self.space.input(Input::Evict(self.tenant.wanted.load(Relaxed).min(BATCH_PAGES)));
        }
        self.settle();
        self.tenant.evictions.load(Relaxed)
    }

    /// Forks go on when nothing is away any more. They are among those that hold until they are known to be over.
    fn let_forks_go(&mut self) {
        if self.space.evicted() == 0 {
            self.forking.clear();
        }
    }

    /// Finds out whether pages may leave again that a REMOVE has named.
    fn settle(&mut self) {
        let pid = self.tenant.pid.load(Relaxed);
        if self.settler.watches() {
            if self.settler.settled(pid) {
                self.space.input(Input::Settled);
            }
        } else if self.space.owes()
            && self.tenant.wanted.load(Relaxed) > 0
            && self.settler.begin(pid, self.port.agent_tid())
        {
            self.space.input(Input::SettleBegin);
        }
    }

    /// Takes what has left off the wish; a sweep that found nothing a few times in a row ends the wish.
    fn account(&mut self, before: u64) {
        let wanted = self.tenant.wanted.load(Relaxed);
        if wanted == 0 || self.space.window_open() {
            return;
        }
        let left = self.tenant.evictions.load(Relaxed) - before;
        self.barren = if left == 0 { self.barren + 1 } else { 0 };
        let rest = if self.barren > BARREN_TURNS {
            self.tenant.barren_until.store(self.shared.now_ns() + BARREN_NS, Relaxed);
            0
        } else {
            wanted.saturating_sub(left)
        };
        self.tenant.wanted.fetch_min(rest, Relaxed);
    }

    fn pid(&self) -> u32 {
        self.tenant.pid.load(Relaxed)
    }

    /// Lets the watchdog see what is unanswered.
    fn show(&self) {
        self.tenant.watch.turn(&self.space, || self.shared.now_ns());
    }

    fn publish(&mut self) {
        self.show();
        let evicted = self.space.evicted();
        let before = self.tenant.evicted.swap(evicted, Relaxed);
        let total = &self.shared.meters.evicted_now;
        total.fetch_add(evicted.wrapping_sub(before), Relaxed);
        self.tenant.footprint.store(self.space.footprint() as u64, Relaxed);
        let counters = self.space.counters();
        if counters.windows != self.counted.windows {
            let closed = counters.windows - self.counted.windows;
            let open = self.space.window_open();
            debug!(target: "window", "process {}: {closed} closed, another is open: {open}", self.pid());
        }
        self.shared.meters.windows.fetch_add(counters.windows - self.counted.windows, Relaxed);
        self.shared.meters.fork_pages.fetch_add(counters.recalled - self.counted.recalled, Relaxed);
        self.counted = counters;
    }

    /// A window has waited for one turn more.
    fn freeze(&mut self) {
        let pid = self.tenant.pid.load(Relaxed);
        let agent = self.port.agent_tid();
        let unknown = self.port.agent.is_some() && agent == 0;
        if !unknown && self.freezer.waits(pid, agent) {
            self.shared.meters.freezes.fetch_add(1, Relaxed);
        }
    }

    /// Waits for something to do.
    fn rest(&mut self) {
        let timeout = if self.space.wants_quiet() || self.beacon_waits {
            // The thread that holds the count has to run: give way, then sleep a little, never spin.
            self.quiet_tries += 1;
            self.freeze();
            if self.quiet_tries <= 4 {
                std::thread::yield_now();
                Some(Duration::ZERO)
            } else {
                Some(Duration::from_micros(100))
            }
        } else {
            self.quiet_tries = 0;
            self.freezer.quiet();
            let evicts = self.tenant.wanted.load(Relaxed) > 0 && self.port.can_evict();
            if evicts || !self.forking.is_empty() {
                Some(Duration::ZERO)
            } else if self.space.held_faults() > 0 {
                Some(Duration::from_millis(2))
            } else if self.port.agent.is_none() {
                Some(LIVENESS)
            } else if self.tenant.ring_pages.load(Relaxed) > 0 {
                Some(RING_IDLE)
            } else {
                None
            }
        };
        let conn = self.port.agent.as_ref().map(|agent| agent.conn.clone());
        let mut wanted = vec![(self.port.uffd.as_fd(), Events::IN), (self.tenant.bell().as_fd(), Events::IN)];
        if let Some(conn) = &conn {
            wanted.push((conn.as_fd(), Events::IN));
        }
        self.tenant.holding.store(self.space.held_faults() > 0, Relaxed);
        let idle_since = Instant::now();
        let ready = poll(&wanted, timeout).unwrap_or_default();
        if self.space.held_faults() > 0 {
            let held = self.space.held_faults() as u64;
            let waited = idle_since.elapsed().as_nanos() as u64;
            self.shared.meters.throttled_ns.fetch_add(waited * held, Relaxed);
        }
        if ready.get(1).is_some_and(|events| !events.is_empty()) {
            self.tenant.bell().drain();
        }
        if ready.get(2).is_some_and(|events| !events.is_empty()) {
            self.hear();
        }
        if ready.iter().all(|events| events.is_empty()) {
            match timeout {
                Some(LIVENESS) if self.port.agent.is_none() => self.check_alive(),
                Some(RING_IDLE) => self.port.empty_ring(),
                _ => {}
            }
        }
    }

    /// Something from the agent outside a batch: its start, the result of an mremap, or its end.
    fn hear(&mut self) {
        let Some(agent) = &self.port.agent else { return };
        let mut buffer = wire::buffer();
        let answer = match agent.conn.recv(&mut buffer) {
            Ok((length, _)) if length > 0 => wire::Answer::decode(&buffer[..length]).ok(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            _ => None,
        };
        match answer {
            Some(wire::Answer::Started { tid }) if agent.tid == 0 => self.port.started(tid),
            Some(wire::Answer::Called { result })
                if self.space.granted().is_some_and(|(_, call)| plausible(&call, result)) =>
            {
                self.called(result);
            }
            // Its end; or what no honest agent says, which ends it as well.
            _ => {
                info!(target: "agent", "process {}: its agent is gone ({answer:?})", self.tenant.pid.load(Relaxed));
                self.port.agent = None;
                self.check_alive();
            }
        }
    }

    /// Without its agent an address space is over, or lives on unevicted.
    fn check_alive(&mut self) {
        if !self.port.alive() {
            self.gone();
        } else {
            for (_, call) in self.calls.drain().collect::<Vec<_>>() {
                self.reply(call, Reply::Continue);
            }
            if core::mem::take(&mut self.retired) {
                let pid = self.tenant.pid.load(Relaxed);
                self.shared.warn(format!(
                    "process {pid} entered a user namespace, which takes a process without an agent: from then on nothing \
                     of it was evicted"
                ));
            }
        }
    }

    fn gone(&mut self) {
        let slots = self.space.dissolve();
        self.shared.space.free_n(&slots);
        self.effects();
    }

    fn end(&mut self) {
        info!(target: "agent", "process {}: its address space is over", self.pid());
        self.gone();
        self.publish();
        for (_, call) in self.calls.drain().collect::<Vec<_>>() {
            self.reply(call, Reply::Continue);
        }
        self.shared.tenants.lock().remove(&self.tenant.id);
        self.shared.ring_hub();
    }
}
