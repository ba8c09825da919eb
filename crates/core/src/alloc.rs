//! The slot allocator: which cluster a new slot comes from, and where clusters come from and go.
//!
//! Each thread allocates from a current cluster, by a shard that its number picks, so that a thread that dies leaves
//! nothing behind; a shard has one current cluster a group. When it is full the shard takes the lowest partly used
//! cluster of the group, or makes a new one. An empty cluster is freed at once, unless it is somebody's current one:
//! an idle space keeps up to one cluster a shard and group. The idea is Linux's cluster allocator for swap.
//!
//! **Locks**: a shard, then the lists. The directory's clusters are set and cleared under no lock but by one thread: who
//! made the number, who retired the cluster.

use crate::charge::{Charges, Sums};
use crate::cluster::{Cluster, Freed, SLOTS};
use crate::directory::{Directory, OutOfMemory};
use crate::sync::{Mutex, Pin, shard};
use crate::word::Backing;
use crate::{GroupId, SlotId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::sync::Arc;

const SHARDS: usize = if cfg!(loom) { 1 } else { 8 };
/// Clusters that 40-bit slot ids can name; number 0 is never one, so that slot 0 is none.
const NUMBERS: u32 = if cfg!(loom) { 1 << 8 } else { 1 << (SlotId::BITS - 9) };
/// Frees that may be between a cluster's state and its list at the same time without the list's growing for them.
const SLACK: usize = 64;

/// Why slots could not be allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AllocError {
    /// There is no memory for another cluster of slots.
    OutOfMemory,
    /// All 2^40 slots are in use.
    SpaceFull,
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "no memory for another cluster of swap slots (4 KiB)",
            Self::SpaceFull => "all swap slots are in use",
        })
    }
}

impl std::error::Error for AllocError {}

impl From<OutOfMemory> for AllocError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

type LowestFirst = BinaryHeap<Reverse<u32>>;

struct Group {
    charges: Arc<Charges>,
    /// Partly used clusters. An entry may be out of date: the cluster's state decides.
    partial: LowestFirst,
}

#[derive(Default)]
struct Lists {
    groups: BTreeMap<u16, Group>,
    /// Numbers that were used and are free.
    free: LowestFirst,
    /// Numbers ever used, 0 included.
    made: u32,
    live: u32,
}

/// One shard: a current cluster for each group that it allocated for.
type Current = Vec<(GroupId, Arc<Cluster>)>;

/// See the module's head.
pub(crate) struct Allocator {
    clusters: Directory<Cluster>,
    shards: [Mutex<Current>; SHARDS],
    lists: Mutex<Lists>,
}

/// Cluster number and index of a slot.
pub(crate) fn place(slot: SlotId) -> (u32, u32) {
    ((slot.get() / u64::from(SLOTS)) as u32, (slot.get() % u64::from(SLOTS)) as u32)
}

impl Allocator {
    pub(crate) fn new() -> Self {
        Self {
            clusters: Directory::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
            lists: Mutex::default(),
        }
    }

    /// The cluster of this number, if there is one now.
    pub(crate) fn cluster(&self, number: u32) -> Option<Pin<Cluster>> {
        self.clusters.get(number)
    }

    /// Appends `n` new slots to `out` and charges them; after an error, those that could be had.
    pub(crate) fn alloc(&self, group: GroupId, n: usize, out: &mut Vec<SlotId>) -> Result<(), AllocError> {
        out.try_reserve(n).map_err(|_| AllocError::OutOfMemory)?;
        let before = out.len();
        let mut current = self.shards[shard(SHARDS)].lock();
        let at = match current.iter().position(|(g, _)| *g == group) {
            Some(at) => at,
            None => {
                current.try_reserve(1).map_err(|_| AllocError::OutOfMemory)?;
                let cluster = self.attach(group)?;
                current.push((group, cluster));
                current.len() - 1
            }
        };
        loop {
            let cluster = &current[at].1;
            let left = n - (out.len() - before);
            let want = left.min(SLOTS as usize) as u32;
            let got = cluster.alloc(want, |index| out.push(cluster.slot(index)));
            cluster.charges().slots(Backing::Reserved, i64::from(got));
            if got as usize == left {
                return Ok(());
            }
            if got == 0 && cluster.detach_full() {
                match self.attach(group) {
                    Ok(cluster) => current[at].1 = cluster,
                    Err(e) => {
                        // The full one is detached: the shard has no cluster of this group any more.
                        current.swap_remove(at);
                        return Err(e);
                    }
                }
            }
        }
    }

    /// A cluster with free slots for a shard: a partly used one, else a new one.
    fn attach(&self, group: GroupId) -> Result<Arc<Cluster>, AllocError> {
        let mut lists = self.lists.lock();
        let lists = &mut *lists;
        let members = lists
            .groups
            .entry(group.0)
            .or_insert_with(|| Group { charges: Arc::new(Charges::new(group)), partial: BinaryHeap::new() });
        while let Some(Reverse(number)) = members.partial.pop() {
            if let Some(cluster) = self.clusters.get(number)
                && cluster.charges().group() == group
                && cluster.attach()
            {
                return Ok(cluster.share());
            }
        }
        // Room for what frees will put on the lists, so that they need no memory: every cluster is on each at most
        // once between two makings.
        let room = lists.live as usize + 1 + SLACK;
        members.partial.try_reserve(room).map_err(|_| AllocError::OutOfMemory)?;
        lists.free.try_reserve(room).map_err(|_| AllocError::OutOfMemory)?;
        let number = match lists.free.peek() {
            Some(Reverse(number)) => *number,
            None if lists.made + 1 >= NUMBERS => return Err(AllocError::SpaceFull),
            None => lists.made + 1,
        };
        self.clusters.ensure(number)?;
        let cluster = Arc::new(Cluster::new(number, members.charges.clone())?);
        if number > lists.made {
            lists.made = number;
        } else {
            lists.free.pop();
        }
        lists.live += 1;
        let before = self.clusters.set(number, Some(cluster.clone()));
        assert!(before.is_none(), "cluster {number} made twice");
        Ok(cluster)
    }

