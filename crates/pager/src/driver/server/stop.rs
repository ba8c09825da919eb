//! Corruption and contradictions end the tree: who, where, which slot, and what happened there last.

use std::sync::atomic::Ordering::Relaxed;

use log::error;
use vswap_core::SlotId;

use super::{PAGE, Server};

impl Server {
    /// The promise of this process's memory cannot be kept.
    pub(super) fn stop(&self, why: &str) {
        error!(target: "stop", "process {}: {why}", self.pid());
        self.shared.meters.fail_stops.fetch_add(1, Relaxed);
        self.shared.fail(format!("process {}: {why}", self.pid()));
    }

    /// Stops if the space has found damage at one of these slots, which were for the pages at these addresses. What is found
    /// elsewhere is told by whoever has come upon it.
    pub(super) fn notice_damage(&self, slots: &[SlotId], addrs: &[u64]) {
        let Some(damage) = self.shared.space.damage() else { return };
        let Some(index) = slots.iter().position(|slot| *slot == damage.slot()) else { return };
        match addrs.get(index).copied().or_else(|| self.space.place_of(damage.slot())) {
            Some(addr) => {
                let history = self.space.history_of(&(addr..addr + PAGE));
                self.stop(&format!("the page at {addr:#x}: {damage}{history}"));
            }
            None => self.stop(&damage.to_string()),
        }
    }
}
