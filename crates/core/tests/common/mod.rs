//! Tiers in memory for tests: every fault can be ordered, and a hook runs in the middle of every operation, where a test
//! may do what another thread would do there.
#![allow(dead_code, unreachable_pub, reason = "a module of several tests, each of which uses its part")]

pub mod world;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use vswap_core::{
    CleanReport, GroupId, LoadError, Location, NotThere, Owner, PAGE_SIZE, Page, Relocated, SlotId,
    SpaceConfig, StoreError, Tier, TierUsage, VirtualSwap,
};

pub const GROUP: GroupId = GroupId(0);

/// What a tier is in the middle of; its object is written, or not yet released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    Stored,
    Loading,
    Releasing,
    Relocating,
}

type Hook = Arc<dyn Fn(At, SlotId) + Send + Sync>;
type Refusal = Box<dyn Fn(&Page) -> Option<StoreError> + Send>;

#[derive(Default)]
struct State {
    objects: BTreeMap<u64, (SlotId, Box<Page>)>,
    free: Vec<u64>,
    next: u64,
    limit: u64,
    refusal: Option<Refusal>,
    load_error: Option<LoadError>,
    load_error_every: u64,
    loads: u64,
    /// Loads under way by location.
    reading: HashMap<u64, usize>,
    /// Objects of which the space said that they are as good as released.
    doomed: HashSet<u64>,
    log: Vec<(At, SlotId)>,
    /// What is offered as coldest instead of the truth.
    offer: Option<Vec<(SlotId, Location)>>,
    /// What is missing was lost, not released.
    lossy: bool,
}

/// A tier in memory.
pub struct MemTier {
    name: &'static str,
    /// A device: its objects may not be released while they are read, and it knows no coldest.
    device: bool,
    state: Mutex<State>,
    hook: Mutex<Option<Hook>>,
}

impl MemTier {
    pub fn pool(limit: u64) -> Arc<Self> {
        Self::new("pool", false, limit)
    }

    pub fn device(limit: u64) -> Arc<Self> {
        Self::new("device", true, limit)
    }

    fn new(name: &'static str, device: bool, limit: u64) -> Arc<Self> {
        let state = Mutex::new(State { limit, ..State::default() });
        Arc::new(Self { name, device, state, hook: Mutex::default() })
    }

    /// Refuses pages for which `refusal` gives a reason.
    pub fn refuse(&self, refusal: impl Fn(&Page) -> Option<StoreError> + Send + 'static) {
        self.state.lock().expect("tier").refusal = Some(Box::new(refusal));
    }

    pub fn refuse_nothing(&self) {
        self.state.lock().expect("tier").refusal = None;
    }

    /// Lets every n-th load fail; 0: none.
    pub fn fail_loads(&self, every: u64, error: LoadError) {
        let mut state = self.state.lock().expect("tier");
        state.load_error_every = every;
        state.load_error = Some(error);
    }

    /// Offers these objects for writeback once, as a pool does whose walk was overtaken.
    pub fn offer(&self, objects: Vec<(SlotId, Location)>) {
        self.state.lock().expect("tier").offer = Some(objects);
    }

    /// Runs `hook` in the middle of operations, without a lock of the tier.
    pub fn set_hook(&self, hook: impl Fn(At, SlotId) + Send + Sync + 'static) {
        *self.hook.lock().expect("hook") = Some(Arc::new(hook));
    }

    pub fn clear_hook(&self) {
        *self.hook.lock().expect("hook") = None;
    }

    pub fn objects(&self) -> u64 {
        self.state.lock().expect("tier").objects.len() as u64
    }

    pub fn locations(&self) -> Vec<(SlotId, Location)> {
        let state = self.state.lock().expect("tier");
        state.objects.iter().map(|(at, (slot, _))| (*slot, location(*at))).collect()
    }

    pub fn take_log(&self) -> Vec<(At, SlotId)> {
        std::mem::take(&mut self.state.lock().expect("tier").log)
    }

    /// Its metadata is gone.
    pub fn lose_all_objects(&self) {
        let mut state = self.state.lock().expect("tier");
        state.objects.clear();
        state.lossy = true;
    }

