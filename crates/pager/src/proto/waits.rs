//! Faults that are not answered yet, and why: for whoever watches over their waiting. Changes nothing.

use super::message::{Call, Fault};
use super::space::AddressSpace;

/// What stands between a fault and its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitsFor {
    /// It is a first touch, and memory is at its limit.
    Memory,
    /// The window in which this address space was forked is open in the parent.
    Parent,
    /// A call that changes mappings was granted and has not returned.
    Call(Call),
    /// Mappings change: not all events were read yet, or no quiet moment came since.
    Quiet,
    /// Its turn.
    Turn,
}

impl AddressSpace {
    /// Whether a fault was read that is not answered.
    pub fn has_waiting(&self) -> bool {
        !self.ready.is_empty() || !self.held.is_empty()
    }

    /// The faults that were read and are not answered.
    pub fn waiting(&self) -> impl Iterator<Item = (Fault, WaitsFor)> + '_ {
        let ready = match (&self.window, self.granted) {
            (Some(_), _) if self.parent_open => WaitsFor::Parent,
            (Some(_), Some((_, call))) => WaitsFor::Call(call),
            (Some(_), None) => WaitsFor::Quiet,
            (None, _) => WaitsFor::Turn,
        };
        let held = self.held.iter().map(|&fault| (fault, WaitsFor::Memory));
        self.ready.iter().map(move |&fault| (fault, ready)).chain(held)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Answer, ChildKey, Command, Effect, Input, Stop, Ticket};
    use super::*;

    fn fault(tid: u32) -> Fault {
        Fault { addr: 0x7000, write: false, tid, stamp: u64::from(tid) }
    }

    fn reasons(space: &AddressSpace) -> Vec<(u32, WaitsFor)> {
        space.waiting().map(|(fault, why)| (fault.tid, why)).collect()
    }

    #[test]
    fn a_page_does_not_wait_for_a_call_that_its_reader_would_have_to_execute() {
        let mut space = AddressSpace::new(true);
        space.set_overdue(Some(1));
        space.input(Input::Throttle(true));
        let call = Call::Madvise { start: 0x9000, len: 4096, advice: 102 };
        space.input(Input::Asked(Ticket(1), call));
        space.input(Input::Fault(fault(2)));
        space.input(Input::Fault(fault(1)));
        assert!(matches!(space.next_command(), Some(Command::Zero { .. })));
        space.answer(Answer::Installed(1, Stop::Complete));
        assert!(space.next_command().is_none());
        assert_eq!(reasons(&space), [(2, WaitsFor::Memory)]);
        space.set_overdue(None);
        assert!(matches!(space.next_command(), Some(Command::Execute(Ticket(1), _))));
    }

    #[test]
    fn each_wait_has_its_reason_until_it_is_answered() {
        let mut space = AddressSpace::new(true);
        space.input(Input::Fault(fault(1)));
        assert_eq!(reasons(&space), [(1, WaitsFor::Turn)]);
        space.input(Input::Throttle(true));
        assert!(space.next_command().is_none() && space.has_waiting());
        assert_eq!(reasons(&space), [(1, WaitsFor::Memory)]);

        let call = Call::Madvise { start: 0x9000, len: 0x1000, advice: 102 };
        space.input(Input::Asked(Ticket(1), call));
        space.input(Input::Fault(fault(2)));
        assert!(space.next_command().is_some());
        space.answer(Answer::Done);
        assert_eq!(reasons(&space), [(2, WaitsFor::Call(call)), (1, WaitsFor::Memory)]);
        space.input(Input::Fork(ChildKey(5)));
        let child = std::iter::from_fn(|| space.effect()).find_map(|effect| match effect {
            Effect::Forked(_, child) => Some(child),
            _ => None,
        });
        let mut child = child.expect("a child");
        child.input(Input::Fault(fault(3)));
        assert_eq!(reasons(&child), [(3, WaitsFor::Parent)]);

        space.input(Input::Returned(Ticket(1), 0));
        assert_eq!(reasons(&space)[0], (2, WaitsFor::Quiet));
        space.input(Input::Throttle(false));
        space.input(Input::Drained);
        while space.next_command().is_some() {
            let answer =
                if space.window_open() { Answer::Done } else { Answer::Installed(1, Stop::Complete) };
            space.answer(answer);
        }
        assert!(!space.has_waiting() && reasons(&space).is_empty());
    }
}
