//! Whose call it is at the gate, and calls that wait for what only time brings: looked at now and then, so that nobody else waits
//! for them.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use vswap_sys::maps::Maps;
use vswap_sys::process;
use vswap_sys::seccomp::{GatedCall, Notification, Reply};
use vswap_sys::socket::Conn;

use super::super::alone;
use super::super::door::token_in;
use super::super::tenant::Tenant;
use super::GateKeeper;
use super::filters::Judgement;

/// How often they are looked at.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How long is waited for the server of a caller that has the beacon of a process we know.
const UNSEEN: Duration = Duration::from_secs(1);
/// How long a filter for all threads waits for an entry that is under way, and that it might end, program and all.
const ENTRY: Duration = Duration::from_secs(10);

/// What a call waits for.
pub(super) enum For {
    /// The server of its address space, which has not put the token in its beacon yet.
    Server,
    /// The end of the agent of this process.
    End(u32),
    /// The agent that is being put into its process.
    Agent,
    /// The end of the agent with this connection.
    Left(Arc<Conn>),
    /// What is found out of the filter that it installs.
    Judgement(Judgement),
}

/// A call that waits.
pub(super) struct Waiting {
    call: Notification,
    what: For,
    since: Instant,
}

impl Waiting {
    pub(super) fn new(call: Notification, what: For) -> Self {
        Self { call, what, since: Instant::now() }
    }
}

/// Whose address space a caller runs in.
pub(super) enum Whose {
    Of(Arc<Tenant>),
    /// It has the beacon of one that we know, and no token there yet.
    NotSeenYet,
    Nobodys,
}

/// How long a call waits for an agent that is being put into its process.
fn patience(call: &Notification) -> Duration {
    if call.call() == GatedCall::Filter { ENTRY } else { alone::PATIENCE }
}

impl GateKeeper {
    /// Lets those go on for whom it is time.
    pub(super) fn look_again(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            let waited = waiting.since.elapsed();
            match waiting.what {
                For::End(pid) if alone::is_alone(pid) || waited >= alone::PATIENCE => {
                    self.reply(&waiting.call, Reply::Continue);
                }
                For::End(_) => self.waiting.push(waiting),
                For::Agent if waited < patience(&waiting.call) && self.is_being_entered(waiting.call.tid) => {
                    self.waiting.push(waiting);
                }
                For::Agent if waiting.call.call() == GatedCall::Filter => self.pass_when_left(waiting.call),
                For::Agent => self.send_agent_off(waiting.call),
                For::Left(ref conn) if alone::has_left(conn) || waited >= alone::PATIENCE => {
                    self.reply(&waiting.call, Reply::Continue);
                }
                For::Left(_) => self.waiting.push(waiting),
                For::Judgement(ref judgement) => match *judgement.clone().lock() {
                    Some(true) => self.reply(&waiting.call, Reply::Continue),
                    Some(false) => self.pass_harmful(waiting.call),
                    None => self.waiting.push(waiting),
                },
                For::Server => match self.tenant_of(waiting.call.tid) {
                    Whose::Of(tenant) => self.hand_over(tenant, waiting.call),
                    Whose::NotSeenYet if waited < UNSEEN => self.waiting.push(waiting),
                    Whose::NotSeenYet | Whose::Nobodys => self.reply(&waiting.call, Reply::Continue),
                },
            }
        }
    }

    /// The address space that a thread runs in.
    pub(super) fn tenant_of(&mut self, tid: u32) -> Whose {
        let Ok(tgid) = self.process_of(tid) else { return Whose::Nobodys };
        // After an exec the one before may still be there.
        let known = self
            .shared
            .tenants
            .lock()
            .values()
            .filter(|tenant| tenant.pid.load(Relaxed) == tgid)
            .max_by_key(|tenant| tenant.id)
            .cloned();
        known.map_or_else(|| self.unseen(tgid), Whose::Of)
    }

    /// That of a process which has not said a word. If it has the beacon of one that we know, it is a forked child, and the
    /// token there tells which, once its server has put it there; or it shares that one's memory (between vfork and exec).
    fn unseen(&self, tgid: u32) -> Whose {
        let Ok(mut maps) = Maps::open(tgid) else { return Whose::Nobodys };
        let mut has = |beacon: u64| {
            let found = maps.next_at_or_after(beacon);
            beacon != 0 && found.is_ok_and(|found| found.is_some_and(|mapping| mapping.range.start == beacon))
        };
        let tenants = self.shared.all_tenants();
        let beacons: HashSet<u64> = tenants.iter().map(|tenant| tenant.beacon.load(Relaxed)).collect();
        let Some(beacon) = beacons.into_iter().find(|&beacon| has(beacon)) else { return Whose::Nobodys };
        let token = token_in(tgid, beacon).filter(|&token| token != 0);
        let family = || tenants.iter().filter(|tenant| tenant.beacon.load(Relaxed) == beacon);
        let by_token = || family().find(|tenant| Some(tenant.token) == token);
        let by_memory = || {
            let shares = |pid| pid != 0 && process::share_memory(tgid, pid).unwrap_or(false);
            family().find(|tenant| shares(tenant.pid.load(Relaxed)))
        };
        by_token().or_else(by_memory).cloned().map_or(Whose::NotSeenYet, Whose::Of)
    }
}
