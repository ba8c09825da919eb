//! The watchdog: says which fault has waited for over a second, and why. A wait that long is a fault of somebody's: ours, a
//! disk's, or of an agent that cannot run; nobody should have to guess which.
//!
//! Server threads show what they are at by a few stores; only faults that outlive a turn are written down. The
//! watchdog looks five times a second. It counts time as it sees it pass, so a pager that was stopped does not find
//! hour-old waits when it goes on, and not while the thread that waits is itself stopped.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::uffd::Uffd;

use super::shared::Shared;
use super::tenant::Tenant;
use crate::proto::{AddressSpace, Call, Fault, WaitsFor};

const TICK: Duration = Duration::from_millis(200);
/// Time that passes between two looks counts up to here.
const TICK_MAX: Duration = Duration::from_millis(400);
/// What is slow.
const SLOW: Duration = Duration::from_secs(1);

/// Hundreds of processes on a busy machine may wait at one time: so many are named.
const SAID_AT_MOST: u32 = 16;

/// What a server thread shows of itself.
#[derive(Default)]
pub struct Watch {
    /// Turns of its loop.
    turns: AtomicU64,
    /// The fault whose page it is loading: when it was read (0: none), where, and whose.
    loading: (AtomicU64, AtomicU64, AtomicU32),
    /// It waits for its agent since, in nanoseconds of the run; 0 if it does not.
    agent_since: AtomicU64,
    /// The window of mapping changes is open since; 0 if it is not.
    window_since: AtomicU64,
    /// Something is written below.
    any: AtomicBool,
    waits: Mutex<Vec<(Fault, WaitsFor)>>,
    /// To see whether something in it waits to be read.
    uffd: OnceLock<Arc<Uffd>>,
}

impl Watch {
    /// The descriptor that the server reads from.
    pub fn reads(&self, uffd: &Arc<Uffd>) {
        // Set once, by the one server that there is.
        let _ = self.uffd.set(uffd.clone());
    }

    /// At the end of a turn, and before something that may take long: what is left unanswered.
    pub fn turn(&self, space: &AddressSpace, now_ns: impl Fn() -> u64) {
        self.turns.store(self.turns.load(Relaxed) + 1, Relaxed);
        if space.window_open() != (self.window_since.load(Relaxed) != 0) {
            self.window_since.store(if space.window_open() { now_ns().max(1) } else { 0 }, Relaxed);
        }
        if space.has_waiting() {
            *self.waits.lock() = space.waiting().collect();
            self.any.store(true, Relaxed);
        } else if self.any.load(Relaxed) {
            self.any.store(false, Relaxed);
            self.waits.lock().clear();
        }
    }

    /// It loads the page of this fault.
    pub fn loads(&self, fault: &Fault) {
        self.loading.1.store(fault.addr, Relaxed);
        self.loading.2.store(fault.tid, Relaxed);
        self.loading.0.store(fault.stamp.max(1), Relaxed);
    }

    /// It has loaded it.
    pub fn loaded(&self) {
        self.loading.0.store(0, Relaxed);
    }

    /// It waits for its agent since `now_ns`; 0: no more.
    pub fn awaits_agent(&self, now_ns: u64) {
        self.agent_since.store(now_ns, Relaxed);
    }
}

/// A wait, as it is told apart from others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Wait {
    tenant: u64,
    /// 0 if it was not read yet.
    tid: u32,
    addr: u64,
    /// When it was read; or the turn in which it was not.
    stamp: u64,
}

#[derive(Default)]
struct Seen {
    time: Duration,
    reported: bool,
}

/// The thread that looks.
pub struct Watchdog {
    shared: Arc<Shared>,
    quiet: bool,
    /// Waits reported.
    said: u32,
    seen: HashMap<Wait, Seen>,
    looked: Instant,
}

impl Watchdog {
    pub fn new(shared: Arc<Shared>, quiet: bool) -> Self {
        Self { shared, quiet, said: 0, seen: HashMap::new(), looked: Instant::now() }
    }

    pub fn run(mut self) {
        loop {
            std::thread::sleep(TICK);
            self.look();
        }
    }

