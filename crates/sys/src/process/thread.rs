//! Threads: which CPU they are on, which CPUs they may use, and the robust futex list the kernel walks at their
//! end.

use std::fs::{self, File};
use std::io;
use std::sync::OnceLock;

use rustix::process::Pid;
use rustix::thread::CpuSet;

use super::pid as checked;
use crate::errno::check;
use crate::procfs::{field, malformed, reread, stat_fields};

/// The CPUs of this process as it was started (by `taskset`, a cpuset ...), kept because binding a thread forgets them. Whoever asks
/// first, before binding anything, decides.
static INITIAL_CPUS: OnceLock<CpuSet> = OnceLock::new();

pub(super) fn initial_cpus() -> &'static CpuSet {
    INITIAL_CPUS.get_or_init(|| {
        // It fails only with more than 1024 CPUs: then all that the set can name.
        rustix::thread::sched_getaffinity(None).unwrap_or_else(|_| {
            let mut all = CpuSet::new();
            (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
            all
        })
    })
}

/// The CPUs this process may use, as found the first time this or [`set_affinity_self`] is called.
pub fn allowed_cpus() -> Vec<u32> {
    let set = initial_cpus();
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).map(|cpu| cpu as u32).collect()
}

/// Binds the calling thread to one CPU.
///
/// # Errors
///
/// `EINVAL`: no such CPU, or not one of ours.
pub fn set_affinity_self(cpu: u32) -> io::Result<()> {
    initial_cpus();
    let set = only(cpu).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Binds another thread to one CPU.
///
/// # Errors
///
/// `EINVAL`: no such CPU, or not one of its cpuset; `ESRCH`; `EPERM`: another user's, without `CAP_SYS_NICE`.
pub fn set_affinity(tid: u32, cpu: u32) -> io::Result<()> {
    let set = only(cpu).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(rustix::thread::sched_setaffinity(Some(checked(tid)?), &set)?)
}

/// This CPU alone, if the set can name it.
fn only(cpu: u32) -> Option<CpuSet> {
    if cpu as usize >= CpuSet::MAX_CPU {
        return None;
    }
    let mut set = CpuSet::new();
    set.set(cpu as usize);
    Some(set)
}

/// A sleeping thread that is bound to one CPU for as long as this lives: who wakes it there meanwhile does not send it to an
/// idle CPU, as `select_idle_sibling` of the kernel would (kernel/sched/fair.c; wakes by userfaultfd are never "sync").
///
/// It must not come to run before this is dropped, since it could see its set, and its children would inherit it: who holds
/// one is bound to the same CPU, and goes first there ([`set_realtime_self`]).
#[derive(Debug)]
pub struct Anchor {
    tid: Pid,
    before: CpuSet,
    here: CpuSet,
}

impl Anchor {
    /// Binds thread `tid` to a CPU. None if that is not allowed to us, or not among its CPUs, or there is nothing to bind.
    pub fn hold(tid: u32, cpu: u32) -> Option<Self> {
        let tid = Pid::from_raw(i32::try_from(tid).ok()?)?;
        let here = only(cpu)?;
        let before = rustix::thread::sched_getaffinity(Some(tid)).ok()?;
        if !before.is_set(cpu as usize) || before == here {
            return None;
        }
        rustix::thread::sched_setaffinity(Some(tid), &here).ok()?;
        Some(Self { tid, before, here })
    }
}

impl Drop for Anchor {
    /// Gives it its CPUs back, unless somebody else has bound it meanwhile.
    fn drop(&mut self) {
        if rustix::thread::sched_getaffinity(Some(self.tid)).is_ok_and(|now| now == self.here) {
            let _ = rustix::thread::sched_setaffinity(Some(self.tid), &self.before);
        }
    }
}

/// Gives the calling thread all the CPUs the process was started with.
///
/// # Errors
///
/// `EINVAL` if none of them is left.
pub fn clear_affinity() -> io::Result<()> {
    Ok(rustix::thread::sched_setaffinity(None, initial_cpus())?)
}

/// The CPU the calling thread is on at this moment.
pub fn current_cpu() -> u32 {
    rustix::thread::sched_getcpu() as u32
}

/// How long the calling thread has run so far, in nanoseconds.
pub fn own_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sets the calling thread's nice value: -20 (first) to 19 (last).
///
/// # Errors
///
/// `EACCES`: lower than before needs `CAP_SYS_NICE`.
pub fn set_nice_self(nice: i32) -> io::Result<()> {
    // On Linux the "process" of this call is a thread.
    Ok(rustix::process::setpriority_process(None, nice)?)
}

/// Has the calling thread go before all threads without a real-time priority, on its CPU. Threads that it makes do not.
///
/// # Errors
///
/// `EPERM`: takes `CAP_SYS_NICE`, or an `RLIMIT_RTPRIO` of 1; and with version 1 of control groups some real-time share for ours.
pub fn set_realtime_self() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel only reads `param`, which lives as long as the call.
    let set = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const param)
    };
    check(i64::from(set)).map(drop).map_err(io::Error::from_raw_os_error)
}

