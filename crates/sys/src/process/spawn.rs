//! Starting a program with the few preparations vswap needs between fork and exec, from a process that may have
//! threads.
//!
//! What happens in the child is a list of [`Step`]s, not a closure: after a fork from a process with threads only
//! async-signal-safe code may run, and a closure cannot be checked for that.

use std::ffi::{CString, c_char};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::pipe::PipeFlags;

use super::signals::{self, SignalSet};
use super::thread;
use crate::errno::{check, last};
use crate::{Errno, seccomp};

/// What to execute; everything is prepared before the fork.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file, already found in `PATH`.
    pub path: CString,
    /// The arguments, with the program's name first.
    pub argv: Vec<CString>,
    /// The environment as `NAME=value`.
    pub envp: Vec<CString>,
}

/// One preparation in the child. They are made in order; the first failure ends the child.
///
/// All signals are blocked meanwhile; just before the exec the mask becomes that of the spawning thread, or what
/// [`Step::SignalMask`] says.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// [`seccomp::set_no_new_privs`].
    NoNewPrivs,
    /// Installs the gate and sends the listener, in a message of one zero byte, over a SEQPACKET socket. The exec that
    /// follows passes by the cookie: nobody may be listening yet.
    Gate {
        /// See [`seccomp::install_gate`].
        cookie: u64,
        /// See [`seccomp::install_gate`].
        stop_forks: bool,
        /// The child's end of a pair.
        socket: BorrowedFd<'a>,
    },
    /// The signal mask of the program.
    SignalMask(&'a SignalSet),
    /// Default disposition for this signal. `SIGPIPE` wants it: the Rust runtime ignores that one at the start of a
    /// program, and ignoring is inherited.
    DefaultSignal(i32),
    /// Ignores this signal.
    IgnoreSignal(i32),
    /// The CPUs the process had at its start, whatever the spawning thread is bound to.
    ClearAffinity,
    /// [`super::set_parent_death_signal`]; the parent is the spawning *thread*.
    ParentDeathSignal(i32),
    /// The nice value.
    Nice(i32),
    /// The limit on open files: soft and hard.
    OpenFiles(u64, u64),
    /// A process group of its own.
    NewProcessGroup,
    /// Makes `fd` available as number `target`, open across the exec.
    Inherit {
        /// Ours.
        fd: BorrowedFd<'a>,
        /// The program's.
        target: i32,
    },
}

/// Why a program did not start.
#[derive(Debug)]
pub enum SpawnError {
    /// No child was made.
    Fork(io::Error),
    /// The step with this index failed.
    Step(usize, Errno),
    /// The exec failed: `ENOENT` and `EACCES` are the user's business (exit codes 127 and 126).
    Exec(Errno),
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fork(error) => write!(f, "cannot make a process: {error}"),
            Self::Step(index, errno) => {
                write!(
                    f,
                    "cannot prepare the program (step {index}): {}",
                    io::Error::from_raw_os_error(*errno)
                )
            }
            Self::Exec(errno) => write!(f, "cannot execute: {}", io::Error::from_raw_os_error(*errno)),
        }
    }
}

impl std::error::Error for SpawnError {}

/// In place of a step's index in the child's last words.
const EXEC_FAILED: u32 = u32::MAX;

