//! The door that agents come in by: who may connect, who is believed, and what becomes an address space.
//!
//! Any process of the tree may be hostile and knows the run's secret, because its agent does. So nothing that it sends decides
//! over another's memory: the kernel says which process is at the other end; only descendants of the guardian come in; a
//! child of a fork is given its descriptor once, and only if its token is in its own beacon; descriptors must be
//! what they should be; what one process can take up is bounded; and nobody is waited for.

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

use super::shared::Shared;
use super::tenant::{Agent, Equipment, Note, Tenant};
use crate::Unpaged;

const PAGE: u64 = vswap_core::PAGE_SIZE as u64;
/// Connections of one process that have not greeted; an agent has one, and greets at once.
const UNGREETED: usize = 4;
/// Address spaces of one process: one, and those that it left by exec whose end was not noticed yet.
const ADDRESS_SPACES: usize = 8;
/// Bytes that a program takes before the governor looks at it for the first time, about.
const NEWCOMER: i64 = 1 << 20;
/// Connections taken in one turn.
const TURN: usize = 64;

/// Connected, not yet introduced.
pub struct Stranger {
    /// The connection.
    pub conn: Conn,
    pid: u32,
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
}

impl Door {
    /// Takes who has connected.
    pub fn open(&mut self) {
        for _ in 0..TURN {
            let Ok(Some(conn)) = self.listener.accept_nonblocking() else { return };
            let Ok(peer) = conn.peer_cred() else { continue };
            if !process::descends_from(peer.pid, self.guardian) {
                continue;
            }
            // The oldest is given up: a process that opens many has itself to blame.
            let same = |stranger: &Stranger| stranger.pid == peer.pid;
            if self.strangers.iter().filter(|stranger| same(stranger)).count() >= UNGREETED
                && let Some(oldest) = self.strangers.iter().position(same)
            {
                self.strangers.remove(oldest);
            }
            self.strangers.push(Stranger { conn, pid: peer.pid });
        }
    }

