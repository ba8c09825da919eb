//! The way into programs that the agent cannot enter through their loader: static ones, and those of which the loader knows
//! nothing of us; children of a fork in which no fork hook calls us.
//!
//! Each attempt has a thread of its own: ptrace ties a tracee to a thread, what is looked at may be a page that has to be brought
//! back first, and a stopped or sleeping program may keep an attempt waiting for as long as it likes. Nobody waits for an
//! attempt.

mod assess;
mod auxiliary;
mod enter;
mod exec;
mod filtered;
mod image;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vswap_sys::process::{self, Doing};
use vswap_sys::trace::Tracee;

use self::assess::{FILTERED, Verdict, assess};
use self::image::Image;
use super::shared::{NOT_COME, Shared};

/// After an attempt that came to nothing, the next one follows no sooner; later ones less and less often.
const AGAIN: Duration = Duration::from_secs(1);
/// So many attempts leave alone who waits in a call that fails when it is interrupted.
const PATIENCE: u32 = 3;
/// The longest pause between two is this power of two.
const SELDOM: u32 = 6;
/// Stacks of threads that make one attempt.
const ATTEMPT_STACK: usize = 128 << 10;

/// See the module.
pub struct Entrance {
    shared: Arc<Shared>,
    image: Image,
    /// System-call filters that every process of the tree has.
    filters: u32,
    attempts: Mutex<HashMap<u32, Attempt>>,
    /// Processes that install, or have installed, a filter which no agent could live with; and whether for all their threads.
    filtered: Mutex<HashMap<u32, bool>>,
}

/// The newest attempt at a process.
struct Attempt {
    began: Instant,
    under_way: bool,
    /// Attempts before this one.
    before: u32,
    /// After an earlier one an agent was awaited.
    awaited: bool,
    /// A thread of the process stands still for it.
    holds: bool,
    /// The thread of ours that sets the agent up.
    helper: Option<u32>,
}

impl Attempt {
    fn new() -> Self {
        let began = Instant::now();
        Self { began, under_way: true, before: 0, awaited: false, holds: false, helper: None }
    }

    fn is_inside(&self, pid: u32) -> bool {
        self.holds || self.helper.is_some_and(|helper| process::tgkill_check(pid, helper))
    }
}

/// What became of an attempt.
#[derive(Debug)]
enum Outcome {
    /// An agent is to greet: it was put in, or its loader brings it.
    Awaited,
    /// There is nothing to be done.
    Left,
    /// It stays without; why.
    Refused(String),
}

impl Entrance {
    /// A way in for the library at `agent`.
    ///
    /// # Errors
    ///
    /// Those of reading it.
    pub fn new(shared: Arc<Shared>, agent: &Path) -> io::Result<Self> {
        let own = process::status(std::process::id())?.seccomp_filters;
        let filters = own + u32::from(shared.gated);
        Ok(Self {
            image: Image::read(agent)?,
            filters,
            shared,
            attempts: Mutex::default(),
            filtered: Mutex::default(),
        })
    }

    /// Enters a process that was seen without an agent, unless that was tried only just now.
    pub fn consider(self: &Arc<Self>, pid: u32) {
        if !self.begin(pid) {
            return;
        }
        let entrance = self.clone();
        let attempt = move || {
            let outcome = entrance.attempt(pid);
            entrance.conclude(pid, outcome);
        };
        let builder = std::thread::Builder::new().name(format!("enter-{pid}")).stack_size(ATTEMPT_STACK);
        if builder.spawn(attempt).is_err() {
            self.end(pid, false);
        }
    }

    /// Enters the program itself, and says why it could not be.
    pub fn root(self: Arc<Self>, pid: u32, refused: impl FnOnce(String) + Send + 'static) -> io::Result<()> {
        self.begin(pid);
        let attempt = move || {
            let outcome = self.attempt(pid);
            self.end(pid, matches!(outcome, Outcome::Awaited));
            if let Outcome::Refused(why) = outcome {
                refused(why);
            }
        };
        let builder = std::thread::Builder::new().name("enter-cmd".into()).stack_size(ATTEMPT_STACK);
        builder.spawn(attempt).map(drop)
    }

