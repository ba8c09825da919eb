//! The machine and what it grants us: memory, cgroup limits, privileges, the kernel's version, malloc.

mod cgroup;

pub use cgroup::{CgroupLimit, cgroup_limit, cgroup_limits};

use std::fs;
use std::io;

use rustix::thread::CapabilitySet;

use crate::procfs::{kilobytes, malformed, read_text};

/// The machine's memory in bytes.
///
/// # Errors
///
/// Those of reading `/proc/meminfo`.
pub fn mem_total() -> io::Result<u64> {
    meminfo("MemTotal")
}

/// Memory in bytes that could be used without swapping, as the kernel estimates.
///
/// # Errors
///
/// As for [`mem_total`].
pub fn mem_available() -> io::Result<u64> {
    meminfo("MemAvailable")
}

fn meminfo(key: &str) -> io::Result<u64> {
    kilobytes(&read_text("/proc/meminfo")?, key).ok_or_else(|| malformed("/proc/meminfo"))
}

/// A privilege vswap may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Userfaultfd and its fork events, and a look at other users' processes.
    SysPtrace,
    /// A seccomp filter without renouncing privileges.
    SysAdmin,
    /// Raising priority.
    SysNice,
}

/// Whether the calling thread has `capability` now (effective). What it is worth depends on the user namespace:
/// see [`in_initial_user_namespace`].
pub fn has_capability(capability: Capability) -> bool {
    let wanted = match capability {
        Capability::SysPtrace => CapabilitySet::SYS_PTRACE,
        Capability::SysAdmin => CapabilitySet::SYS_ADMIN,
        Capability::SysNice => CapabilitySet::SYS_NICE,
    };
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
}

/// Whether this process is in the machine's first user namespace: only there do capabilities count for userfaultfd's
/// fork events. False in rootless containers.
pub fn in_initial_user_namespace() -> bool {
    // The kernel gives the first namespaces fixed numbers (PROC_USER_INIT_INO).
    fs::read_link("/proc/self/ns/user").is_ok_and(|link| link.as_os_str() == "user:[4026531837]")
}

/// Yama's `ptrace_scope`: 0 (any process of the same user) to 3 (nobody); `None` on a kernel without Yama, which
/// behaves like 0.
pub fn ptrace_scope() -> Option<u32> {
    number_in("/proc/sys/kernel/yama/ptrace_scope")
}

/// Whether `vm.unprivileged_userfaultfd` is set; `None` on a kernel without userfaultfd.
pub fn unprivileged_userfaultfd() -> Option<bool> {
    number_in("/proc/sys/vm/unprivileged_userfaultfd").map(|value| value != 0)
}

fn number_in(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A kernel version. Compare it with `>=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 in 6.18.44.
    pub major: u32,
    /// 18 in 6.18.44.
    pub minor: u32,
    /// 44 in 6.18.44; 0 if there is none.
    pub patch: u32,
}

/// The running kernel's version.
///
/// # Errors
///
/// `InvalidData` if its release does not start with two numbers.
pub fn kernel_version() -> io::Result<KernelVersion> {
    parse_release(&kernel_release()).ok_or_else(|| malformed("the kernel's release"))
}

/// The running kernel's release as it calls itself.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn parse_release(release: &str) -> Option<KernelVersion> {
    let mut numbers = release.split('.').map(|part| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits].parse::<u32>().ok()
    });
    Some(KernelVersion {
        major: numbers.next()??,
        minor: numbers.next()??,
        patch: numbers.next().flatten().unwrap_or(0),
    })
}

/// Sets the C library's allocator up for a process that must give memory back: blocks from 128 KiB on are mappings of
/// their own (and the threshold no longer adapts), and all threads share `arenas` arenas (bounds the free memory kept per thread).
/// Returns whether it was accepted. Call it before starting threads.
pub fn tune_malloc(arenas: i32) -> bool {
    // SAFETY: takes integers only.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10) == 1 && libc::mallopt(libc::M_ARENA_MAX, arenas) == 1
    }
}

/// Gives the allocator's free memory back to the system, inside arenas too. Takes every arena's lock in turn.
pub fn malloc_trim() {
    // SAFETY: takes an integer only.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_parsed() {
        let version = |major, minor, patch| Some(KernelVersion { major, minor, patch });
        assert_eq!(parse_release("6.18.44-fc-v669"), version(6, 18, 44));
        assert_eq!(parse_release("6.1.0-13-amd64"), version(6, 1, 0));
        assert_eq!(parse_release("6.18"), version(6, 18, 0));
        assert_eq!(parse_release("6.18-rc3"), version(6, 18, 0));
        assert_eq!(parse_release("7"), None);
        assert_eq!(parse_release("linux"), None);
        assert!(version(6, 8, 0) < version(6, 18, 0));
    }

    #[test]
    fn memory_is_plausible() {
        let (total, available) = (mem_total().unwrap(), mem_available().unwrap());
        assert!(total >= available && available > 0, "{available} of {total}");
    }
}
