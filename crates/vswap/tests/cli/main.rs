//! The program as a user meets it: exit statuses, streams, signals, the terminal, what it leaves behind.
//!
//! Each test runs the built program with real commands of the system. They need the permission for userfaultfd that
//! `vswap doctor` asks for, python3, and root for a few; a machine without fails them, it does not skip them.

mod container;
mod control;
mod corruption;
mod deaths;
mod ends;
mod entering;
mod fix;
mod full;
mod gate;
mod harness;
mod holder;
mod hostile;
mod idle;
mod namespaces;
mod proactive;
mod recipes;
mod scarcity;
mod signals;
mod stall;
mod static_programs;
mod status;
mod streams;
mod take_back;
mod terminal;
mod texts;
mod trace;
mod tree;
mod user;
mod usual;
mod watchdog;
