//! Which pages of the file are whose: clusters of 512 pages, opened when needed and closed when empty.
//!
//! Owned by the file tier, under one mutex. An open cluster has storage; its bitmap says which pages are taken, a
//! second one which the device could not write (bad: taken for good). Allocation looks for contiguous runs, because a
//! run is one write: first in a few open clusters from a hint on, then in a new cluster, and only when there can be no
//! new one in whatever holes there are. The kernel's swap allocator goes the same way (free, non-full, fragmented).

use vswap_core::PAGE_SIZE;

/// Pages of a cluster.
pub(super) const CLUSTER: usize = 512;
/// Bytes of a cluster.
pub(super) const CLUSTER_BYTES: u64 = (CLUSTER * PAGE_SIZE) as u64;
/// A hole of this many pages is as good as a new cluster.
const GOOD_RUN: usize = 32;
/// Open clusters that are looked at before a new one is opened.
const LOOKS: usize = 64;
/// Clusters of a file: its page numbers have 36 bits, and the reverse map reaches 2^27 clusters, 256 TiB.
const CLUSTERS_MAX: usize = 1 << 27;

/// Contiguous pages of one cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// Number of the first page in the file.
    pub(super) first: u64,
    pub(super) len: usize,
}

/// Where the next run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Taken.
    Run(Run),
    /// Open this cluster with so many pages, then ask again.
    Open { cluster: usize, pages: usize },
    /// The limit is reached.
    Full,
}

#[derive(Clone, Default)]
struct Map {
    /// Taken pages, bad ones included.
    taken: [u64; CLUSTER / 64],
    bad: [u64; CLUSTER / 64],
    /// Pages that hold or are about to hold somebody's data.
    live: u16,
    /// Pages with storage; 0 means closed. Less than 512 only where the limit cuts a cluster.
    pages: u16,
}

impl Map {
    fn is_taken(&self, page: usize) -> bool {
        self.taken[page / 64] >> (page % 64) & 1 != 0
    }

    /// The first hole of at least `min` pages, cut to `max`; else, if `min` is 1, none.
    fn hole(&self, min: usize, max: usize) -> Option<(usize, usize)> {
        let pages = usize::from(self.pages);
        let mut at = 0;
        while at < pages {
            if self.taken[at / 64] == u64::MAX && at.is_multiple_of(64) {
                at += 64;
            } else if self.is_taken(at) {
                at += 1;
            } else {
                let len = (at..pages.min(at + max)).take_while(|p| !self.is_taken(*p)).count();
                if len >= min {
                    return Some((at, len));
                }
                at += len;
            }
        }
        None
    }
}

/// The clusters of a file.
pub(super) struct Clusters {
    maps: Vec<Map>,
    limit_pages: u64,
    /// Pages of open clusters.
    open_pages: u64,
    live: u64,
    /// No closed cluster is below.
    closed_hint: usize,
    /// Where to look for a hole first.
    hole_hint: usize,
}

impl Clusters {
    pub(super) fn new(limit_pages: u64) -> Self {
        Self { maps: Vec::new(), limit_pages, open_pages: 0, live: 0, closed_hint: 0, hole_hint: 0 }
    }

    pub(super) fn set_limit(&mut self, pages: u64) {
        self.limit_pages = pages;
    }

    pub(super) fn limit_pages(&self) -> u64 {
        self.limit_pages
    }

    /// Pages of open clusters: what the file occupies.
    pub(super) fn open_pages(&self) -> u64 {
        self.open_pages
    }

    /// Pages taken by data.
    pub(super) fn live(&self) -> u64 {
        self.live
    }

    /// Bytes of the bitmaps.
    pub(super) fn bytes(&self) -> u64 {
        (self.maps.capacity() * size_of::<Map>()) as u64
    }

    /// Takes up to `want` contiguous pages, as many as a good place has.
    pub(super) fn take(&mut self, want: usize) -> Found {
        assert!(want > 0);
        let want = want.min(CLUSTER);
        let over = self.open_pages > self.limit_pages;
        if over {
            // The limit was lowered: what is stored stays, nothing new comes.
            return Found::Full;
        }
        let count = self.maps.len();
        for step in 0..count.min(LOOKS) {
            let cluster = (self.hole_hint + step) % count;
            if let Some((page, len)) = self.maps[cluster].hole(want.min(GOOD_RUN), want) {
                self.hole_hint = cluster;
                return Found::Run(self.mark(cluster, page, len));
            }
        }
        self.hole_hint = if count == 0 { 0 } else { (self.hole_hint + count.min(LOOKS)) % count };
        let room = (self.limit_pages - self.open_pages).min(CLUSTER as u64) as usize;
        if room > 0
            && let Some(cluster) = self.closed()
        {
            return Found::Open { cluster, pages: room };
        }
        let hole = (0..count).find_map(|c| self.maps[c].hole(1, want).map(|(page, len)| (c, page, len)));
        match hole {
            Some((cluster, page, len)) => Found::Run(self.mark(cluster, page, len)),
            None => Found::Full,
        }
    }

