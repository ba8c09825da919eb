//! The door that agents come in by: who may connect, who is believed, and what becomes an address space.
//!
//! Any process of the tree may be hostile and knows the run's secret, because its agent does. So nothing that it sends decides
//! over another's memory: the kernel says which process is at the other end; only descendants of the guardian come in; a
//! child of a fork is given its descriptor once, and only if its token is in its own beacon; descriptors must be
//! what they should be; what one process can take up is bounded; and nobody is waited for.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use log::info;
use vswap_sys::process;
use vswap_sys::shared::SharedPages;
use vswap_sys::socket::{Conn, Listener};
use vswap_sys::uffd::{self, EVENT_FORK, FEATURES, RegisterMode, Uffd};
use vswap_wire as wire;

use super::entrance::Entrance;
use super::shared::Shared;
use super::tenant::{Agent, Equipment, Note, Tenant};
use super::wiped::wiped_on_fork;

const PAGE: u64 = vswap_core::PAGE_SIZE as u64;
/// Connections of one process that have not greeted; an agent has one, and greets at once.
const UNGREETED: usize = 4;
/// Address spaces of one process: one, and those that it left by exec whose end was not noticed yet.
const ADDRESS_SPACES: usize = 8;
/// Bytes that a program takes before the governor looks at it for the first time, about.
const NEWCOMER: i64 = 1 << 20;
/// Connections taken in one turn.
const TURN: usize = 64;

/// All address spaces by number.
type Tenants = HashMap<u64, Arc<Tenant>>;

/// Connected, not yet introduced.
pub struct Stranger {
    /// The connection.
    pub conn: Conn,
    pid: u32,
    /// Whether it was seen that it may come in; if not, that could not be looked at.
    known: bool,
}

/// Who has greeted and was not answered yet.
pub struct Arrival {
    conn: Conn,
    greeting: wire::Greeting,
    fds: Vec<OwnedFd>,
    pid: u32,
}

/// The door.
pub struct Door {
    pub shared: Arc<Shared>,
    /// Where agents connect.
    pub listener: Listener,
    /// What every agent of this run knows.
    pub secret: [u8; 16],
    /// The ancestor of everybody who may come in.
    pub guardian: u32,
    /// CMD, if it may not run unpaged.
    pub must_be_paged: Option<u32>,
    pub strangers: Vec<Stranger>,
    /// New programs that wait for memory before they begin.
    pub arrivals: Vec<Arrival>,
    pub entrance: Arc<Entrance>,
}

impl Door {
    /// Takes who has connected.
    pub fn open(&mut self) {
        for _ in 0..TURN {
            let Ok(Some(conn)) = self.listener.accept_nonblocking() else { return };
            let Ok(peer) = conn.peer_cred() else { continue };
            let known = match process::descends_from(peer.pid, self.guardian) {
                Ok(false) => continue,
                looked => looked.is_ok(),
            };
            // The oldest is given up: a process that opens many has itself to blame.
            let same = |stranger: &Stranger| stranger.pid == peer.pid;
            if self.strangers.iter().filter(|stranger| same(stranger)).count() >= UNGREETED
                && let Some(oldest) = self.strangers.iter().position(same)
            {
                self.strangers.remove(oldest);
            }
            self.strangers.push(Stranger { conn, pid: peer.pid, known });
        }
    }