    fn run_hook(&self, at: At, slot: SlotId) {
        self.state.lock().expect("tier").log.push((at, slot));
        let hook = self.hook.lock().expect("hook").clone();
        if let Some(hook) = hook {
            hook(at, slot);
        }
    }

    fn put(state: &mut State, slot: SlotId, page: &Page) -> u64 {
        // The last freed place first: whoever still reads it by an old word must notice.
        let at = state.free.pop().unwrap_or_else(|| {
            state.next += 1;
            state.next
        });
        assert!(state.objects.insert(at, (slot, Box::new(*page))).is_none());
        at
    }

    fn remove(&self, state: &mut State, slot: SlotId, at: u64) {
        let (owner, _) =
            state.objects.remove(&at).unwrap_or_else(|| panic!("{}: released twice: {slot:?}", self.name));
        assert_eq!(owner, slot, "{}: released another's object", self.name);
        assert!(!self.device || !state.reading.contains_key(&at), "released while it is read");
        state.doomed.remove(&at);
        state.free.push(at);
    }
}

fn location(at: u64) -> Location {
    Location::new(at).expect("few objects")
}

impl Tier for MemTier {
    fn name(&self) -> &str {
        self.name
    }

    fn store(&self, pages: &[(SlotId, &Page)], out: &mut Vec<Result<Location, StoreError>>) {
        let mut stored = Vec::new();
        {
            let mut state = self.state.lock().expect("tier");
            for (slot, page) in pages {
                let refusal = state.refusal.as_ref().and_then(|refusal| refusal(page));
                out.push(match refusal {
                    Some(error) => Err(error),
                    None if state.objects.len() as u64 >= state.limit => Err(StoreError::Full),
                    None => {
                        stored.push(*slot);
                        Ok(location(Self::put(&mut state, *slot, page)))
                    }
                });
            }
        }
        stored.into_iter().for_each(|slot| self.run_hook(At::Stored, slot));
    }

    fn load(&self, slot: SlotId, at: Location, into: &mut Page) -> Result<(), LoadError> {
        {
            let mut state = self.state.lock().expect("tier");
            state.loads += 1;
            if state.load_error_every > 0 && state.loads.is_multiple_of(state.load_error_every) {
                return Err(state.load_error.expect("set with the interval"));
            }
            *state.reading.entry(at.get()).or_default() += 1;
        }
        self.run_hook(At::Loading, slot);
        let mut state = self.state.lock().expect("tier");
        let reading = state.reading.get_mut(&at.get()).expect("entered above");
        *reading -= 1;
        if *reading == 0 {
            state.reading.remove(&at.get());
        }
        match state.objects.get(&at.get()) {
            Some((owner, page)) if *owner == slot => into.copy_from_slice(&page[..]),
            _ => return Err(LoadError::Stale),
        }
        Ok(())
    }

    fn release(&self, slot: SlotId, at: Location) -> Result<(), NotThere> {
        self.run_hook(At::Releasing, slot);
        let mut state = self.state.lock().expect("tier");
        if state.lossy && !state.objects.contains_key(&at.get()) {
            return Err(NotThere);
        }
        self.remove(&mut state, slot, at.get());
        Ok(())
    }

    fn usage(&self) -> TierUsage {
        let state = self.state.lock().expect("tier");
        let objects = state.objects.len() as u64;
        TierUsage {
            objects,
            live_bytes: objects * PAGE_SIZE as u64,
            limit_bytes: state.limit,
            ..TierUsage::default()
        }
    }

    fn set_limit(&self, limit: u64) {
        self.state.lock().expect("tier").limit = limit;
    }

    fn coldest(&self, max: usize, out: &mut Vec<(SlotId, Location)>) {
        let offer = self.state.lock().expect("tier").offer.take();
        if let Some(objects) = offer {
            out.extend(objects);
        } else if !self.device {
            out.extend(self.locations().into_iter().take(max));
        }
    }

