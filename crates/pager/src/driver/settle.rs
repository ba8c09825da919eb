//! Proof that the madvise calls behind REMOVE events have returned.
//!
//! REMOVE comes before its zap, and nothing tells when the zap is done; until then the pages must not leave. A page
//! that MADV_FREE was called for and that was written again would stay resident for ever. So each thread of the
//! program is watched until it was seen outside madvise once since the event was read: it waited for a fault (a
//! thread that is inside madvise does not), it slept in another system call, or it is gone. A thread that was made
//! later cannot have been in the call.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use vswap_sys::process::{self, Doing};

/// How often the threads are looked at.
const EVERY: Duration = Duration::from_millis(2);

/// The threads that may still be inside an madvise.
#[derive(Default)]
pub struct Settler {
    inside: HashSet<u32>,
    looked: Option<Instant>,
}

impl Settler {
    /// Begins to watch the threads of `pid`, but for the agent.
    pub fn begin(&mut self, pid: u32, agent: u32) -> bool {
        let mut threads = Vec::new();
        if process::threads(pid, &mut threads).is_err() || threads.is_empty() {
            return false;
        }
        self.inside = threads.into_iter().filter(|&tid| tid != agent).collect();
        self.looked = Some(Instant::now());
        true
    }

    /// Whether threads are being watched.
    pub fn watches(&self) -> bool {
        self.looked.is_some()
    }

    /// A fault of this thread was read.
    pub fn faulted(&mut self, tid: u32) {
        self.inside.remove(&tid);
    }

    /// Looks at the threads; true once all of them were seen outside.
    pub fn settled(&mut self, pid: u32) -> bool {
        let Some(looked) = self.looked else { return false };
        if !self.inside.is_empty() {
            if looked.elapsed() < EVERY {
                return false;
            }
            self.looked = Some(Instant::now());
            self.inside.retain(|&tid| may_be_inside(pid, tid));
        }
        if self.inside.is_empty() {
            self.looked = None;
        }
        self.inside.is_empty()
    }
}

fn may_be_inside(pid: u32, tid: u32) -> bool {
    match process::doing(pid, tid) {
        Ok(doing) => matches!(doing, Doing::Running | Doing::Sleeping(libc::SYS_madvise)),
        Err(error) => error.raw_os_error() != Some(libc::ENOENT) && error.raw_os_error() != Some(libc::ESRCH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_thread_is_outside_and_a_running_one_only_after_its_fault() {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(own_tid()).unwrap();
            let _ = stopped.recv();
        });
        let tid = told.recv().unwrap();
        let pid = std::process::id();
        let deadline = Instant::now() + Duration::from_secs(10);
        while may_be_inside(pid, tid) {
            assert!(Instant::now() < deadline, "a thread that sleeps in a futex is not in madvise");
            std::thread::yield_now();
        }
        let (tell, told) = std::sync::mpsc::channel();
        let spin = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let spins = spin.clone();
        let spinner = std::thread::spawn(move || {
            tell.send(own_tid()).unwrap();
            while spins.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let running = told.recv().unwrap();
        while !may_be_inside(pid, running) {
            assert!(Instant::now() < deadline, "who runs may be anywhere");
            std::thread::yield_now();
        }
        let mut settler = Settler { inside: HashSet::from([running]), looked: Some(Instant::now()) };
        assert!(!settler.settled(pid));
        settler.faulted(running);
        assert!(settler.settled(pid) && !settler.watches());
        spin.store(false, std::sync::atomic::Ordering::Relaxed);
        spinner.join().unwrap();
        drop(stop);
        sleeper.join().unwrap();
    }

    fn own_tid() -> u32 {
        let link = std::fs::read_link("/proc/thread-self").unwrap();
        link.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }
}