/// The address of thread `tid`'s robust futex list head, 0 if it has none. The kernel reads the list when the thread ends, and
/// gives up silently at a page that is missing.
///
/// # Errors
///
/// `ESRCH`; `EPERM` without ptrace permission over it.
pub fn robust_list_head(tid: u32) -> io::Result<u64> {
    let tid = checked(tid)?.as_raw_nonzero().get();
    let mut head = 0_u64;
    let mut size = 0_usize;
    // SAFETY: the kernel stores an address and a size in the two variables.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut size) })
        .map_err(io::Error::from_raw_os_error)?;
    Ok(head)
}

/// What a thread is doing, as far as one can tell from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    /// It runs, in its program or in the kernel, or waits for a CPU.
    Running,
    /// It sleeps in the system call of this number; -1: in a page fault of its program.
    Sleeping(i64),
}

/// What thread `tid` of process `pid` is doing.
///
/// # Errors
///
/// `ENOENT` or `ESRCH` when there is no such thread; `EPERM` without ptrace permission over it.
pub fn doing(pid: u32, tid: u32) -> io::Result<Doing> {
    let path = "/proc/PID/task/TID/syscall";
    parse_doing(&fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall"))?)
        .ok_or_else(|| malformed(path))
}

/// How often thread `tid` of process `pid` has left a CPU. Every time that it stops to run counts.
///
/// # Errors
///
/// `ENOENT` or `ESRCH` when there is no such thread.
pub fn switches(pid: u32, tid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"))?;
    let number = |key| field(&text, key)?.parse::<u64>().ok();
    number("voluntary_ctxt_switches")
        .and_then(|voluntary| Some(voluntary + number("nonvoluntary_ctxt_switches")?))
        .ok_or_else(|| malformed("/proc/PID/task/TID/status"))
}

fn parse_doing(text: &str) -> Option<Doing> {
    match text.split_ascii_whitespace().next()? {
        "running" => Some(Doing::Running),
        number => number.parse().ok().map(Doing::Sleeping),
    }
}

/// The CPU thread `tid` is on, or was on last.
///
/// # Errors
///
/// `ENOENT` or `ESRCH` when there is no such thread.
pub fn cpu_of_thread(tid: u32) -> io::Result<u32> {
    ThreadFile::open(tid, tid)?.cpu()
}

/// The status of one thread, kept open for asking again and again.
#[derive(Debug)]
pub struct ThreadFile(File);

impl ThreadFile {
    /// Opens the status of thread `tid` of process `pid`. The handle stays with that thread.
    ///
    /// # Errors
    ///
    /// `ENOENT` when that process has no such thread.
    pub fn open(pid: u32, tid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/task/{tid}/stat")).map(Self)
    }

    /// The CPU the thread is on, or was on last.
    ///
    /// # Errors
    ///
    /// `ESRCH` after its end.
    pub fn cpu(&self) -> io::Result<u32> {
        // Field 39 of the line; the iterator starts at field 3.
        const PROCESSOR: usize = 39 - 3;
        let mut buffer = [0; 1024];
        let text = reread(&self.0, &mut buffer)?;
        stat_fields(text)
            .and_then(|mut fields| fields.nth(PROCESSOR)?.parse().ok())
            .ok_or_else(|| malformed("/proc/TID/stat"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    fn cpus_of(tid: u32) -> CpuSet {
        rustix::thread::sched_getaffinity(Pid::from_raw(tid as i32)).unwrap()
    }

    /// A thread that says where it is each time it is woken up; its number, how to wake it, and what it says.
    fn sleeper() -> (u32, Sender<()>, Receiver<u32>) {
        let ((wake, woken), (say, said)) = (channel(), channel());
        std::thread::spawn(move || {
            say.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
            woken.iter().for_each(|()| say.send(current_cpu()).unwrap());
        });
        (said.recv().unwrap(), wake, said)
    }

    #[test]
    fn who_is_anchored_wakes_up_there_and_has_its_cpus_again_afterwards() {
        let (tid, wake, said) = sleeper();
        let before = cpus_of(tid);
        for cpu in allowed_cpus() {
            let anchor = Anchor::hold(tid, cpu);
            assert!(anchor.is_some() || before.count() == 1, "CPU {cpu}");
            wake.send(()).unwrap();
            assert_eq!(said.recv().unwrap(), cpu);
            drop(anchor);
            assert_eq!(cpus_of(tid), before);
        }
    }

    #[test]
    fn a_bound_thread_wakes_up_there() {
        let (tid, wake, said) = sleeper();
        for cpu in allowed_cpus() {
            set_affinity(tid, cpu).unwrap();
            wake.send(()).unwrap();
            assert_eq!(said.recv().unwrap(), cpu);
        }
        assert!(set_affinity(tid, u32::MAX).is_err() && set_affinity(0, 0).is_err());
    }

    #[test]
    fn only_running_takes_time() {
        let before = own_cpu_ns();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let slept = own_cpu_ns() - before;
        while own_cpu_ns() < before + slept + 1_000_000 {
            std::hint::spin_loop();
        }
        assert!(slept < 20_000_000, "{slept}");
    }

    #[test]
    fn what_somebody_else_has_said_of_an_anchored_thread_counts() {
        let (tid, _wake, _said) = sleeper();
        let [first, second, ..] = allowed_cpus()[..] else { return };
        let anchor = Anchor::hold(tid, first).unwrap();
        let other = only(second).unwrap();
        rustix::thread::sched_setaffinity(Pid::from_raw(tid as i32), &other).unwrap();
        drop(anchor);
        assert_eq!(cpus_of(tid), other);
        assert!(Anchor::hold(tid, first).is_none(), "it may not run there");
        assert!(Anchor::hold(tid, second).is_none(), "it runs nowhere else");
        assert!(Anchor::hold(0, first).is_none() && Anchor::hold(u32::MAX, first).is_none());
        assert_eq!(cpus_of(tid), other);
    }

    #[test]
    fn a_thread_runs_or_sleeps_in_a_call() {
        assert_eq!(parse_doing("running\n"), Some(Doing::Running));
        let call = "56 0x1200011 0x0 0x0 0x0 0x0 0x0 0x7ffe 0x7f12\n";
        assert_eq!(parse_doing(call), Some(Doing::Sleeping(56)));
        assert_eq!(parse_doing("-1 0x7ffe 0x7f12\n"), Some(Doing::Sleeping(-1)));
        assert_eq!(parse_doing(""), None);
    }

    #[test]
    fn a_thread_that_sleeps_has_left_its_cpu_once_more() {
        let (pid, tid) = (std::process::id(), rustix::thread::gettid().as_raw_nonzero().get() as u32);
        let before = switches(pid, tid).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(switches(pid, tid).unwrap() > before);
        assert!(switches(pid, 1).is_err(), "a thread of another process");
    }
}
