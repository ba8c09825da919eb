//! FORK: the child's state as it follows from the parent's at that place of the window.

use std::ops::Range;

use super::message::{ChildKey, Effect};
use super::space::{AddressSpace, PAGE};
use super::table::Entry;
use super::window::Window;

impl AddressSpace {
    pub(super) fn fork(&mut self, key: ChildKey) {
        self.counters.forks += 1;
        self.open().children.push(key);
        if self.rules.fork_in_place {
            self.cloned(key);
        }
    }

    /// The parent's window has closed. What was unmapped in it, and read only after FORK, may have gone before: what is
    /// not mapped here is found out, but what nobody tells is whether an mremap has grown over it.
    pub(super) fn parent_closed(&mut self, unmapped: Vec<Range<u64>>) {
        self.parent_open = false;
        if self.gated && !self.born_untold {
            // No call was made here yet: what is mapped was inherited.
            return;
        }
        for range in unmapped {
            let moved = self.window.as_ref().and_then(|window| window.ungranted.overlaps(&range).next());
            if let Some(part) = moved {
                let why = format!(
                    "an mremap after a fork moves {:#x}, which the parent unmapped about then, and no gate orders them",
                    part.start
                );
                return self.stop(part, why);
            }
            self.table.alter(range.clone(), doubt);
            let window = self.open();
            window.unmapped.insert(range.clone());
            if !window.children.is_empty() {
                window.gone.insert(range.clone());
            }
            window.arrived.insert(range);
        }
    }

    /// The child's state, as it follows from the window so far.
    pub(super) fn cloned(&mut self, key: ChildKey) {
        let window = self.window.as_ref().cloned().unwrap_or_default();
        let mut table = self.table.clone();
        let beside = self.granted.is_some() || !window.arrived.is_empty() || !self.gated;
        let mut arrived = window.arrived;
        for range in window.unmapped.iter() {
            // Delivered before the fork, but perhaps made after it: the child's own pages tell.
            arrived.insert(range.clone());
            if !self.rules.fork_marked {
                for addr in table.addrs(range.clone()) {
                    table.remove(addr);
                }
            }
            table.alter(range, |entry| entry.arrived = true);
        }
        // A fork beside an mremap: nobody knows which of the two the child has seen. The pages that the call touches
        // are of interest only to a program that races; but where one is resident, it is right and the slot is not.
        if beside {
            table.alter(0..!(PAGE - 1), |entry| entry.inherited = true);
        }
        let mut unmapped = window.unmapped;
        if self.rules.fork_beside_move {
            // Nor does anybody know whether the child has since grown a mapping over where the call would have put them.
            for range in window.beside.iter() {
                unmapped.insert_pages(&table.addrs(range.clone()));
                table.alter(range, doubt);
            }
        }
        for range in self.wiped.iter().filter(|_| self.rules.wipe) {
            for addr in table.addrs(range) {
                table.remove(addr);
            }
        }
        let slots: Vec<_> = table.all().map(|(_, entry)| entry.slot).collect();
        let child = Self {
            table,
            registered: self.registered.clone(),
            inherited: self.registered.clone(),
            owed: self.owed.clone(),
            wiped: self.wiped.clone(),
            window: Some(Window { unmapped, arrived, ..Window::default() }),
            has_agent: false,
            born_untold: !self.growth_is_told(),
            parent_open: true,
            gated: self.gated,
            rules: self.rules,
            ..Self::default()
        };
        if !slots.is_empty() {
            self.effects.push_back(Effect::Dup(slots));
        }
        self.effects.push_back(Effect::Forked(key, Box::new(child)));
    }
}

/// Marks what may be gone: the close asks whether anything is mapped there.
fn doubt(entry: &mut Entry) {
    (entry.dead, entry.arrived) = (true, true);
}
