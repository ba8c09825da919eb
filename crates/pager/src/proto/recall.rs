//! Bringing pages back unasked. Where no event tells of forks, a child has none of its parent's registrations and reads zeros
//! for what is away; so the driver stops whoever forks, has everything come back, and lets nothing leave meanwhile.

use vswap_core::SlotId;

use super::history::What;
use super::message::{Answer, Stop};
use super::space::{AddressSpace, Job, PAGE};
use super::streams::MAX_WINDOW;

impl AddressSpace {
    /// The next run of pages that should come back.
    pub(super) fn recall(&mut self) -> Option<Job> {
        let most = self.recall.min(MAX_WINDOW);
        let (addr, slots) = {
            let mut all = self.table.all().take(most as usize);
            let (addr, first) = all.next()?;
            let mut slots = vec![first.slot];
            slots.extend(
                all.zip(1..).take_while(|((at, _), n)| *at == addr + n * PAGE).map(|((_, e), _)| e.slot),
            );
            (addr, slots)
        };
        self.recall -= slots.len() as u64;
        Some(Job::Recalling { addr, slots })
    }

    /// What came of it.
    pub(super) fn recalled(&mut self, addr: u64, slots: &[SlotId], answer: Answer) {
        let Answer::Installed(done, stop) = answer else {
            return self.stop_at_answer(&answer, "an install");
        };
        let next = addr + done * PAGE;
        self.history.note(What::In, &(addr..next));
        self.counters.recalled += done;
        self.owed.remove(addr..next);
        self.drop_slots(addr..next);
        match stop {
            Stop::Complete | Stop::Short => {}
            Stop::Changing => {
                self.open();
            }
            // The run crossed the end of a mapping: once more with its first page alone.
            Stop::Missing if done == 0 && slots.len() > 1 => {
                self.job = Job::Recalling { addr, slots: slots[..1].to_vec() };
            }
            Stop::Missing if done > 0 => {}
            Stop::Exists if !self.table.get(next).is_some_and(|entry| entry.inherited) => {
                self.stop_at_present(next);
            }
            // As for a fault: what the table holds for it is stale.
            Stop::Exists | Stop::Missing => {
                self.counters.stale += self.drop_slots(next..next + PAGE) as u64;
            }
        }
    }
}
