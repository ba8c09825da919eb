//! Freezes: a window that finds no quiet moment gets one.
//!
//! Threads that change mappings without a pause (four that only call MADV_DONTNEED) leave hardly a moment in which no
//! change is under way, and no fault of their process is served meanwhile. So a window that has waited too long has
//! those threads held still by ptrace until it closes. Threads that sleep in other system calls are left alone: they
//! change nothing, and nobody sees a call interrupted that would not have been.
//!
//! A thread of ours holds them and ends when the window has closed; its end is what lets go of them. Where somebody
//! else traces a thread (gdb, strace), or ptrace is not allowed, that thread goes on, and the window waits.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use vswap_sys::process::{self, Doing};

/// How long a window waits before it freezes. On a busy machine one waits for tens of milliseconds and closes.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long at most threads are held; then they run for as long as a window waits, and it begins again.
const AT_MOST: Duration = Duration::from_millis(500);
/// How often is looked for threads that were asleep or not there.
const EVERY: Duration = Duration::from_millis(1);

/// What the server of one address space knows of the wait for a quiet moment.
#[derive(Default)]
pub struct Freezer {
    waits_since: Option<Instant>,
    /// Dropped to let go.
    frozen: Option<(Sender<()>, Instant)>,
}

impl Freezer {
    /// A window waits for a quiet moment of process `pid`. True if a freeze begins.
    pub fn waits(&mut self, pid: u32, agent: u32) -> bool {
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        if let Some((_, begun)) = &self.frozen {
            if begun.elapsed() >= AT_MOST {
                *self = Self::default();
            }
            return false;
        }
        if pid == 0 || since.elapsed() < PATIENCE {
            return false;
        }
        let (release, released) = channel();
        let started = std::thread::Builder::new()
            .name(format!("freeze-{pid}"))
            .stack_size(128 << 10)
            .spawn(move || hold(pid, agent, &released));
        self.frozen = Some((release, Instant::now()));
        started.is_ok()
    }

    /// No window waits.
    pub fn quiet(&mut self) {
        *self = Self::default();
    }
}

/// Holds what may change mappings until `released` hangs up. Never the agent: the server waits for it.
fn hold(pid: u32, agent: u32, released: &Receiver<()>) {
    // The server may be waiting for the agent, or for a disk: it is not relied upon for the end.
    let end = Instant::now() + AT_MOST;
    let mut held = HashSet::from([agent]);
    let mut threads = Vec::new();
    while Instant::now() < end {
        if process::threads(pid, &mut threads).is_err() {
            return;
        }
        for &tid in &threads {
            if !held.contains(&tid)
                && may_change(pid, tid)
                && process::hold_while_this_thread_lives(tid).is_ok()
            {
                held.insert(tid);
            }
        }
        if released.recv_timeout(EVERY) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// Whether a thread runs or is inside a call that changes mappings.
fn may_change(pid: u32, tid: u32) -> bool {
    match process::doing(pid, tid) {
        Ok(Doing::Running) => true,
        Ok(Doing::Sleeping(call)) => matches!(
            call,
            libc::SYS_mmap
                | libc::SYS_munmap
                | libc::SYS_mremap
                | libc::SYS_madvise
                | libc::SYS_brk
                | libc::SYS_shmat
                | libc::SYS_fork
                | libc::SYS_clone
                | libc::SYS_clone3
        ),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    struct Running(Child);

    impl Running {
        fn new(script: &str) -> Self {
            let child = Command::new("bash").arg("-c").arg(script).stdout(Stdio::piped()).spawn();
            Self(child.expect("bash starts"))
        }

        fn pid(&self) -> u32 {
            self.0.id()
        }

        /// User time so far, in ticks.
        fn time(&self) -> u64 {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
            stat.rsplit(')').next().unwrap().split_ascii_whitespace().nth(11).unwrap().parse().unwrap()
        }

        fn traced(&self) -> bool {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
            !status.contains("TracerPid:\t0\n")
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_thread_that_runs_is_held_until_the_window_closes_and_then_gets_its_signals() {
        let mut running = Running::new("trap 'echo signal; exit 7' USR1; echo ready; while :; do :; done");
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let pid = running.pid();
        let mut freezer = Freezer::default();
        assert!(!freezer.waits(pid, 0), "a window has patience");
        until("a freeze begins", || freezer.waits(pid, 0));
        until("it is traced", || running.traced());
        until("it stands still", || {
            let before = running.time();
            std::thread::sleep(Duration::from_millis(60));
            running.time() == before
        });
        process::kill(pid, libc::SIGUSR1).unwrap();
        freezer.quiet();
        until("it is let go", || !running.traced());
        assert_eq!(lines.next().unwrap().unwrap(), "signal");
        assert_eq!(running.0.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn a_thread_that_sleeps_is_left_alone() {
        let sleeping = Running::new("exec sleep 1000");
        until("it sleeps", || !may_change(sleeping.pid(), sleeping.pid()));
        let mut freezer = Freezer::default();
        until("a freeze begins", || freezer.waits(sleeping.pid(), 0));
        for _ in 0..20 {
            std::thread::sleep(EVERY);
            assert!(!sleeping.traced());
        }
    }

    #[test]
    fn nobody_is_held_for_ever() {
        let mut running = Running::new("echo ready; while :; do :; done");
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let mut freezer = Freezer::default();
        until("a freeze begins", || freezer.waits(running.pid(), 0));
        until("it is traced", || running.traced());
        until("it is let go although the window waits on", || {
            freezer.waits(running.pid(), 0);
            !running.traced()
        });
    }
}
