//! Which CPU a server runs on: that of the thread whose fault it answers, since a wake-up across CPUs costs more than
//! the whole fault. And which CPU the thread wakes up on: the same. The kernel would send it to an idle one, and the
//! next fault, too, would be one across CPUs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use vswap_sys::process::{self, Anchor, ThreadFile};

/// How often the CPU of a faulting thread is looked up, in faults.
const LOOK_EVERY: u32 = 64;
const CACHED_THREADS: usize = 64;

/// Where a server runs, and for whom.
#[derive(Default)]
pub struct Placement {
    faults: u32,
    /// The thread followed last.
    last: Option<u32>,
    /// Its CPU, if the server is bound to the same.
    beside: Option<u32>,
    /// Nothing of the program runs on that CPU before the server sleeps.
    goes_first: bool,
    threads: HashMap<u32, ThreadFile>,
}

impl Placement {
    /// Has the calling thread go before the programs on its CPU; false if that is not allowed.
    pub fn go_first(&mut self) -> bool {
        self.goes_first = process::set_realtime_self().is_ok();
        self.goes_first
    }

    /// Moves the calling thread to the CPU of the thread of process `pid` that has faulted, if it knows of another one.
    pub fn follow(&mut self, pid: u32, tid: u32) {
        self.faults = self.faults.wrapping_add(1);
        if self.last == Some(tid) && !self.faults.is_multiple_of(LOOK_EVERY) {
            return;
        }
        self.last = Some(tid);
        let cpu = self.cpu_of(pid, tid).ok();
        if cpu.is_none() {
            self.threads.remove(&tid);
        }
        if self.beside != cpu {
            // If it fails, the thread is served from where the server is.
            self.beside = cpu.filter(|&cpu| process::set_affinity_self(cpu).is_ok());
        }
    }

    /// Keeps a thread that waits for an answer from being sent to another CPU when it comes. Only the one that was
    /// followed last: of that it is known that it belongs to the process (in a PID namespace of its own the kernel calls it
    /// by another number). And only with a real-time priority: the thread must not run before it has its CPUs back.
    pub fn anchor(&self, tid: u32) -> Option<Anchor> {
        let cpu = self.beside.filter(|_| self.goes_first && self.last == Some(tid))?;
        Anchor::hold(tid, cpu)
    }

    fn cpu_of(&mut self, pid: u32, tid: u32) -> std::io::Result<u32> {
        if self.threads.len() >= CACHED_THREADS {
            self.threads.clear();
        }
        match self.threads.entry(tid) {
            Entry::Occupied(entry) => entry.get().cpu(),
            Entry::Vacant(entry) => entry.insert(ThreadFile::open(pid, tid)?).cpu(),
        }
    }
}
