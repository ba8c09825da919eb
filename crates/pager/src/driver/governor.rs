//! The thread that keeps the promise of `--memory`: measures, asks address spaces for pages ahead of need, and says
//! when first touches have to wait.
//!
//! Measured is what an outsider would measure: anonymous memory of every process of the tree, and all of ours (the
//! pager's own anonymous memory holds the pool, the swap cache and all metadata; the agents' rings are shared memory).

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use log::{debug, info};
use parking_lot::Mutex;
use vswap_core::PAGE_SIZE;
use vswap_sys::process::{self, Family, MemFile, Rss};
use vswap_sys::seccomp::Gate;

use super::alone::deserted;
use super::entrance::Entrance;
use super::headroom::Headroom;
use super::pace::Pace;
use super::proactive::Proactive;
use super::server::Server;
use super::share::PoolShare;
use super::shared::Shared;
use super::tenant::Tenant;
use crate::proto::BATCH_PAGES;
use crate::{Backing, Config, Limit};

const PAGE: u64 = PAGE_SIZE as u64;
/// Pages of an agent's stack and state, in shared memory.
const AGENT_PAGES: u64 = 4;
/// Bytes a second that a program can allocate: sets how soon to look again.
const ALLOCATION_RATE: u64 = 3 << 30;
/// How soon to look again, at the limit and far from it.
const LEAST_REST: Duration = Duration::from_millis(1);
const MOST_REST: Duration = Duration::from_millis(50);
/// A tree at its limit in which nothing changes for so many looks is looked at less often: what it first touches in mappings that
/// are registered is held without us. Less often still if none of it runs, for an idle program shall cost next to nothing: what
/// goes on after a rest soon touches a page that is away, and its server calls us.
const CALM: u32 = 64;
const CALM_REST: Duration = Duration::from_millis(8);
/// With less than this part of the limit left, mappings are registered, so that first touches can be held: a first
/// touch then costs a fault to the pager, which brings neighbours along.
const REGISTER_AT: u64 = 4;
/// Of 10 evicted pages, about so many leave memory for good: the rest stays compressed.
const YIELD_IN_TEN: u64 = 5;
/// While somebody waits for pages that he asked for.
const WISHED_REST: Duration = Duration::from_millis(5);
/// Resident bytes that an address space needs to be worth a thread that serves it.
const WORTHWHILE: u64 = 256 << 10;
/// Address spaces that are asked for pages at one time, the largest first: each batch takes memory on its way.
const ASKED: usize = 32;
const PSS_EVERY: Duration = Duration::from_millis(100);
const TREE_EVERY: Duration = Duration::from_millis(50);
/// A forked child that was not heard of for so long has no fork hook: it is looked for, to put its agent in.
const UNSEEN: Duration = Duration::from_millis(10);
/// By then it is one of those that stay without.
const UNSEEN_MOST: Duration = Duration::from_millis(500);
const LIMIT_EVERY: Duration = Duration::from_secs(1);
/// If for so long there was neither more room nor more evicted, waiting for it is pointless.
const NO_PROGRESS: Duration = Duration::from_millis(200);

/// The highest figures so far.
#[derive(Clone, Default)]
pub struct Peaks {
    pub limit: u64,
    pub total: u64,
    pub resident: u64,
    pub virtual_bytes: u64,
    pub pager: u64,
    pub over_bytes: u64,
    pub over_time: Duration,
    pub evicted: u64,
    pub backing: Backing,
    pub ratio: f64,
    pub metadata_per_slot: f64,
    pub file_bytes: u64,
    /// What the last look found.
    pub now: Usage,
    pub pace: Pace,
}

/// What one look found, in bytes.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    /// The tree's anonymous memory.
    pub tree: u64,
    /// Ours, the agents' included.
    pub pager: u64,
    /// The agents'.
    pub agents: u64,
}

impl Usage {
    /// All that counts against the limit.
    pub fn total(&self) -> u64 {
        self.tree + self.pager
    }
}

