//! What goes into the protocol and what comes out of it. No I/O, no descriptors, no clock.

use std::ops::Range;

use vswap_core::SlotId;

use super::space::AddressSpace;

/// A number that the driver gives to the child's descriptor of a FORK event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChildKey(pub u64);

/// A number that the driver gives to a call that waits at the gate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket(pub u64);

/// A fault that waits for its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The page's address.
    pub addr: u64,
    /// Whether the access was a write.
    pub write: bool,
    /// The thread that waits.
    pub tid: u32,
    /// The driver's own mark (when it read the fault).
    pub stamp: u64,
}

/// An mremap that a thread asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mremap {
    /// Old address.
    pub old: u64,
    /// Old length in bytes.
    pub old_len: u64,
    /// New length in bytes.
    pub new_len: u64,
    /// MREMAP_ flags.
    pub flags: u64,
    /// New address, with MREMAP_FIXED.
    pub new: u64,
}

/// A call that waits at the gate: granted one at a time, and executed by the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// Moves or resizes a mapping.
    Mremap(Mremap),
    /// An madvise that changes contents without an event: guard pages, wipe on fork.
    Madvise {
        /// Address.
        start: u64,
        /// Bytes.
        len: u64,
        /// MADV_ constant.
        advice: u64,
    },
}

/// What the driver tells the protocol.
#[derive(Debug)]
pub enum Input {
    /// A page fault was read.
    Fault(Fault),
    /// A FORK event was read; the child's descriptor goes by this key.
    Fork(ChildKey),
    /// A REMAP event was read.
    Remap {
        /// Old address.
        from: u64,
        /// New address.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// A REMOVE event was read.
    Remove(Range<u64>),
    /// An UNMAP event was read.
    Unmap(Range<u64>),
    /// The descriptor had nothing more to read.
    Drained,
    /// A thread waits at the gate.
    Asked(Ticket, Call),
    /// The granted call has made guard pages here: faults from before are out of date.
    Guarded(Range<u64>),
    /// In the first range, a forked child reads zeros in these parts and what the parent has in the rest.
    WipedOnFork(Range<u64>, Vec<Range<u64>>),
    /// The driver begins to look whether every thread has left its madvise: what is owed by now is meant.
    SettleBegin,
    /// Every thread has left whatever madvise it was in when `SettleBegin` came: those zaps are done.
    Settled,
    /// The granted call has returned: an address or 0, or a negative errno.
    Returned(Ticket, i64),
    /// The window of the parent, in which this address space was forked, has closed; these were unmapped in it.
    ParentClosed(Vec<Range<u64>>),
    /// The forked child stands still in its fork and waits to be [verified](AddressSpace::verified).
    Greeting,
    /// Memory is (no longer) so short that first touches must wait.
    Throttle(bool),
    /// So many more pages should leave.
    Evict(u64),
    /// So many evicted pages should come back, though nobody waits for them.
    Recall(u64),
    /// Whether mappings should be registered before anything of them is evicted, so that first touches can be held.
    RegisterAll(bool),
}

/// What the protocol wants done next. Each command is answered before the next one is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// A guarded command that changes nothing: `Done` if no change of mappings is under way.
    Probe,
    /// The same on one page: tells whether it is registered.
    ProbePage(u64),
    /// Install the pages of these slots from `addr` on.
    Copy {
        /// Address of the first page.
        addr: u64,
        /// Their slots, a page each.
        slots: Vec<SlotId>,
        /// The fault that it serves, if it serves one.
        fault: Option<Fault>,
    },
    /// Install `pages` zero pages from `addr` on.
    Zero {
        /// Address of the first page.
        addr: u64,
        /// Pages.
        pages: u64,
        /// The fault that it serves, if it serves one; a zero page of its own where that was a write.
        fault: Option<Fault>,
    },
    /// The first mapping that ends above this address.
    Mapping(u64),
    /// Register this range for missing pages and write protection.
    Register(Range<u64>),
    /// Runs of resident pages in this range that nothing forbids to evict, at most so many pages.
    Scan(Range<u64>, u64),
    /// Take these runs of pages out, at most a batch, and store them.
    Move(Vec<Range<u64>>),
    /// The parts of this range that a forked child reads as zeros (MADV_WIPEONFORK).
    WipedOnFork(Range<u64>),
    /// Execute this call; the answer to the command is `Done`, the result comes as an input. Without an agent the caller
    /// makes it, and nobody tells the result: `Refused`.
    Execute(Ticket, Call),
}

/// The outcome of a command that installs pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// All were installed.
    Complete,
    /// A change of mappings is under way (EAGAIN).
    Changing,
    /// The next page is there already (EEXIST).
    Exists,
    /// The next page is not mapped, or not registered (ENOENT and its kin).
    Missing,
    /// Some were installed; the kernel does not say what stopped it.
    Short,
}

/// A mapping, as far as the protocol wants to know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Its addresses.
    pub range: Range<u64>,
    /// Private, anonymous, readable and writable, not a stack that grows, not ours, not too small.
    pub evictable: bool,
}

/// What came of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was done (`Probe`, `ProbePage`, `Register`, `Execute`).
    Done,
    /// A change of mappings is under way.
    Changing,
    /// The page is not registered (`ProbePage`), or the range cannot be (`Register`), or nobody knows (`Mapping`).
    Refused,
    /// `Copy` and `Zero`: so many pages were installed, and why not more.
    Installed(u64, Stop),
    /// `Mapping`: the mapping, or none above.
    Mapping(Option<Mapping>),
    /// `WipedOnFork`: the parts.
    Wiped(Vec<Range<u64>>),
    /// `Scan`: the runs, and where to go on.
    Scanned(Vec<Range<u64>>, u64),
    /// `Move`: what has left and where it is; and whether a change of mappings cut it short.
    Moved(Vec<(u64, SlotId)>, bool),
    /// The page at this address cannot be had, and why: its slot is lost, or the kernel does not take it.
    Lost(u64, String),
    /// The address space is gone.
    Gone,
}

/// What the protocol wants done besides, in order; nothing is answered.
#[derive(Debug)]
pub enum Effect {
    /// These references are no longer held; they were for the pages at these addresses, in the same order.
    Free(Vec<SlotId>, Vec<u64>),
    /// These references are held once more.
    Dup(Vec<SlotId>),
    /// A child was forked: serve its descriptor with this state.
    Forked(ChildKey, Box<AddressSpace>),
    /// The window in which these children were forked has closed: tell them `ParentClosed` with what was unmapped in it.
    Closed(Vec<ChildKey>, Vec<Range<u64>>),
    /// This fault has its answer.
    Served(Fault),
    /// Wake whoever waits for this page.
    Wake(u64),
    /// What the events say has two readings, or no reading, or a page is lost: the tree must not run on. Which, where, and
    /// what happened there last.
    FailStop(String),
}
