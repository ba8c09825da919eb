//! Moving a batch of pages out: the agent is asked, waited for, and what it took goes into slots.
//!
//! While pages move no event is read: what moved has then moved before every change whose event is still unread, so the
//! model was exact for it. The one exception is an agent that itself waits for a page, which vanished between its look and
//! its attempt to un-share it (a discard is zapped after its event was read). Its fault has to be answered, and neither can
//! one see whether it is a fault that it sleeps for (it may be a lock, or memory), nor read faults alone, nor answer a fault
//! while a change is counted whose event is unread.
//!
//! So the agent is told to stop by [`Halt`](wire::Command::Halt), for which it looks whenever it comes out of an madvise. If it
//! was seen asleep inside one after that was sent, every MOVE of this batch is over, whatever it does next. Then messages are
//! read and stashed, and handed to the protocol after the answer, in their order; the answer says that a change is under
//! way, so that nothing happens in between.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::debug;
use vswap_core::SlotId;
use vswap_sys::poll::{Events, poll};
use vswap_sys::uffd::{Message, Partial};
use vswap_wire as wire;

use super::super::answers::taken;
use super::super::settle::sleeps_in_madvise;
use super::{PAGE, Port};
use crate::proto::{Answer, BATCH_PAGES};

/// An agent that needs longer for a batch may wait for us.
const PATIENCE: Duration = Duration::from_millis(50);
/// How soon is looked again once it does.
const SOON: Duration = Duration::from_millis(1);
const GIVE_UP: Duration = Duration::from_secs(10);
/// With more address spaces than these a ring does not keep its memory until the next batch.
const RINGS: usize = 8;

/// Which pages moved, and whether a change of mappings has cut it short.
type Moved = ([u64; wire::MOVED_WORDS], bool);
const NOTHING: Moved = ([0; wire::MOVED_WORDS], false);

/// What is known of an agent that is late.
#[derive(Default)]
struct Late {
    /// It was told to stop.
    told: bool,
    /// It was seen asleep in an madvise since: nothing moves any more.
    still: bool,
    /// The page that it waits for.
    page: Option<u64>,
}

impl Port {
    /// Moves pages into the agent's staging area and from there into slots.
    pub(super) fn take_out(&mut self, runs: &[Range<u64>]) -> Answer {
        let nothing = Answer::Moved(Vec::new(), false);
        self.pins.outdate();
        if !self.can_evict() {
            return nothing;
        }
        if self.shared.space.free_frames() < BATCH_PAGES as usize {
            self.shared.call_worker();
            let written = self.shared.space.write_out(BATCH_PAGES as usize);
            if self.shared.space.free_frames() < BATCH_PAGES as usize {
                self.shared.stuck.store(written.stuck.is_some(), Relaxed);
                return nothing;
            }
        }
        let list: Vec<_> = runs
            .iter()
            .map(|run| wire::Run { address: run.start, pages: ((run.end - run.start) / PAGE) as u32 })
            .collect();
        let Ok(batch) = wire::Runs::new(&list) else { return nothing };
        let pages: u64 = batch.pages() as u64;
        let mut slots = Vec::with_capacity(pages as usize);
        if self.shared.space.alloc_n(self.shared.group, pages as usize, &mut slots).is_err() {
            self.shared.warn("no memory for slots: pages stay resident".into());
            return nothing;
        }
        let (moved, again) = if self.send(&wire::Command::Evict { runs: batch }) {
            self.tenant.watch.awaits_agent(self.shared.now_ns());
            let answer = self.await_agent();
            self.tenant.watch.awaits_agent(0);
            match answer {
                Ok(answer) => answer,
                Err(lost) => return lost,
            }
        } else {
            self.agent = None;
            NOTHING
        };
        let events = self.stashed.iter().any(|message| !matches!(message, Message::Fault { .. }));
        match self.keep(&list, slots, moved) {
            Ok(pages) => Answer::Moved(pages, again || events),
            Err(lost) => lost,
        }
    }

    /// Stores what the agent took out and gives back the slots that were not needed.
    fn keep(
        &mut self,
        runs: &[wire::Run],
        slots: Vec<SlotId>,
        moved: [u64; wire::MOVED_WORDS],
    ) -> Result<Vec<(u64, SlotId)>, Answer> {
        let Some(agent) = &self.agent else {
            self.shared.space.free_n(&slots);
            return Ok(Vec::new());
        };
        let Some(taken) = taken(runs, &moved) else {
            // No honest agent says that: nothing more is believed.
            self.agent = None;
            self.shared.space.free_n(&slots);
            return Ok(Vec::new());
        };
        let (used, unused) = slots.split_at(taken.len());
        self.shared.space.free_n(unused);
        // Copied once: the target may write to the ring at any time.
        let mut buffer = self.shared.buffers.lend(taken.len());
        let bytes = &mut buffer[..taken.len()];
        for (page, &(_, index)) in bytes.iter_mut().zip(&taken) {
            agent.ring.copy_page_out(index, page);
        }
        if let Some((_, last)) = taken.last() {
            self.tenant.ring_pages.fetch_max(*last as u64 + 1, Relaxed);
        }
        let pages: Vec<_> = used.iter().copied().zip(bytes.iter()).collect();
        let cached = self.shared.space.cache_many(&pages);
        if cached < pages.len() {
            let mut stored = Vec::new();
            self.shared.space.store_many(&pages[cached..], &mut stored);
            let failed = stored
                .iter()
                .zip(&taken[cached..])
                .find_map(|(stored, &(addr, _))| stored.as_ref().err().map(|failure| (addr, failure)));
            if let Some((addr, failure)) = failed {
                let why = format!("the page at {addr:#x} was evicted and finds no place: {failure}");
                return Err(Answer::Lost(addr, why));
            }
        }
        self.shared.buffers.take_back(buffer);
        if self.shared.tenants.lock().len() > RINGS {
            self.empty_ring();
        }
        let count = taken.len() as u64;
        let (pid, tried) = (self.tenant.pid.load(Relaxed), slots.len());
        debug!(target: "evict", "process {pid}: {count} of {tried} pages, {cached} of them cached");
        self.shared.meters.evictions.fetch_add(count, Relaxed);
        self.tenant.evictions.fetch_add(count, Relaxed);
        Ok(taken.iter().map(|&(addr, _)| addr).zip(used.iter().copied()).collect())
    }

