//! Entering a user namespace, which the kernel allows to a process with one thread only: the agent leaves first.
//!
//! What was evicted goes on being served; nothing more leaves, until an exec brings an agent again.

use std::time::{Duration, Instant};

use vswap_sys::process;
use vswap_wire as wire;

use super::tenant::Agent;

/// An agent that is not gone by then is not waited for: the call fails as it does in any process with two threads.
pub const PATIENCE: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_micros(50);

/// Has the agent of process `pid` end, if that leaves it with one thread. True if the agent was told to.
pub fn retire(agent: &Agent, pid: u32) -> bool {
    let told = tell(agent, pid);
    let end = Instant::now() + PATIENCE;
    while told && !is_alone(pid) && Instant::now() < end {
        std::thread::sleep(EVERY);
    }
    told
}

/// The same, without waiting for it.
pub fn tell(agent: &Agent, pid: u32) -> bool {
    threads(pid) == Some(2) && agent.conn.send(wire::Command::Retire.encode(&mut wire::buffer()), &[]).is_ok()
}

/// Whether a process has one thread, or is gone.
pub fn is_alone(pid: u32) -> bool {
    threads(pid).is_none_or(|threads| threads <= 1)
}

fn threads(pid: u32) -> Option<u32> {
    process::status(pid).ok().map(|status| status.threads)
}