    /// When no cluster could be opened: any hole.
    pub(super) fn take_any(&mut self, want: usize) -> Option<Run> {
        let hole =
            (0..self.maps.len()).find_map(|c| self.maps[c].hole(1, want).map(|(page, len)| (c, page, len)));
        hole.map(|(cluster, page, len)| self.mark(cluster, page, len))
    }

    /// The lowest closed cluster in which not every page is bad.
    fn closed(&mut self) -> Option<usize> {
        let closed = |m: &Map| m.pages == 0 && m.bad.iter().any(|w| *w != u64::MAX);
        let from = self.closed_hint;
        let found = self.maps[from..].iter().position(closed).map_or(self.maps.len(), |i| from + i);
        self.closed_hint = found;
        (found < CLUSTERS_MAX).then_some(found)
    }

    /// Notes that `cluster` has storage for so many pages; `false` if there is no memory to note it.
    pub(super) fn opened(&mut self, cluster: usize, pages: usize) -> bool {
        assert!((1..=CLUSTER).contains(&pages) && cluster <= self.maps.len());
        if cluster == self.maps.len() {
            if self.maps.try_reserve(1).is_err() {
                return false;
            }
            self.maps.push(Map::default());
        }
        let map = &mut self.maps[cluster];
        assert!(map.pages == 0 && map.live == 0);
        map.pages = pages as u16;
        map.taken = map.bad;
        self.open_pages += pages as u64;
        self.hole_hint = cluster;
        true
    }

    fn mark(&mut self, cluster: usize, page: usize, len: usize) -> Run {
        let map = &mut self.maps[cluster];
        for p in page..page + len {
            assert!(!map.is_taken(p), "page {p} of cluster {cluster} taken twice");
            map.taken[p / 64] |= 1 << (p % 64);
        }
        map.live += len as u16;
        self.live += len as u64;
        Run { first: (cluster * CLUSTER + page) as u64, len }
    }

    /// Gives a page back. `Some(cluster)` if it was the last of its cluster, which must be closed now.
    pub(super) fn give(&mut self, page: u64) -> Option<usize> {
        self.give_up(page, false)
    }

    /// Gives a page up for good: the device cannot write it.
    pub(super) fn give_bad(&mut self, page: u64) -> Option<usize> {
        self.give_up(page, true)
    }

    fn give_up(&mut self, page: u64, bad: bool) -> Option<usize> {
        let (cluster, page) = ((page / CLUSTER as u64) as usize, page as usize % CLUSTER);
        let map = &mut self.maps[cluster];
        let bit = 1u64 << (page % 64);
        assert!(
            map.is_taken(page) && map.bad[page / 64] & bit == 0,
            "page {page} of cluster {cluster} is not taken"
        );
        if bad {
            map.bad[page / 64] |= bit;
        } else {
            map.taken[page / 64] &= !bit;
        }
        map.live -= 1;
        self.live -= 1;
        if map.live > 0 {
            return None;
        }
        self.open_pages -= u64::from(map.pages);
        map.pages = 0;
        self.closed_hint = self.closed_hint.min(cluster);
        Some(cluster)
    }

    /// Clusters from the start of the file to the last one that is open or remembered.
    pub(super) fn count(&self) -> usize {
        self.maps.len()
    }

    /// Forgets closed clusters at the end. Bad pages there are forgotten too and would be found again.
    pub(super) fn trim(&mut self) {
        let end = self.maps.iter().rposition(|m| m.pages > 0).map_or(0, |last| last + 1);
        if end == self.maps.len() {
            return;
        }
        self.maps.truncate(end);
        if self.maps.capacity() > 2 * end {
            self.maps.shrink_to(end);
        }
        self.closed_hint = self.closed_hint.min(end);
        self.hole_hint = 0;
    }
}
