//! Faults: a page with a slot is copied back with its neighbours, a page without one is a first touch.

use std::ops::Range;

use vswap_core::SlotId;

use super::history::What;
use super::message::{Answer, Command, Effect, Fault, Stop};
use super::space::{AddressSpace, Job, PAGE};

impl AddressSpace {
    /// Takes a fault in. A thread that a signal or a tracer has interrupted in one tells it again, but waits once.
    pub(super) fn fault(&mut self, fault: Fault) {
        let again = |known: &&mut Fault| known.tid == fault.tid && (known.addr ^ fault.addr) < PAGE;
        match self.ready.iter_mut().chain(&mut self.held).find(again) {
            Some(known) => known.write |= fault.write,
            None => self.ready.push_back(fault),
        }
    }

    /// The job that serves a fault; `None` if the fault has to wait for memory.
    pub(super) fn serve(&mut self, fault: Fault) -> Option<Job> {
        let addr = fault.addr & !(PAGE - 1);
        if let Some(first) = self.table.get(addr) {
            let window = if self.throttled { 1 } else { self.streams.window(fault.tid, addr / PAGE) };
            let mut slots = vec![first.slot];
            while (slots.len() as u64) < window
                && let Some(next) = self.table.get(addr + slots.len() as u64 * PAGE)
            {
                slots.push(next.slot);
            }
            let pages = slots.len() as u64;
            return Some(Job::Serving { fault, slots, pages });
        }
        if self.throttled && self.overdue != Some(fault.tid) {
            self.held.push_back(fault);
            return None;
        }
        let end = self.registered.find(addr).map_or(addr + PAGE, |range| range.end);
        let window = self.streams.window(fault.tid, addr / PAGE).min((end - addr) / PAGE);
        let mut pages = 1;
        while pages < window && self.table.get(addr + pages * PAGE).is_none() {
            pages += 1;
        }
        Some(Job::Serving { fault, slots: Vec::new(), pages })
    }

    /// The command of a serving job.
    pub(super) fn install(&self, fault: Fault, slots: &[SlotId], pages: u64) -> Command {
        let addr = fault.addr & !(PAGE - 1);
        match slots {
            [] => Command::Zero { addr, pages: alone(fault, pages), fault: Some(fault) },
            slots => Command::Copy { addr, slots: slots.to_vec(), fault: Some(fault) },
        }
    }

    /// What came of it.
    pub(super) fn served(&mut self, fault: Fault, slots: usize, pages: u64, answer: Answer) {
        let Answer::Installed(done, stop) = answer else {
            return self.stop_at_answer(&answer, "an install");
        };
        let addr = fault.addr & !(PAGE - 1);
        let (wanted, pages) = (pages, if slots == 0 { alone(fault, pages) } else { pages });
        if done > 0 {
            let range = addr..addr + done * PAGE;
            self.history.note(if slots > 0 { What::In } else { What::Zeroed }, &range);
            self.owed.remove(range.clone());
            if slots > 0 {
                self.drop_slots(range);
                self.warm.set(addr);
            }
            self.streams.ended_at(fault.tid, addr / PAGE + done);
            self.effects.push_back(Effect::Served(fault));
        }
        let next = addr + done * PAGE;
        match stop {
            Stop::Complete if wanted > pages => {
                self.job =
                    Job::Around { fault: Fault { addr: next, write: false, ..fault }, pages: wanted - pages };
            }
            Stop::Complete | Stop::Short => {}
            Stop::Changing => {
                self.open();
                if done == 0 {
                    self.ready.push_back(fault);
                }
            }
            Stop::Exists if self.table.get(next).is_some_and(|entry| entry.inherited) => {
                self.counters.stale += self.drop_slots(next..next + PAGE) as u64;
                if done == 0 {
                    self.wake(fault);
                }
            }
            // The command was guarded, so no event is unread: the model itself is wrong.
            Stop::Exists if slots > 0 => self.stop_at_present(next),
            Stop::Exists | Stop::Missing if done > 0 => {}
            Stop::Missing if pages > 1 => {
                // The run crossed the end of a mapping: once more with the page alone.
                self.streams.ended_at(fault.tid, 0);
                self.ready.push_front(fault);
            }
            Stop::Exists => self.wake(fault),
            Stop::Missing => {
                // Nothing registered is there and no event is unread: what the table holds for it is stale.
                self.counters.stale += self.drop_slots(addr..addr + PAGE) as u64;
                self.wake(fault);
            }
        }
    }

    /// What came of zeros around a page that was written to. Nobody waits for them.
    pub(super) fn served_around(&mut self, fault: Fault, answer: Answer) {
        let Answer::Installed(done, stop) = answer else {
            return self.stop_at_answer(&answer, "an install");
        };
        let range = fault.addr..fault.addr + done * PAGE;
        self.history.note(What::Zeroed, &range);
        self.owed.remove(range);
        self.streams.ended_at(fault.tid, fault.addr / PAGE + done);
        if stop == Stop::Changing {
            self.open();
        }
    }

    /// Guard pages were made here: a fault that was read before is out of date, and to answer it would replace them.
    pub(super) fn guarded(&mut self, range: Range<u64>) {
        self.history.note(What::Guarded, &range);
        self.drop_slots(range.clone());
        let out_of_date = |fault: &Fault| range.contains(&fault.addr);
        for faults in [&mut self.ready, &mut self.held] {
            let (stale, rest): (Vec<_>, _) = core::mem::take(faults).into_iter().partition(out_of_date);
            *faults = rest.into();
            for fault in stale {
                self.effects.push_back(Effect::Served(fault));
                self.effects.push_back(Effect::Wake(fault.addr & !(PAGE - 1)));
            }
        }
    }

    /// Lets a thread look again at a page that needs nothing from us.
    fn wake(&mut self, fault: Fault) {
        self.effects.push_back(Effect::Served(fault));
        self.effects.push_back(Effect::Wake(fault.addr & !(PAGE - 1)));
    }
}

/// How many of `pages` zero pages are installed with the faulting one: where it was a write the page is copied, and a
/// copy replaces guard markers, of which nobody may have told us. The rest follows as zero pages, which do not.
fn alone(fault: Fault, pages: u64) -> u64 {
    if fault.write { 1 } else { pages }
}