pub struct Governor {
    shared: Arc<Shared>,
    gate: Option<Arc<Gate>>,
    entrance: Arc<Entrance>,
    limit: Limit,
    /// None without a tier below the pool. Where there is one, its being full is an error, not a choice of the user's.
    pool_share: Option<PoolShare>,
    headroom: Headroom,
    /// If the user wants cold pages to leave below the limit, too.
    proactive: Option<Proactive>,
    peaks: Arc<Mutex<Peaks>>,
    /// The guardian's.
    family: Family,
    files: HashMap<u32, MemFile>,
    /// Resident and virtual bytes by process.
    sizes: HashMap<u32, (u64, u64)>,
    own: MemFile,
    shared_bytes: u64,
    pss_at: Instant,
    tree: HashSet<u32>,
    tree_at: Instant,
    limit_now: u64,
    limit_at: Instant,
    /// The most room, and the most evicted pages, since those who waited for memory were last let go.
    most_room: i64,
    most_evicted: u64,
    progress_at: Instant,
    looked_at: Instant,
    /// What the last look found, and how many looks in a row have found the same.
    total: u64,
    calm: u32,
    /// Processor time of the tree when that was looked at last, in ticks.
    ticks: u64,
}

impl Governor {
    pub fn new(
        shared: Arc<Shared>,
        gate: Option<Arc<Gate>>,
        entrance: Arc<Entrance>,
        config: &Config,
        pool_share: Option<PoolShare>,
        guardian: u32,
        peaks: Arc<Mutex<Peaks>>,
    ) -> std::io::Result<Self> {
        let now = Instant::now();
        let limit = config.limit;
        let limit_now = limit.bytes(0);
        peaks.lock().limit = limit_now;
        let long_ago = now.checked_sub(Duration::from_secs(60)).unwrap_or(now);
        Ok(Self {
            shared,
            gate,
            entrance,
            limit,
            pool_share,
            headroom: Headroom::new(now),
            proactive: config.proactive.then(|| Proactive::new(now)),
            peaks,
            family: Family::of(guardian),
            files: HashMap::new(),
            sizes: HashMap::new(),
            own: MemFile::open(std::process::id())?,
            shared_bytes: 0,
            pss_at: long_ago,
            tree: HashSet::new(),
            tree_at: long_ago,
            limit_now,
            limit_at: now,
            most_room: i64::MIN,
            most_evicted: 0,
            progress_at: now,
            looked_at: now,
            total: 0,
            calm: 0,
            ticks: 0,
        })
    }

    pub fn run(mut self) {
        // Late by milliseconds is over by megabytes. Without the right to it, as it comes.
        let _ = process::set_nice_self(-15);
        loop {
            match self.look() {
                (rest, false) => std::thread::sleep(rest),
                (rest, true) => {
                    if self.shared.governor.wait(rest) {
                        self.calm = 0;
                    }
                }
            }
        }
    }