    /// Whether the agent of this process was put in, or that was tried.
    pub fn has_tried(&self, pid: u32) -> bool {
        self.attempts.lock().contains_key(&pid)
    }

    /// Forgets processes that have gone, and those that have an agent: what they execute next is another program.
    pub fn keep_only(&self, living: &HashSet<u32>, paged: &HashSet<u32>) {
        self.filtered.lock().retain(|pid, _| living.contains(pid));
        let wanted = |pid: &u32| living.contains(pid) && !paged.contains(pid);
        self.attempts
            .lock()
            .retain(|&pid, attempt| attempt.under_way || attempt.is_inside(pid) || wanted(&pid));
    }

    /// Whether one of this process's threads makes calls for us, or a thread of ours in it sets its agent up.
    pub fn is_inside(&self, pid: u32) -> bool {
        self.attempts.lock().get(&pid).is_some_and(|attempt| attempt.is_inside(pid))
    }

    fn note_helper(&self, pid: u32, helper: u32) {
        if let Some(attempt) = self.attempts.lock().get_mut(&pid) {
            attempt.helper = Some(helper);
        }
    }

    fn begin(&self, pid: u32) -> bool {
        let mut attempts = self.attempts.lock();
        let last = attempts.get(&pid);
        let pause = |before: u32| AGAIN * (1 << before.saturating_sub(PATIENCE).min(SELDOM));
        if last.is_some_and(|last| last.under_way || last.began.elapsed() < pause(last.before)) {
            return false;
        }
        let before = last.map_or(0, |last| last.before + 1);
        let awaited = last.is_some_and(|last| last.awaited);
        attempts.insert(pid, Attempt { before, awaited, ..Attempt::new() });
        true
    }

    /// Ends an attempt, and says whether an agent was awaited in vain.
    fn end(&self, pid: u32, awaits: bool) -> bool {
        let mut attempts = self.attempts.lock();
        let Some(attempt) = attempts.get_mut(&pid) else { return false };
        (attempt.under_way, attempt.holds) = (false, false);
        std::mem::replace(&mut attempt.awaited, awaits) && awaits
    }

    /// How many attempts there were before the newest one.
    fn before(&self, pid: u32) -> u32 {
        self.attempts.lock().get(&pid).map_or(0, |attempt| attempt.before)
    }

    /// Notes that a program was executed just now, and is entered.
    fn begin_anew(&self, pid: u32) {
        self.attempts.lock().insert(pid, Attempt::new());
        // The filter of the thread that is left is seen; whoever waited to install one for all has ended.
        if let Some(for_all) = self.filtered.lock().get_mut(&pid) {
            *for_all = false;
        }
    }

    /// What an attempt came to.
    fn conclude(&self, pid: u32, outcome: Outcome) {
        let in_vain = self.end(pid, matches!(outcome, Outcome::Awaited));
        match outcome {
            Outcome::Refused(why) => self.shared.name_unpaged(pid, why),
            Outcome::Awaited if in_vain => {
                self.shared.name_unpaged(pid, NOT_COME.into());
            }
            Outcome::Awaited | Outcome::Left => {}
        }
    }

    /// Stops a process that may be doing anything, if need be, and enters it.
    fn attempt(&self, pid: u32) -> Outcome {
        let tid = process::thread_with_memory(pid);
        follow(tid);
        let stopped = match assess(tid, &self.image, self.filters) {
            Ok(Verdict::Enter(_)) if self.before(pid) < PATIENCE && waits_unrestartably(tid) => {
                return Outcome::Left;
            }
            Ok(Verdict::Enter(_)) => enter::stop(tid),
            verdict => return self.judge(pid, verdict.map(Outcome::from)),
        };
        match stopped {
            Ok(Some(tracee)) => self.enter(pid, tracee),
            // A stopped program allocates nothing.
            Ok(None) => Outcome::Left,
            Err(error) => self.judge(pid, Err(error)),
        }
    }