    /// Hears a stranger; gives it back if it has more to say.
    pub fn greet(&mut self, stranger: Stranger) -> Option<Stranger> {
        let Stranger { conn, pid, known } = stranger;
        let mut buffer = wire::buffer();
        let received = conn.recv(&mut buffer);
        if !known && !process::descends_from(pid, self.guardian).unwrap_or(false) {
            refuse(&conn);
            return None;
        }
        let (length, fds) = match received {
            Ok(received) => received,
            Err(error) => {
                // Descriptors that there is no room for, if it is still there.
                refuse(&conn);
                self.unpaged(pid, format!("what its agent sent cannot be received: {error}"));
                return None;
            }
        };
        let hello = wire::Hello::decode(&buffer[..length]).ok()?;
        match hello {
            wire::Hello::Greeting(greeting) if greeting.secret == self.secret => {
                let same = self.arrivals.iter().filter(|arrival| arrival.pid == pid).count();
                if greeting.token != 0 {
                    self.admit_or_name(conn, greeting, fds, pid, &mut self.shared.tenants.lock());
                } else if same < ADDRESS_SPACES {
                    self.shared.arriving.lock().insert(pid);
                    self.arrivals.push(Arrival { conn, greeting, fds, pid });
                }
            }
            wire::Hello::Refusal(refusal) if refusal.secret == self.secret => {
                let error = std::io::Error::from_raw_os_error(refusal.errno);
                self.unpaged(pid, format!("its agent could not start ({:?}): {error}", refusal.reason));
            }
            wire::Hello::Device { secret } if secret == self.secret => {
                let device = uffd::open_device().ok();
                let welcome = wire::Welcome { accepted: device.is_some(), reason: 0 };
                let fds: Vec<_> = device.iter().map(AsFd::as_fd).collect();
                let sent = conn.send(welcome.encode(&mut buffer), &fds).is_ok();
                return sent.then_some(Stranger { conn, pid, known: true });
            }
            _ => {}
        }
        None
    }

    /// Lets new programs begin, for as long as there is room: each brings memory along that nobody holds back yet. One that was
    /// entered runs on meanwhile: to let its agent wait would make room for nobody.
    pub fn admit_arrivals(&mut self) {
        for arrival in std::mem::take(&mut self.arrivals) {
            let pid = arrival.pid;
            let has_room = self.entrance.has_tried(pid) || !self.shared.is_throttled();
            // Held, so that no call is let go from now on.
            let mut tenants = self.shared.tenants.lock();
            if !has_room || self.shared.untold.under_way(pid) {
                self.arrivals.push(arrival);
                continue;
            }
            let Arrival { conn, greeting, fds, pid } = arrival;
            self.shared.room.fetch_sub(NEWCOMER, Relaxed);
            self.admit_or_name(conn, greeting, fds, pid, &mut tenants);
            drop(tenants);
            self.shared.arriving.lock().remove(&pid);
        }
    }

    fn admit_or_name(
        &self,
        conn: Conn,
        greeting: wire::Greeting,
        fds: Vec<OwnedFd>,
        pid: u32,
        tenants: &mut Tenants,
    ) {
        let conn = Arc::new(conn);
        match self.admit(conn.clone(), greeting, fds, pid, tenants) {
            Ok(()) => self.shared.has_come(pid),
            Err(why) => {
                refuse(&conn);
                self.unpaged(pid, why);
            }
        }
    }

    fn admit(
        &self,
        conn: Arc<Conn>,
        greeting: wire::Greeting,
        fds: Vec<OwnedFd>,
        pid: u32,
        tenants: &mut Tenants,
    ) -> Result<(), String> {
        if fds.len() != greeting.descriptors() {
            return Err("its agent sent the wrong number of descriptors".into());
        }
        let text = |error: std::io::Error| error.to_string();
        let mut fds = fds.into_iter();
        let uffd = if greeting.token == 0 { fds.next().map(Uffd::from) } else { None };
        let ring = fds.next().ok_or("its agent sent no ring")?;
        let ring = SharedPages::map(ring, greeting.ring_pages as usize).map_err(text)?;
        let agent = Agent { tid: 0, conn, ring, area: greeting.area, staging: greeting.staging };
        match uffd {
            Some(uffd) => self.admit_fresh(agent, uffd, greeting.beacon, pid, tenants),
            None => self.admit_child(agent, greeting.token, pid, tenants),
        }
    }