/// Starts `program` as a child of this process and returns its id when its exec has succeeded. May be called with
/// threads around.
///
/// # Errors
///
/// [`SpawnError`]; the failed child is reaped (unless someone else's `reap` was faster).
pub fn spawn(program: &Program, steps: &[Step<'_>]) -> Result<u32, SpawnError> {
    let argv = pointers(&program.argv);
    let envp = pointers(&program.envp);
    // Touched now, so that the child only copies it.
    thread::initial_cpus();
    let (told, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| SpawnError::Fork(e.into()))?;
    // No handler of ours may run in the child.
    let mask = signals::block_all();
    // SAFETY: the child calls only `child` below, which is written for this: it takes no lock, allocates nothing and never
    // returns.
    let pid = match check(unsafe { libc::fork() }.into()) {
        Ok(0) => child(program, &argv, &envp, steps, &mask, &tell),
        Ok(pid) => Ok(pid as u32),
        Err(errno) => Err(SpawnError::Fork(io::Error::from_raw_os_error(errno))),
    };
    signals::set_mask(&mask);
    let pid = pid?;
    drop(tell);
    let mut words = [0; 8];
    let count = loop {
        match rustix::io::read(&told, &mut words) {
            Err(rustix::io::Errno::INTR) => {}
            answer => break answer.unwrap_or(0),
        }
    };
    if count < words.len() {
        // The exec closed the pipe. (Or the child was killed on the way: then its status will tell.)
        return Ok(pid);
    }
    let _ = super::wait(pid);
    let [stage, errno] = *words.as_chunks::<4>().0 else { unreachable!("eight bytes are two words") };
    let errno = Errno::from_ne_bytes(errno);
    Err(match u32::from_ne_bytes(stage) {
        EXEC_FAILED => SpawnError::Exec(errno),
        index => SpawnError::Step(index as usize, errno),
    })
}

/// The child's whole life before the program. Async-signal-safe: system calls and stack only.
fn child(
    program: &Program,
    argv: &[*const c_char],
    envp: &[*const c_char],
    steps: &[Step<'_>],
    mask: &SignalSet,
    tell: &OwnedFd,
) -> ! {
    let mut mask = mask;
    let mut failure = None;
    for (index, step) in steps.iter().enumerate() {
        let done = match *step {
            Step::SignalMask(wanted) => {
                mask = wanted;
                Ok(())
            }
            _ => take(step),
        };
        if let Err(errno) = done {
            failure = Some((index as u32, errno));
            break;
        }
    }
    let (stage, errno) = failure.unwrap_or_else(|| {
        signals::set_mask(mask);
        let cookie = steps.iter().find_map(|step| match step {
            Step::Gate { cookie, .. } => Some(*cookie),
            _ => None,
        });
        const { assert!(seccomp::COOKIE_ARGUMENT == 5) };
        // SAFETY: a C string and two arrays of C strings that end with a null pointer, all live. The kernel looks at three
        // arguments, the gate at the sixth.
        unsafe {
            libc::syscall(
                libc::SYS_execve,
                program.path.as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                0,
                0,
                cookie.unwrap_or(0),
            )
        };
        (EXEC_FAILED, last())
    });
    let mut words = [0; 8];
    words[..4].copy_from_slice(&stage.to_ne_bytes());
    words[4..].copy_from_slice(&errno.to_ne_bytes());
    // A pipe takes eight bytes whole; if nobody reads any more, nobody wants to know.
    let _ = rustix::io::write(tell, &words);
    // SAFETY: ends the process at once; needs nothing.
    unsafe { libc::_exit(127) }
}

fn take(step: &Step<'_>) -> Result<(), Errno> {
    let raw = |error: rustix::io::Errno| error.raw_os_error();
    match *step {
        Step::NoNewPrivs => rustix::thread::set_no_new_privs(true).map_err(raw),
        Step::Gate { cookie, stop_forks, socket } => {
            let listener = seccomp::install(cookie, stop_forks)?;
            send_fd(socket, &listener)
        }
        Step::SignalMask(_) => Ok(()),
        Step::DefaultSignal(signal) => signals::set_disposition(signal, libc::SIG_DFL),
        Step::IgnoreSignal(signal) => signals::set_disposition(signal, libc::SIG_IGN),
        Step::ClearAffinity => rustix::thread::sched_setaffinity(None, thread::initial_cpus()).map_err(raw),
        Step::ParentDeathSignal(signal) => {
            // SAFETY: takes integers only.
            check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong, 0, 0, 0) }.into())
                .map(drop)
        }
        Step::Nice(nice) => rustix::process::setpriority_process(None, nice).map_err(raw),
        Step::OpenFiles(soft, hard) => set_open_files(soft, hard).map_err(raw),
        Step::NewProcessGroup => rustix::process::setpgid(None, None).map_err(raw),
        Step::Inherit { fd, target } => {
            if fd.as_raw_fd() == target {
                return rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).map_err(raw);
            }
            // SAFETY: whatever had the number `target` is closed in the child, whose only user of descriptors is this
            // list of steps, given by the caller.
            check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into()).map(drop)
        }
    }
}

/// [`crate::socket::Conn::send`] without its bookkeeping.
fn send_fd(socket: BorrowedFd<'_>, fd: &OwnedFd) -> Result<(), Errno> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use std::os::fd::AsFd;
    let fds = [fd.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(libc::EINVAL);
    }
    rustix::net::sendmsg(socket, &[io::IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(|error| error.raw_os_error())
}

fn set_open_files(soft: u64, hard: u64) -> rustix::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: Some(hard) })
}

/// Raises this process's soft limit on open files to the hard one (a pager has half a dozen per process) and returns soft and
/// hard as they were, for [`Step::OpenFiles`].
///
/// # Errors
///
/// None: the hard limit is always allowed.
pub fn raise_open_files_limit() -> io::Result<(u64, u64)> {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile);
    let (soft, hard) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    set_open_files(hard, hard)?;
    Ok((soft, hard))
}

/// A null-terminated array of pointers, valid as long as `strings` is.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}
