//! Forks of which no event tells: who is inside one, and when it is over.
//!
//! Reporting forks takes CAP_SYS_PTRACE in the machine's first user namespace. Without it the gate stops them instead. The caller
//! goes on when everything of its address space is resident, and nothing of it is evicted until the fork is over: until
//! the caller was seen outside of it, in another system call that it sleeps in, or at the gate (where the agent's hook
//! goes right after fork(3)), or it is gone. Time proves nothing, and neither does a new child, which may have been adopted.
//!
//! The lock is a leaf.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vswap_sys::process::{self, Doing};
use vswap_sys::seccomp::{Gate, Notification, Reply};

use super::shared::Shared;
use super::tenant::Tenant;

/// How often a caller is looked at.
const EVERY: Duration = Duration::from_millis(1);
/// Above so many, those that are over are looked for.
const MANY: usize = 256;

/// Whose memory a fork copies.
pub enum Memory {
    /// That of these address spaces, all of which go by the caller's process; one of them may be over already.
    Of(Vec<u64>),
    /// Of any, perhaps of one that has not greeted yet, but not of these.
    NotOf(Vec<u64>),
}

struct Caller {
    pid: u32,
    /// The system call it was stopped at.
    nr: u32,
    memory: Memory,
    looked: Instant,
}

/// The forks under way.
#[derive(Default)]
pub struct Forks {
    /// By thread.
    callers: Mutex<HashMap<u32, Caller>>,
    any: AtomicBool,
}

impl Forks {
    /// This thread is about to fork. To be called before the address spaces are looked at.
    pub fn begin(&self, tid: u32, pid: u32, nr: u32) {
        let mut callers = self.callers.lock();
        if callers.len() >= MANY {
            callers.retain(|&tid, caller| !seen_outside(caller.pid, tid, caller.nr));
        }
        callers.insert(tid, Caller { pid, nr, memory: Memory::NotOf(Vec::new()), looked: Instant::now() });
        self.any.store(true, Relaxed);
    }

    /// What it copies, when that is known.
    pub fn copies(&self, tid: u32, memory: Memory) {
        if let Some(caller) = self.callers.lock().get_mut(&tid) {
            caller.memory = memory;
        }
    }

    /// This thread was seen outside.
    pub fn over(&self, tid: u32) {
        if self.any.load(Relaxed) {
            let mut callers = self.callers.lock();
            callers.remove(&tid);
            self.any.store(!callers.is_empty(), Relaxed);
        }
    }

    /// Whether something of this address space may be copied now, so that nothing may leave it.
    pub fn hold(&self, tenant: &Tenant) -> bool {
        if !self.any.load(Relaxed) {
            return false;
        }
        let pid = tenant.pid.load(Relaxed);
        let mut callers = self.callers.lock();
        let mut holds = false;
        callers.retain(|&tid, caller| {
            let concerns = caller.pid == pid
                || match &caller.memory {
                    Memory::Of(these) => these.contains(&tenant.id),
                    Memory::NotOf(these) => !these.contains(&tenant.id),
                };
            if !concerns {
                return true;
            }
            if caller.looked.elapsed() >= EVERY {
                caller.looked = Instant::now();
                if seen_outside(caller.pid, tid, caller.nr) {
                    return false;
                }
            }
            holds = true;
            true
        });
        self.any.store(!callers.is_empty(), Relaxed);
        holds
    }
}

/// Whether a thread sleeps in another system call than this one, or is gone.
pub fn seen_outside(pid: u32, tid: u32, nr: u32) -> bool {
    match process::doing(pid, tid) {
        Ok(doing) => elsewhere(doing, nr),
        Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

fn elsewhere(doing: Doing, nr: u32) -> bool {
    matches!(doing, Doing::Sleeping(number) if number != i64::from(nr))
}

/// A thread stopped at its fork: goes on when the last of those who hold this has let go of it.
pub struct Stopped {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    call: Notification,
    since: Instant,
}

impl Stopped {
    pub fn new(shared: Arc<Shared>, gate: Arc<Gate>, call: Notification) -> Arc<Self> {
        Arc::new(Self { shared, gate, call, since: Instant::now() })
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let waited = self.since.elapsed().as_nanos() as u64;
        self.shared.meters.fork_wait_ns.fetch_add(waited, Relaxed);
        // The caller may have been killed meanwhile.
        let _ = self.gate.respond(self.call.id, Reply::Continue);
    }
}

/// The address spaces that a fork of this thread may copy. A process that is not known, but shares its memory with one
/// that is (a child between vfork and exec), copies that one's.
pub fn copied_by(tenants: &[Arc<Tenant>], tid: u32, pid: u32) -> (Vec<Arc<Tenant>>, Memory) {
    let own: Vec<_> = tenants.iter().filter(|tenant| tenant.pid.load(Relaxed) == pid).cloned().collect();
    if !own.is_empty() {
        let ids = own.iter().map(|tenant| tenant.id).collect();
        return (own, Memory::Of(ids));
    }
    let stack = process::start_of_stack(tid);
    let (others, suspects): (Vec<_>, Vec<_>) = tenants.iter().cloned().partition(|tenant| {
        let theirs = process::start_of_stack(tenant.pid.load(Relaxed));
        stack.is_some() && theirs.is_some() && stack != theirs
    });
    (suspects, Memory::NotOf(others.iter().map(|tenant| tenant.id).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_elsewhere_when_it_sleeps_in_another_call() {
        assert!(!elsewhere(Doing::Running, 56));
        assert!(!elsewhere(Doing::Sleeping(56), 56));
        assert!(elsewhere(Doing::Sleeping(61), 56));
        assert!(elsewhere(Doing::Sleeping(-1), 56));
    }
}
