//! The thread at the gate: receives at once, finds the address space, hands over.
//!
//! An mremap of an address space that has a server waits there for its grant. One that has none yet, because nothing
//! of it was ever registered, is executed by its agent right away, under the lock that starting a server takes too.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use vswap_sys::maps::Maps;
use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::seccomp::{Gate, GatedCall, Notification, Reply};
use vswap_wire as wire;

use crate::proto::{Call, Mremap};

use super::alone::retire;
use super::forks::{Stopped, copied_by};
use super::port::wire_call;
use super::shared::Shared;
use super::tenant::{Equipment, Note, Tenant};

/// An agent that does not answer for so long does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// MADV_GUARD_INSTALL.
pub const GUARD_INSTALL: u64 = 102;
const CACHED_THREADS: usize = 1024;
/// How long is waited for the server of a caller that has the beacon of a process we know.
const UNSEEN: Duration = Duration::from_secs(1);

pub struct GateKeeper {
    pub shared: Arc<Shared>,
    pub gate: Arc<Gate>,
    pub threads: HashMap<u32, u32>,
}

impl GateKeeper {
    pub fn run(mut self) {
        // A hint only: without it a call costs more.
        let _ = self.gate.set_sync_wake();
        loop {
            match self.gate.recv() {
                Ok(Some(call)) => self.pass(call),
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    fn pass(&mut self, call: Notification) {
        self.shared.forks.over(call.tid);
        if call.call() == GatedCall::Fork {
            return self.pass_fork(call);
        }
        if call.call() == GatedCall::Alone {
            return self.pass_alone(call);
        }
        if changes_nothing(&call) {
            return self.reply(&call, Reply::Continue);
        }
        let Some(tenant) = self.tenant_of(call.tid) else {
            return self.reply(&call, Reply::Continue);
        };
        let mut idle = tenant.idle.lock();
        match &mut *idle {
            Some(equipment) => {
                let what = gated_call(&call);
                equipment.may_wipe |= wipes(&what);
                let reply = execute(equipment, what).map_or(Reply::Continue, Reply::Value);
                self.reply(&call, reply);
            }
            None => {
                drop(idle);
                tenant.tell(Note::Call(call));
            }
        }
    }

    /// The agent leaves before its process enters a user namespace.
    fn pass_alone(&mut self, call: Notification) {
        if let Some(tenant) = self.tenant_of(call.tid) {
            match &*tenant.idle.lock() {
                Some(Equipment { agent: Some(agent), .. }) => {
                    retire(agent, tenant.pid.load(Relaxed));
                }
                Some(_) => {}
                None => return tenant.tell(Note::Alone(call)),
            }
        }
        self.reply(&call, Reply::Continue);
    }

    /// A fork goes on when everything that it copies is resident.
    fn pass_fork(&mut self, call: Notification) {
        let pid = match self.process_of(call.tid) {
            Ok(pid) => pid,
            Err(error) => {
                let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH));
                // Without knowing what is copied it must not go on; fork may always fail like this.
                return self.reply(&call, if gone { Reply::Continue } else { Reply::Errno(libc::EAGAIN) });
            }
        };
        self.shared.forks.begin(call.tid, pid, call.nr);
        let (tenants, memory) = copied_by(&self.shared.all_tenants(), call.tid, pid);
        self.shared.forks.copies(call.tid, memory);
        let stopped = Stopped::new(self.shared.clone(), self.gate.clone(), call);
        for tenant in tenants {
            self.shared.meters.forks.fetch_add(1, Relaxed);
            tenant.shares.store(true, Relaxed);
            // Without a server nothing of it is away; one that starts now sees that it has to hold.
            if tenant.idle.lock().is_none() {
                tenant.tell(Note::Fork(stopped.clone()));
            }
        }
    }

    fn reply(&self, call: &Notification, reply: Reply) {
        // The caller may have been killed meanwhile.
        let _ = self.gate.respond(call.id, reply);
    }

    /// The process of a thread.
    fn process_of(&mut self, tid: u32) -> std::io::Result<u32> {
        let known = self.threads.get(&tid).copied().filter(|&tgid| process::tgkill_check(tgid, tid));
        if let Some(tgid) = known {
            return Ok(tgid);
        }
        let tgid = process::status(tid)?.tgid;
        if self.threads.len() >= CACHED_THREADS {
            self.threads.clear();
        }
        self.threads.insert(tid, tgid);
        Ok(tgid)
    }

    /// The address space that a thread runs in.
    fn tenant_of(&mut self, tid: u32) -> Option<Arc<Tenant>> {
        let tgid = self.process_of(tid).ok()?;
        // After an exec the one before may still be there.
        let known = self
            .shared
            .tenants
            .lock()
            .values()
            .filter(|tenant| tenant.pid.load(Relaxed) == tgid)
            .max_by_key(|tenant| tenant.id)
            .cloned();
        known.or_else(|| self.unseen(tgid))
    }

    /// A forked child that has not said a word yet: it has its parent's beacon, and the token there tells which child it
    /// is. The server has put it there, or is about to.
    fn unseen(&self, tgid: u32) -> Option<Arc<Tenant>> {
        let begun = Instant::now();
        let mut maps = Maps::open(tgid).ok()?;
        let memory = File::open(format!("/proc/{tgid}/mem")).ok()?;
        let mut has = |beacon: u64| {
            let found = maps.next_at_or_after(beacon);
            beacon != 0 && found.is_ok_and(|found| found.is_some_and(|mapping| mapping.range.start == beacon))
        };
        while begun.elapsed() < UNSEEN {
            let tenants = self.shared.all_tenants();
            let beacons: HashSet<u64> = tenants.iter().map(|tenant| tenant.beacon.load(Relaxed)).collect();
            let beacon = beacons.into_iter().find(|&beacon| has(beacon))?;
            let mut token = [0; 8];
            // A page that is missing is an error here.
            if memory.read_exact_at(&mut token, beacon).is_ok() {
                let token = u64::from_ne_bytes(token);
                if let Some(found) = tenants.into_iter().find(|tenant| token != 0 && tenant.token == token) {
                    return Some(found);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

/// Whether it is an madvise of nothing: so the agent tells that a fork is over.
fn changes_nothing(call: &Notification) -> bool {
    call.call() == GatedCall::Madvise && call.args[1] == 0
}

/// The call that a thread waits with.
pub fn gated_call(call: &Notification) -> Call {
    let [a, b, c, d, e, _] = call.args;
    match call.call() {
        // Others do not get here.
        GatedCall::Mremap | GatedCall::Fork | GatedCall::Alone => {
            Call::Mremap(Mremap { old: a, old_len: b, new_len: c, flags: d, new: e })
        }
        GatedCall::Madvise => Call::Madvise { start: a, len: b, advice: c & u64::from(u32::MAX) },
    }
}

/// Whether a call changes what a forked child reads as zeros.
pub fn wipes(call: &Call) -> bool {
    matches!(call, Call::Madvise { advice, .. } if *advice != GUARD_INSTALL)
}

/// Has the agent of an address space without a server execute a call.
fn execute(equipment: &Equipment, call: Call) -> Option<i64> {
    let agent = equipment.agent.as_ref()?;
    let mut buffer = wire::buffer();
    agent.conn.send(wire_call(call).encode(&mut buffer), &[]).ok()?;
    loop {
        let ready = poll(&[(agent.conn.as_fd(), Events::IN)], Some(PATIENCE)).ok()?;
        if ready.first().is_none_or(|events| events.is_empty()) {
            return None;
        }
        let (length, _) = agent.conn.recv(&mut buffer).ok()?;
        match wire::Answer::decode(&buffer[..length]).ok()? {
            wire::Answer::Called { result } => return Some(result),
            _ => continue,
        }
    }
}
