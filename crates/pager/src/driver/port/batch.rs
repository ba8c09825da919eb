//! Moving a batch of pages out: the agent is asked, waited for, and what it took goes into slots.
//!
//! While pages move no event is read: what moved has then moved before every change whose event is still unread, so the
//! model was exact for it. An agent that does not get on is therefore not waited for while messages are read, nor for ever: the
//! batch is ended without it ([`take_back`](super::take_back)).

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::debug;
use vswap_core::{Page, SlotId};
use vswap_sys::poll::{Events, poll};
use vswap_wire as wire;

use super::super::answers::taken;
use super::{PAGE, Port};
use crate::proto::{Answer, BATCH_PAGES};

/// An agent that needs longer for a batch may wait for us, or stand still.
const PATIENCE: Duration = Duration::from_millis(50);
const GIVE_UP: Duration = Duration::from_secs(10);
/// With more address spaces than these a ring does not keep its memory until the next batch.
const RINGS: usize = 8;

/// What came of a batch.
#[derive(Default)]
pub(super) struct Batch {
    /// Which pages have moved.
    pub(super) moved: [u64; wire::MOVED_WORDS],
    /// The rest is to be tried again.
    pub(super) again: bool,
    /// The pages, where they were read from staging; otherwise they are in the ring.
    pub(super) pages: Option<Vec<Page>>,
    /// The agent is no more, or not to be believed.
    pub(super) ended: bool,
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
            self.shared.compressor.call();
            let written = self.shared.space.write_out(BATCH_PAGES as usize);
            self.shared.spiller.call();
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
        self.batches += 1;
        self.placement.bring(self.tenant.pid.load(Relaxed), self.agent_tid());
        let batch = if self.send(&wire::Command::Evict { runs: batch }) {
            let began = self.shared.now_ns();
            self.tenant.watch.awaits_agent(began);
            let batch = self.await_agent();
            self.tenant.watch.awaits_agent(0);
            self.placement.awaited(self.shared.now_ns().saturating_sub(began));
            batch
        } else {
            Batch { ended: true, ..Batch::default() }
        };
        let kept = self.keep(&list, slots, &batch);
        if batch.ended {
            self.agent = None;
        }
        match kept {
            Ok(pages) => Answer::Moved(pages, batch.again),
            Err(lost) => lost,
        }
    }

    /// Stores what the agent took out and gives back the slots that were not needed.
    fn keep(
        &mut self,
        runs: &[wire::Run],
        slots: Vec<SlotId>,
        batch: &Batch,
    ) -> Result<Vec<(u64, SlotId)>, Answer> {
        let Some(agent) = &self.agent else {
            self.shared.space.free_n(&slots);
            return Ok(Vec::new());
        };
        let Some(taken) = taken(runs, &batch.moved) else {
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
            match &batch.pages {
                Some(pages) => *page = pages[index],
                None => agent.ring.copy_page_out(index, page),
            }
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

    /// Waits for the agent's answer, for as long as it gets on.
    fn await_agent(&mut self) -> Batch {
        let began = Instant::now();
        let mut buffer = wire::buffer();
        loop {
            let Some(agent) = &self.agent else { return Batch::default() };
            match poll(&[(agent.conn.as_fd(), Events::IN)], Some(PATIENCE)) {
                Ok(ready) if ready.first().is_some_and(|events| !events.is_empty()) => {}
                _ => {
                    if let Some(batch) = self.take_back() {
                        return batch;
                    }
                    if began.elapsed() > GIVE_UP && !self.alive() {
                        return Batch { ended: true, ..Batch::default() };
                    }
                    continue;
                }
            }
            let received = agent.conn.recv(&mut buffer);
            match received.map(|(length, _)| wire::Answer::decode(&buffer[..length])) {
                Ok(Ok(wire::Answer::Evicted { moved, again, emptied, .. })) => {
                    self.answered(emptied);
                    return Batch { moved, again, ..Batch::default() };
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // The end of the agent, and as a rule of the address space; or nonsense, which ends it as well.
                Ok(_) | Err(_) => return self.take_back_from_dead(),
            }
        }
    }
}
