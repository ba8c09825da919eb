//! Between two turns: how long the server waits and for whom, and what it does if nobody comes.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::info;
use vswap_sys::poll::{Events, poll};
use vswap_sys::seccomp::Reply;
use vswap_wire as wire;

use super::super::alone::Why;
use super::super::answers::plausible;
use super::Server;
use crate::proto::Input;

/// How often an address space without an agent is asked whether it still exists.
const LIVENESS: Duration = Duration::from_millis(100);
/// A ring that was not used for so long gives its memory back.
const RING_IDLE: Duration = Duration::from_millis(500);

impl Server {
    /// A window has waited for one turn more.
    pub(super) fn freeze(&mut self) {
        let pid = self.tenant.pid.load(Relaxed);
        let agent = self.port.agent_tid();
        let unknown = self.port.agent.is_some() && agent == 0;
        if !unknown && self.freezer.waits(pid, agent) {
            self.shared.meters.freezes.fetch_add(1, Relaxed);
        }
    }

    /// Waits for something to do.
    pub(super) fn rest(&mut self) {
        let timeout = if self.space.wants_quiet() || self.beacon_waits {
            // The thread that holds the count has to run: give way, then sleep a little, never spin.
            self.freeze();
            std::thread::yield_now();
            self.soon()
        } else {
            self.freezer.quiet();
            let evicts = self.tenant.wanted.load(Relaxed) > 0 && self.port.can_evict();
            if evicts || !self.forking.is_empty() {
                self.soon()
            } else if self.space.held_faults() > 0 {
                Some(Duration::from_millis(2))
            } else if self.port.agent.is_none() {
                Some(LIVENESS)
            } else if self.tenant.ring_pages.load(Relaxed) > 0 {
                Some(RING_IDLE)
            } else {
                None
            }
        };
        let conn = self.port.agent.as_ref().map(|agent| agent.conn.clone());
        let mut wanted = vec![(self.port.uffd.as_fd(), Events::IN), (self.tenant.bell().as_fd(), Events::IN)];
        if let Some(conn) = &conn {
            wanted.push((conn.as_fd(), Events::IN));
        }
        self.tenant.holding.store(self.space.held_faults() > 0, Relaxed);
        let idle_since = Instant::now();
        let ready = poll(&wanted, timeout).unwrap_or_default();
        if self.space.held_faults() > 0 {
            let held = self.space.held_faults() as u64;
            let waited = idle_since.elapsed().as_nanos() as u64;
            self.shared.meters.throttled_ns.fetch_add(waited * held, Relaxed);
        }
        if ready.get(1).is_some_and(|events| !events.is_empty()) {
            self.tenant.bell().drain();
        }
        if ready.get(2).is_some_and(|events| !events.is_empty()) {
            self.hear();
        }
        if timeout == Some(RING_IDLE) && ready.iter().all(|events| events.is_empty()) {
            self.port.empty_ring();
        }
        // By the clock: there may be something to hear in every turn.
        if self.port.agent.is_none() && self.looked.elapsed() >= LIVENESS {
            self.looked = Instant::now();
            self.check_alive();
        }
    }

    /// How long to rest where there is more to do: not at all, unless the last turns have got nowhere. Whoever they wait for may
    /// have to run on this CPU, where we go first.
    fn soon(&mut self) -> Option<Duration> {
        let state = (self.space.evicted(), self.space.counters());
        if core::mem::replace(&mut self.got_to, state) != state {
            self.idle_turns = 0;
        }
        self.idle_turns += 1;
        Some(if self.idle_turns <= 4 { Duration::ZERO } else { Duration::from_micros(100) })
    }

    /// Something from the agent outside a batch: its start, the result of an mremap, or its end.
    pub(super) fn hear(&mut self) {
        let Some(agent) = &self.port.agent else { return };
        let mut buffer = wire::buffer();
        let answer = match agent.conn.recv(&mut buffer) {
            Ok((length, _)) if length > 0 => wire::Answer::decode(&buffer[..length]).ok(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            _ => None,
        };
        match answer {
            Some(wire::Answer::Started { tid }) if agent.tid == 0 => self.port.started(tid),
            Some(wire::Answer::Called { result })
                if self.space.granted().is_some_and(|(_, call)| plausible(&call, result)) =>
            {
                self.called(result);
            }
            Some(wire::Answer::Evicted { emptied, .. }) if self.port.overdue => self.port.answered(emptied),
            // Its end; or what no honest agent says, which ends it as well.
            _ => {
                info!(target: "agent", "process {}: its agent is gone ({answer:?})", self.tenant.pid.load(Relaxed));
                self.port.agent = None;
                self.check_alive();
            }
        }
    }

    /// Without its agent an address space is over, or lives on unevicted.
    pub(super) fn check_alive(&mut self) {
        if !self.port.alive() {
            self.gone();
        } else {
            if let Some((ticket, _)) = self.space.granted() {
                // No honest agent leaves its process in the middle of a call; but the window must not stay open for it.
                if let Some(call) = self.calls.remove(&ticket) {
                    self.reply(call, Reply::Errno(libc::ENOMEM));
                }
                self.space.input(Input::Returned(ticket, -i64::from(libc::ENOMEM)));
            }
            for (_, call) in self.calls.drain().collect::<Vec<_>>() {
                self.reply(call, Reply::Continue);
            }
            let what = match core::mem::take(&mut self.retired) {
                Some(Why::Namespace) => "entered a user namespace, which takes a process without an agent",
                Some(Why::Filter) => {
                    "has a system call filter for all its threads, which would have ended the agent"
                }
                None => return,
            };
            let pid = self.tenant.pid.load(Relaxed);
            self.shared.warn(format!("process {pid} {what}: from then on nothing of it was evicted"));
        }
    }
}
