//! Calls of an address space that has no agent (the child of a raw clone, or a child that has not greeted yet): the
//! caller makes them itself, and nobody tells what came of it.
//!
//! So nothing may depend on it. A call is let go only with no window open and after what a fork brought was compared
//! with what is mapped. What it might take away untold is brought back first (below guard pages and wipe-on-fork, and where an
//! mremap would grow in place: what is not mapped there is dropped): the kernel deals with what is resident, and nothing
//! leaves an address space without an agent. What grows and moves, a REMAP tells of.

use super::message::{Call, Ticket};
use super::space::{AddressSpace, Job, PAGE};
use super::streams::MAX_WINDOW;

impl AddressSpace {
    /// The next step towards letting a call go.
    pub(super) fn let_go(&mut self, ticket: Ticket, call: Call) -> Job {
        let range = match call {
            Call::Madvise { start, len, .. } => start & !(PAGE - 1)..start.saturating_add(len),
            Call::Mremap(call) => {
                call.old.saturating_add(call.old_len)..call.old.saturating_add(call.new_len)
            }
        };
        let first = self.table.iter(range.clone()).next();
        if let Some((addr, _)) = first {
            let slots = (addr..range.end).step_by(PAGE as usize).take(MAX_WINDOW as usize);
            let slots = slots.map_while(|addr| self.table.get(addr)).map(|entry| entry.slot).collect();
            self.asked.push_front((ticket, call));
            return Job::Recalling { addr, slots };
        }
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
