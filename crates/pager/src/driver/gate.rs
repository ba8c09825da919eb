//! The thread at the mremap gate: receives at once, finds the address space, hands over.
//!
//! An mremap of an address space that has a server waits there for its grant. One that has none yet, because nothing
//! of it was ever registered, is executed by its agent right away, under the lock that starting a server takes too.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::seccomp::{Gate, GatedCall, Notification, Reply};
use vswap_wire as wire;

use crate::proto::{Call, Mremap};

use super::port::wire_call;
use super::shared::Shared;
use super::tenant::{Equipment, Note, Tenant};

/// An agent that does not answer for so long does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// MADV_GUARD_INSTALL.
pub const GUARD_INSTALL: u64 = 102;
const CACHED_THREADS: usize = 1024;

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

    fn reply(&self, call: &Notification, reply: Reply) {
        // The caller may have been killed meanwhile.
        let _ = self.gate.respond(call.id, reply);
    }

    /// The address space that a thread runs in.
    fn tenant_of(&mut self, tid: u32) -> Option<Arc<Tenant>> {
        let known = self.threads.get(&tid).copied().filter(|&tgid| process::tgkill_check(tgid, tid));
        let tgid = match known {
            Some(tgid) => tgid,
            None => {
                let tgid = process::status(tid).ok()?.tgid;
                if self.threads.len() >= CACHED_THREADS {
                    self.threads.clear();
                }
                self.threads.insert(tid, tgid);
                tgid
            }
        };
        self.shared.tenants.lock().values().find(|tenant| tenant.pid.load(Relaxed) == tgid).cloned()
    }
}

/// The call that a thread waits with.
pub fn gated_call(call: &Notification) -> Call {
    let [a, b, c, d, e, _] = call.args;
    match call.call() {
        GatedCall::Mremap => Call::Mremap(Mremap { old: a, old_len: b, new_len: c, flags: d, new: e }),
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
