//! The kernel as vswap sees it: every system call of the project that needs `unsafe`, behind a safe API.
//!
//! This crate is the basement. It knows nothing of slots, tiers, windows or agents: it turns files, ioctls and
//! processes into Rust types and hands back the kernel's answer unchanged. Policy (retry, give up, wait) belongs to
//! the callers; here a short count is a short count and an errno is an errno.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`uffd`] | a userfaultfd: commands, and events one at a time |
//! | [`pagemap`] | which pages of a process are present (PAGEMAP_SCAN, raw entries) |
//! | [`maps`] | which mappings a process has (PROCMAP_QUERY, or the text) |
//! | [`seccomp`] | the gate before `mremap`, exec and some `madvise`: a user-notification filter and its listener |
//! | [`process`] | fork, spawn, wait, the tree below a process, its memory, its threads, signals |
//! | [`trace`] | ptrace: a thread of another process stopped, used for system calls, and let go as it was |
//! | [`socket`] | SEQPACKET sockets that carry file descriptors |
//! | [`shared`] | memory shared with a process we do not trust |
//! | [`poll`] | waiting for several descriptors, and waking a waiter |
//! | [`front_support`] | what the front door needs besides: inherited descriptors, SIGPIPE, noexec mounts |
//! | [`system`] | memory, cgroup limits, capabilities, kernel version, malloc |
//!
//! # Rules of this crate
//!
//! - `unsafe` lives here and (in the project) nearly nowhere else; each block says why it is sound.
//! - Each kernel structure and ioctl number is written down once, in the module that uses it, because the headers
//!   installed on a machine are often older than its kernel.
//! - Where `rustix` or `std` is already safe and is all that is needed, it is used, not wrapped again.
//! - Memory of *another* process may be changed at will (that is what a pager does); memory of our own may not.
//!   [`uffd::Uffd`] can be made to act on the process that opened it, and then falls under the same reservation as
//!   writing to `/proc/self/mem`: outside what Rust's type system promises. Only tests do that, on mappings of
//!   their own.
//!
//! Linux on x86-64 only.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64", target_pointer_width = "64")))]
compile_error!("vswap-sys supports Linux on x86-64 only");

mod errno;
pub mod front_support;
pub mod maps;
pub mod pagemap;
pub mod poll;
pub mod process;
mod procfs;
pub mod seccomp;
pub mod shared;
pub mod socket;
pub mod system;
pub mod trace;
pub mod uffd;

pub use errno::Errno;

/// The size of a base page on every machine this crate supports, in bytes.
pub const PAGE_SIZE: usize = 4096;
