//! A table that grows without moving its entries, so that a lookup takes no lock.
//!
//! Bucket 0 holds the first 64 entries and each later bucket as many as all before it together; a bucket is allocated
//! whole when its first entry is wanted and stays until the table is dropped. An empty table of any reach costs a few
//! hundred bytes. Allocation is fallible: memory is asked for exactly when memory is short.

use std::sync::OnceLock;

/// Entries of bucket 0.
const FIRST: u64 = 64;
/// Reach: 64 << 21 = 2^27 entries.
const BUCKETS: usize = 22;

/// Memory for a bucket could not be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfMemory;

/// The table; `T::default()` is an entry that nobody has used.
pub(crate) struct Table<T> {
    buckets: [OnceLock<Box<[T]>>; BUCKETS],
}

impl<T: Default> Table<T> {
    pub(crate) fn new() -> Self {
        Self { buckets: std::array::from_fn(|_| OnceLock::new()) }
    }

    /// Where entry `index` lives: its bucket, the place in it, and the bucket's length.
    fn place(index: u64) -> (usize, usize, usize) {
        if index < FIRST {
            return (0, index as usize, FIRST as usize);
        }
        let bucket = (index / FIRST).ilog2() + 1;
        let len = FIRST << (bucket - 1);
        (bucket as usize, (index - len) as usize, len as usize)
    }

    /// The entry, or `None` if its bucket was never needed.
    pub(crate) fn get(&self, index: u64) -> Option<&T> {
        let (bucket, at, _) = Self::place(index);
        self.buckets.get(bucket)?.get().map(|entries| &entries[at])
    }

    /// Entries that [`ensure`](Self::ensure) would allocate for this index.
    pub(crate) fn missing(&self, index: u64) -> usize {
        let (bucket, _, len) = Self::place(index);
        if self.buckets[bucket].get().is_some() { 0 } else { len }
    }

    /// The entry, its bucket allocated if need be.
    pub(crate) fn ensure(&self, index: u64) -> Result<&T, OutOfMemory> {
        let (bucket, at, len) = Self::place(index);
        if self.buckets[bucket].get().is_none() {
            let mut entries = Vec::new();
            entries.try_reserve_exact(len).map_err(|_| OutOfMemory)?;
            entries.resize_with(len, T::default);
            // A racer that was first has made the same bucket; ours is dropped.
            let _ = self.buckets[bucket].set(entries.into_boxed_slice());
        }
        Ok(&self.buckets[bucket].get().expect("set above")[at])
    }

    /// Bytes of all buckets.
    pub(crate) fn bytes(&self) -> u64 {
        self.buckets.iter().filter_map(OnceLock::get).map(|b| size_of_val::<[T]>(b) as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn every_index_has_a_place_of_its_own() {
        let table = Table::<AtomicU64>::new();
        for i in 0..5000 {
            let before = table.bytes();
            let missing = table.missing(i) as u64 * 8;
            table.ensure(i).expect("memory").store(i + 1, Ordering::Relaxed);
            assert_eq!(table.bytes(), before + missing);
        }
        for i in 0..5000 {
            assert_eq!(table.get(i).expect("there").load(Ordering::Relaxed), i + 1);
        }
        assert_eq!(table.bytes(), 8192 * 8);
        assert!(table.get(8192).is_none());
        assert!(table.get((1 << 27) - 1).is_none());
        assert!(table.get(u64::MAX).is_none());
    }
}
