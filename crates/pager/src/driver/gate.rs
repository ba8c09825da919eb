//! The thread at the gate: receives at once, finds the address space, hands over. An exec goes to a thread of its own, see
//! `entrance`.
//!
//! An mremap of an address space that has a server waits there for its grant. One that has none yet, because nothing
//! of it was ever registered, is executed by its agent right away; until it has answered, no server can be started.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::seccomp::{Gate, GatedCall, Notification, Reply};
use vswap_sys::socket::Conn;
use vswap_wire as wire;

use crate::proto::{Call, Mremap};

use super::alone::{self, Why};
use super::entrance::Entrance;
use super::forks::{Stopped, copied_by};
use super::port::wire_call;
use super::shared::Shared;
use super::tenant::{Equipment, Note, Tenant};

mod filters;
mod judge;
mod late;

use late::{For, LOOK_AGAIN, Waiting, Whose};

/// MADV_GUARD_INSTALL.
pub const GUARD_INSTALL: u64 = 102;
const CACHED_THREADS: usize = 1024;

pub struct GateKeeper {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    entrance: Arc<Entrance>,
    /// The process of a thread.
    threads: HashMap<u32, u32>,
    errands: Vec<Errand>,
    waiting: Vec<Waiting>,
}

/// A call that the agent of an idle address space executes. Its equipment is here meanwhile, not with the address space: so
/// no server is started, and nobody but the caller waits for an agent that does not answer.
struct Errand {
    tenant: Arc<Tenant>,
    equipment: Equipment,
    conn: Arc<Conn>,
    call: Notification,
    /// Calls of the same address space that came meanwhile.
    next: VecDeque<Notification>,
}

impl GateKeeper {
    pub fn new(shared: Arc<Shared>, gate: Arc<Gate>, entrance: Arc<Entrance>) -> Self {
        Self { shared, gate, entrance, threads: HashMap::new(), errands: Vec::new(), waiting: Vec::new() }
    }

    pub fn run(mut self) {
        // A hint only: without it a call costs more.
        let _ = self.gate.set_sync_wake();
        loop {
            if !self.look() {
                continue;
            }
            match self.gate.recv() {
                Ok(Some(call)) => self.pass(call),
                Ok(None) => {}
                Err(error) => {
                    // Unless nobody is left, callers would wait for ever.
                    if error.kind() != std::io::ErrorKind::BrokenPipe {
                        self.shared.fail(format!("calls at the gate cannot be received: {error}"));
                    }
                    return;
                }
            }
        }
    }

    /// Waits for a call and sees to errands; whether there is a call.
    fn look(&mut self) -> bool {
        if self.errands.is_empty() && self.waiting.is_empty() {
            return true; // receiving waits by itself, for one system call less
        }
        let soon = (!self.waiting.is_empty()).then_some(LOOK_AGAIN);
        let mut wanted = vec![(self.gate.as_fd(), Events::IN)];
        wanted.extend(self.errands.iter().map(|errand| (errand.conn.as_fd(), Events::IN)));
        let ready: Vec<bool> =
            poll(&wanted, soon).unwrap_or_default().iter().map(|events| !events.is_empty()).collect();
        drop(wanted);
        for index in (1..ready.len()).rev().filter(|&index| ready[index]) {
            let errand = self.errands.swap_remove(index - 1);
            self.hear(errand);
        }
        self.look_again();
        ready.first().copied().unwrap_or(false)
    }

    fn pass(&mut self, call: Notification) {
        self.shared.forks.over(call.tid);
        self.shared.untold.over(call.tid);
        if call.call() == GatedCall::Exec {
            return self.entrance.executes(&self.gate, call);
        }
        if call.call() == GatedCall::Fork {
            return self.pass_fork(call);
        }
        if call.call() == GatedCall::Alone {
            return self.pass_alone(call);
        }
        if call.call() == GatedCall::Filter {
            return self.pass_filter(call);
        }
        if changes_nothing(&call) {
            return self.reply(&call, Reply::Continue);
        }
        if let Ok(pid) = self.process_of(call.tid) {
            self.shared.untold.begin(call.tid, pid, call.nr);
        }
        match self.tenant_of(call.tid) {
            Whose::Of(tenant) => self.hand_over(tenant, call),
            Whose::Nobodys => self.reply(&call, Reply::Continue),
            Whose::NotSeenYet => self.waiting.push(Waiting::new(call, For::Server)),
        }
    }

