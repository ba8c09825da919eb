//! Whether this machine lets us page a program with userfaultfd, asked before anything is started.
//!
//! Two parties need something: the agent, with the privileges of CMD, opens the userfaultfd; the pager, with ours, switches
//! it on. A vswap with file capabilities has more than its CMD will have: so opening is judged by what CMD keeps.

use std::fmt;
use std::io;

use rustix::thread::{CapabilitySet, capability_is_in_ambient_set};
use vswap_sys::system::{self, Capability};
use vswap_sys::uffd::{self, Uffd};

/// What is missing.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The kernel has no userfaultfd at all.
    NoUserfaultfd,
    /// CMD may not open one.
    Open,
    /// We may not follow forks.
    ForkEvents {
        /// We are not in the machine's first user namespace, where alone the capability counts.
        namespace: bool,
    },
    /// The kernel lacks a feature that we need.
    Features(io::Error),
    /// Something else.
    Other(io::Error),
}

impl Refusal {
    /// What to do about it, a line each.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::NoUserfaultfd => "a kernel with CONFIG_USERFAULTFD (every distribution's has it)",
            Self::Open => {
                "one of:\n\
                 sudo vswap run ...                              (run it as root)\n\
                 sudo sysctl vm.unprivileged_userfaultfd=1       (allow it to every user of the machine)\n\
                 sudo chmod 0666 /dev/userfaultfd                (the same, until the next boot)\n\
                 docker run --device /dev/userfaultfd --cap-add SYS_PTRACE ...    (in a container)"
            }
            Self::ForkEvents { namespace: false } => {
                "one of:\n\
                 sudo vswap run ...                              (run it as root)\n\
                 sudo setcap cap_sys_ptrace,cap_sys_admin=ep \"$(command -v vswap)\"    (once)\n\
                 docker run --device /dev/userfaultfd --cap-add SYS_PTRACE ...        (in a container)"
            }
            Self::ForkEvents { namespace: true } => {
                "a container that is not rootless, or vswap outside of it, around the container's program"
            }
            Self::Features(_) => "Linux 6.8 or newer (see uname -r)",
            Self::Other(_) => "see `vswap doctor`",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUserfaultfd => write!(f, "this kernel has no userfaultfd"),
            Self::Open => write!(f, "no permission for userfaultfd"),
            Self::ForkEvents { namespace } => {
                write!(f, "no permission to follow forks (needs CAP_SYS_PTRACE")?;
                if *namespace { write!(f, " in the machine's first user namespace)") } else { write!(f, ")") }
            }
            Self::Features(error) => {
                write!(
                    f,
                    "this kernel's userfaultfd lacks a feature that vswap needs, such as moving pages ({error})"
                )
            }
            Self::Other(error) => write!(f, "userfaultfd: {error}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Opens a userfaultfd as CMD would and switches it on as the pager will; then lets it go.
///
/// # Errors
///
/// What is missing.
pub(crate) fn probe() -> Result<(), Refusal> {
    let opened = open_as_command().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS) => Refusal::NoUserfaultfd,
        Some(libc::ENOENT) if system::unprivileged_userfaultfd().is_none() => Refusal::NoUserfaultfd,
        Some(libc::EPERM | libc::EACCES | libc::ENOENT) => Refusal::Open,
        _ => Refusal::Other(error),
    })?;
    opened.api(uffd::FEATURES).map(drop).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => Refusal::ForkEvents { namespace: !system::in_initial_user_namespace() },
        Some(libc::EINVAL) => Refusal::Features(error),
        _ => Refusal::Other(error),
    })
}

/// A userfaultfd, if CMD will be able to open one.
fn open_as_command() -> io::Result<Uffd> {
    if !system::has_capability(Capability::SysPtrace) || command_keeps_ptrace() {
        return Uffd::open();
    }
    // Ours alone: then the system call works for us, and for CMD only by the sysctl.
    if system::unprivileged_userfaultfd() == Some(true) {
        return Uffd::open_by_syscall();
    }
    Uffd::open_by_device()
}

/// Whether CMD will have the CAP_SYS_PTRACE that we have: root's does, and an ambient one.
pub(crate) fn command_keeps_ptrace() -> bool {
    rustix::process::getuid().is_root()
        || capability_is_in_ambient_set(CapabilitySet::SYS_PTRACE).unwrap_or(false)
}