    /// The child of a fork, whose address space is served already.
    fn admit_child(&self, agent: Agent, token: u64, pid: u32, tenants: &Tenants) -> Result<(), String> {
        let child = tenants.values().find(|tenant| tenant.token == token).cloned();
        // Who only heard of the token from somebody has another one at that place.
        let has_it = |child: &Tenant| token_in(pid, child.beacon.load(Relaxed)) == Some(token);
        let Some(child) = child.filter(|child| has_it(child) && !child.claimed.swap(true, Relaxed)) else {
            return Err("it says it was forked by a process that is not known".into());
        };
        info!(target: "agent", "process {pid}: the agent of forked child number {}", child.id);
        child.pid.store(pid, Relaxed);
        child.greeted.store(true, Relaxed);
        child.tell(Note::Agent(agent));
        Ok(())
    }

    /// A process that has just executed a program.
    fn admit_fresh(
        &self,
        agent: Agent,
        uffd: Uffd,
        beacon: u64,
        pid: u32,
        tenants: &mut Tenants,
    ) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        if tenants.values().filter(|tenant| tenant.pid.load(Relaxed) == pid).count() >= ADDRESS_SPACES {
            return Err("it has greeted too often".into());
        }
        let staging = agent.staging..agent.staging + wire::BATCH_PAGES as u64 * PAGE;
        let features = if self.shared.fork_events { FEATURES } else { FEATURES & !EVENT_FORK };
        uffd.api(features).and_then(|_| uffd.set_nonblocking()).map_err(text)?;
        uffd.register(staging, RegisterMode::WP).map_err(|errno| format!("errno {errno}"))?;
        let conn = agent.conn.clone();
        // What it did before its agent came, nobody has told.
        let wiped = || wiped_on_fork(process::thread_with_memory(pid)).map_err(text);
        let may_wipe = self.entrance.has_tried(pid) && wiped()?.iter().any(|range| !range.contains(&beacon));
        let equipment = Equipment { uffd, agent: Some(agent), beacon, may_wipe };
        let tenant = Tenant::new(self.shared.new_id(), 0, pid, Some(equipment)).map_err(text)?;
        tenant.beacon.store(beacon, Relaxed);
        // With the welcome the program goes on, perhaps to the gate at once, where it must be known.
        if !say_welcome(&conn, true)? {
            return Ok(());
        }
        self.shared.meters.address_spaces.fetch_add(1, Relaxed);
        info!(target: "agent", "process {pid}: an agent, address space number {}", tenant.id);
        tenants.insert(tenant.id, Arc::new(tenant));
        Ok(())
    }

    fn unpaged(&self, pid: u32, reason: String) {
        without_agent(&self.shared, pid, reason, self.must_be_paged != Some(pid));
    }
}

/// A process has no agent and gets none.
pub fn without_agent(shared: &Shared, pid: u32, reason: String, allowed: bool) {
    // One that ends has no memory any more; its agent may have noticed first.
    if process::status(pid).map_or(0, |status| status.vm_rss) == 0 {
        return;
    }
    if allowed {
        shared.name_unpaged(pid, reason);
    } else {
        shared.fail(format!("the program would run unpaged: {reason} (--allow-unpaged lets it)"));
    }
}

/// What a process reads in its beacon; nothing while that is missing, which is an error for this way to read.
pub fn token_in(pid: u32, beacon: u64) -> Option<u64> {
    let mut token = [0; 8];
    File::open(format!("/proc/{pid}/mem")).ok()?.read_exact_at(&mut token, beacon).ok()?;
    Some(u64::from_ne_bytes(token))
}

/// Has a program run unpaged. Hanging up would tell the agent of a forked child that the pager is dead.
fn refuse(conn: &Conn) {
    // Who is gone need not hear it.
    let _ = say_welcome(conn, false);
}

/// False if it was killed meanwhile: it does not run unpaged, it does not run.
fn say_welcome(conn: &Conn, accepted: bool) -> Result<bool, String> {
    let welcome = wire::Welcome { accepted, reason: 0 };
    match conn.send(welcome.encode(&mut wire::buffer()), &[]) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}