    /// Enters a process whose thread stands still. What it is, is asked only now: it cannot execute anything else. Nor can its
    /// other threads put a filter over what is called here: one that the gate has judged before is seen, and one
    /// that it judges later waits for the end of this attempt.
    fn enter(&self, pid: u32, tracee: Tracee) -> Outcome {
        if let Some(attempt) = self.attempts.lock().get_mut(&pid) {
            attempt.holds = true;
        }
        if self.filtered.lock().get(&pid) == Some(&true) {
            return Outcome::Refused(FILTERED.into());
        }
        let tid = tracee.tid();
        let entered = assess(tid, &self.image, self.filters).and_then(|verdict| {
            if let Verdict::Enter(way) = verdict {
                enter::enter(tracee, &self.image, way, |helper| self.note_helper(pid, helper))?;
                self.shared.meters.entered.fetch_add(1, Relaxed);
            }
            Ok(Outcome::from(verdict))
        });
        self.judge(tid, entered)
    }

    /// What an error says of a process.
    fn judge(&self, pid: u32, entered: io::Result<Outcome>) -> Outcome {
        entered.unwrap_or_else(|error| match error.raw_os_error() {
            // It has ended.
            Some(libc::ESRCH | libc::ECHILD | libc::ENOENT) => Outcome::Left,
            Some(libc::EPERM) => match process::status(pid) {
                Ok(status) if status.has_ended() => Outcome::Left,
                Ok(status) if is_ours(status.tracer_pid) => Outcome::Left,
                Ok(status) if status.tracer_pid != 0 => Outcome::Refused(
                    "it has no agent, and a debugger traces it, so that nobody else can put one in".into(),
                ),
                Ok(_) => Outcome::Refused("it has no agent, and vswap may not put one in by ptrace".into()),
                Err(_) => Outcome::Left,
            },
            _ => Outcome::Refused(format!("the agent could not be put in: {error}")),
        })
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Enter(_) | Verdict::Await => Outcome::Awaited,
            Verdict::Leave => Outcome::Left,
            Verdict::Never(why) => Outcome::Refused(why),
        }
    }
}

/// Whether this tracer is a thread of ours, in a freeze or another attempt, or one that has gone.
fn is_ours(tracer: u32) -> bool {
    tracer != 0 && process::status(tracer).map_or(true, |status| status.tgid == std::process::id())
}

/// Whether a thread waits in a system call that the kernel does not restart after a stop (signal(7)); programs know that of
/// stops and debuggers, but need not hear it from us.
fn waits_unrestartably(tid: u32) -> bool {
    matches!(
        process::doing(tid, tid),
        Ok(Doing::Sleeping(
            libc::SYS_epoll_wait
                | libc::SYS_epoll_pwait
                | libc::SYS_epoll_pwait2
                | libc::SYS_semop
                | libc::SYS_semtimedop
                | libc::SYS_rt_sigtimedwait
                | libc::SYS_io_getevents
                | libc::SYS_io_uring_enter
                // With a timeout of the socket's.
                | libc::SYS_accept
                | libc::SYS_accept4
                | libc::SYS_connect
                | libc::SYS_recvfrom
                | libc::SYS_recvmsg
                | libc::SYS_recvmmsg
                | libc::SYS_sendto
                | libc::SYS_sendmsg
        ))
    )
}

/// Runs where `tid` runs: each of its stops wakes us and each of our answers wakes it.
fn follow(tid: u32) {
    if let Ok(cpu) = process::cpu_of_thread(tid) {
        // If it fails, it only takes longer.
        let _ = process::set_affinity_self(cpu);
    }
}
