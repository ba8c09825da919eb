//! The cleaner: copies live objects out of sparse segments and frees them.
//!
//! Which: while more than [`Cleaning::waste_max`] of the pool is waste, the segment with the most waste. Cost-benefit,
//! (1 − u) × age / (1 + u) with u the live share (Rosenblum and Ousterhout, 1991), is there to compare: under uniform and
//! zipf churn it moves more than greedy does (the example `churn`; figures in the crate documentation).
//!
//! Where to: an open output segment of about the victim's age, so that age order survives and cold objects end up among
//! cold ones.
//!
//! How one object moves, and why none is lost:
//! 1. under the victim's read lock it is copied to a bounce buffer; under the output's write lock it is appended. It is
//!    now in two places and the slot word names the old one;
//! 2. without a segment lock, `Owner::relocate` decides by compare-and-swap. `Moved`: the old copy is ours to kill.
//!    `Gone`: its release has come or will come, the new copy is ours to kill. `Busy`: the new copy is killed, the old
//!    one stays for the next time;
//! 3. the victim cannot be freed or reused meanwhile (role Victim), so the old location cannot name another object.
//!
//! One cleaner works at a time, under the cleaner's lock.

use super::object::{Header, OBJECT_MAX, location, place};
use super::segment::{PAGE, Role, SEGMENT, Segment, Walk};
use super::{Pool, SHARDS};
use std::sync::atomic::Ordering::Relaxed;
use vswap_core::{CleanReport, Location, Owner, Relocated, SlotId, StoreError};

/// When the cleaner works and on what. The default is what the example `churn` found best; other values are for such
/// measurements.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Cleaning {
    /// Waste above which there is something to clean, as a share of the segments' memory, 0 to 1. Waste is dead objects
    /// and the ends of pages and segments.
    pub waste_max: f64,
    /// Which segment is cleaned first.
    pub choice: Choice,
    /// Whether objects of different ages go to different segments.
    pub by_age: bool,
}

/// How the cleaner chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The segment with the most waste.
    Greedy,
    /// The segment with the best (1 − u) × age / (1 + u).
    CostBenefit,
}

impl Default for Cleaning {
    fn default() -> Self {
        Self { waste_max: 0.15, choice: Choice::Greedy, by_age: true }
    }
}

/// A segment with less of the pool's greatest waste than this is not worth its copying, however old.
const VICTIM_WASTE_MIN: f64 = 0.5;
/// Dead bytes in an open segment that are left alone: it is still being filled.
const OPEN_DEAD_MAX: u32 = SEGMENT / 8;
/// A victim with at least this waste after its turn gives up the pages without live objects.
const SHED_WASTE: f64 = 0.5;
/// Victims found by one scan of the segments.
const VICTIMS: usize = 32;
/// Open outputs, each of another age.
const OUTPUTS: usize = 4;
/// Bytes and objects copied out at a time.
const BOUNCE: usize = 64 << 10;
const MOVES: usize = 1024;

/// What the cleaner keeps between calls.
#[derive(Default)]
pub(super) struct Cleaner {
    outputs: [Option<Output>; OUTPUTS],
    bounce: Vec<u8>,
    moves: Vec<Move>,
    /// Number of this call.
    call: u32,
}

/// A segment that the cleaner appends to.
#[derive(Clone, Copy)]
struct Output {
    index: u32,
    age: u64,
}

/// An object on its way.
struct Move {
    slot: SlotId,
    old: u32,
    header: Header,
    /// Start of its payload in the bounce buffer.
    start: usize,
}

impl Pool {
    /// [`Tier::clean`](vswap_core::Tier::clean).
    pub(super) fn clean_sparse(&self, owner: &dyn Owner, budget: u64) -> CleanReport {
        let mut cleaner = self.cleaner.lock();
        let before = self.account.resident.load(Relaxed);
        // One segment more than now, or than stores may fill: by that much the cleaner works within the limit.
        let cap = before.max(self.account.store_cap()).saturating_add(u64::from(SEGMENT));
        let mut run = Run { pool: self, owner, cap, budget, moved: 0, freed: 0, grown: 0 };
        if self.waste() > self.cleaning.waste_max && cleaner.prepare(self, cap) {
            cleaner.call = cleaner.call.wrapping_add(1);
            run.close_sparse(&mut cleaner);
            run.go(&mut cleaner);
        }
        CleanReport { moved: run.moved, freed_bytes: run.freed.saturating_sub(run.grown) }
    }
}

impl Cleaner {
    /// Bytes of the buffers.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        (self.bounce.capacity() + self.moves.capacity() * size_of::<Move>()) as u64
    }

    /// Allocates the buffers the first time; `false` if there is no memory for them.
    fn prepare(&mut self, pool: &Pool, cap: u64) -> bool {
        if self.bounce.capacity() > 0 {
            return true;
        }
        let bytes = (BOUNCE + MOVES * size_of::<Move>()) as u64;
        if !pool.account.charge(bytes, cap) {
            return false;
        }
        let ok = self.moves.try_reserve_exact(MOVES).is_ok() && self.bounce.try_reserve_exact(BOUNCE).is_ok();
        if !ok {
            *self = Self { outputs: self.outputs, ..Self::default() };
            pool.account.uncharge(bytes);
        }
        ok
    }
}

