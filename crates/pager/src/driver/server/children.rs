//! Forked children: a server of their own, the beacon by which they learn who they are, their agents let in.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vswap_core::PAGE_SIZE;
use vswap_sys::uffd::RegisterMode;
use vswap_wire as wire;

use super::super::tenant::{Agent, Tenant};
use super::{PAGE, Server};
use crate::proto::{AddressSpace, ChildKey, Input};

impl Server {
    /// A forked child asks who it is.
    pub(super) fn answer_beacon(&mut self) {
        let mut page = [0u8; PAGE_SIZE];
        page[..8].copy_from_slice(&self.tenant.token.to_ne_bytes());
        let beacon = self.port.beacon;
        match self.port.uffd.copy(beacon, &page, false) {
            Err(partial) if partial.errno == libc::EAGAIN => return,
            Err(_) => {
                let _ = self.port.uffd.wake(beacon..beacon + PAGE);
            }
            Ok(_) => {}
        }
        self.beacon_waits = false;
    }

    /// The agent of a forked child has come: it gets the descriptor that FORK brought.
    /// Lets the agent of a forked child go on, once what it inherited was compared, and what it did without an agent is over.
    pub(super) fn let_agent_in(&mut self) {
        if self.greeting.is_some()
            && self.space.verified()
            && !self.shared.untold.under_way(self.pid())
            && let Some(agent) = self.greeting.take()
        {
            self.welcome(agent);
        }
    }

    pub(super) fn welcome(&mut self, agent: Agent) {
        let staging = agent.staging..agent.staging + wire::BATCH_PAGES as u64 * PAGE;
        let accepted = match self.port.uffd.register(staging, RegisterMode::WP) {
            Ok(()) => true,
            Err(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                self.shared.warn(format!("a forked child is not evicted from: {error}"));
                false
            }
        };
        let welcome = wire::Welcome { accepted, reason: 0 };
        let mut buffer = wire::buffer();
        let bytes = welcome.encode(&mut buffer);
        let sent = if accepted {
            agent.conn.send(bytes, &[self.port.uffd.as_fd()])
        } else {
            agent.conn.send(bytes, &[])
        };
        if accepted && sent.is_ok() {
            self.port.set_agent(agent);
            // What its calls have changed so far, nobody has told.
            if self.port.may_wipe {
                let parts = self.port.wiped(&(0..wire::USER_END));
                self.space.input(Input::WipedOnFork(0..wire::USER_END, parts));
            }
        }
    }

    /// A child was forked: another thread serves it from now on.
    pub(super) fn forked(&mut self, key: ChildKey, space: AddressSpace) {
        let Some(uffd) = self.children.remove(&key) else { return };
        let started = Tenant::new(key.0, self.shared.new_token(), 0, None).and_then(|tenant| {
            let tenant = Arc::new(tenant);
            tenant.beacon.store(self.port.beacon, Relaxed);
            tenant.active.store(true, Relaxed);
            self.shared.tenants.lock().insert(tenant.id, tenant.clone());
            self.shared.meters.address_spaces.fetch_add(1, Relaxed);
            let mut server = Self::new(
                self.shared.clone(),
                tenant.clone(),
                self.gate.clone(),
                space,
                uffd,
                self.port.beacon,
            );
            server.port.may_wipe = self.port.may_wipe;
            // By it the child finds out who it is, and the gate which one is calling.
            server.answer_beacon();
            self.living.insert(key, tenant);
            server.start()
        });
        if let Err(error) = started {
            // Its descriptor must not be closed while it lives.
            self.shared.abort(&format!("a forked child cannot be served: {error}"));
        }
    }
}
