//! The calls that wait at the gate: when their turn has come the agent executes them, and their callers get the result.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use log::debug;
use vswap_sys::process;
use vswap_sys::seccomp::{Notification, Reply};
use vswap_wire as wire;

use super::super::alone::{Why, retire};
use super::super::gate::{GUARD_INSTALL, gated_call, wipes};
use super::{PAGE, Server};
use crate::proto::{Answer, Call, Input, Ticket};

impl Server {
    pub(super) fn gated(&mut self, call: Notification) {
        self.seen(call.tid);
        let ticket = Ticket(call.id);
        let what = gated_call(&call);
        self.port.may_wipe |= wipes(&what);
        debug!(target: "gate", "process {}, thread {}: {what:x?} waits", self.pid(), call.tid);
        self.calls.insert(ticket, call);
        self.shared.meters.mremaps.fetch_add(u64::from(matches!(what, Call::Mremap(_))), Relaxed);
        self.space.input(Input::Asked(ticket, what));
    }

    /// The agent leaves before its process enters a user namespace.
    pub(super) fn alone(&mut self, call: Notification) {
        self.retire(Why::Namespace);
        self.reply(call, Reply::Continue);
    }

    /// The agent leaves, if it has nothing to do, before a filter that it could not live with is installed.
    pub(super) fn let_filters_in(&mut self) {
        if self.filtering.is_empty() || self.space.granted().is_some() || self.port.overdue {
            return;
        }
        self.retire(Why::Filter);
        for call in std::mem::take(&mut self.filtering) {
            self.reply(call, Reply::Continue);
        }
    }

    fn retire(&mut self, why: Why) {
        let pid = self.tenant.pid.load(Relaxed);
        if let Some(agent) = &self.port.agent
            && retire(agent, pid, why)
        {
            self.port.agent = None;
            self.retired = Some(why);
            self.looked = Instant::now();
        }
    }

    /// The agent has executed the granted call: what of it no event tells, then its result.
    pub(super) fn called(&mut self, result: i64) {
        let Some((ticket, what)) = self.space.granted() else { return };
        debug!(target: "gate", "process {}: {what:x?} returned {result:#x}", self.pid());
        if let Call::Madvise { start, len, advice } = what {
            let range =
                start & !(PAGE - 1)..start.saturating_add(len).min(wire::USER_END).next_multiple_of(PAGE);
            if advice == GUARD_INSTALL && result == 0 {
                self.space.input(Input::Guarded(range));
            } else if advice == GUARD_INSTALL {
                // It may have been half done.
                let waiting = self.space.waiting().map(|(fault, _)| fault.addr & !(PAGE - 1));
                let waiting: Vec<_> = waiting.filter(|addr| range.contains(addr)).collect();
                for addr in waiting.into_iter().filter(|&addr| self.port.is_guard(addr)) {
                    self.space.input(Input::Guarded(addr..addr + PAGE));
                }
            } else {
                let parts = self.port.wiped(&range);
                self.space.input(Input::WipedOnFork(range, parts));
            }
        }
        if let Some(call) = self.calls.remove(&ticket) {
            self.reply(call, Reply::Value(result));
        }
        self.space.input(Input::Returned(ticket, result));
        self.advance();
    }

    /// Nobody in there can execute a call for its caller.
    pub(super) fn let_go(&mut self, ticket: Ticket) -> Answer {
        if let Some(call) = self.calls.remove(&ticket) {
            if let Ok(status) = process::status(call.tid) {
                self.shared.untold.begin(call.tid, status.tgid, call.nr);
            }
            self.reply(call, Reply::Continue);
        }
        Answer::Refused
    }

    pub(super) fn reply(&self, call: Notification, reply: Reply) {
        if let Some(gate) = &self.gate {
            // The caller may have been killed meanwhile.
            let _ = gate.respond(call.id, reply);
        }
    }
}