    /// Hears a stranger; gives it back if it has more to say.
    pub fn greet(&mut self, stranger: Stranger) -> Option<Stranger> {
        let Stranger { conn, pid } = stranger;
        let mut buffer = wire::buffer();
        let (length, fds) = conn.recv(&mut buffer).ok()?;
        let hello = wire::Hello::decode(&buffer[..length]).ok()?;
        match hello {
            wire::Hello::Greeting(greeting) if greeting.secret == self.secret => {
                let same = self.arrivals.iter().filter(|arrival| arrival.pid == pid).count();
                if greeting.token != 0 {
                    self.admit_or_name(conn, greeting, fds, pid);
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
                return sent.then_some(Stranger { conn, pid });
            }
            _ => {}
        }
        None
    }

    /// Lets new programs begin, for as long as there is room: each brings memory along that nobody holds back yet.
    pub fn admit_arrivals(&mut self) {
        while !self.arrivals.is_empty() && !self.shared.is_throttled() {
            let Arrival { conn, greeting, fds, pid } = self.arrivals.remove(0);
            self.shared.room.fetch_sub(NEWCOMER, Relaxed);
            self.admit_or_name(conn, greeting, fds, pid);
            self.shared.arriving.lock().remove(&pid);
        }
    }

    fn admit_or_name(&self, conn: Conn, greeting: wire::Greeting, fds: Vec<OwnedFd>, pid: u32) {
        if let Err(why) = self.admit(conn, greeting, fds, pid) {
            self.unpaged(pid, why);
        }
    }

    fn admit(&self, conn: Conn, greeting: wire::Greeting, fds: Vec<OwnedFd>, pid: u32) -> Result<(), String> {
        if fds.len() != greeting.descriptors() {
            return Err("its agent sent the wrong number of descriptors".into());
        }
        let text = |error: std::io::Error| error.to_string();
        let mut fds = fds.into_iter();
        let uffd = if greeting.token == 0 { fds.next().map(Uffd::from) } else { None };
        let ring = fds.next().ok_or("its agent sent no ring")?;
        let ring = SharedPages::map(ring, greeting.ring_pages as usize).map_err(text)?;
        let agent =
            Agent { tid: 0, conn: Arc::new(conn), ring, area: greeting.area, staging: greeting.staging };
        match uffd {
            Some(uffd) => self.admit_fresh(agent, uffd, greeting.beacon, pid),
            None => self.admit_child(agent, greeting.token, pid),
        }
    }

    /// The child of a fork, whose address space is served already.
    fn admit_child(&self, agent: Agent, token: u64, pid: u32) -> Result<(), String> {
        let child = self.shared.tenants.lock().values().find(|tenant| tenant.token == token).cloned();
        // Who only heard of the token from somebody has another one at that place.
        let has_it = |child: &Tenant| token_in(pid, child.beacon.load(Relaxed)) == Some(token);
        let Some(child) = child.filter(|child| has_it(child) && !child.claimed.swap(true, Relaxed)) else {
            // Hanging up would tell it that the pager is dead.
            say_welcome(&agent.conn, false)?;
            return Err("it says it was forked by a process that is not known".into());
        };
        info!(target: "agent", "process {pid}: the agent of forked child number {}", child.id);
        child.pid.store(pid, Relaxed);
        child.tell(Note::Agent(agent));
        Ok(())
    }

    /// A process that has just executed a program.
    fn admit_fresh(&self, agent: Agent, uffd: Uffd, beacon: u64, pid: u32) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let tenants = self.shared.all_tenants();
        if tenants.iter().filter(|tenant| tenant.pid.load(Relaxed) == pid).count() >= ADDRESS_SPACES {
            say_welcome(&agent.conn, false)?;
            return Err("it has greeted too often".into());
        }
        let staging = agent.staging..agent.staging + wire::BATCH_PAGES as u64 * PAGE;
        let features = if self.shared.fork_events { FEATURES } else { FEATURES & !EVENT_FORK };
        let allowed = uffd.api(features).and_then(|_| uffd.set_nonblocking()).map_err(text).and_then(|()| {
            uffd.register(staging, RegisterMode::WP).map_err(|errno| format!("errno {errno}"))
        });
        let conn = agent.conn.clone();
        let equipment = Equipment { uffd, agent: Some(agent), beacon, may_wipe: false };
        let tenant = Tenant::new(self.shared.new_id(), 0, pid, Some(equipment)).map_err(text)?;
        tenant.beacon.store(beacon, Relaxed);
        // With the welcome the program goes on, perhaps to the gate at once, where it must be known.
        let mut tenants = self.shared.tenants.lock();
        if !say_welcome(&conn, allowed.is_ok())? {
            return Ok(());
        }
        allowed?;
        self.shared.meters.address_spaces.fetch_add(1, Relaxed);
        info!(target: "agent", "process {pid}: an agent, address space number {}", tenant.id);
        tenants.insert(tenant.id, Arc::new(tenant));
        Ok(())
    }

    fn unpaged(&self, pid: u32, reason: String) {
        info!(target: "agent", "process {pid} is not paged: {reason}");
        if self.must_be_paged == Some(pid) {
            self.shared.fail(format!("the program would run unpaged: {reason} (--allow-unpaged lets it)"));
            return;
        }
        let name = process::status(pid).map(|status| status.name).unwrap_or_default();
        self.shared.name_unpaged(Unpaged { pid, name, reason });
    }
}

/// What a process reads in its beacon; nothing while that is missing, which is an error for this way to read.
pub fn token_in(pid: u32, beacon: u64) -> Option<u64> {
    let mut token = [0; 8];
    File::open(format!("/proc/{pid}/mem")).ok()?.read_exact_at(&mut token, beacon).ok()?;
    Some(u64::from_ne_bytes(token))
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
