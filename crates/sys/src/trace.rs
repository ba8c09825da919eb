//! Tracing a thread of another process for a moment: stop it, have it make system calls, let it go as it was.
//!
//! Owner: one thread of the pager per tracee. The kernel ties a tracee to the *thread* that seized it, and lets it go when
//! that thread ends (or ends it, while it is not its own master), so whatever goes wrong here ends with the tracing thread; a [`Tracee`] cannot be sent to another.
//! The way of working is that of CRIU's parasite (`compel`): seize without a signal, run system calls at an instruction
//! that is there anyway, put every register back. See ptrace(2).

mod borrowed;

use std::io;
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::c_void;

use crate::Errno;
use crate::errno::last;
use crate::process;

pub use borrowed::Borrowed;

const GET_SIGNAL_MASK: libc::c_uint = 0x420a;
const SET_SIGNAL_MASK: libc::c_uint = 0x420b;
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const GET_DISPATCH_CONFIGURATION: libc::c_uint = 0x4211;

const EVENT_STOP: i32 = 128;
/// With these a call that the stop of its process interrupted asks to be made again; no program ever sees them.
const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;
/// What `PTRACE_O_TRACESYSGOOD` adds to SIGTRAP.
const SYSCALL_MARK: i32 = 0x80;
/// The code segment of 64-bit programs.
const CODE_64: u64 = 0x33;
/// Trap and direction.
const FLAGS_TF_DF: u64 = 0x500;

const OPTIONS: libc::c_int =
    libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACECLONE;

/// Registers of a thread.
pub use libc::user_regs_struct as Registers;

/// Why a tracee stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was interrupted, or it is a thread that has just been made.
    Interrupted,
    /// Its whole process was stopped by a signal.
    Group,
    /// Before or after a system call, if it was resumed for that.
    Syscall,
    /// It has executed a program, and is now the one thread of its process.
    Exec,
    /// It has made a thread.
    Clone,
    /// This signal is about to be delivered; it is lost unless [`Tracee::resume`] passes it on.
    Signal(i32),
}

/// How a tracee goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Until something happens to it; with this signal, if not 0.
    Run(i32),
    /// As [`Resume::Run`], and at most to the next beginning or end of a system call.
    ToSyscall(i32),
    /// Stays stopped along with its process, until that goes on.
    Listen,
}

/// Waits for the next stop of a tracee of this thread, which has no children of its own, and says whose it is. Nobody else's stop is taken; the
/// rest of the process must look before it takes ([`unless_traced`], and what [`process::reap`] does), because the kernel shows
/// a tracee that is also a child to every thread of the parent.
///
/// # Errors
///
/// `ECHILD`: this thread has no tracee any more that could stop; it was killed, or its process has ended.
pub fn wait() -> io::Result<(u32, Stop)> {
    wait_for(libc::P_ALL, 0)
}

