//! When an agent has to leave: its process is about to enter a user namespace, which the kernel allows to a process with one
//! thread only; or to have a system call filter for all its threads that the agent could not live with; or no thread of the
//! program is left.
//!
//! In the first two cases what was evicted goes on being served; nothing more leaves, until an exec brings an agent again.
//!
//! The last: programs end by `exit_group`, which takes the agent along, but some end thread by thread, by the bare `exit`. The agent
//! would keep the process alive. It leaves as the last one, and with the status of the first thread, which then is the
//! process's. (Linux gives a process the status of its last thread. Of one that was not the first, nobody can tell afterwards.)

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::socket::Conn;
use vswap_wire as wire;

use super::tenant::Agent;

/// An agent that is not gone by then is not waited for: the call fails as it does in any process with two threads.
pub const PATIENCE: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_micros(50);

/// Why an agent leaves a program that goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Its process must have one thread.
    Namespace,
    /// A filter would end it.
    Filter,
}

/// Has the agent of process `pid` end; for a namespace only if that leaves one thread. True if the agent was told to.
pub fn retire(agent: &Agent, pid: u32, why: Why) -> bool {
    let told = tell(agent, pid, why);
    let end = Instant::now() + PATIENCE;
    let gone = || if why == Why::Namespace { is_alone(pid) } else { has_left(&agent.conn) };
    while told && !gone() && Instant::now() < end {
        std::thread::sleep(EVERY);
    }
    told
}

/// The same, without waiting for it.
pub fn tell(agent: &Agent, pid: u32, why: Why) -> bool {
    (why == Why::Filter || threads(pid) == Some(2)) && send_off(agent, 0)
}

/// Whether the agent with this connection has closed it, which it does by its end: it makes no system call any more.
pub fn has_left(conn: &Conn) -> bool {
    let happened = poll(&[(conn.as_fd(), Events::empty())], Some(Duration::ZERO)).unwrap_or_default();
    happened.first().is_some_and(|events| events.contains(Events::HUP))
}

/// Whether a process has one thread, or is gone.
pub fn is_alone(pid: u32) -> bool {
    threads(pid).is_none_or(|threads| threads <= 1)
}

/// Tells the agent of process `pid` to end, if nothing is left of the program, and does not wait. True if it was told, or is gone.
pub fn leave_last(agent: &Agent, pid: u32) -> bool {
    // Before it has said that it runs, the thread that is left may be the one that sets it up.
    let status = if agent.tid == 0 { None } else { deserted(pid) };
    if let Some(status) = status {
        send_off(agent, status);
    }
    status.is_some()
}

/// If the first thread of this process has ended, and one other is left (the agent, if it has one): the first one's status.
pub fn deserted(pid: u32) -> Option<u8> {
    let ended = process::status(pid).is_ok_and(|status| status.state == 'Z' && status.threads == 2);
    ended.then(|| process::exit_status(pid).unwrap_or(0))
}

/// False if it is gone.
fn send_off(agent: &Agent, status: u8) -> bool {
    agent.conn.send(wire::Command::Retire { status }.encode(&mut wire::buffer()), &[]).is_ok()
}

fn threads(pid: u32) -> Option<u32> {
    process::status(pid).ok().map(|status| status.threads)
}