    /// The call of a known address space.
    fn hand_over(&mut self, tenant: Arc<Tenant>, call: Notification) {
        let mut idle = tenant.idle.lock();
        if let Some(equipment) = idle.take() {
            drop(idle);
            return self.send(tenant, equipment, VecDeque::from([call]));
        }
        if tenant.active.load(Relaxed) {
            drop(idle);
            self.shared.untold.over(call.tid);
            return tenant.tell(Note::Call(call));
        }
        drop(idle);
        match self.errands.iter_mut().find(|errand| errand.tenant.id == tenant.id) {
            Some(errand) => errand.next.push_back(call),
            // It has just ended, and its equipment with it.
            None => self.reply(&call, Reply::Continue),
        }
    }

    /// Sends an agent on the first of these errands; without one that it can be sent on, the address space is idle again.
    fn send(&mut self, tenant: Arc<Tenant>, mut equipment: Equipment, mut calls: VecDeque<Notification>) {
        while let Some(call) = calls.pop_front() {
            let what = gated_call(&call);
            equipment.may_wipe |= wipes(&what);
            let conn = equipment.agent.as_ref().map(|agent| agent.conn.clone());
            let sent = |conn: &Arc<Conn>| conn.send(wire_call(what).encode(&mut wire::buffer()), &[]).is_ok();
            if let Some(conn) = conn.filter(sent) {
                self.shared.untold.over(call.tid);
                self.errands.push(Errand { tenant, equipment, conn, call, next: calls });
                return;
            }
            self.reply(&call, Reply::Continue);
        }
        *tenant.idle.lock() = Some(equipment);
    }

    /// Hears what came of an errand.
    fn hear(&mut self, mut errand: Errand) {
        let mut buffer = wire::buffer();
        let answer = match errand.conn.recv(&mut buffer) {
            Ok((length, _)) if length > 0 => wire::Answer::decode(&buffer[..length]).ok(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return self.errands.push(errand);
            }
            _ => None,
        };
        match (answer, &mut errand.equipment.agent) {
            (Some(wire::Answer::Called { result }), _) => {
                self.reply(&errand.call, Reply::Value(result));
                self.send(errand.tenant, errand.equipment, errand.next);
            }
            (Some(wire::Answer::Started { tid }), Some(agent)) if agent.tid == 0 => {
                agent.tid = tid;
                self.errands.push(errand);
            }
            _ => {
                // Its end, or nonsense. Nothing of it was ever registered, so nothing of it is missing.
                self.shared.tenants.lock().remove(&errand.tenant.id);
                for call in std::iter::once(&errand.call).chain(&errand.next) {
                    self.reply(call, Reply::Continue);
                }
                self.shared.ring_hub();
            }
        }
    }

    /// The agent leaves before its process enters a user namespace; first it has to come, if it is about to.
    fn pass_alone(&mut self, call: Notification) {
        if self.is_being_entered(call.tid) {
            return self.waiting.push(Waiting::new(call, For::Agent));
        }
        self.send_agent_off(call);
    }

    fn is_being_entered(&mut self, tid: u32) -> bool {
        self.process_of(tid).is_ok_and(|pid| self.entrance.is_inside(pid))
    }

    fn send_agent_off(&mut self, call: Notification) {
        if let Whose::Of(tenant) = self.tenant_of(call.tid) {
            let idle = tenant.idle.lock();
            let errand = self.errands.iter().find(|errand| errand.tenant.id == tenant.id);
            match idle.as_ref().or(errand.map(|errand| &errand.equipment)) {
                Some(Equipment { agent: Some(agent), .. }) => {
                    let pid = tenant.pid.load(Relaxed);
                    if alone::tell(agent, pid, Why::Namespace) {
                        return self.waiting.push(Waiting::new(call, For::End(pid)));
                    }
                }
                None if tenant.active.load(Relaxed) => return tenant.tell(Note::Alone(call)),
                Some(_) | None => {}
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
            let idle = tenant.idle.lock();
            let served = tenant.active.load(Relaxed);
            drop(idle);
            if served {
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
}

/// Whether it is an madvise of nothing: so the agent tells that a fork is over.
fn changes_nothing(call: &Notification) -> bool {
    call.call() == GatedCall::Madvise && call.args[1] == 0
}

/// The change of mappings that a thread waits with.
pub fn gated_call(call: &Notification) -> Call {
    let [a, b, c, d, e, _] = call.args;
    if call.call() == GatedCall::Madvise {
        Call::Madvise { start: a, len: b, advice: c & u64::from(u32::MAX) }
    } else {
        Call::Mremap(Mremap { old: a, old_len: b, new_len: c, flags: d, new: e })
    }
}

/// Whether a call changes what a forked child reads as zeros.
pub fn wipes(call: &Call) -> bool {
    matches!(call, Call::Madvise { advice, .. } if *advice != GUARD_INSTALL)
}
