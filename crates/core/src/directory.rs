//! The directory: from a number to a shared object, read without a lock.
//!
//! Two levels of lazily allocated tables. The lower ones are pages of [`LEAF`] entries; the upper one is an array of
//! buckets, each as long as all before it together, so that nothing ever moves when it grows. Tables stay until the
//! directory is dropped (8 bytes per 512 slots); entries come and go.
//!
//! **Who may do what.** Anybody may read at any time; what was read stays alive as long as the reader holds it, even if
//! it is removed meanwhile: a reader then finds its words free (clusters) or its frame another's (slabs). Entries are
//! set and cleared by their one owner at a time: the allocator for clusters, the frame pool for slabs.

use crate::sync::{Entry, Pin};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// Entries of a lower table.
const LEAF: usize = if cfg!(loom) { 4 } else { 512 };
/// Lower tables in the first bucket.
const FIRST: usize = 8;
/// Buckets: 8 << 19 = 2^22 lower tables.
const BUCKETS: usize = 20;

/// Memory could not be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfMemory;

type Leaf<T> = Box<[Entry<T>]>;
type Bucket<T> = Box<[OnceLock<Leaf<T>>]>;

/// See the module's head.
pub(crate) struct Directory<T> {
    buckets: [OnceLock<Bucket<T>>; BUCKETS],
    bytes: AtomicU64,
}

/// `len` equal values on the heap.
pub(crate) fn try_boxed<T>(len: usize, make: impl FnMut() -> T) -> Result<Box<[T]>, OutOfMemory> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| OutOfMemory)?;
    values.resize_with(len, make);
    Ok(values.into_boxed_slice())
}

impl<T> Directory<T> {
    pub(crate) fn new() -> Self {
        Self { buckets: [const { OnceLock::new() }; BUCKETS], bytes: AtomicU64::new(0) }
    }

    /// The bucket of a lower table, the table's place in it, and the bucket's length.
    fn place(leaf: usize) -> (usize, usize, usize) {
        if leaf < FIRST {
            return (0, leaf, FIRST);
        }
        let bucket = (leaf / FIRST).ilog2() as usize + 1;
        let len = FIRST << (bucket - 1);
        (bucket, leaf - len, len)
    }

    fn entry(&self, number: u32) -> Option<&Entry<T>> {
        let number = number as usize;
        let (bucket, at, _) = Self::place(number / LEAF);
        self.buckets.get(bucket)?.get()?[at].get().map(|leaf| &leaf[number % LEAF])
    }

    /// The object of this number, if it has one now.
    pub(crate) fn get(&self, number: u32) -> Option<Pin<T>> {
        self.entry(number)?.get()
    }

    /// Makes the tables for this number.
    pub(crate) fn ensure(&self, number: u32) -> Result<(), OutOfMemory> {
        let (bucket, at, len) = Self::place(number as usize / LEAF);
        let leaves = match self.buckets[bucket].get() {
            Some(leaves) => leaves,
            None => {
                let new = try_boxed(len, OnceLock::new)?;
                let bytes = size_of_val::<[_]>(&new) as u64;
                if self.buckets[bucket].set(new).is_ok() {
                    self.bytes.fetch_add(bytes, Relaxed);
                }
                self.buckets[bucket].get().expect("set above, by us or by a racer")
            }
        };
        if leaves[at].get().is_none() {
            let new = try_boxed(LEAF, Entry::empty)?;
            let bytes = size_of_val::<[_]>(&new) as u64;
            if leaves[at].set(new).is_ok() {
                self.bytes.fetch_add(bytes, Relaxed);
            }
        }
        Ok(())
    }

    /// Sets or clears an entry and returns what was there.
    ///
    /// # Panics
    ///
    /// Without [`ensure`](Self::ensure) for this number before.
    pub(crate) fn set(&self, number: u32, value: Option<Arc<T>>) -> Option<Arc<T>> {
        self.entry(number).expect("ensured").set(value)
    }

    /// Bytes of the tables on the heap.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_an_entry_of_its_own() {
        let directory = Directory::new();
        // The upper tables of high numbers have millions of entries, too many for Miri.
        let (few, high) = if cfg!(miri) { (600, 1 << 22) } else { (3000, (1 << 31) - 1) };
        let numbers: Vec<u32> = (0..few).chain([1 << 20, high]).collect();
        for &n in &numbers {
            assert!(directory.get(n).is_none());
            directory.ensure(n).expect("memory");
            assert!(directory.set(n, Some(Arc::new(n))).is_none());
        }
        for &n in &numbers {
            assert_eq!(*directory.get(n).expect("set"), n);
        }
        assert!(directory.get(few).is_none());
        assert!(directory.get(u32::MAX).is_none());
    }

    #[test]
    fn a_reader_keeps_what_it_read() {
        let directory = Directory::new();
        directory.ensure(7).expect("memory");
        directory.set(7, Some(Arc::new(String::from("old"))));
        let pin = directory.get(7).expect("set");
        let old = directory.set(7, None).expect("was set");
        assert!(directory.get(7).is_none());
        drop(old);
        assert_eq!(*pin, "old");
        assert_eq!(*pin.share(), "old");
    }

    #[test]
    fn an_empty_directory_is_small() {
        let directory = Directory::<u64>::new();
        assert_eq!(directory.bytes(), 0);
        assert!(size_of_val(&directory) <= 512);
    }
}
