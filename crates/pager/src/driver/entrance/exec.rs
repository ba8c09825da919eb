//! An exec, stopped at the gate: whether the program will be one without a loader, and if so, putting the agent in before its
//! first instruction; or one that must not get an agent (`filtered`), though it has a loader.
//!
//! What will be executed is only guessed, from what the path names now; another thread may change that. A wrong guess
//! costs time, no more: what to do is decided by what was executed, and what slipped through is found later. One guess must
//! not be wrong: a traced process gains no privileges by exec, so nobody is traced who is about to.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vswap_core::PAGE_SIZE;
use vswap_sys::process;
use vswap_sys::seccomp::{Gate, Notification, Reply};
use vswap_sys::trace::{Resume, Stop, Tracee, wait};

use super::{ATTEMPT_STACK, Entrance, follow};
use crate::Executable;

/// Interpreters of interpreters that the kernel follows.
const SCRIPT_DEPTH: usize = 5;
const PATH_MAX: usize = 4096;

impl Entrance {
    /// Lets a thread execute what it wants to, and if that is a program without a loader, puts the agent in. Returns at once.
    pub fn executes(self: &Arc<Self>, gate: &Arc<Gate>, call: Notification) {
        let (entrance, at) = (self.clone(), gate.clone());
        let builder =
            std::thread::Builder::new().name(format!("exec-{}", call.tid)).stack_size(ATTEMPT_STACK);
        if builder.spawn(move || entrance.pass(&at, &call)).is_err() {
            // It is found later.
            let _ = gate.respond(call.id, Reply::Continue);
        }
    }

    fn pass(&self, gate: &Gate, call: &Notification) {
        let filtered = self.is_filtered(call.tid);
        let seized = match names(call) {
            Ok(Some(executable)) if filtered || matches!(executable, Executable::Static) => {
                follow(call.tid);
                // Whoever is traced already stays with its tracer. Interrupted, it stops in any case: after its exec, or if that fails.
                Tracee::seize(call.tid)
                    .ok()
                    .filter(|tracee| gate.is_valid(call.id) && tracee.interrupt().is_ok())
            }
            // What cannot be looked at can hardly be executed.
            Ok(_) | Err(_) => None,
        };
        // The caller may have been killed meanwhile.
        let _ = gate.respond(call.id, Reply::Continue);
        if let Some(tracee) = seized
            && let Ok(Some(tracee)) = executed(tracee)
        {
            let pid = tracee.tid();
            self.begin_anew(pid);
            if filtered && let Err(error) = self.take_preload(pid) {
                self.shared.warn(format!(
                    "process {pid}: an agent comes that its system call filter may end: {error}"
                ));
            }
            let outcome = self.enter(pid, tracee);
            self.conclude(pid, outcome);
        }
    }
}

/// Waits for the program to be executed; `None` if it was not.
fn executed(mut tracee: Tracee) -> io::Result<Option<Tracee>> {
    let mut done = false;
    loop {
        let signal = match wait()?.1 {
            Stop::Exec => {
                tracee = tracee.after_exec();
                done = true;
                0
            }
            Stop::Interrupted => return Ok(done.then_some(tracee)),
            // A stopped program allocates nothing.
            Stop::Group => return Ok(None),
            Stop::Signal(signal) => signal,
            Stop::Syscall | Stop::Clone => 0,
        };
        // That stop took the place of the one that was asked for.
        tracee.interrupt()?;
        tracee.resume(Resume::Run(signal))?;
    }
}

/// What the caller is about to execute; `None` if it gains privileges by it.
fn names(call: &Notification) -> io::Result<Option<Executable>> {
    let exec = call.exec();
    let mut file = process::open_as(call.tid, exec.directory, &path(call.tid, exec.path)?)?;
    for _ in 0..=SCRIPT_DEPTH {
        let meta = file.metadata()?;
        let gains = meta.mode() & (libc::S_ISUID | libc::S_ISGID) != 0 || process::gives_capabilities(&file);
        if gains {
            return Ok(None);
        }
        match Executable::of(&file)? {
            Executable::Script(interpreter) => {
                file = process::open_as(call.tid, None, interpreter.as_os_str().as_bytes())?;
            }
            executable => return Ok(Some(executable)),
        }
    }
    Ok(None)
}

/// The path at `address` in the memory of `tid`.
fn path(tid: u32, mut address: u64) -> io::Result<Vec<u8>> {
    let mut path = Vec::new();
    while path.len() < PATH_MAX {
        // Not beyond the page's end: the next one may not be there.
        let mut bytes = vec![0; PAGE_SIZE - address as usize % PAGE_SIZE];
        let read = process::read_memory(tid, address, &mut bytes)?;
        if let Some(end) = bytes[..read].iter().position(|&byte| byte == 0) {
            path.extend_from_slice(&bytes[..end]);
            return Ok(path);
        }
        path.extend_from_slice(&bytes[..read]);
        address += read as u64;
    }
    Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG))
}
