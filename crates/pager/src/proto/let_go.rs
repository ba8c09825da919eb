//! Calls of an address space that has no agent (the child of a raw clone, or a child that has not greeted yet): the
//! caller makes them itself, and nobody tells what came of it.
//!
//! So nothing may depend on it. A call is let go only with no window open and after what a fork brought was compared
//! with what is mapped. What it might take away untold is brought back first (below guard pages and wipe-on-fork, and where an
//! mremap would grow in place: what is not mapped there is dropped): the kernel deals with what is resident, and nothing
//! leaves an address space without an agent. What grows and moves, a REMAP tells of.
//!
//! The madvise calls are no better where there is an agent: what it says comes after the FORK of another thread, and then the
//! child would hold slots under guard pages, or of what was wiped. So they too find everything resident, and nothing leaves before
//! their window has closed.

use std::ops::Range;

use super::message::{Call, Ticket};
use super::space::{AddressSpace, Job, PAGE};
use super::streams::MAX_WINDOW;

impl AddressSpace {
    /// What a call changes untold, or too late.
    fn untold_of(&self, call: &Call) -> Option<Range<u64>> {
        match *call {
            Call::Madvise { .. } if self.has_agent && !self.rules.guard => None,
            Call::Madvise { start, len, .. } => Some(start & !(PAGE - 1)..start.saturating_add(len)),
            Call::Mremap(_) if self.has_agent => None,
            Call::Mremap(call) => {
                Some(call.old.saturating_add(call.old_len)..call.old.saturating_add(call.new_len))
            }
        }
    }

    /// Whether something has to come back before a call.
    pub(super) fn takes_untold(&self, call: &Call) -> bool {
        self.untold_of(call).is_some_and(|range| self.table.iter(range).next().is_some())
    }

    /// The next step of that.
    pub(super) fn bring_back(&self, call: &Call) -> Option<Job> {
        let range = self.untold_of(call)?;
        let (addr, _) = self.table.iter(range.clone()).next()?;
        let slots = (addr..range.end).step_by(PAGE as usize).take(MAX_WINDOW as usize);
        let slots = slots.map_while(|addr| self.table.get(addr)).map(|entry| entry.slot).collect();
        Some(Job::Recalling { addr, slots })
    }

    /// Lets a call go.
    pub(super) fn let_go(&mut self, ticket: Ticket, call: Call) -> Job {
        if let Call::Mremap(call) = call {
            self.loose.retain(|loose| loose.old != call.old);
            self.loose.push(call);
        }
        self.open();
        Job::Granting(ticket, call)
    }

    /// Something was moved that nobody was granted: if it was let go, what it has grown by is zeros.
    pub(super) fn moved_untold(&mut self, from: u64, to: u64) {
        let Some(at) = self.loose.iter().position(|call| call.old == from) else { return };
        let call = self.loose.swap_remove(at);
        if call.new_len > call.old_len {
            let grown = to + call.old_len..(to + call.new_len).next_multiple_of(PAGE);
            self.drop_slots(grown.clone());
            self.owed.remove(grown);
        }
    }
}
