//! Which CPU a server runs on: that of the thread whose fault it answers, since a wake-up across CPUs costs more than
//! the whole fault.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use vswap_sys::process::{self, ThreadFile};

/// How often the CPU of a faulting thread is looked up, in faults.
const LOOK_EVERY: u32 = 64;
const CACHED_THREADS: usize = 64;

/// Where a server runs, and for whom.
#[derive(Default)]
pub struct Placement {
    faults: u32,
    /// The thread served last, and its CPU.
    placed: Option<(u32, u32)>,
    threads: HashMap<u32, ThreadFile>,
}

impl Placement {
    /// Moves the calling thread to the CPU of the thread that has faulted, if it knows of another one.
    pub fn follow(&mut self, tid: u32) {
        self.faults = self.faults.wrapping_add(1);
        let (last, here) = self.placed.unzip();
        if last == Some(tid) && !self.faults.is_multiple_of(LOOK_EVERY) {
            return;
        }
        let Ok(cpu) = self.cpu_of(tid) else {
            self.threads.remove(&tid);
            return;
        };
        if here != Some(cpu) {
            // If it fails, the thread is served from where it is.
            let _ = process::set_affinity_self(cpu);
        }
        self.placed = Some((tid, cpu));
    }

    fn cpu_of(&mut self, tid: u32) -> std::io::Result<u32> {
        if self.threads.len() >= CACHED_THREADS {
            self.threads.clear();
        }
        match self.threads.entry(tid) {
            Entry::Occupied(entry) => entry.get().cpu(),
            Entry::Vacant(entry) => entry.insert(ThreadFile::open(tid)?).cpu(),
        }
    }
}