    /// One look; says how long to rest, and whether the tree is idle.
    fn look(&mut self) -> (Duration, bool) {
        let tenants = self.shared.all_tenants();
        let usage = self.measure(&tenants);
        let total = usage.total();
        if self.limit == Limit::Auto && self.limit_at.elapsed() > LIMIT_EVERY {
            self.limit_at = Instant::now();
            self.limit_now = self.limit.bytes(total);
            debug!(target: "governor", "the limit is {} bytes, in use {total}", self.limit_now);
        }
        let limit = self.limit_now;
        let unbounded = usage.tree + self.shared.meters.evicted_now.load(Relaxed) * PAGE;
        let headroom = self.headroom.look(Instant::now(), unbounded, limit);
        let room = limit as i64 - total as i64;
        self.shared.room.store(room - (headroom / 4) as i64, Relaxed);
        self.record(&tenants, &usage, limit);
        if let Some(pool_share) = &mut self.pool_share {
            let pool = self.shared.space.usage().pool.map_or(0, |pool| pool.resident_bytes);
            let share = pool_share.look(Instant::now(), room, headroom, limit, pool);
            if self.shared.pool_share.swap(share, Relaxed) > share {
                self.shared.spiller.call();
            }
        }
        self.watch_progress(&tenants, room, headroom);
        if room < (limit / REGISTER_AT) as i64 {
            for tenant in &tenants {
                let size = self.virtual_of(tenant);
                if self.resident_of(tenant) > WORTHWHILE
                    && tenant.registered_size.swap(size, Relaxed) != size
                    && self.activate(tenant)
                {
                    tenant.register.store(true, Relaxed);
                    tenant.ring();
                }
            }
        }
        let cold = self.proactive.as_mut().map_or(0, |proactive| {
            let stalled = self.shared.meters.some_ns.load(Relaxed);
            proactive.look(Instant::now(), stalled, usage.tree / PAGE)
        });
        let wished = self.shared.wish.missing(self.shared.meters.evictions.load(Relaxed));
        if room < headroom as i64 {
            let pages = (3 * headroom as i64 / 2 - room).max(0) as u64 / PAGE * 10 / YIELD_IN_TEN;
            self.reclaim(&tenants, pages.max(wished));
        } else if wished.max(cold) > 0 {
            self.reclaim(&tenants, wished.max(cold));
        }
        let spare = (room - (limit / REGISTER_AT) as i64).max(0) as u64;
        self.calm = if total == self.total { (self.calm + 1).min(CALM) } else { 0 };
        self.total = total;
        let idle = self.calm == CALM && wished == 0 && self.is_idle();
        self.shared.idle.store(idle, Relaxed);
        let least = match self.calm {
            CALM if idle => MOST_REST,
            CALM => CALM_REST,
            _ => LEAST_REST,
        };
        let rest = Duration::from_nanos(spare.saturating_mul(1_000_000_000) / ALLOCATION_RATE);
        let rest = rest.clamp(least, MOST_REST);
        (if wished > 0 { rest.min(WISHED_REST) } else { rest }, idle)
    }

    /// Whether no process has run since this was asked last, to ten milliseconds.
    fn is_idle(&mut self) -> bool {
        let ticks = self.tree.iter().filter_map(|&pid| process::cpu_ticks(pid).ok()).sum();
        std::mem::replace(&mut self.ticks, ticks) == ticks
    }

    /// Asks the address spaces for pages, each by its share of resident memory.
    fn reclaim(&self, tenants: &[Arc<Tenant>], pages: u64) {
        let now = self.shared.now_ns();
        let mut asked: Vec<_> = tenants
            .iter()
            .map(|tenant| (tenant, self.resident_of(tenant)))
            .filter(|(tenant, share)| *share > WORTHWHILE && tenant.barren_until.load(Relaxed) < now)
            .collect();
        asked.sort_unstable_by_key(|&(_, share)| Reverse(share));
        asked.truncate(ASKED);
        asked.retain(|(tenant, _)| self.activate(tenant));
        let resident: u64 = asked.iter().map(|(_, share)| share).sum();
        for (tenant, share) in asked {
            let wanted = (u128::from(pages) * u128::from(share) / u128::from(resident.max(1))) as u64 + 1;
            debug!(target: "governor", "process {}: {wanted} pages are to leave", tenant.pid.load(Relaxed));
            tenant.want(wanted);
        }
    }

    /// Makes sure that a server thread runs for this address space.
    fn activate(&self, tenant: &Arc<Tenant>) -> bool {
        let mut idle = tenant.idle.lock();
        let Some(equipment) = idle.take() else { return tenant.active.load(Relaxed) };
        tenant.active.store(true, Relaxed);
        let server = Server::adopt(self.shared.clone(), tenant.clone(), self.gate.clone(), equipment);
        if let Err(error) = server.start() {
            self.shared.abort(&format!("cannot start a thread: {error}"));
        }
        self.shared.ring_hub();
        true
    }

