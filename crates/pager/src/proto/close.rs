//! The close of a window: at a quiet moment marked slots die, and a probe decides about arrivals.

use super::message::{Answer, Effect};
use super::space::{AddressSpace, Job, PAGE};
use super::table::Entry;
use super::window::Window;

impl AddressSpace {
    pub(super) fn quieted(&mut self, answer: Answer) {
        if answer != Answer::Done {
            self.open();
            return;
        }
        let Some(window) = &self.window else { return };
        if let Some(addr) = self.two_owners(window) {
            return self.stop_at_two_owners(addr);
        }
        let (unmapped, arrived) = (window.unmapped.clone(), window.arrived.clone());
        let left: Vec<_> = window.left.iter().flat_map(|range| window.unmapped.overlaps(&range)).collect();
        let (mut doubts, mut dead) = (Vec::new(), Vec::new());
        for range in unmapped.iter() {
            for (addr, entry) in self.table.iter(range) {
                match entry {
                    Entry { dead: true, arrived: true, .. } => doubts.push(addr),
                    Entry { dead: true, .. } => dead.push(addr),
                    _ => {}
                }
            }
        }
        for addr in dead {
            self.drop_slots(addr..addr + PAGE);
        }
        for range in unmapped.iter() {
            for gone in arrived.gaps(&range) {
                self.owed.remove(gone.clone());
                self.wiped.remove(gone);
            }
        }
        if !self.rules.close_probes_arrivals {
            doubts.clear();
        }
        doubts.extend(left.into_iter().flat_map(|range| range.step_by(PAGE as usize)));
        self.counters.probed += doubts.len() as u64;
        self.settle(doubts);
    }

    /// A page that an mremap took from where it was, and that is unmapped there twice, or once and mapped again, had two
    /// owners in this window. Nobody knows whose the slot was that went along with the first one, nor whose REMOVE it was.
    fn two_owners(&self, window: &Window) -> Option<u64> {
        window.left.iter().find_map(|range| window.twice.overlaps(&range).next()).map(|range| range.start)
    }

    fn stop_at_two_owners(&mut self, addr: u64) {
        let why = format!(
            "what an mremap moved from {addr:#x} was another's there before or after, and no gate orders them"
        );
        self.stop(addr..addr + PAGE, why);
    }

    pub(super) fn decided(&mut self, mut doubts: Vec<u64>, answer: Answer) {
        let Some(addr) = doubts.pop() else { return };
        match answer {
            Answer::Done if self.window.as_ref().is_some_and(|window| window.left.contains(addr)) => {
                return self.stop_at_two_owners(addr);
            }
            Answer::Done if !self.growth_is_told() => {
                let why = format!(
                    "what was unmapped at {addr:#x}, or moved there about the time of a fork, is mapped: it has come back, \
                     or an mremap has grown over it, and no gate orders them"
                );
                return self.stop(addr..addr + PAGE, why);
            }
            Answer::Done => {
                self.table.alter(addr..addr + PAGE, |entry| entry.dead = false);
                self.registered.insert(addr..addr + PAGE);
            }
            Answer::Refused => {
                self.drop_slots(addr..addr + PAGE);
                self.owed.remove(addr..addr + PAGE);
                self.wiped.remove(addr..addr + PAGE);
            }
            _ => {
                self.open();
                return;
            }
        }
        self.settle(doubts);
    }

    /// Closes the window unless arrivals are in doubt.
    pub(super) fn settle(&mut self, doubts: Vec<u64>) {
        if !doubts.is_empty() {
            self.job = Job::Deciding(doubts);
            return;
        }
        if !self.rules.fork_in_place {
            let children = self.window.as_ref().map_or(Vec::new(), |window| window.children.clone());
            for key in children {
                self.cloned(key);
            }
        }
        let Some(window) = self.window.take() else { return };
        for range in window.arrived.iter() {
            self.table.alter(range, |entry| entry.arrived = false);
        }
        self.counters.windows += 1;
        if !window.children.is_empty() {
            let unmapped = window.gone.iter().collect();
            self.effects.push_back(Effect::Closed(window.children, unmapped));
        }
    }
}
