//! One address space as the pager's threads share it. Its page table is not here: that belongs to its server thread
//! alone, and everything else reaches it through the notes and the bell.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;
use vswap_sys::poll::EventFd;
use vswap_sys::seccomp::Notification;
use vswap_sys::shared::SharedPages;
use vswap_sys::socket::Conn;
use vswap_sys::uffd::Uffd;

use super::alone::leave_last;
use super::forks::Stopped;
use super::watch::Watch;

/// The agent inside an address space.
pub struct Agent {
    /// Its thread; 0 until it has said so, which is the first thing it does.
    pub tid: u32,
    /// Its socket.
    pub conn: Arc<Conn>,
    /// Where it copies what it takes out.
    pub ring: SharedPages,
    /// Its own memory, to be left alone.
    pub area: Range<u64>,
    /// First address of its staging area.
    pub staging: u64,
}

/// What a server thread needs of its address space.
pub struct Equipment {
    /// The descriptor that reports faults and events.
    pub uffd: Uffd,
    /// The agent; a child has none between FORK and its greeting, and the child of a raw clone never.
    pub agent: Option<Agent>,
    /// The page by which a forked child finds out who it is.
    pub beacon: u64,
    /// The program has used MADV_WIPEONFORK.
    pub may_wipe: bool,
}

/// A message to a server thread.
pub enum Note {
    /// A thread of the address space waits at the gate.
    Call(Notification),
    /// The only thread wants to enter a user namespace, and waits until the agent has left.
    Alone(Notification),
    /// A thread wants to install a filter for all threads that the agent could not live with, and waits until it has left.
    Filter(Notification),
    /// It seems that nothing is left of the program but its agent.
    Deserted,
    /// A thread that is about to copy the address space waits at the gate until everything is resident.
    Fork(Arc<Stopped>),
    /// The parent's window has closed.
    ParentClosed(Vec<Range<u64>>),
    /// The forked child's agent has greeted.
    Agent(Agent),
}

/// An address space.
pub struct Tenant {
    /// A number, never used twice.
    pub id: u64,
    /// What a forked child reads from its beacon; 0 for a process that greeted afresh.
    pub token: u64,
    /// A forked child's agent has come for it.
    pub claimed: AtomicBool,
    /// Its process; 0 while a forked child has not been seen yet.
    pub pid: AtomicU32,
    /// The page where a forked child reads its token; the same in all that one process forks.
    pub beacon: AtomicU64,
    /// When it was first heard of.
    pub since: Instant,
    /// An agent has greeted.
    pub greeted: AtomicBool,
    /// Pages that should leave.
    pub wanted: AtomicU64,
    /// New mappings should be registered, so that first touches can be held.
    pub register: AtomicBool,
    /// Its virtual size in bytes when that was asked last.
    pub registered_size: AtomicU64,
    /// Evicted pages.
    pub evicted: AtomicU64,
    /// Bytes of its page table.
    pub footprint: AtomicU64,
    /// Pages of its ring that were ever used.
    pub ring_pages: AtomicU64,
    /// Pages evicted in all.
    pub evictions: AtomicU64,
    /// Until then, in nanoseconds of the run, asking it for pages is pointless: it had none.
    pub barren_until: AtomicU64,
    /// It has forked, or was forked: its resident pages may be shared.
    pub shares: AtomicBool,
    /// Its program has ended, and the agent was told.
    deserted: AtomicBool,
    /// A server thread has taken the equipment below.
    pub active: AtomicBool,
    /// First touches wait for memory.
    pub holding: AtomicBool,
    /// What its server is at.
    pub watch: Watch,
    /// Until then, it is here.
    pub idle: Mutex<Option<Equipment>>,
    notes: Mutex<VecDeque<Note>>,
    bell: EventFd,
}

impl Tenant {
    /// A new address space.
    pub fn new(id: u64, token: u64, pid: u32, equipment: Option<Equipment>) -> std::io::Result<Self> {
        Ok(Self {
            id,
            token,
            claimed: AtomicBool::new(false),
            pid: AtomicU32::new(pid),
            beacon: AtomicU64::new(0),
            since: Instant::now(),
            greeted: AtomicBool::new(equipment.is_some()),
            wanted: AtomicU64::new(0),
            register: AtomicBool::new(false),
            registered_size: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            footprint: AtomicU64::new(0),
            ring_pages: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            barren_until: AtomicU64::new(0),
            shares: AtomicBool::new(token != 0),
            deserted: AtomicBool::new(false),
            active: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            watch: Watch::default(),
            idle: Mutex::new(equipment),
            notes: Mutex::default(),
            bell: EventFd::new()?,
        })
    }

    /// Leaves a message and rings.
    pub fn tell(&self, note: Note) {
        self.notes.lock().push_back(note);
        self.bell.notify();
    }

    /// Rings.
    pub fn ring(&self) {
        self.bell.notify();
    }

    /// Has the agent leave, if it is the last thread of its process. To be said until that has gone.
    pub fn send_agent_off(&self) {
        let idle = self.idle.lock();
        match idle.as_ref() {
            Some(Equipment { agent: Some(agent), .. }) if !self.deserted.load(Relaxed) => {
                self.deserted.store(leave_last(agent, self.pid.load(Relaxed)), Relaxed);
            }
            _ if self.active.load(Relaxed) => self.tell(Note::Deserted),
            // Done; or the gate has sent it on an errand.
            _ => {}
        }
    }

    /// Rings if first touches wait for memory.
    pub fn ring_if_holding(&self) {
        if self.holding.load(Relaxed) {
            self.bell.notify();
        }
    }

    /// The next message.
    pub fn note(&self) -> Option<Note> {
        self.notes.lock().pop_front()
    }

    /// What to poll.
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Asks for `pages` more pages to leave.
    pub fn want(&self, pages: u64) {
        self.wanted.store(pages, Relaxed);
        self.bell.notify();
    }
}
