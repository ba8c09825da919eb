//! The pager's main thread: sits at the door, notices ends, reaps, and ends the tree when the promise cannot be kept.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vswap_core::{SpaceConfig, Tier, VirtualSwap};
use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::seccomp::Gate;
use vswap_sys::socket::{Conn, Listener};
use vswap_sys::system;
use vswap_tiers::{FileTier, Pool};
use vswap_wire as wire;

use super::control::Control;
use super::door::{Door, without_agent};
use super::entrance::Entrance;
use super::gate::GateKeeper;
use super::governor::{Governor, Peaks};
use super::share::PoolShare;
use super::shared::Shared;
use super::summary::summary;
use super::watch::Watchdog;
use super::worker;
use crate::{Config, Fatal, Summary};

const PAGE: u64 = vswap_core::PAGE_SIZE as u64;
const TICK: Duration = Duration::from_millis(100);
/// How often is looked whether a new program may begin.
const ARRIVALS_EVERY: Duration = Duration::from_millis(2);
/// A look at all processes of the machine, when only the last of the tree could still be missing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who a run is, for who asks.
#[derive(Clone, Debug)]
pub struct Identity {
    /// CMD and its arguments.
    pub command: Vec<String>,
    /// CMD's process id.
    pub root: u32,
    /// The process that the user started.
    pub front: u32,
    /// The pager's parent, and the ancestor of everything that is counted.
    pub guardian: u32,
}

/// What the front door has set up before the pager starts.
pub struct Session {
    /// Where agents connect.
    pub listener: Listener,
    /// The mremap gate, if this machine allows one.
    pub gate: Option<Gate>,
    /// We may ask for fork events. If not, the gate must be one that stops forks.
    pub fork_events: bool,
    /// What every agent of this run knows.
    pub secret: [u8; 16],
    /// Where `vswap status` and its like connect.
    pub control: Listener,
    /// Who the run is.
    pub identity: Identity,
    /// The program has no loader that would bring the agent.
    pub enter_root: bool,
    /// The agent's file.
    pub agent: PathBuf,
}

/// Runs the pager until the last paged process of the tree has ended.
///
/// `root_ended` is called once, when the program itself ends, with its wait status and the summary so far.
///
/// # Errors
/// [`Fatal`] when the promise of the program's memory cannot be kept; the tree has been killed by then.
pub fn serve(
    config: Config,
    session: Session,
    root_ended: &mut dyn FnMut(i32, &Summary),
) -> Result<Summary, Fatal> {
    let hub =
        Hub::set_up(config, session).map_err(|error| Fatal(format!("the pager cannot start: {error}")))?;
    hub.run(root_ended)
}

struct Hub {
    shared: Arc<Shared>,
    peaks: Arc<Mutex<Peaks>>,
    door: Door,
    root: u32,
    guardian: u32,
    /// Percent.
    max_stall: Option<u8>,
    /// Readable once the program has ended; without it the next tick notices.
    root_end: Option<OwnedFd>,
    root_ended: bool,
    gate: Option<Arc<Gate>>,
    /// When it was last looked whether anybody is left.
    looked: Instant,
}