    /// Gives the memory of the agent's ring back.
    pub fn empty_ring(&self) {
        let used = self.tenant.ring_pages.swap(0, Relaxed) as usize;
        if let Some(agent) = &self.agent {
            // If it fails the pages stay, and are counted again with the next batch.
            let _ = agent.ring.punch(0..used);
        }
    }

    /// Waits for the agent's answer.
    fn await_agent(&mut self) -> Result<Moved, Answer> {
        let began = Instant::now();
        let mut buffer = wire::buffer();
        let mut late = Late::default();
        loop {
            let Some(agent) = &self.agent else { return Ok(NOTHING) };
            let patience = if late.still { SOON } else { PATIENCE };
            match poll(&[(agent.conn.as_fd(), Events::IN)], Some(patience)) {
                Ok(ready) if ready.first().is_some_and(|events| !events.is_empty()) => {}
                _ => {
                    if began.elapsed() > GIVE_UP && !self.alive() {
                        self.agent = None;
                        return Ok(NOTHING);
                    }
                    self.help(&mut late)?;
                    continue;
                }
            }
            let received = agent.conn.recv(&mut buffer);
            match received.map(|(length, _)| wire::Answer::decode(&buffer[..length])) {
                Ok(Ok(wire::Answer::Started { tid })) if agent.tid == 0 => self.started(tid),
                Ok(Ok(wire::Answer::Evicted { moved, again, emptied, .. })) => {
                    self.evictable &= emptied;
                    return Ok((moved, again));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => {
                    // The end of the agent, and with it of the address space; or nonsense, which ends it as well.
                    self.agent = None;
                    return Ok(NOTHING);
                }
            }
        }
    }

    /// Serves the agent's own fault, if that is what it waits for.
    fn help(&mut self, late: &mut Late) -> Result<(), Answer> {
        if !late.still {
            // A stopped or a busy machine makes an agent late, too; then nothing may be read.
            let (pid, agent) = (self.tenant.pid.load(Relaxed), self.agent_tid());
            if !sleeps_in_madvise(pid, agent) {
                return Ok(());
            }
            late.told = late.told || self.send(&wire::Command::Halt);
            late.still = late.told && sleeps_in_madvise(pid, agent);
            if !late.still {
                return Ok(());
            }
            debug!(target: "evict", "process {pid}: its agent stands still in an madvise");
        }
        if let Some(addr) = late.page {
            self.refuse_arrival(addr)?;
            match self.uffd.zeropage(addr..addr + PAGE, false) {
                // Events are unread.
                Err(Partial { errno: libc::EAGAIN, .. }) => {}
                // Unmapped, or there again: it has to look itself.
                Err(_) => {
                    let _ = self.uffd.wake(addr..addr + PAGE);
                    late.page = None;
                }
                Ok(_) => late.page = None,
            }
        }
        self.read_for_agent(late);
        Ok(())
    }

    /// Reads up to the agent's fault, or to the first event: faults come first, so there is none of the agent's behind it.
    fn read_for_agent(&mut self, late: &mut Late) {
        let agent = self.agent_tid();
        while let Ok(Some(message)) = self.uffd.read_message() {
            match message {
                Message::Fault { addr, tid, .. } if tid == agent => {
                    late.page = Some(addr & !(PAGE - 1));
                    return;
                }
                fault @ Message::Fault { .. } => self.stashed.push_back(fault),
                event => {
                    self.stashed.push_back(event);
                    return;
                }
            }
        }
    }

    /// What the agent waits for is zero, since it was there and is not: unless something has been moved there, which
    /// only an mremap can do that was not granted.
    fn refuse_arrival(&self, addr: u64) -> Result<(), Answer> {
        let arrived = |message: &Message| match message {
            Message::Remap { to, len, .. } => (*to..to + len).contains(&addr),
            _ => false,
        };
        if !self.stashed.iter().any(arrived) {
            return Ok(());
        }
        let why = format!(
            "an mremap has moved something to {addr:#x} while it was on its way out, and no gate orders them"
        );
        Err(Answer::Lost(addr, why))
    }
}
