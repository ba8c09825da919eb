//! Sets of address ranges: disjoint, merged, ordered. Plain data of one address space, guarded by its owner.

use std::collections::BTreeMap;
use std::ops::Range;

use vswap_core::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;

/// A set of addresses, kept as disjoint half-open ranges; touching ranges are merged.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct RangeSet {
    /// start → end.
    map: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Whether there is nothing in the set.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.map.clear();
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        if let Some((&before, &before_end)) = self.map.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
            self.map.remove(&before);
        }
        while let Some((&next, &next_end)) = self.map.range(start..=end).next() {
            end = end.max(next_end);
            self.map.remove(&next);
        }
        self.map.insert(start, end);
    }

    /// Adds pages.
    pub fn insert_pages(&mut self, addrs: &[u64]) {
        addrs.iter().for_each(|&addr| self.insert(addr..addr + PAGE));
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some((&before, &before_end)) = self.map.range(..range.start).next_back()
            && before_end > range.start
        {
            self.map.insert(before, range.start);
            if before_end > range.end {
                self.map.insert(range.end, before_end);
                return;
            }
        }
        while let Some((&start, &end)) = self.map.range(range.clone()).next() {
            self.map.remove(&start);
            if end > range.end {
                self.map.insert(range.end, end);
            }
        }
    }

    /// The range that holds `addr`.
    pub fn find(&self, addr: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.map.range(..=addr).next_back()?;
        (end > addr).then_some(start..end)
    }

    /// Whether `addr` is in the set.
    pub fn contains(&self, addr: u64) -> bool {
        self.find(addr).is_some()
    }

    /// Whether all of `range` is in the set.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.find(range.start).is_some_and(|found| found.end >= range.end)
    }

    /// Whether any of `range` is in the set.
    pub fn intersects(&self, range: &Range<u64>) -> bool {
        self.overlaps(range).next().is_some()
    }

    /// The parts of `range` that are in the set, in order.
    pub fn overlaps<'a>(&'a self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'a> {
        let Range { start, end } = *range;
        let first = self.map.range(..start).next_back().filter(move |&(_, &e)| e > start);
        let rest = if start < end { Some(self.map.range(start..end)) } else { None };
        first
            .into_iter()
            .chain(rest.into_iter().flatten())
            .map(move |(&s, &e)| s.max(start)..e.min(end))
            .filter(|part| !part.is_empty())
    }

    /// The parts of `range` that are not in the set, in order.
    pub fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for part in self.overlaps(range) {
            if part.start > at {
                gaps.push(at..part.start);
            }
            at = part.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// All ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.map.iter().map(|(&start, &end)| start..end)
    }

    /// Bytes of memory that the set takes, about.
    pub fn footprint(&self) -> usize {
        self.map.len() * 24
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64, u64),
        Remove(u64, u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u64..60, 0u64..20).prop_map(|(a, n)| Op::Insert(a, n)),
            (0u64..60, 0u64..20).prop_map(|(a, n)| Op::Remove(a, n)),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(ops in proptest::collection::vec(op(), 1..60), at in 0u64..80, n in 0u64..30) {
            let mut set = RangeSet::default();
            let mut plain = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Insert(a, n) => { set.insert(a..a + n); plain.extend(a..a + n); }
                    Op::Remove(a, n) => { set.remove(a..a + n); plain.retain(|x| !(a..a + n).contains(x)); }
                }
                let listed: BTreeSet<u64> = set.iter().flatten().collect();
                prop_assert_eq!(&listed, &plain);
                let ranges: Vec<_> = set.iter().collect();
                prop_assert!(ranges.windows(2).all(|w| w[0].end < w[1].start), "merged and ordered");
            }
            prop_assert_eq!(set.contains(at), plain.contains(&at));
            prop_assert_eq!(set.covers(&(at..at + n)), (at..at + n).all(|x| plain.contains(&x)));
            prop_assert_eq!(set.intersects(&(at..at + n)), (at..at + n).any(|x| plain.contains(&x)));
            let gaps: BTreeSet<u64> = set.gaps(&(at..at + n)).into_iter().flatten().collect();
            let expect: BTreeSet<u64> = (at..at + n).filter(|x| !plain.contains(x)).collect();
            prop_assert_eq!(gaps, expect);
        }
    }
}
