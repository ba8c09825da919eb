//! Signals as this process receives them: dispositions, masks, and a descriptor to read them from.
//!
//! vswap installs no handlers: a signal is ignored, has its default effect, or is read from a [`SignalFd`].

use std::fmt;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::Errno;
use crate::errno::{check, last};

/// A set of signals.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// No signal.
    pub fn empty() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the whole set and cannot fail.
        Self(unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        })
    }

    /// Every signal.
    pub fn full() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigfillset initialises the whole set and cannot fail.
        Self(unsafe {
            libc::sigfillset(set.as_mut_ptr());
            set.assume_init()
        })
    }

    /// The set with `signal` too; an unknown number changes nothing.
    #[must_use]
    pub fn with(mut self, signal: i32) -> Self {
        // SAFETY: an initialised set; a bad number is refused.
        unsafe { libc::sigaddset(&mut self.0, signal) };
        self
    }

    /// Whether `signal` is in the set.
    pub fn contains(&self, signal: i32) -> bool {
        // SAFETY: an initialised set; a bad number is refused with -1.
        unsafe { libc::sigismember(&self.0, signal) == 1 }
    }
}

impl fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((1..=64).filter(|&signal| self.contains(signal))).finish()
    }
}

/// Ignores `signal`; the programs we start inherit that unless they are given [`super::Step::DefaultSignal`].
///
/// # Errors
///
/// `EINVAL`: no such signal, or one that cannot be ignored.
pub fn ignore(signal: i32) -> io::Result<()> {
    set_disposition(signal, libc::SIG_IGN).map_err(io::Error::from_raw_os_error)
}

/// Gives `signal` its default effect.
///
/// # Errors
///
/// `EINVAL`: no such signal.
pub fn reset(signal: i32) -> io::Result<()> {
    set_disposition(signal, libc::SIG_DFL).map_err(io::Error::from_raw_os_error)
}

/// Whether `signal` is ignored now (`nohup` and shells leave some ignored: a front end must not undo that).
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; the kernel's answer is stored in `action`, for which zeros are valid too.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// `handler` is `SIG_DFL` or `SIG_IGN`. Async-signal-safe.
pub(super) fn set_disposition(signal: i32, handler: libc::sighandler_t) -> Result<(), Errno> {
    assert!(handler == libc::SIG_DFL || handler == libc::SIG_IGN);
    // SAFETY: no code of ours becomes a handler.
    if unsafe { libc::signal(signal, handler) } == libc::SIG_ERR { Err(last()) } else { Ok(()) }
}

/// Blocks every signal in the calling thread and returns the mask it had. Threads it starts inherit the mask.
pub fn block_all() -> SignalSet {
    exchange(libc::SIG_SETMASK, &SignalSet::full())
}

/// Blocks no signal in the calling thread any more.
pub fn unblock_all() {
    set_mask(&SignalSet::empty());
}

/// Gives the calling thread this mask. Async-signal-safe.
pub fn set_mask(mask: &SignalSet) {
    exchange(libc::SIG_SETMASK, mask);
}

fn exchange(how: i32, set: &SignalSet) -> SignalSet {
    let mut old = SignalSet::empty();
    // SAFETY: two initialised sets. It fails only for a bad `how`, which no caller has.
    unsafe { libc::pthread_sigmask(how, &set.0, &mut old.0) };
    old
}

/// A signal read from a [`SignalFd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Which.
    pub signal: i32,
    /// Where from (`si_code`): see [`Received::was_sent`].
    pub code: i32,
    /// Who sent it, or, for `SIGCHLD`, which child.
    pub pid: u32,
    /// The sender's user.
    pub uid: u32,
    /// For `SIGCHLD`, the child's exit code or signal.
    pub status: i32,
}

impl Received {
    /// Whether a process sent it to us (`kill`, `tgkill`, `sigqueue`), not the terminal or the kernel. What the terminal sends,
    /// it sends to the whole foreground group: forwarding it would deliver it twice.
    pub fn was_sent(&self) -> bool {
        self.code <= 0
    }
}

/// Signals as a descriptor to wait on.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks `signals` in the calling thread (do it before starting others) and opens a non-blocking descriptor
    /// from which they are read instead. An ignored signal does not arrive.
    ///
    /// # Errors
    ///
    /// `EMFILE` and the like.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let set = signals.iter().fold(SignalSet::empty(), |set, &signal| set.with(signal));
        exchange(libc::SIG_BLOCK, &set);
        // SAFETY: an initialised set, only read.
        let fd = check(unsafe { libc::signalfd(-1, &set.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }.into())
            .map_err(io::Error::from_raw_os_error)?;
        // SAFETY: the kernel has just created this descriptor for us; nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// The next signal that has arrived, if any.
    ///
    /// # Errors
    ///
    /// None that a live descriptor gives.
    pub fn next(&self) -> io::Result<Option<Received>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        loop {
            // SAFETY: `info` has `size` writable bytes.
            match unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) } {
                -1 => match last() {
                    libc::EAGAIN => return Ok(None),
                    libc::EINTR => {}
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                },
                count if count as usize == size => break,
                _ => return Ok(None),
            }
        }
        // SAFETY: integers only, all written by the kernel (and zeros before).
        let info = unsafe { info.assume_init() };
        Ok(Some(Received {
            signal: info.ssi_signo as i32,
            code: info.ssi_code,
            pid: info.ssi_pid,
            uid: info.ssi_uid,
            status: info.ssi_status,
        }))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
