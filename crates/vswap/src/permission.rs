//! Whether this machine lets us page a program with userfaultfd, asked before anything is started.
//!
//! Two parties need something: the agent, with the privileges of CMD, opens the userfaultfd; the pager, with ours, switches
//! it on. A vswap with file capabilities has more than its CMD will have: so opening is judged by what CMD keeps.
//!
//! | | without | so |
//! | --- | --- | --- |
//! | opening a userfaultfd | nothing can be paged | refused |
//! | fork events (`CAP_SYS_PTRACE`) | a child reads zeros for what is away | the gate stops forks, or refused |
//! | the gate without `no_new_privs` (`CAP_SYS_ADMIN`) | filters are for those who renounce privileges | CMD does, unless it may not |

use std::fmt;
use std::io;

use rustix::thread::{CapabilitySet, capability_is_in_ambient_set, capability_is_in_bounding_set};
use vswap_sys::system::{self, Capability};
use vswap_sys::uffd::{self, Uffd};

/// What is missing.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The kernel has no userfaultfd at all.
    NoUserfaultfd,
    /// CMD may not open one.
    Open,
    /// We may not follow forks, and have no gate to stop them at.
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
            Self::Open if contained() => {
                "one of:\n\
                 docker run --device /dev/userfaultfd ...        (with root as its user)\n\
                 docker run --device /dev/userfaultfd --group-add GROUP ...    (whose device it is outside: `ls -n`)"
            }
            Self::Open => {
                "one of:\n\
                 sudo vswap run ...                              (run it as root)\n\
                 sudo vswap doctor --fix --apply                 (allow it to a group of users, for good)\n\
                 sudo sysctl vm.unprivileged_userfaultfd=1       (allow it to every user, until the next boot)\n\
                 docker run --device /dev/userfaultfd ...        (in a container)"
            }
            Self::ForkEvents { namespace: false } if contained() => {
                "one of:\n\
                 vswap run ...                                   (without --allow-new-privs)\n\
                 docker run --cap-add SYS_PTRACE ..."
            }
            Self::ForkEvents { namespace: false } => {
                "one of:\n\
                 vswap run ...                                   (without --allow-new-privs)\n\
                 sudo vswap run ...                              (run it as root)\n\
                 sudo setcap cap_sys_ptrace,cap_sys_admin=ep \"$(command -v vswap)\"    (once)\n\
                 docker run --device /dev/userfaultfd --cap-add SYS_PTRACE ...        (in a container)"
            }
            Self::ForkEvents { namespace: true } => {
                "one of:\n\
                 vswap run ...                                   (without --allow-new-privs)\n\
                 a container that is not rootless, or vswap outside of it, around the container's program"
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

/// Whether we are in a container, or the like, where nobody can get what it takes to follow forks.
pub(crate) fn contained() -> bool {
    !capability_is_in_bounding_set(CapabilitySet::SYS_PTRACE).unwrap_or(true)
}

/// How it can be done here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    /// Events tell of forks; else the gate has to stop them.
    pub(crate) fork_events: bool,
    /// For the gate, CMD has to renounce gains of privilege.
    pub(crate) no_new_privs: bool,
}

/// Opens a userfaultfd as CMD would and switches it on as the pager will; then lets it go. `allow_new_privs`: CMD must not
/// renounce anything.
///
/// # Errors
///
/// What is missing.
pub(crate) fn probe(allow_new_privs: bool) -> Result<Means, Refusal> {
    let opened = open_as_command().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS) => Refusal::NoUserfaultfd,
        Some(libc::ENOENT) if system::unprivileged_userfaultfd().is_none() => Refusal::NoUserfaultfd,
        Some(libc::EPERM | libc::EACCES | libc::ENOENT) => Refusal::Open,
        _ => Refusal::Other(error),
    })?;
    let answer = match opened.api(uffd::FEATURES) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            opened.api(uffd::FEATURES & !uffd::EVENT_FORK).map(|_| false)
        }
        answer => answer.map(|_| true),
    };
    let fork_events = answer.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => Refusal::Features(error),
        _ => Refusal::Other(error),
    })?;
    let privileged = system::has_capability(Capability::SysAdmin);
    let renounced = rustix::thread::no_new_privs().unwrap_or(false);
    if !fork_events && allow_new_privs && !privileged && !renounced {
        return Err(Refusal::ForkEvents { namespace: !system::in_initial_user_namespace() });
    }
    Ok(Means { fork_events, no_new_privs: !privileged && !allow_new_privs })
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