    /// Gives back slots whose words were cleared.
    pub(crate) fn put(&self, cluster: &Cluster, slots: u32) {
        let number = cluster.number();
        match cluster.put(slots) {
            Freed::Nothing => {}
            Freed::List => {
                let group = cluster.charges().group();
                let mut lists = self.lists.lock();
                lists.groups.get_mut(&group.0).expect("has a cluster").partial.push(Reverse(number));
            }
            Freed::Retire => {
                let gone = self.clusters.set(number, None);
                assert!(gone.is_some_and(|c| std::ptr::eq(&*c, cluster)), "cluster {number} retired twice");
                let mut lists = self.lists.lock();
                lists.live -= 1;
                lists.free.push(Reverse(number));
            }
        }
    }

    /// The account of a group that ever allocated.
    pub(crate) fn charges(&self, group: GroupId) -> Option<Arc<Charges>> {
        self.lists.lock().groups.get(&group.0).map(|g| g.charges.clone())
    }

    /// The sum of all accounts.
    pub(crate) fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        self.lists.lock().groups.values().for_each(|g| g.charges.add_to(&mut sums));
        sums
    }

    /// The highest cluster number ever used; 0 if none was.
    pub(crate) fn last_number(&self) -> u32 {
        self.lists.lock().made
    }

    /// Clusters, and bytes on the heap of everything here.
    pub(crate) fn footprint(&self) -> (u64, u64) {
        let shards: usize =
            self.shards.iter().map(|s| s.lock().capacity() * size_of::<(GroupId, Arc<Cluster>)>()).sum();
        let lists = self.lists.lock();
        let entries: usize =
            lists.free.capacity() + lists.groups.values().map(|g| g.partial.capacity()).sum::<usize>();
        let groups =
            lists.groups.len() * (size_of::<Charges>() + 2 * size_of::<usize>() + size_of::<Group>());
        let live = u64::from(lists.live);
        let bytes = live * Cluster::bytes()
            + self.clusters.bytes()
            + (entries * size_of::<Reverse<u32>>() + groups + shards) as u64;
        (live, bytes)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::count::{Counts, Put};

    fn alloc(allocator: &Allocator, group: u16, n: usize) -> Vec<SlotId> {
        let mut slots = Vec::new();
        allocator.alloc(GroupId(group), n, &mut slots).expect("memory");
        slots
    }

    fn free(allocator: &Allocator, slots: &[SlotId]) {
        for slot in slots {
            let (number, index) = place(*slot);
            let cluster = allocator.cluster(number).expect("in use");
            assert_eq!(Counts::default().put(&cluster, index, *slot), Put::TearDown);
            cluster.clear(index);
            allocator.put(&cluster, 1);
        }
    }

    #[test]
    fn fresh_slots_follow_each_other_and_are_never_slot_0() {
        let allocator = Allocator::new();
        let clusters = if cfg!(miri) { 1 } else { 3 };
        let slots = alloc(&allocator, 0, clusters * 512 + 200);
        assert!(slots[0].get() > 0 && slots.windows(2).all(|w| w[1].get() == w[0].get() + 1));
        assert_eq!(allocator.footprint().0, clusters as u64 + 1);
    }

    #[test]
    fn partly_used_clusters_are_filled_before_new_ones_are_made() {
        let allocator = Allocator::new();
        let slots = alloc(&allocator, 0, 5 * 512);
        let holes: Vec<_> = slots.iter().copied().filter(|slot| slot.get() % 3 == 0).collect();
        free(&allocator, &holes);
        let again = alloc(&allocator, 0, holes.len());
        let sorted = |mut slots: Vec<SlotId>| {
            slots.sort_unstable();
            slots
        };
        assert_eq!(sorted(again), sorted(holes));
        assert_eq!(allocator.footprint().0, 5);
    }

    #[test]
    fn empty_clusters_go_and_their_numbers_come_back() {
        let allocator = Allocator::new();
        // Miri takes ten milliseconds for a slot.
        let (clusters, rounds) = if cfg!(miri) { (3, 1) } else { (10, 100) };
        let slots = alloc(&allocator, 0, clusters * 512);
        free(&allocator, &slots);
        assert_eq!(allocator.footprint().0, 1, "the shard's own stays");
        for round in 0..rounds {
            let slots = alloc(&allocator, 0, 3 * 512 + round);
            free(&allocator, &slots);
        }
        assert!(allocator.last_number() <= 10, "numbers are used again");
        let lists = allocator.lists.lock();
        assert!(lists.free.len() <= 10 && lists.groups[&0].partial.len() <= 10, "lists do not grow");
    }

    #[test]
    fn groups_do_not_share_clusters() {
        let allocator = Allocator::new();
        let (one, two) = (alloc(&allocator, 1, 10), alloc(&allocator, 2, 10));
        assert!(one.iter().all(|a| two.iter().all(|b| place(*a).0 != place(*b).0)));
        free(&allocator, &one);
        let three = alloc(&allocator, 3, 10);
        for slot in &three {
            let (number, _) = place(*slot);
            assert_eq!(allocator.cluster(number).expect("in use").charges().group(), GroupId(3));
        }
    }
}
