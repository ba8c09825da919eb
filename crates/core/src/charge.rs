//! What a group uses: exact counts of slots by kind and of objects by place.
//!
//! Counters are spread over a few cache lines by thread and added up when read. Relaxed: they order nothing. A sum
//! taken while operations are under way may be off by those; at a quiescent point it is exact (invariant 5), and a
//! recount of the slot words must give the same.

use crate::sync::shard;
use crate::word::{Backing, Place, TIERS_MAX};
use crate::{GroupId, TierId};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

const SHARDS: usize = 8;
/// Each kind, and for tiers each tier.
const KINDS: usize = 8 + TIERS_MAX;
/// The pool and the tiers.
const PLACES: usize = 1 + TIERS_MAX;

#[repr(align(64))]
#[derive(Default)]
struct Shard {
    kinds: [AtomicI64; KINDS],
    objects: [AtomicI64; PLACES],
}

/// The account of one group.
pub(crate) struct Charges {
    group: GroupId,
    shards: [Shard; SHARDS],
}

/// Sums of an account.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Sums {
    /// Slots by the number of their kind; those in tiers at 8 + tier.
    pub(crate) kinds: [i64; KINDS],
    /// Objects stored: the pool's, then each tier's. Those that a frame keeps as former backing count too.
    pub(crate) objects: [i64; PLACES],
}

/// Where slots with a backing are counted.
fn kind_index(backing: Backing) -> usize {
    match backing {
        Backing::Tier(TierId(tier), _) => 8 + usize::from(tier),
        other => other.kind(),
    }
}

/// Where objects of a place are counted.
pub(crate) fn place_index(place: Place) -> usize {
    match place {
        Place::Pool => 0,
        Place::Tier(TierId(tier)) => 1 + usize::from(tier),
    }
}

impl Sums {
    /// Slots whose backing is in a tier.
    pub(crate) fn in_tier(&self, tier: usize) -> i64 {
        self.kinds[8 + tier]
    }
}

impl Charges {
    pub(crate) fn new(group: GroupId) -> Self {
        Self { group, shards: Default::default() }
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group
    }

    /// Counts `slots` more (or fewer) of the kind of `backing`.
    pub(crate) fn slots(&self, backing: Backing, slots: i64) {
        self.shards[shard(SHARDS)].kinds[kind_index(backing)].fetch_add(slots, Relaxed);
    }

    /// A slot changes its kind.
    pub(crate) fn change(&self, old: Backing, new: Backing) {
        let kinds = &self.shards[shard(SHARDS)].kinds;
        kinds[kind_index(old)].fetch_sub(1, Relaxed);
        kinds[kind_index(new)].fetch_add(1, Relaxed);
    }

    /// Counts an object more (or fewer) in a place.
    pub(crate) fn objects(&self, place: Place, objects: i64) {
        self.shards[shard(SHARDS)].objects[place_index(place)].fetch_add(objects, Relaxed);
    }

    /// Adds this account to `sums`.
    pub(crate) fn add_to(&self, sums: &mut Sums) {
        for shard in &self.shards {
            for (sum, n) in sums.kinds.iter_mut().zip(&shard.kinds) {
                *sum += n.load(Relaxed);
            }
            for (sum, n) in sums.objects.iter_mut().zip(&shard.objects) {
                *sum += n.load(Relaxed);
            }
        }
    }
}