    fn resident_of(&self, tenant: &Tenant) -> u64 {
        self.sizes.get(&tenant.pid.load(Relaxed)).map_or(0, |sizes| sizes.0)
    }

    /// Its virtual size: mappings cannot be made or grow without changing it.
    fn virtual_of(&self, tenant: &Tenant) -> u64 {
        self.sizes.get(&tenant.pid.load(Relaxed)).map_or(0, |sizes| sizes.1)
    }

    fn measure(&mut self, tenants: &[Arc<Tenant>]) -> Usage {
        let unseen = tenants.iter().any(|tenant| {
            !tenant.greeted.load(Relaxed) && (UNSEEN..UNSEEN_MOST).contains(&tenant.since.elapsed())
        });
        if self.tree_at.elapsed() > if unseen { UNSEEN } else { TREE_EVERY } {
            self.tree_at = Instant::now();
            self.find_tree(tenants, unseen);
        }
        self.tree.extend(tenants.iter().map(|tenant| tenant.pid.load(Relaxed)).filter(|&pid| pid != 0));
        self.sizes.clear();
        let mut tree = 0;
        for &pid in &self.tree {
            let found = match self.files.get_mut(&pid) {
                Some(file) => file.read(),
                None => MemFile::open(pid).and_then(|mut file| {
                    let rss = file.read();
                    self.files.insert(pid, file);
                    rss
                }),
            };
            let found = match found {
                Ok(rss) if rss.vm_pages == 0 => {
                    self.files.remove(&pid);
                    first_thread_ended(pid, tenants)
                }
                found => found.ok(),
            };
            match found {
                Some(rss) => {
                    tree += rss.anon_pages * PAGE;
                    self.sizes.insert(pid, (rss.anon_pages * PAGE, rss.vm_pages * PAGE));
                }
                None => {
                    self.files.remove(&pid);
                }
            }
        }
        let gone: Vec<u32> = self.files.keys().copied().filter(|pid| !self.sizes.contains_key(pid)).collect();
        for pid in gone {
            self.files.remove(&pid);
        }
        self.measure_sharing(tenants, tree);
        let rings: u64 = tenants.iter().map(|t| t.ring_pages.load(Relaxed) + AGENT_PAGES).sum();
        let own = self.own.read().map(|rss| rss.anon_pages).unwrap_or(0);
        Usage {
            tree: tree.saturating_sub(self.shared_bytes),
            pager: (own + rings) * PAGE,
            agents: rings * PAGE,
        }
    }

    /// Pages shared after fork count once: how much the plain sum counts too often.
    fn measure_sharing(&mut self, tenants: &[Arc<Tenant>], tree: u64) {
        if self.pss_at.elapsed() < PSS_EVERY {
            return;
        }
        self.pss_at = Instant::now();
        self.shared_bytes = 0;
        if tree < self.limit_now / 2 {
            return;
        }
        for tenant in tenants.iter().filter(|tenant| tenant.shares.load(Relaxed)) {
            let pid = tenant.pid.load(Relaxed);
            if let (Ok(pss), Some(&(resident, _))) = (process::pss_anon(pid), self.sizes.get(&pid)) {
                self.shared_bytes += resident.saturating_sub(pss);
            }
        }
    }

    /// All processes below the guardian but the pager; those that stay without an agent for a while (or are there
    /// at all, if `at_once`) are to get one.
    fn find_tree(&mut self, tenants: &[Arc<Tenant>], at_once: bool) {
        let pager = std::process::id();
        let Ok(all) = self.family.members() else { return };
        let before = std::mem::take(&mut self.tree);
        self.tree = all.iter().copied().filter(|&pid| pid != pager).collect();
        let greeted = tenants.iter().filter(|tenant| tenant.greeted.load(Relaxed));
        let mut paged: HashSet<u32> = greeted.map(|tenant| tenant.pid.load(Relaxed)).collect();
        paged.extend(self.shared.arriving.lock().iter());
        self.entrance.keep_only(&self.tree, &paged);
        let waiting = |pid: &&u32| (at_once || before.contains(pid)) && !paged.contains(pid);
        for &pid in self.tree.iter().filter(waiting) {
            let memory = process::status(pid).map_or(0, |status| status.rss_anon);
            if memory > 0 {
                self.entrance.consider(pid);
            }
        }
    }

