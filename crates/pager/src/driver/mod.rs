//! The protocol on the real kernel: threads, descriptors, processes.
//!
//! | thread | does | owns |
//! | --- | --- | --- |
//! | hub (main) | welcomes agents, reaps, ends | address spaces without a server |
//! | `serve-PID`, one per address space with something registered | faults, events, eviction | its page table and protocol state |
//! | gate | receives mremaps, execs and system call filters, and forks where no event tells of them | – |
//! | `enter-PID`, for a moment | puts the agent into a program without a loader | that process, by ptrace |
//! | governor | measures, asks for pages, holds first touches | the figures |
//! | control | answers on the control socket | its connections |
//! | watchdog | says which fault has waited for over a second, and why | – |
//! | compress, spill | swap cache → pool → file | – |
//!
//! Nobody holds a lock while waiting for a target.

mod alone;
mod answers;
mod buffers;
mod call;
mod control;
mod door;
mod entrance;
mod forks;
mod freeze;
mod gate;
mod gathering;
mod governor;
mod headroom;
mod hub;
mod limit;
mod meter;
mod pace;
mod pins;
mod placement;
mod port;
mod proactive;
mod reclaim;
mod server;
mod settle;
mod share;
mod shared;
mod status;
mod summary;
mod tenant;
mod untold;
mod watch;
mod wiped;
mod worker;

pub use hub::{Identity, Session, serve};
pub use limit::{AutoLimit, auto_limit};
