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
use vswap_sys::seccomp::{Gate, Notification, Reply};
use vswap_wire as wire;

use super::shared::Shared;
use super::tenant::{Equipment, Note, Tenant};

/// An agent that does not answer for so long does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
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
        let idle = tenant.idle.lock();
        match &*idle {
            Some(equipment) => {
                let reply = execute(equipment, &call).map_or(Reply::Continue, Reply::Value);
                self.reply(&call, reply);
            }
            None => {
                drop(idle);
                tenant.tell(Note::Mremap(call));
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

/// Has the agent of an address space without a server execute an mremap.
fn execute(equipment: &Equipment, call: &Notification) -> Option<i64> {
    let agent = equipment.agent.as_ref()?;
    let [old, old_len, new_len, flags, new, _] = call.args;
    let command = wire::Command::Mremap { args: [old, old_len, new_len, flags, new] };
    let mut buffer = wire::buffer();
    agent.conn.send(command.encode(&mut buffer), &[]).ok()?;
    loop {
        let ready = poll(&[(agent.conn.as_fd(), Events::IN)], Some(PATIENCE)).ok()?;
        if ready.first().is_none_or(|events| events.is_empty()) {
            return None;
        }
        let (length, _) = agent.conn.recv(&mut buffer).ok()?;
        match wire::Answer::decode(&buffer[..length]).ok()? {
            wire::Answer::Mremap { result } => return Some(result),
            _ => continue,
        }
    }
}