impl Hub {
    fn set_up(config: Config, session: Session) -> std::io::Result<Self> {
        system::tune_malloc(2);
        let identity = session.identity;
        let limit = config.limit.bytes(0);
        let pool_limit = config.pool_max.unwrap_or(limit / 4 * 3);
        // Enough for a burst, and few of them in use for long: what lies there uncompressed has freed nothing yet.
        let frames = ((limit / 64).clamp(2 << 20, 32 << 20) / PAGE) as usize;
        let mut tiers: Vec<Arc<dyn Tier>> = Vec::new();
        if let Some(spill) = &config.spill {
            tiers.push(Arc::new(FileTier::create(&spill.dir, spill.max)?));
        }
        let spills = !tiers.is_empty();
        let pool = Pool::new(pool_limit);
        let pool: Arc<dyn Tier> = Arc::new(if config.wide_check { pool.with_wide_check() } else { pool });
        let space = Arc::new(VirtualSwap::new(SpaceConfig { pool: Some(pool), tiers, max_frames: frames }));
        let gate = session.gate.map(Arc::new);
        let shared = Arc::new(Shared::new(space, gate.is_some(), session.fork_events)?);
        let peaks = Arc::new(Mutex::new(Peaks::default()));
        let thread = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).stack_size(512 << 10).spawn(body).map(drop)
        };
        let entrance = Arc::new(Entrance::new(shared.clone(), &session.agent)?);
        if session.enter_root {
            let (shared, allow_unpaged) = (shared.clone(), config.allow_unpaged);
            entrance.clone().root(identity.root, move |why| {
                without_agent(&shared, identity.root, why, allow_unpaged);
            })?;
        }
        if let Some(gate) = &gate {
            let keeper = GateKeeper::new(shared.clone(), gate.clone(), entrance.clone());
            thread("gate", Box::new(|| keeper.run()))?;
        }
        let governor = Governor::new(
            shared.clone(),
            gate.clone(),
            entrance.clone(),
            &config,
            spills.then(|| PoolShare::new(pool_limit, Instant::now())),
            identity.guardian,
            peaks.clone(),
        )?;
        thread("governor", Box::new(|| governor.run()))?;
        let control = Control {
            shared: shared.clone(),
            peaks: peaks.clone(),
            listener: session.control,
            identity: identity.clone(),
        };
        let watchdog = Watchdog::new(shared.clone(), config.quiet);
        thread("watchdog", Box::new(|| watchdog.run()))?;
        thread("control", Box::new(|| control.run()))?;
        let worker_shared = shared.clone();
        thread("compress", Box::new(move || worker::compress(worker_shared, frames / 4)))?;
        if spills {
            let spill_shared = shared.clone();
            thread("spill", Box::new(move || worker::spill(spill_shared)))?;
        }
        let door = Door {
            shared: shared.clone(),
            listener: session.listener,
            secret: session.secret,
            guardian: identity.guardian,
            must_be_paged: (!config.allow_unpaged).then_some(identity.root),
            strangers: Vec::new(),
            arrivals: Vec::new(),
            entrance,
        };
        Ok(Self {
            shared,
            peaks,
            door,
            root: identity.root,
            guardian: identity.guardian,
            max_stall: config.max_stall,
            root_end: process::pidfd_open(identity.root).ok(),
            root_ended: false,
            gate,
            looked: Instant::now(),
        })
    }

    fn run(mut self, root_ended: &mut dyn FnMut(i32, &Summary)) -> Result<Summary, Fatal> {
        loop {
            if let Some(why) = self.shared.failure() {
                end_tree();
                return Err(Fatal(why));
            }
            if let Some(damage) = self.shared.space.damage() {
                // Background work has found it, and knows of no address.
                self.shared.fail(damage.to_string());
                continue;
            }
            if std::os::unix::process::parent_id() != self.guardian {
                self.shared
                    .fail("the guardian was killed: nobody would end the tree if the pager died".into());
                continue;
            }
            if let Some(why) = self.crawls() {
                self.shared.fail(why);
                continue;
            }
            self.reap(root_ended);
            let all_ended =
                self.root_ended && (self.shared.tenants.lock().is_empty() || self.nobody_is_left());
            if all_ended && self.is_deserted() {
                return Ok(self.summary());
            }
            self.wait();
        }
    }

    /// Why the tree is ended for want of memory, if its user wants that.
    fn crawls(&self) -> Option<String> {
        let most = u64::from(self.max_stall?);
        let stall = self.peaks.lock().pace.stall(&self.shared.meters, Instant::now())?;
        (stall > most).then(|| {
            format!(
                "the program has waited for pages in {stall} % of the last ten seconds, more than --max-stall {most} \
                 allows: it needs more memory (--memory)"
            )
        })
    }

    /// Whether nobody is left who would wait at the gate. Were we gone, calls there would fail.
    fn is_deserted(&self) -> bool {
        self.gate.as_ref().is_none_or(|gate| gate.is_deserted().unwrap_or(true))
    }

    /// Whether the last process has ended, whatever we believe of its address space: a program can make its descriptor
    /// one that never tells.
    fn nobody_is_left(&mut self) -> bool {
        if self.looked.elapsed() < LOOK_EVERY {
            return false;
        }
        self.looked = Instant::now();
        let pager = std::process::id();
        process::descendants_of(self.guardian).is_ok_and(|tree| {
            let lives = |pid: u32| process::status(pid).is_ok_and(|status| !status.has_ended());
            !tree.into_iter().any(|pid| pid != pager && lives(pid))
        })
    }

    fn summary(&self) -> Summary {
        summary(&self.shared, &self.peaks.lock())
    }

    fn reap(&mut self, root_ended: &mut dyn FnMut(i32, &Summary)) {
        while let Ok(Some((pid, status))) = process::reap() {
            if pid == self.root && !self.root_ended {
                self.root_ended = true;
                root_ended(status.into_raw(), &self.summary());
            }
        }
    }

    fn wait(&mut self) {
        let idle: Vec<(u64, Arc<Conn>)> = self
            .shared
            .tenants
            .lock()
            .values()
            .filter_map(|tenant| {
                let equipment = tenant.idle.lock();
                Some((tenant.id, equipment.as_ref()?.agent.as_ref()?.conn.clone()))
            })
            .collect();
        let strangers = std::mem::take(&mut self.door.strangers);
        let mut wanted =
            vec![(self.door.listener.as_fd(), Events::IN), (self.shared.hub_bell().as_fd(), Events::IN)];
        wanted.extend(strangers.iter().map(|stranger| (stranger.conn.as_fd(), Events::IN)));
        wanted.extend(idle.iter().map(|(_, conn)| (conn.as_fd(), Events::IN)));
        if !self.root_ended {
            wanted.extend(self.root_end.iter().map(|root| (root.as_fd(), Events::IN)));
        }
        let tick = if self.door.arrivals.is_empty() { TICK } else { ARRIVALS_EVERY };
        let ready: Vec<bool> =
            poll(&wanted, Some(tick)).unwrap_or_default().iter().map(|events| !events.is_empty()).collect();
        drop(wanted);
        let ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        if ready(1) {
            self.shared.hub_bell().drain();
        }
        let greeted = strangers.len();
        for (index, stranger) in strangers.into_iter().enumerate() {
            if ready(2 + index) {
                let again = self.door.greet(stranger);
                self.door.strangers.extend(again);
            } else {
                self.door.strangers.push(stranger);
            }
        }
        for (index, (id, conn)) in idle.into_iter().enumerate() {
            if ready(2 + greeted + index) {
                self.hear(id, &conn);
            }
        }
        self.door.admit_arrivals();
        if ready(0) {
            self.door.open();
        }
    }

    /// Something from an agent whose address space has no server yet: its start, or its end.
    fn hear(&self, id: u64, conn: &Conn) {
        let Some(tenant) = self.shared.tenants.lock().get(&id).cloned() else { return };
        let mut idle = tenant.idle.lock();
        if idle.is_none() {
            return; // its server hears it
        }
        // The gate may have taken what was there; and an agent starts once.
        let there = poll(&[(conn.as_fd(), Events::IN)], Some(Duration::ZERO)).unwrap_or_default();
        if there.first().is_none_or(|events| events.is_empty()) {
            return;
        }
        let mut buffer = wire::buffer();
        let started = match conn.recv(&mut buffer) {
            Ok((length, _)) if length > 0 => wire::Answer::decode(&buffer[..length]).ok(),
            _ => None,
        };
        let agent = idle.as_mut().and_then(|equipment| equipment.agent.as_mut());
        if let (Some(wire::Answer::Started { tid }), Some(agent)) =
            (started, agent.filter(|agent| agent.tid == 0))
        {
            agent.tid = tid;
        } else {
            // Nothing of it was ever registered, so nothing of it is missing.
            *idle = None;
            drop(idle);
            self.shared.tenants.lock().remove(&id);
        }
    }
}

/// Ends everything below the pager; returns when nothing is left.
fn end_tree() {
    let me = std::process::id();
    for _ in 0..1000 {
        let left: Vec<u32> = process::descendants_of(me)
            .unwrap_or_default()
            .into_iter()
            .filter(|&pid| process::status(pid).is_ok_and(|status| !status.has_ended()))
            .collect();
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = process::kill(pid, libc::SIGKILL);
        }
        while let Ok(Some(_)) = process::reap() {}
        std::thread::sleep(Duration::from_millis(1));
    }
}