    fn look(&mut self) {
        let passed = self.looked.elapsed().min(TICK_MAX);
        self.looked = Instant::now();
        let mut before = std::mem::take(&mut self.seen);
        let mut slow = Vec::new();
        for tenant in self.shared.all_tenants() {
            for (wait, cause) in waits(&tenant) {
                let Some(mut seen) = before.remove(&wait) else {
                    self.seen.insert(wait, Seen::default());
                    continue;
                };
                let pid = tenant.pid.load(Relaxed);
                if waits_itself(pid, wait.tid) {
                    seen.time += passed;
                }
                if seen.time >= SLOW {
                    let text = self.text(pid, &tenant, &wait, &cause, seen.time);
                    if !seen.reported {
                        seen.reported = true;
                        self.shared.meters.slow_faults.fetch_add(1, Relaxed);
                        self.said += 1;
                        match self.said.cmp(&SAID_AT_MOST) {
                            Ordering::Less => self.say(&text),
                            Ordering::Equal => {
                                self.say("more faults wait for over a second: they are counted")
                            }
                            Ordering::Greater => {}
                        }
                    }
                    self.shared.meters.longest_wait_ms.fetch_max(seen.time.as_millis() as u64, Relaxed);
                    slow.push(text);
                }
                self.seen.insert(wait, seen);
            }
        }
        *self.shared.slow.lock() = slow;
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            // It may be closed; then there is nobody to tell.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("vswap: {text}\n").as_bytes());
        }
    }

    fn text(&self, pid: u32, tenant: &Tenant, wait: &Wait, cause: &Cause, time: Duration) -> String {
        let name = process::status(pid).map(|status| status.name).unwrap_or_default();
        let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let who = match wait.tid {
            0 => format!("a fault or mapping change of process {pid} ({name}) waits unread"),
            tid => format!("thread {tid} of process {pid} ({name}) waits for the page at {:#x}", wait.addr),
        };
        let why = self.why(pid, tenant, cause);
        format!("{who} for {:.1} s: {why}", time.as_secs_f64())
    }

    fn why(&self, pid: u32, tenant: &Tenant, cause: &Cause) -> String {
        let window = || {
            let since = tenant.watch.window_since.load(Relaxed);
            format!("the window of its mapping changes is open for {:.1} s", self.seconds_since(since))
        };
        match cause {
            Cause::Waits(WaitsFor::Memory) => {
                let over = -self.shared.room.load(Relaxed) >> 10;
                let stuck = if self.shared.stuck.load(Relaxed) {
                    "; the pool and the spill file are full"
                } else {
                    "; pages are on their way out"
                };
                format!("memory is at its limit, {over} KiB short of what may be given out{stuck}")
            }
            Cause::Waits(WaitsFor::Parent) => {
                "the mappings of the process that forked it are changing".into()
            }
            Cause::Waits(WaitsFor::Call(call)) => {
                let what = match call {
                    Call::Mremap(_) => "mremap",
                    Call::Madvise { .. } => "madvise",
                };
                format!("{}, until the agent of process {pid} has executed an {what}", window())
            }
            Cause::Waits(WaitsFor::Quiet) => format!("{}, and no quiet moment has come", window()),
            Cause::Waits(WaitsFor::Turn) => "its turn has not come".into(),
            Cause::Loading => "its contents are being read".into(),
            Cause::Agent(since) => {
                format!("the agent of process {pid} has not answered for {:.1} s", self.seconds_since(*since))
            }
            Cause::Unread => "the thread that serves it does not run".into(),
        }
    }

    fn seconds_since(&self, ns: u64) -> f64 {
        self.shared.now_ns().saturating_sub(ns) as f64 / 1e9
    }
}

enum Cause {
    Waits(WaitsFor),
    Loading,
    Agent(u64),
    /// Something waits to be read, and its server is elsewhere.
    Unread,
}

/// What waits in an address space now.
fn waits(tenant: &Tenant) -> Vec<(Wait, Cause)> {
    let watch = &tenant.watch;
    let mut all = Vec::new();
    let agent = watch.agent_since.load(Relaxed);
    if watch.any.load(Relaxed) {
        for (fault, what) in watch.waits.lock().iter() {
            let wait = Wait { tenant: tenant.id, tid: fault.tid, addr: fault.addr, stamp: fault.stamp };
            let cause = if agent != 0 { Cause::Agent(agent) } else { Cause::Waits(*what) };
            all.push((wait, cause));
        }
    }
    let (stamp, addr, tid) = &watch.loading;
    let stamp = stamp.load(Relaxed);
    if stamp != 0 {
        let wait = Wait { tenant: tenant.id, tid: tid.load(Relaxed), addr: addr.load(Relaxed), stamp };
        all.push((wait, Cause::Loading));
    }
    // In the same turn as last time and still something to read: then it was there all the time.
    let unread = watch.uffd.get().is_some_and(|uffd| {
        poll(&[(uffd.as_fd(), Events::IN)], Some(Duration::ZERO))
            .is_ok_and(|ready| ready.first().is_some_and(|events| events.contains(Events::IN)))
    });
    if unread {
        let wait = Wait { tenant: tenant.id, tid: 0, addr: 0, stamp: watch.turns.load(Relaxed) };
        all.push((wait, if agent != 0 { Cause::Agent(agent) } else { Cause::Unread }));
    }
    all
}

/// Whether a thread (the process's first, if it is not known) waits for its page, not for who stopped it.
fn waits_itself(pid: u32, tid: u32) -> bool {
    let id = if tid == 0 { pid } else { tid };
    process::status(id).is_ok_and(|status| !matches!(status.state, 'T' | 't' | 'Z' | 'X'))
}
