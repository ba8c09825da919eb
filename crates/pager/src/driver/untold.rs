//! Calls that change mappings and were let go at the gate, because their process had no agent to execute them: nobody tells
//! when they take effect.
//!
//! So a process that runs gets its agent only when none of them is under way: from then on pages leave, and each
//! call is waited for. A call is over when its caller was seen elsewhere: asleep in another one, at the gate again, or gone.
//! Time proves nothing.
//!
//! The lock is taken below `tenants`, and is a leaf. Who lets a call go notes that before he looks for the agent; who lets an
//! agent in holds `tenants` from this question on.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::forks::seen_outside;

/// Above so many, those that are over are looked for.
const MANY: usize = 256;

struct Caller {
    pid: u32,
    /// The system call.
    nr: u32,
}

impl Caller {
    fn is_over(&self, tid: u32) -> bool {
        seen_outside(tid, tid, self.nr)
    }
}

/// The calls under way, by thread.
#[derive(Default)]
pub struct Untold(Mutex<HashMap<u32, Caller>>);

impl Untold {
    /// Thread `tid` of process `pid` may be let go with this call.
    pub fn begin(&self, tid: u32, pid: u32, nr: u32) {
        let mut callers = self.0.lock();
        if callers.len() >= MANY {
            callers.retain(|&tid, caller| !caller.is_over(tid));
        }
        callers.insert(tid, Caller { pid, nr });
    }

    /// It was not, or is at the gate again.
    pub fn over(&self, tid: u32) {
        self.0.lock().remove(&tid);
    }

    /// Whether a call of this process is under way, as far as one can tell.
    pub fn under_way(&self, pid: u32) -> bool {
        let mut callers = self.0.lock();
        callers.retain(|&tid, caller| caller.pid != pid || !caller.is_over(tid));
        callers.values().any(|caller| caller.pid == pid)
    }
}

#[cfg(test)]
mod tests {
    use vswap_sys::process::{Doing, doing};

    use super::*;

    #[test]
    fn a_call_is_under_way_until_its_caller_is_elsewhere_or_gone() {
        let untold = Untold::default();
        let own = std::process::id();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(own_tid()).unwrap();
            let _ = ended.recv();
        });
        let tid = told.recv().unwrap();
        // It sleeps in futex: for ever in that one, outside of another.
        let asleep = || doing(own, tid).is_ok_and(|doing| doing == Doing::Sleeping(libc::SYS_futex));
        while !asleep() {
            std::thread::yield_now();
        }
        untold.begin(tid, own, libc::SYS_futex as u32);
        assert!(untold.under_way(own) && !untold.under_way(own + 1));
        untold.over(tid);
        assert!(!untold.under_way(own));
        untold.begin(tid, own, libc::SYS_mremap as u32);
        assert!(!untold.under_way(own));
        untold.begin(tid, own, libc::SYS_futex as u32);
        drop(end);
        sleeper.join().unwrap();
        assert!(!untold.under_way(own));
    }

    fn own_tid() -> u32 {
        std::fs::read_link("/proc/thread-self")
            .unwrap()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    }
}