/// A segment that may be cleaned.
#[derive(Clone, Copy)]
struct Candidate {
    score: f64,
    index: u32,
    age: u64,
    /// Bytes that cleaning it gives back.
    gain: u64,
}

/// One call of clean.
struct Run<'a> {
    pool: &'a Pool,
    owner: &'a dyn Owner,
    /// Most bytes that the pool may have resident.
    cap: u64,
    /// Bytes that may still be moved.
    budget: u64,
    moved: u64,
    freed: u64,
    grown: u64,
}

impl Run<'_> {
    fn go(&mut self, cleaner: &mut Cleaner) {
        loop {
            let victims = self.victims(cleaner.call);
            if victims.iter().all(Option::is_none) {
                return;
            }
            for victim in victims.into_iter().flatten() {
                if self.excess() == 0 || self.budget == 0 || !self.empty(victim.index, cleaner) {
                    return;
                }
            }
        }
    }

    /// Bytes of waste over what is allowed.
    fn excess(&self) -> u64 {
        let live = self.pool.account.live_bytes.load(Relaxed) as f64;
        let allowed = live / (1.0 - self.pool.cleaning.waste_max);
        self.pool.account.segments.load(Relaxed).saturating_sub(allowed as u64)
    }

    /// Seals the open segments that are themselves sparse: else a pool of one segment could never be cleaned.
    fn close_sparse(&self, cleaner: &mut Cleaner) {
        let seal = |index| {
            let mut segment = self.pool.segment(index).expect("open").write();
            let sparse = segment.live_objects > 0
                && segment.dead() > OPEN_DEAD_MAX
                && segment.dead_share() > self.pool.cleaning.waste_max;
            if sparse {
                segment.role = Role::Sealed;
            }
            !sparse
        };
        for shard in 0..SHARDS {
            let mut current = self.pool.shards[shard].lock();
            *current = current.filter(|index| seal(*index));
        }
        for output in &mut cleaner.outputs {
            *output = output.filter(|o| seal(o.index));
        }
    }

    /// The segments that are best cleaned first, as many as are needed to get rid of the excess; from old to young, so
    /// that what goes to one output goes there in order of age. Those that had their turn in this call are left out:
    /// what remains in them was busy.
    fn victims(&self, call: u32) -> [Option<Candidate>; VICTIMS] {
        let Cleaning { waste_max, choice, .. } = self.pool.cleaning;
        let now = self.pool.clock.load(Relaxed);
        let mut best = [None::<Candidate>; VICTIMS];
        let score = |c: &Option<Candidate>| c.map_or(0.0, |c| c.score);
        for index in 0..self.pool.end.load(Relaxed) {
            let Some(entry) = self.pool.segment(index) else { break };
            let segment = entry.read();
            let had_turn = segment.broken || segment.tried == call;
            if segment.role != Role::Sealed || had_turn || waste(&segment) < waste_max * VICTIM_WASTE_MIN {
                continue;
            }
            let u = 1.0 - waste(&segment);
            let distance = now.saturating_sub(segment.age) as f64 + 1.0;
            let merit = match choice {
                Choice::Greedy => 1.0 - u,
                Choice::CostBenefit => (1.0 - u) * distance / (1.0 + u),
            };
            if merit > score(&best[VICTIMS - 1]) {
                let gain = segment.resident() - segment.live_bytes;
                best[VICTIMS - 1] =
                    Some(Candidate { score: merit, index, age: segment.age, gain: gain.into() });
                best.sort_unstable_by(|a, b| score(b).total_cmp(&score(a)));
            }
        }
        let mut excess = self.excess();
        for candidate in &mut best {
            if excess == 0 {
                *candidate = None;
            }
            excess = excess.saturating_sub(candidate.map_or(0, |c| c.gain));
        }
        best.sort_unstable_by_key(|c| c.map(|c| c.age));
        best
    }

    /// Moves everything out of a victim and frees it; `false` if the memory or the budget is used up.
    fn empty(&mut self, index: u32, cleaner: &mut Cleaner) -> bool {
        let entry = self.pool.segment(index).expect("was scanned");
        let mut segment = entry.write();
        if segment.role != Role::Sealed {
            return true;
        }
        let room = self.cap.saturating_sub(self.pool.account.resident.load(Relaxed));
        if u64::from(segment.live_bytes) > room {
            return false;
        }
        let age = segment.age;
        segment.role = Role::Victim;
        segment.tried = cleaner.call;
        drop(segment);

        let mut offset = 0;
        let mut go_on = true;
        while go_on && self.budget > 0 {
            offset = self.copy_out(index, offset, cleaner);
            if cleaner.moves.is_empty() {
                break;
            }
            go_on = self.move_all(index, age, cleaner);
        }

        let mut segment = entry.write();
        let before = segment.resident();
        segment.role = Role::Sealed;
        if segment.live_objects == 0 {
            self.freed += self.pool.retire(index, segment);
        } else if waste(&segment) > SHED_WASTE
            && let Some(old) = segment.shed()
        {
            let kept = segment.resident();
            self.pool.charge_segment(kept.into(), u64::MAX);
            drop(segment);
            self.pool.unmap(Some(old), before.into());
            self.freed += u64::from(before - kept);
        }
        go_on
    }

    /// Fills the bounce buffer with live objects from `offset` on; returns where to go on.
    fn copy_out(&self, index: u32, mut offset: u32, cleaner: &mut Cleaner) -> u32 {
        cleaner.bounce.clear();
        cleaner.moves.clear();
        let entry = self.pool.segment(index).expect("the victim");
        let segment = entry.read();
        while cleaner.moves.len() < MOVES && cleaner.bounce.len() + OBJECT_MAX as usize <= BOUNCE {
            match segment.next_live(offset) {
                Walk::Object { offset: old, slot, header, payload } => {
                    cleaner.moves.push(Move { slot, old, header, start: cleaner.bounce.len() });
                    cleaner.bounce.extend_from_slice(payload);
                    offset = old + header.size();
                }
                Walk::End => break,
                Walk::Broken => {
                    drop(segment);
                    entry.write().broken = true;
                    break;
                }
            }
        }
        offset
    }

    /// Moves what [`copy_out`](Self::copy_out) found; `false` if there was no memory for all of it.
    fn move_all(&mut self, index: u32, age: u64, cleaner: &mut Cleaner) -> bool {
        let Cleaner { outputs, bounce, moves, .. } = cleaner;
        for Move { slot, old, header, start } in moves.iter() {
            let payload = &bounce[*start..][..header.length() as usize];
            let Ok(new) = self.append(outputs, age, *header, payload) else { return false };
            let old = location(index, *old);
            self.budget = self.budget.saturating_sub(u64::from(header.size()));
            match self.owner.relocate(*slot, old, new) {
                Relocated::Moved => {
                    self.drop_copy(*slot, old);
                    self.moved += 1;
                }
                Relocated::Gone | Relocated::Busy => self.drop_copy(*slot, new),
            }
        }
        true
    }

    /// Kills the copy that no slot names. One whose header has rotted since stays, and with it its segment.
    fn drop_copy(&self, slot: SlotId, at: Location) {
        if self.pool.kill(slot, at).is_err() {
            self.pool.segment(place(at).0).expect("was copied").write().broken = true;
        }
    }

    /// Appends a copy to an output of about this age.
    fn append(
        &mut self,
        outputs: &mut [Option<Output>; OUTPUTS],
        age: u64,
        header: Header,
        payload: &[u8],
    ) -> Result<Location, StoreError> {
        loop {
            let output = self.output(outputs, age)?;
            let index = outputs[output].expect("just chosen").index;
            let mut segment = self.pool.segment(index).expect("open").write();
            if segment.live_objects == 0 {
                // New, or emptied meanwhile.
                segment.age = age;
                outputs[output] = Some(Output { index, age });
            }
            if segment.fits(header.size()) {
                self.grown += u64::from(segment.growth(header.size()));
                let offset = self.pool.put(&mut segment, header, [payload, &[]], self.cap)?;
                return Ok(location(index, offset));
            }
            segment.role = Role::Sealed;
            outputs[output] = None;
        }
    }

    /// The output for this age: one whose distance from now is within a factor of two, else a new one.
    fn output(&self, outputs: &mut [Option<Output>; OUTPUTS], age: u64) -> Result<usize, StoreError> {
        let now = self.pool.clock.load(Relaxed);
        let by_age = self.pool.cleaning.by_age;
        let near = |o: &Option<Output>| {
            o.is_some_and(|o| !by_age || similar(now.saturating_sub(o.age), now.saturating_sub(age)))
        };
        if let Some(found) = outputs.iter().position(near) {
            return Ok(found);
        }
        let place = outputs.iter().position(Option::is_none).unwrap_or_else(|| {
            // The youngest is cheapest to give up: more of its age will come.
            let youngest = (0..OUTPUTS).max_by_key(|i| outputs[*i].map(|o| o.age)).expect("not empty");
            let Output { index, .. } = outputs[youngest].take().expect("all are open");
            let mut segment = self.pool.segment(index).expect("open").write();
            segment.role = Role::Sealed;
            if segment.live_objects == 0 {
                self.pool.retire(index, segment);
            }
            youngest
        });
        let index = self.pool.open(self.cap, PAGE)?;
        outputs[place] = Some(Output { index, age });
        Ok(place)
    }
}

/// Whether two distances from now are of about the same age.
fn similar(a: u64, b: u64) -> bool {
    a.max(b) <= 2 * a.min(b) + 4
}

/// Share of the segment's memory that is not live objects.
fn waste(segment: &Segment) -> f64 {
    if segment.resident() == 0 {
        0.0
    } else {
        1.0 - f64::from(segment.live_bytes) / f64::from(segment.resident())
    }
}