    /// Whether waiting for the evictor makes sense.
    fn watch_progress(&mut self, tenants: &[Arc<Tenant>], room: i64, headroom: u64) {
        let evicted = self.shared.meters.evicted_now.load(Relaxed);
        // Pages that leave and come back again make room for nobody.
        let released = room > (headroom / 4) as i64;
        if released {
            (self.most_room, self.most_evicted) = (room, evicted);
        }
        if released || room > self.most_room || evicted > self.most_evicted {
            self.most_room = self.most_room.max(room);
            self.most_evicted = self.most_evicted.max(evicted);
            self.progress_at = Instant::now();
        }
        let hold = self.progress_at.elapsed() < NO_PROGRESS;
        let held = self.shared.may_hold.swap(hold, Relaxed);
        if held != hold {
            info!(target: "governor", "first touches may be held: {hold}; {room} bytes of room");
        }
        let full = self.shared.stuck.load(Relaxed)
            && self.shared.space.free_frames() < BATCH_PAGES as usize
            && room < 0;
        if full && self.pool_share.is_some() && !hold {
            self.shared.fail(
                "the pool and the spill file are full: give it more with --swap-max or --memory, or free space in \
                 --swap-dir"
                    .into(),
            );
        } else if full {
            self.shared.warn("the pool is full: pages stay resident over the limit".into());
        } else if held && !hold && room < 0 {
            self.shared.warn("nothing more could be evicted: pages stay resident over the limit".into());
        }
        if room > 0 || !hold {
            for tenant in tenants {
                if tenant.active.load(Relaxed) {
                    tenant.ring_if_holding();
                }
            }
        }
    }

    fn record(&mut self, tenants: &[Arc<Tenant>], usage: &Usage, limit: u64) {
        let elapsed = self.looked_at.elapsed();
        self.looked_at = Instant::now();
        let total = usage.total();
        let evicted = self.shared.meters.evicted_now.load(Relaxed);
        let mut peaks = self.peaks.lock();
        peaks.limit = limit;
        peaks.now = *usage;
        peaks.pace.note(&self.shared.meters, self.looked_at);
        peaks.total = peaks.total.max(total);
        peaks.resident = peaks.resident.max(usage.tree);
        peaks.pager = peaks.pager.max(usage.pager);
        peaks.virtual_bytes = peaks.virtual_bytes.max(usage.tree + evicted * PAGE);
        if total > limit {
            peaks.over_bytes = peaks.over_bytes.max(total - limit);
            peaks.over_time += elapsed;
        }
        if evicted > peaks.evicted + peaks.evicted / 64 {
            let tables: u64 = tenants.iter().map(|t| t.footprint.load(Relaxed)).sum();
            let space = self.shared.space.usage();
            peaks.evicted = evicted;
            super::summary::at_peak(&mut peaks, &space, evicted, tables);
        }
    }
}

/// The figures of a paged process that has ended, as far as its first thread shows: those of another thread, if one goes on.
fn first_thread_ended(pid: u32, tenants: &[Arc<Tenant>]) -> Option<Rss> {
    let mut own = tenants.iter().filter(|tenant| tenant.pid.load(Relaxed) == pid).peekable();
    own.peek()?;
    if deserted(pid).is_some() {
        own.for_each(|tenant| tenant.send_agent_off());
    }
    let mut file = MemFile::open(process::thread_with_memory(pid)).ok()?;
    file.read().ok().filter(|rss| rss.vm_pages > 0)
}