fn wait_for(kind: libc::idtype_t, id: u32) -> io::Result<(u32, Stop)> {
    loop {
        // SAFETY: plain integers, for which zero is valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WSTOPPED | libc::__WALL | libc::__WNOTHREAD;
        // SAFETY: `info` is live for the call, and for a wait that succeeded these are the members that it has set.
        let (pid, status) = unsafe {
            if libc::waitid(kind, id, &raw mut info, options) != 0 {
                match last() {
                    libc::EINTR => continue,
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
            (info.si_pid() as u32, info.si_status())
        };
        return Ok((pid, stop(status)));
    }
}

fn stop(status: i32) -> Stop {
    match (status >> 8, status & 0xff) {
        (EVENT_STOP, libc::SIGTRAP) => Stop::Interrupted,
        (EVENT_STOP, _) => Stop::Group,
        (libc::PTRACE_EVENT_EXEC, _) => Stop::Exec,
        (libc::PTRACE_EVENT_CLONE, _) => Stop::Clone,
        (_, signal) if signal == libc::SIGTRAP | SYSCALL_MARK => Stop::Syscall,
        (_, signal) => Stop::Signal(signal),
    }
}

/// The processes that threads of ours trace. Locked while one is seized, and while somebody takes a stop as a parent does.
static TRACED: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Runs `take`, which takes a stop of the child `pid` as its parent, unless it is traced by a thread of ours, who would then
/// wait for what has been taken.
pub fn unless_traced<T>(pid: u32, take: impl FnOnce() -> T) -> Option<T> {
    let traced = traced();
    (!traced.contains(&pid)).then(take)
}

fn traced() -> MutexGuard<'static, Vec<u32>> {
    TRACED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that this thread traces. Dropped while it stands still, it goes on untraced; dropped while it runs, it is let
/// go of when this thread ends.
#[derive(Debug)]
pub struct Tracee {
    tid: u32,
    /// Its process, as noted in [`TRACED`].
    process: u32,
    /// Requests come from the thread that seized, or fail.
    here: PhantomData<*const ()>,
}

impl Tracee {
    /// Begins to trace thread `tid`, which runs on. It will stop after an exec and after making a thread, and a thread
    /// that it makes is traced as well.
    ///
    /// # Errors
    ///
    /// `EPERM`: somebody traces it already, or we may not; `ESRCH`: no such thread.
    pub fn seize(tid: u32) -> io::Result<Self> {
        let process = process::status(tid)?.tgid;
        let mut traced = traced();
        let tracee = Self::noted(tid, process, &mut traced);
        let seized = tracee.request(libc::PTRACE_SEIZE, 0, OPTIONS as usize as *mut c_void);
        drop(traced);
        seized.map(|()| tracee)
    }

    fn noted(tid: u32, process: u32, traced: &mut Vec<u32>) -> Self {
        traced.push(process);
        Self { tid, process, here: PhantomData }
    }

    /// The same tracee after [`Stop::Exec`], which makes any thread its process's first.
    pub fn after_exec(mut self) -> Self {
        self.tid = self.process;
        self
    }

    /// Its id.
    pub fn tid(&self) -> u32 {
        self.tid
    }

    /// Has it stop as soon as it could take a signal. Any other stop that comes first takes the place of this one.
    ///
    /// # Errors
    ///
    /// `ESRCH`: it has gone.
    pub fn interrupt(&self) -> io::Result<()> {
        self.request(libc::PTRACE_INTERRUPT, 0, null_mut())
    }

    /// Lets it go on from a stop.
    ///
    /// # Errors
    ///
    /// `ESRCH`: it was killed, or does not stand still.
    pub fn resume(&self, how: Resume) -> io::Result<()> {
        match how {
            Resume::Run(signal) => self.request(libc::PTRACE_CONT, 0, signal as usize as *mut c_void),
            Resume::ToSyscall(signal) => {
                self.request(libc::PTRACE_SYSCALL, 0, signal as usize as *mut c_void)
            }
            Resume::Listen => self.request(libc::PTRACE_LISTEN, 0, null_mut()),
        }
    }

    /// Its registers, in a stop.
    ///
    /// # Errors
    ///
    /// `ESRCH`.
    pub fn registers(&self) -> io::Result<Registers> {
        // SAFETY: plain integers, for which zero is valid.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        self.request(libc::PTRACE_GETREGS, 0, (&raw mut registers).cast())?;
        Ok(registers)
    }

    /// Sets its registers, in a stop.
    ///
    /// # Errors
    ///
    /// `ESRCH`; `EIO` for values that the kernel does not let a program have.
    pub fn set_registers(&self, registers: &Registers) -> io::Result<()> {
        self.request(libc::PTRACE_SETREGS, 0, std::ptr::from_ref(registers).cast_mut().cast())
    }

    /// From now on, and for the threads it makes, the end of the tracing thread is its end, unless it was let go before.
    fn bind(&self) -> io::Result<()> {
        let options = OPTIONS | libc::PTRACE_O_EXITKILL;
        self.request(libc::PTRACE_SETOPTIONS, 0, options as usize as *mut c_void)
    }

    fn signal_mask(&self) -> io::Result<u64> {
        let mut mask = 0_u64;
        self.request(GET_SIGNAL_MASK, size_of::<u64>(), (&raw mut mask).cast())?;
        Ok(mask)
    }

    fn set_signal_mask(&self, mask: u64) -> io::Result<()> {
        self.request(SET_SIGNAL_MASK, size_of::<u64>(), std::ptr::from_ref(&mask).cast_mut().cast())
    }

    /// Where the thread keeps the address of its restartable sequence, if it has registered such a place.
    fn rseq_place(&self) -> io::Result<Option<u64>> {
        #[repr(C)]
        #[derive(Default)]
        struct Configuration {
            area: u64,
            size: u32,
            signature: u32,
            flags: u32,
            pad: u32,
        }
        const RSEQ_CS: u64 = 8;
        let mut answer = Configuration::default();
        let size = size_of::<Configuration>();
        match self.request(GET_RSEQ_CONFIGURATION, size, (&raw mut answer).cast()) {
            Ok(()) => Ok((answer.area != 0).then_some(answer.area + RSEQ_CS)),
            // A kernel without restartable sequences, or (before 5.13) without this question.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether its system calls may come back to it as signals (`PR_SET_SYSCALL_USER_DISPATCH`).
    fn dispatches_calls(&self) -> io::Result<bool> {
        #[repr(C)]
        #[derive(Default)]
        struct Configuration {
            mode: u64,
            selector: u64,
            offset: u64,
            length: u64,
        }
        let mut answer = Configuration::default();
        let size = size_of::<Configuration>();
        self.request(GET_DISPATCH_CONFIGURATION, size, (&raw mut answer).cast())?;
        Ok(answer.mode != 0)
    }

    /// Has the stopped thread make one system call at the instruction `gadget`, with registers `base` otherwise, and
    /// returns what it returned. A thread that the call made has stopped or will, and is traced.
    ///
    /// # Errors
    ///
    /// Those of tracing, `ECHILD` if it was killed; never those of the call.
    pub fn call(&self, base: &Registers, gadget: u64, number: i64, args: [u64; 6]) -> io::Result<i64> {
        self.call_noting(base, gadget, number, args, &mut 0)
    }

    /// As [`Tracee::call`]; says which thread the call has made.
    fn call_noting(
        &self,
        base: &Registers,
        gadget: u64,
        number: i64,
        args: [u64; 6],
        made: &mut u32,
    ) -> io::Result<i64> {
        loop {
            let value = self.call_once(base, gadget, number, args, made)?;
            if !RESTARTS.contains(&value) {
                return Ok(value);
            }
        }
    }

    fn call_once(
        &self,
        base: &Registers,
        gadget: u64,
        number: i64,
        args: [u64; 6],
        made: &mut u32,
    ) -> io::Result<i64> {
        let mut registers = *base;
        registers.rip = gadget;
        registers.rax = number as u64;
        // Or the kernel would try to restart what was interrupted, with these registers.
        registers.orig_rax = u64::MAX;
        registers.eflags &= !FLAGS_TF_DF;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = args;
        self.set_registers(&registers)?;
        for _edge in ["enter", "leave"] {
            let mut signal = 0;
            loop {
                self.resume(Resume::ToSyscall(signal))?;
                signal = match self.wait_for_own()? {
                    Stop::Syscall => break,
                    // All are blocked but the one that nobody can block: the process stops, this thread goes on.
                    Stop::Signal(signal) => signal,
                    Stop::Clone => {
                        let mut message = 0_u64;
                        self.request(libc::PTRACE_GETEVENTMSG, 0, (&raw mut message).cast())?;
                        *made = message as u32;
                        0
                    }
                    _ => 0,
                };
            }
        }
        Ok(self.registers()?.rax as i64)
    }

    /// The registers of a thread that has just been made, once it stands still.
    ///
    /// # Errors
    ///
    /// `ECHILD`: it was killed.
    pub fn first_registers(&self) -> io::Result<Registers> {
        loop {
            match self.registers() {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => self.wait_for_own()?,
                result => return result,
            };
        }
    }

    /// The next stop of this thread, and of no other that is traced: it may end alone.
    fn wait_for_own(&self) -> io::Result<Stop> {
        wait_for(libc::P_PID, self.tid).map(|(_, stop)| stop)
    }

    /// Lets it go for good, from a stop; with [`Stop::Group`] in force it stays stopped.
    ///
    /// # Errors
    ///
    /// `ESRCH`: it was killed, or does not stand still.
    pub fn detach(self) -> io::Result<()> {
        // Again at the drop, in vain.
        self.request(libc::PTRACE_DETACH, 0, null_mut())
    }

    fn request(&self, request: libc::c_uint, addr: usize, data: *mut c_void) -> io::Result<()> {
        // SAFETY: the requests used here store at `data`, or read from there, as much as the callers' live variables
        // hold (for masks and configurations `addr` says how much), or take `data` as a number. What they
        // change belongs to another process.
        match unsafe { libc::ptrace(request, self.tid as libc::pid_t, addr, data) } {
            -1 => Err(io::Error::from_raw_os_error(last())),
            _ => Ok(()),
        }
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // It fails for one that runs, or has gone.
        let _ = self.request(libc::PTRACE_DETACH, 0, null_mut());
        let mut traced = traced();
        if let Some(at) = traced.iter().position(|&process| process == self.process) {
            traced.swap_remove(at);
        }
    }
}

/// As [`io::Error::from_raw_os_error`], for what [`Tracee::call`] returned.
///
/// # Errors
///
/// What the call failed with.
pub fn returned(value: i64) -> Result<u64, Errno> {
    if (-4095..0).contains(&value) { Err(-value as Errno) } else { Ok(value as u64) }
}
