//! Ending a batch without its agent, which does not run.
//!
//! It may sleep for a page that only the server can bring (one that vanished between its look and its attempt to un-share it:
//! a discard is zapped after its event was read). It may be stopped, by a debugger, or by LeakSanitizer, which stops all threads
//! and then reads all memory from a process of its own; by a signal, or a freezer. Or a system call filter has killed it. The
//! program's other threads, and whoever else reads its memory, must not wait for it; and no event can be read while pages may
//! still move.
//!
//! Who has a page of the batch at each moment: the program, until a MOVE takes it to staging; staging, until the agent has copied
//! it to the ring and said so in the tally; then the ring, until we send the next batch, which we do only after the answer to
//! this one. So:
//!
//! - If the tally counts the batch, the ring has all of it, and nothing moves any more.
//! - If not, nothing was dropped from staging yet. We unregister staging: no later MOVE reaches it, and the kernel checks that
//!   under the lock that unregistering takes. Then what is in staging is all that has moved, provided that the agent did not
//!   run while we read it: it might have gone on to empty it. If it did run, we take nothing, and it answers.
//!
//! When it wakes up, its MOVEs fail, it copies out and empties what is there still (and registers staging, behind its last
//! MOVE), and answers. Nothing of that answer is used. Until it has come there is no other batch, and no call is granted: the agent may wait for a page, and pages
//! wait for calls.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::debug;
use vswap_core::{PAGE_SIZE, Page};
use vswap_sys::pagemap::is_there;
use vswap_sys::process::{self, Doing};
use vswap_sys::uffd::RegisterMode;
use vswap_wire as wire;

use super::batch::Batch;
use super::{PAGE, Port};

/// How long an address space may outlive an agent that ends in the middle of a batch: an exec or an exit under way.
const OUTLIVES: Duration = Duration::from_secs(1);

/// A thread that does not run, since a moment when it was off its CPU.
struct Standstill {
    pid: u32,
    tid: u32,
    switches: u64,
}

impl Standstill {
    fn begins(pid: u32, tid: u32) -> Option<Self> {
        let switches = process::switches(pid, tid).ok()?;
        is_off(pid, tid).then_some(Self { pid, tid, switches })
    }

    /// Whether it has lasted until now. Had it run since, it would have left its CPU once more before it was seen off it.
    fn lasts(&self) -> bool {
        is_off(self.pid, self.tid) && process::switches(self.pid, self.tid).ok() == Some(self.switches)
    }
}

/// Whether a thread sleeps or is stopped, and is off its CPU: the kernel waits for that before it says in what call it is.
fn is_off(pid: u32, tid: u32) -> bool {
    process::doing(pid, tid).is_ok_and(|doing| doing != Doing::Running)
}

impl Port {
    /// The batch as it stands, if the agent does not run.
    pub(super) fn take_back(&mut self) -> Option<Batch> {
        let pid = self.tenant.pid.load(Relaxed);
        let standstill = Standstill::begins(pid, self.agent_tid())?;
        let (batch, place) = match self.copied() {
            Some(batch) => (batch, "the ring"),
            None => {
                self.uffd.unregister(self.staging()?).ok()?;
                self.fenced = true;
                let batch = self.read_staging()?;
                if !standstill.lasts() {
                    return None;
                }
                (batch, "staging")
            }
        };
        debug!(target: "evict", "process {pid}: its agent stands still, its batch is taken from {place}");
        self.overdue = true;
        Some(batch)
    }

    /// The batch of an agent that is no more. If its pages cannot be had, its process is not allowed to run on.
    pub(super) fn take_back_from_dead(&mut self) -> Batch {
        let (begun, pid) = (Instant::now(), self.tenant.pid.load(Relaxed));
        while self.alive() {
            if let Some(batch) = self.copied().or_else(|| self.read_staging()) {
                debug!(target: "evict", "process {pid}: its agent has ended, its batch is taken");
                return Batch { ended: true, ..batch };
            }
            if begun.elapsed() > OUTLIVES {
                self.shared.fail(format!(
                    "the agent of process {pid} has ended, and what it had moved cannot be read"
                ));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Batch { ended: true, ..Batch::default() }
    }

    /// The agent has answered: its staging area is its own again.
    pub fn answered(&mut self, emptied: bool) {
        self.overdue = false;
        self.evictable &= emptied;
        if core::mem::take(&mut self.fenced) {
            // It does so itself, but for a batch of which nothing had moved.
            let registered = self.staging().map(|staging| self.uffd.register(staging, RegisterMode::WP));
            self.evictable &= registered == Some(Ok(()));
        }
    }

    /// The batch, if the agent has copied it to the ring.
    fn copied(&self) -> Option<Batch> {
        let ring = &self.agent.as_ref()?.ring;
        if ring.word(wire::TALLY, 0) != self.batches {
            return None;
        }
        let moved = core::array::from_fn(|index| ring.word(wire::TALLY, 1 + index));
        Some(Batch { moved, again: true, ..Batch::default() })
    }

    fn staging(&self) -> Option<Range<u64>> {
        let start = self.agent.as_ref()?.staging;
        Some(start..start + wire::BATCH_PAGES as u64 * PAGE)
    }

    /// What is in staging now. Pages of zeros are left out, as the agent does: some may have come there by an mlockall, and what
    /// nobody answers for reads as zeros.
    fn read_staging(&self) -> Option<Batch> {
        const ZEROS: Page = [0; PAGE_SIZE];
        let (staging, memory) = (self.staging()?, self.memory.as_ref()?);
        let mut entries = [0; wire::BATCH_PAGES];
        let read = self.pagemap.as_ref()?.entries(staging.start / PAGE, &mut entries).ok()?;
        if read < entries.len() {
            return None;
        }
        let mut batch = Batch { again: true, ..Batch::default() };
        let mut pages = vec![ZEROS; wire::BATCH_PAGES];
        for (index, _) in entries.iter().enumerate().filter(|(_, entry)| is_there(**entry)) {
            let address = staging.start + index as u64 * PAGE;
            memory.read(address, &mut pages[index]).ok()?;
            if pages[index] != ZEROS {
                batch.moved[index / 64] |= 1 << (index % 64);
            }
        }
        batch.pages = Some(pages);
        Some(batch)
    }
}
