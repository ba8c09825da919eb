//! The thread that serves one address space: reads faults and events, asks the protocol, executes.
//!
//! It owns the page table. A thread starts when something of the address space is registered for the first time, and
//! ends with the address space; processes that stay small never get one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::{debug, info, trace};
use vswap_core::{PAGE_SIZE, Source};
use vswap_sys::process;
use vswap_sys::seccomp::{Gate, Notification, Reply};
use vswap_sys::uffd::{Message, RegisterMode, Uffd};

use super::alone::{Why, leave_last};
use super::forks::Stopped;
use super::freeze::Freezer;
use super::port::Port;
use super::settle::Settler;
use super::shared::Shared;
use super::tenant::{Agent, Equipment, Note, Tenant};
use crate::proto::{AddressSpace, BATCH_PAGES, ChildKey, Command, Counters, Effect, Fault, Input, Ticket};

mod calls;
mod children;
mod rest;
mod stop;

const PAGE: u64 = PAGE_SIZE as u64;
/// Messages read in one turn, one per read(2): a busy munmap loop never lets a read-until-empty end.
const MESSAGES: usize = 64;
/// Turns without a page that left before asking is pointless for now.
const BARREN_TURNS: u32 = 3;
/// How long such an address space is not asked again.
const BARREN_NS: u64 = 50_000_000;
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
    /// Why the agent has left, until that was said.
    retired: Option<Why>,
    /// Calls that wait until it has left, which it does between two errands.
    filtering: Vec<Notification>,
    /// When it was last seen whether a process without an agent lives.
    looked: Instant,
    beacon_waits: bool,
    /// The agent of a forked child, which waits until what it inherited was compared.
    greeting: Option<Agent>,
    throttled: bool,
    settler: Settler,
    freezer: Freezer,
    counted: Counters,
    /// Turns in a row that have changed nothing, and how things stand since.
    idle_turns: u32,
    got_to: (u64, Counters),
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
            retired: None,
            filtering: Vec::new(),
            looked: Instant::now(),
            beacon_waits: false,
            greeting: None,
            throttled: false,
            settler: Settler::default(),
            freezer: Freezer::default(),
            counted: Counters::default(),
            idle_turns: 0,
            got_to: (0, Counters::default()),
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
        if !self.port.placement.go_first() {
            let _ = process::set_nice_self(-5);
        }
        while !self.space.is_gone() && self.shared.failure().is_none() {
            self.notes();
            let evicted = self.ask();
            self.read();
            self.advance();
            self.let_forks_go();
            self.let_filters_in();
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
                Note::Filter(call) => self.filtering.push(call),
                Note::Deserted => {
                    self.port.agent.take_if(|agent| leave_last(agent, self.tenant.pid.load(Relaxed)));
                }
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
            match self.port.uffd.read_message() {
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
        if self.shared.idle.load(Relaxed) && self.shared.idle.swap(false, Relaxed) {
            self.shared.governor.call();
        }
        if !matches!(message, Message::Fault { .. }) {
            self.space.set_now(self.shared.now_ns());
        }
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
                let stamp = self.shared.now_ns();
                self.port.placement.follow(self.tenant.pid.load(Relaxed), tid, stamp);
                self.settler.faulted(tid);
                self.space.set_now(stamp);
                self.space.input(Input::Fault(Fault { addr, write, tid, stamp }));
            }
            Message::Fork { child } => {
                let key = ChildKey(self.shared.new_id());
                self.children.insert(key, child);
                self.tenant.shares.store(true, Relaxed);
                self.shared.meters.forks.fetch_add(1, Relaxed);
                debug!(target: "fork", "process {}: a child, number {}", self.pid(), key.0);
                self.look_at_order();
                self.space.input(Input::Fork(key));
            }
            Message::Remap { from, to, len } => {
                self.look_at_order();
                self.space.input(Input::Remap { from, to, len });
            }
            Message::Remove { range } => self.space.input(Input::Remove(range)),
            Message::Unmap { range } => {
                self.look_at_order();
                self.space.input(Input::Unmap(range));
            }
        }
    }

    /// Where the order of events matters, tells whether the program has one thread beside the agent.
    fn look_at_order(&mut self) {
        if self.space.asks_for_order() {
            let most = 1 + u32::from(self.port.agent.is_some());
            let sole = process::status(self.pid()).is_ok_and(|status| status.threads <= most);
            self.space.set_sole_thread(sole);
        }
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

    /// Lets the protocol go on until it has nothing more to do.
    fn advance(&mut self) {
        // First, or a program that calls without a pause would never have one.
        self.effects();
        self.let_agent_in();
        loop {
            self.effects();
            self.space.set_agent(self.port.agent.is_some());
            self.space
                .set_overdue(self.port.overdue.then_some(self.port.agent_tid()).filter(|&agent| agent != 0));
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
        self.let_agent_in();
        if self.beacon_waits {
            self.answer_beacon();
        }
    }

    fn effects(&mut self) {
        while let Some(effect) = self.space.effect() {
            match effect {
                Effect::Free(slots, addrs) => {
                    self.shared.space.free_n(&slots);
                    self.notice_damage(&slots, &addrs);
                }
                Effect::Dup(slots) => {
                    self.shared.space.dup_n(&slots);
                    self.notice_damage(&slots, &[]);
                }
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
                Effect::FailStop(why) => self.stop(&why),
            }
        }
    }

    fn served(&mut self, fault: Fault) {
        let now = self.shared.now_ns();
        let time = Duration::from_nanos(now.saturating_sub(fault.stamp));
        let meters = &self.shared.meters;
        let histogram = match self.port.last_source.take() {
            Some(Source::Cached) => &meters.soft,
            Some(Source::Pool) => &meters.pool,
            Some(Source::Tier(_)) => &meters.file,
            Some(Source::Zero | Source::Filled) | None => &meters.zero,
        };
        histogram.add(time);
        trace!(target: "fault", "process {}: {fault:x?} answered after {time:?}", self.pid());
        meters.waited(fault.stamp, now);
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
            let wanted = self.tenant.wanted.load(Relaxed);
            if wanted > 0 {
                self.port.pins.outdate();
                self.space.set_now(self.shared.now_ns());
            }
            self.space.input(Input::Evict(wanted.min(BATCH_PAGES)));
        } else {
            self.space.input(Input::Evict(0));
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

    /// Takes what has left off the wish; a sweep that found nothing a few times in a row, not even pages that it would take at its
    /// next visit, ends the wish.
    fn account(&mut self, before: u64) {
        let wanted = self.tenant.wanted.load(Relaxed);
        if wanted == 0 || self.space.window_open() {
            return;
        }
        let left = self.tenant.evictions.load(Relaxed) - before;
        let passed = self.space.counters().passed - self.counted.passed;
        self.barren = if left == 0 && passed == 0 { self.barren + 1 } else { 0 };
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

    fn gone(&mut self) {
        self.space.dissolve();
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
