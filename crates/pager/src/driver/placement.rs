//! Which CPU a server runs on: that of the thread whose fault it answers, since a wake-up across CPUs costs more than
//! the whole fault. And which CPU the thread wakes up on: the same. The kernel would send it to an idle one, and the
//! next fault, too, would be one across CPUs. And the agent's, which the server waits for, and whose changes to the page tables
//! each other CPU that runs the program would have to be told of. Several threads that do little but fault are gathered there, too.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use vswap_sys::process::{self, Anchor, ThreadFile};

use super::gathering::{FAULTS, Gathering};

const CACHED_THREADS: usize = 64;

/// Where a server runs, and for whom.
#[derive(Default)]
pub struct Placement {
    faults: u32,
    /// The thread followed last.
    last: Option<u32>,
    /// The CPU the server is bound to, if that thread is there, or comes there when it is answered.
    beside: Option<u32>,
    /// Nothing of the program runs on that CPU before the server sleeps.
    goes_first: bool,
    gathering: Gathering,
    /// How long the server has waited for the agent, in nanoseconds.
    awaited: u64,
    threads: HashMap<u32, ThreadFile>,
    /// The agent's thread, and the CPU that it is bound to.
    agent: Option<(u32, u32)>,
}

impl Placement {
    /// Has the calling thread go before the programs on its CPU; false if that is not allowed.
    pub fn go_first(&mut self) -> bool {
        self.goes_first = process::set_realtime_self().is_ok();
        self.goes_first
    }

    /// A thread of process `pid` has faulted, at this time: the calling thread moves to its CPU, if it knows of another one, or
    /// has it come here with the answer. The CPU is looked up now and then.
    pub fn follow(&mut self, pid: u32, tid: u32, now: u64) {
        self.faults = self.faults.wrapping_add(1);
        let look = self.faults.is_multiple_of(FAULTS);
        if self.last != Some(tid) {
            self.gathering.changed();
        } else if !look {
            return;
        }
        self.last = Some(tid);
        if self.gathering.is_on() && !look && self.threads.contains_key(&tid) {
            return;
        }
        let cpu = self.cpu_of(pid, tid).ok();
        if cpu.is_none() {
            self.threads.remove(&tid);
        }
        if look && self.goes_first {
            let comes = !self.gathering.is_on() || self.beside == cpu;
            self.gathering.decide(now, process::own_cpu_ns() + self.awaited, comes);
        }
        let stays = self.gathering.is_on() && self.beside.is_some() && cpu.is_some();
        if self.beside != cpu && !stays {
            // If it fails, the thread is served from where the server is.
            self.beside = cpu.filter(|&cpu| process::set_affinity_self(cpu).is_ok());
        }
    }

    /// Has the agent of process `pid`, for which the server is about to wait, run where it is.
    pub fn bring(&mut self, pid: u32, agent: u32) {
        let Some(cpu) = self.beside.filter(|_| agent != 0) else { return };
        if self.agent != Some((agent, cpu)) && self.cpu_of(pid, agent).is_ok() {
            // If it fails, the agent is where it is.
            let _ = process::set_affinity(agent, cpu);
            self.agent = Some((agent, cpu));
        }
    }

    /// The server has waited for the agent.
    pub fn awaited(&mut self, ns: u64) {
        self.awaited += ns;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Faults of this many threads by turns, 10 µs apart.
    fn faults(placement: &mut Placement, tids: &[u32], count: u32) {
        let pid = std::process::id();
        let first = placement.faults;
        for n in first..first + count {
            placement.follow(pid, tids[n as usize % tids.len()], u64::from(n) * 10_000);
        }
    }

    /// A thread of ours that runs on this CPU, then sleeps.
    fn sleeper(cpu: u32) -> (u32, std::sync::mpsc::Sender<()>) {
        let ((say, said), (wake, woken)) = (channel(), channel::<()>());
        std::thread::spawn(move || {
            process::set_affinity_self(cpu).unwrap();
            // What it keeps is all of them: it may be brought elsewhere.
            process::clear_affinity().unwrap();
            let own = std::fs::read_link("/proc/thread-self").unwrap();
            say.send(own.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap();
            let _ = woken.recv();
        });
        let tid = said.recv().unwrap();
        // Until it sleeps the kernel may send it elsewhere.
        while matches!(process::doing(std::process::id(), tid), Ok(process::Doing::Running)) {
            std::thread::yield_now();
        }
        (tid, wake)
    }

    #[test]
    fn a_server_follows_one_thread_and_gathers_several() {
        let [first, second, ..] = process::allowed_cpus()[..] else { return };
        let (one, _one) = sleeper(first);
        let (other, _other) = sleeper(second);
        let mut placement = Placement { goes_first: true, ..Placement::default() };
        faults(&mut placement, &[one], 1);
        let beside = placement.beside.expect("a CPU");
        // Where they have been last; nothing moves them.
        let cpus = [one, other].map(|tid| placement.cpu_of(std::process::id(), tid).unwrap());
        assert_eq!(beside, cpus[0]);
        faults(&mut placement, &[other], 1);
        assert_eq!(placement.beside, Some(cpus[1]));
        faults(&mut placement, &[one, other], FAULTS);
        assert!(placement.gathering.is_on());
        let beside = placement.beside.unwrap();
        for tid in [one, other, one] {
            placement.follow(std::process::id(), tid, 0);
            assert_eq!(placement.beside, Some(beside), "it is not followed");
            assert!(placement.anchor(tid).is_some(), "it comes");
        }
        placement.bring(std::process::id(), other);
        assert!(placement.anchor(one).is_some() && placement.anchor(other).is_none());
        assert!(Anchor::hold(other, beside).is_none(), "it runs nowhere else");
        process::clear_affinity().unwrap();
    }
}