    /// Moves every object, one by one; keeps what the space says is gone, but expects nobody to ask for it.
    fn clean(&self, owner: &dyn Owner, _budget: u64) -> CleanReport {
        let mut moved = 0;
        for (slot, old) in self.locations() {
            let new = {
                let mut state = self.state.lock().expect("tier");
                let page = match state.objects.get(&old.get()) {
                    Some((owner, page)) if *owner == slot => page.clone(),
                    _ => continue,
                };
                location(Self::put(&mut state, slot, &page))
            };
            self.run_hook(At::Relocating, slot);
            let outcome = owner.relocate(slot, old, new);
            let mut state = self.state.lock().expect("tier");
            match outcome {
                Relocated::Moved => {
                    moved += 1;
                    self.remove(&mut state, slot, old.get());
                }
                Relocated::Gone => {
                    if state.objects.get(&old.get()).is_some_and(|(owner, _)| *owner == slot) {
                        state.doomed.insert(old.get());
                    }
                    self.remove(&mut state, slot, new.get());
                }
                Relocated::Busy => self.remove(&mut state, slot, new.get()),
            }
        }
        CleanReport { moved, freed_bytes: 0 }
    }
}

impl Drop for MemTier {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(
                self.state.lock().expect("tier").doomed.is_empty(),
                "an object was called gone and never released"
            );
        }
    }
}

/// A page that only this seed has. 0: zeros; otherwise modulo 5: 1 a short pattern, 2 a long pattern, 4 incompressible
/// (see [`incompressible`]), others compressible.
pub fn page_of(seed: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    match seed % 5 {
        _ if seed == 0 => {}
        1 => page.as_chunks_mut::<8>().0.fill((seed & 0xff_ffff).to_ne_bytes()),
        2 => page.as_chunks_mut::<8>().0.fill((seed | 0xa5a5_0000_0000_0000).to_ne_bytes()),
        class => {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            for word in page.as_chunks_mut::<8>().0 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *word = state.to_ne_bytes();
            }
            page[..8].copy_from_slice(&seed.to_ne_bytes());
            page[8] = if class == 4 { 0xff } else { 0 };
        }
    }
    page
}

/// A pool's reason to refuse a page of [`page_of`].
pub fn incompressible(page: &Page) -> Option<StoreError> {
    let is = page[8] == 0xff && page[..8] != page[8..16];
    is.then_some(StoreError::Incompressible)
}

/// A space over these tiers.
pub fn space(pool: &Arc<MemTier>, tiers: &[&Arc<MemTier>], max_frames: usize) -> VirtualSwap {
    let tiers = tiers.iter().map(|tier| Arc::<MemTier>::clone(tier) as Arc<dyn Tier>).collect();
    VirtualSwap::new(SpaceConfig { pool: Some(pool.clone()), tiers, max_frames })
}

pub fn alloc(space: &VirtualSwap, n: usize) -> Vec<SlotId> {
    let mut slots = Vec::new();
    space.alloc_n(GROUP, n, &mut slots).expect("memory");
    slots
}

pub fn cache(space: &VirtualSwap, slot: SlotId, seed: u64) -> bool {
    space.cache_many(&[(slot, &page_of(seed))]) == 1
}

pub fn store(space: &VirtualSwap, slot: SlotId, seed: u64) -> Result<(), StoreError> {
    let mut out = Vec::new();
    space.store_many(&[(slot, &page_of(seed))], &mut out);
    out[0].map_err(|failure| failure.error())
}

/// Loads and compares; where it came from.
#[track_caller]
pub fn check(space: &VirtualSwap, slot: SlotId, seed: u64) -> vswap_core::Source {
    let mut page = [0x77; PAGE_SIZE];
    let source = space.load(slot, &mut page).unwrap_or_else(|e| panic!("{e}"));
    assert!(page == page_of(seed), "slot {} has another page than {seed}", slot.get());
    source
}

/// Accounts, recount and tiers agree.
#[track_caller]
pub fn audit(space: &VirtualSwap, pool: &MemTier, tiers: &[&Arc<MemTier>]) {
    let usage = space.usage();
    assert_eq!(usage, space.recount());
    assert_eq!(usage.frames, usage.cached);
    assert_eq!(usage.pool_objects, pool.objects());
    for (charged, tier) in usage.tier_objects.iter().zip(tiers) {
        assert_eq!(*charged, tier.objects());
    }
}

/// Runs `test`, and fails if it takes longer than a deadlock would.
pub fn within_seconds(seconds: u64, test: impl FnOnce() + Send + 'static) {
    let (done, waiting) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match waiting.recv_timeout(std::time::Duration::from_secs(seconds)) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("stuck for {seconds} s"),
        _ => thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e)),
    }
}
