//! Processes: making them, waiting for them, looking at them.
//!
//! One file per noun: [`fork_with`] and [`fork_sharing_files`] (`fork`), [`spawn`] (`spawn`), ends and signals sent
//! (`wait`), threads held still (`hold`), who descends from whom (`tree`), memory figures (`memory`), memory itself
//! (`remote`, `process_vm`), files (`files`), threads and CPUs (`thread`), signals received ([`signals`]).

mod family;
mod files;
mod fork;
mod hold;
mod memory;
mod process_vm;
mod remote;
pub mod signals;
mod spawn;
mod thread;
mod tree;
mod wait;

pub use family::Family;
pub use files::{gives_capabilities, open_as};
pub use fork::{fork_sharing_files, fork_with, set_child_subreaper, set_parent_death_signal};
pub use hold::hold_while_this_thread_lives;
pub use memory::{
    MemFile, Rss, Status, cpu_ticks, environment, exit_status, pss_anon, share_memory, start_of_stack,
    status, thread_with_memory,
};
pub use process_vm::{Remote, read_memory, write_memory};
pub use remote::Memory;
pub use spawn::{Program, SpawnError, Step, raise_open_files_limit, spawn};
pub use thread::{
    Anchor, Doing, ThreadFile, allowed_cpus, clear_affinity, cpu_of_thread, current_cpu, doing, own_cpu_ns,
    robust_list_head, set_affinity, set_affinity_self, set_nice_self, set_realtime_self, switches,
};
pub use tree::{children_of, descendants_of, descends_from, threads};
pub use wait::{kill, pidfd_open, raise_like, reap, tgkill_check, wait};

use std::io;

/// The user that this process acts as.
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A process id as the kernel takes it. 0 and what does not fit would mean "my group" or "everyone" to some calls.
fn pid(pid: u32) -> io::Result<rustix::process::Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}
