//! The file tier: whole pages in a file without a name that grows and shrinks with its contents.
//!
//! **Life of a page.** A batch takes runs of contiguous pages (clusters.rs), is copied to an aligned buffer and written
//! with one pwrite a run; then each page's word is set in the reverse map (rmap.rs) and its location is the page's
//! number. A load reads the word, the page (with its neighbours, see ahead.rs), and the word again, and verifies the
//! check. Release clears the word and
//! gives the page back; an empty cluster's storage is punched out, and at the end of the file cut off.
//!
//! **Locks**: the mutex of the clusters, or that of the readahead, then a cluster's reverse-map entry. No lock is held while pages are read or
//! written; the clusters' mutex is held while storage is reserved and given back, so that nobody is given a page that
//! is being punched.
//!
//! **Errors.** A page that the device cannot write (EIO) is marked bad and its data tried elsewhere, three times. No
//! space is [`StoreError::Full`]. After an error nothing is kept.

mod ahead;
mod buffer;
mod clusters;
mod device;
mod place;
mod rmap;
#[cfg(test)]
mod rot;
#[cfg(test)]
mod tests;

pub use place::default_dir;

use ahead::Ahead;
use buffer::{Buffer, Buffers};
use clusters::{CLUSTER_BYTES, Clusters, Found, Run};
use device::{Device, SpillFile};
use parking_lot::Mutex;
use rmap::{Rmap, Word};
use rustix::io::Errno;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use vswap_core::{LoadError, Location, NotThere, PAGE_SIZE, Page, SlotId, StoreError, Tier, TierUsage};

/// Pages of the largest write.
const RUN_MAX: usize = 64;
/// Places that are tried for a page before its device is given up.
const PLACES: usize = 3;

/// A file that backs slots. See the module's head.
pub struct FileTier {
    device: Box<dyn Device>,
    clusters: Mutex<Clusters>,
    /// Held from write to settle, on a device that needs it. No other lock is taken meanwhile.
    settling: Mutex<()>,
    rmap: Rmap,
    /// Bytes of the reverse map's words.
    rmap_bytes: AtomicU64,
    /// For writes and for loads.
    runs: Buffers,
    pages: Buffers,
    ahead: Ahead,
}

impl FileTier {
    /// A new file in `dir` that will take at most `max_bytes` (cut to whole pages) of its device.
    ///
    /// # Errors
    ///
    /// If no file can be created there.
    pub fn create(dir: &Path, max_bytes: u64) -> io::Result<Self> {
        Ok(Self::on(Box::new(SpillFile::create(dir)?), max_bytes))
    }

    fn on(device: Box<dyn Device>, max_bytes: u64) -> Self {
        Self {
            device,
            clusters: Mutex::new(Clusters::new(max_bytes / PAGE_SIZE as u64)),
            settling: Mutex::new(()),
            rmap: Rmap::new(),
            rmap_bytes: AtomicU64::new(0),
            runs: Buffers::new(RUN_MAX),
            pages: Buffers::new(1),
            ahead: Ahead::default(),
        }
    }

    /// Takes up to `want` contiguous pages, with their storage.
    fn take(&self, want: usize) -> Result<Run, StoreError> {
        let mut clusters = self.clusters.lock();
        loop {
            let (cluster, pages) = match clusters.take(want) {
                Found::Run(run) => return Ok(run),
                Found::Full => return Err(StoreError::Full),
                Found::Open { cluster, pages } => (cluster, pages),
            };
            if let Err(e) = self.open(&mut clusters, cluster, pages) {
                return clusters.take_any(want).ok_or(e);
            }
        }
    }

    fn open(&self, clusters: &mut Clusters, cluster: usize, pages: usize) -> Result<(), StoreError> {
        let start = cluster as u64 * CLUSTER_BYTES;
        if let Err(e) = retry(|| self.device.reserve(start, (pages * PAGE_SIZE) as u64)) {
            // Some of it may have been reserved before the space ran out.
            self.vacate(clusters, cluster);
            return Err(store_error(&e));
        }
        let Ok(words) = self.rmap.open(cluster) else {
            self.vacate(clusters, cluster);
            return Err(StoreError::Full);
        };
        if !clusters.opened(cluster, pages) {
            self.rmap.close(cluster);
            self.vacate(clusters, cluster);
            return Err(StoreError::Full);
        }
        self.rmap_bytes.fetch_add(words, Relaxed);
        Ok(())
    }

    /// Gives a page back whose reverse-map word is clear.
    fn give(&self, page: u64, bad: bool) {
        let mut clusters = self.clusters.lock();
        let emptied = if bad { clusters.give_bad(page) } else { clusters.give(page) };
        let Some(cluster) = emptied else { return };
        self.rmap_bytes.fetch_sub(self.rmap.close(cluster), Relaxed);
        self.vacate(&mut clusters, cluster);
    }

    /// Gives the storage of a closed cluster back.
    fn vacate(&self, clusters: &mut Clusters, cluster: usize) {
        clusters.trim();
        // What cannot be given back now is overwritten or given back with the file; it is not a reason to stop.
        let _ = if cluster >= clusters.count() {
            retry(|| self.device.truncate(clusters.count() as u64 * CLUSTER_BYTES))
        } else {
            retry(|| self.device.punch(cluster as u64 * CLUSTER_BYTES, CLUSTER_BYTES))
        };
    }

    /// Stores a few pages, at most [`RUN_MAX`]; pushes one outcome each.
    fn store_run(&self, run: Run, pages: &[(SlotId, &Page)], out: &mut Vec<Result<Location, StoreError>>) {
        assert_eq!(run.len, pages.len());
        let stored = self.runs.with(|buffer| {
            for ((_, page), to) in pages.iter().zip(buffer.chunks_exact_mut(PAGE_SIZE)) {
                to.copy_from_slice(&page[..]);
            }
            let whole = self.write(buffer, run);
            for (i, (slot, _)) in pages.iter().enumerate() {
                let place = run.first + i as u64;
                let outcome = match whole {
                    Ok(()) => Ok(place),
                    Err(_) => self.store_hard(place, &mut buffer[i * PAGE_SIZE..][..PAGE_SIZE]),
                };
                out.push(outcome.map(|place| {
                    self.rmap.set(place, Word::new(*slot, &buffer[i * PAGE_SIZE..][..PAGE_SIZE]));
                    Location::new(place).expect("36 bits")
                }));
            }
        });
        if let Err(e) = stored {
            for i in 0..run.len {
                self.give(run.first + i as u64, false);
                out.push(Err(store_error(&e)));
            }
        }
    }

    /// Writes one page of a run that failed: there, and if the device cannot, elsewhere.
    fn store_hard(&self, mut place: u64, page: &mut [u8]) -> Result<u64, StoreError> {
        for attempt in 1.. {
            let Err(e) = self.write(page, Run { first: place, len: 1 }) else { return Ok(place) };
            let bad = Errno::from_io_error(&e) == Some(Errno::IO);
            self.give(place, bad);
            if !bad || attempt == PLACES {
                return Err(store_error(&e));
            }
            place = self.take(1)?.first;
        }
        unreachable!("the loop returns at the last place")
    }

    /// Writes the first pages of the buffer to a run.
    fn write(&self, buffer: &[u8], run: Run) -> io::Result<()> {
        let start = run.first * PAGE_SIZE as u64;
        let bytes = &buffer[..run.len * PAGE_SIZE];
        let _alone = self.device.is_cached().then(|| self.settling.lock());
        let mut done = 0;
        while done < bytes.len() {
            let n = retry(|| self.device.write_at(&bytes[done..], start + done as u64))?;
            // Direct I/O goes on at a page.
            done += n - n % PAGE_SIZE;
            if n < PAGE_SIZE {
                return Err(Errno::IO.into());
            }
        }
        if !self.device.is_cached() {
            return Ok(());
        }
        retry(|| self.device.settle(start, bytes.len() as u64))
    }

    /// Reads a page and those after it, if a stream is going on; `false` if not, or the read failed.
    fn read_ahead(&self, page: u64, into: &mut Page) -> bool {
        let Some(mut fill) = self.ahead.begin(page, &self.rmap) else { return false };
        let bytes = fill.pages * PAGE_SIZE;
        let read = retry(|| self.device.read_at(&mut fill.buffer[..bytes], page * PAGE_SIZE as u64));
        // One that cannot be read must not keep the others from being read.
        let good = read.is_ok_and(|n| n == bytes);
        if good {
            into.copy_from_slice(&fill.buffer[..PAGE_SIZE]);
        }
        self.ahead.finish(fill, good);
        good
    }

    /// Reads a page; `false` if the file ends before it does.
    fn read(&self, page: u64, buffer: &mut Buffer) -> io::Result<bool> {
        let n = retry(|| self.device.read_at(&mut buffer[..PAGE_SIZE], page * PAGE_SIZE as u64))?;
        Ok(n == PAGE_SIZE)
    }
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())
}

fn store_error(error: &io::Error) -> StoreError {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => StoreError::Full,
        _ => StoreError::Io(errno(error)),
    }
}

impl Tier for FileTier {
    fn name(&self) -> &str {
        "file"
    }

    fn store(&self, pages: &[(SlotId, &Page)], out: &mut Vec<Result<Location, StoreError>>) {
        let mut rest = pages;
        while !rest.is_empty() {
            match self.take(rest.len().min(RUN_MAX)) {
                Ok(run) => {
                    let (now, later) = rest.split_at(run.len);
                    self.store_run(run, now, out);
                    rest = later;
                }
                Err(e) => {
                    out.extend(rest.iter().map(|_| Err(e)));
                    return;
                }
            }
        }
    }

    fn load(&self, slot: SlotId, at: Location, into: &mut Page) -> Result<(), LoadError> {
        let page = at.get();
        let of_slot = |w: &Word| w.slot() == Some(slot);
        let word = self.rmap.get(page).filter(of_slot).ok_or(LoadError::Stale)?;
        let ahead = self.ahead.find(page, word, into) || self.read_ahead(page, into);
        if ahead && self.rmap.get(page) == Some(word) && word.verify(&into[..]) {
            return Ok(());
        }
        let read = self.pages.with(|buffer| {
            let read = self.read(page, buffer);
            if self.rmap.get(page) != Some(word) {
                return Err(LoadError::Stale);
            }
            let whole = read.map_err(|e| LoadError::Io(errno(&e)))?;
            if !whole || !word.verify(&buffer[..PAGE_SIZE]) {
                return Err(LoadError::Corrupt);
            }
            into.copy_from_slice(&buffer[..PAGE_SIZE]);
            Ok(())
        });
        read.unwrap_or_else(|e| Err(LoadError::Io(errno(&e))))
    }

    fn release(&self, slot: SlotId, at: Location) -> Result<(), NotThere> {
        self.rmap.clear(slot, at.get())?;
        self.ahead.forget(at.get());
        self.give(at.get(), false);
        Ok(())
    }

    fn usage(&self) -> TierUsage {
        let clusters = self.clusters.lock();
        let buffers = self.runs.bytes() + self.pages.bytes() + self.ahead.bytes();
        let tables = self.rmap.table_bytes() + self.rmap_bytes.load(Relaxed) + clusters.bytes();
        TierUsage {
            objects: clusters.live(),
            live_bytes: clusters.live() * PAGE_SIZE as u64,
            resident_bytes: size_of::<Self>() as u64 + tables + buffers,
            device_bytes: clusters.open_pages() * PAGE_SIZE as u64,
            limit_bytes: clusters.limit_pages() * PAGE_SIZE as u64,
        }
    }

    fn set_limit(&self, bytes: u64) {
        self.clusters.lock().set_limit(bytes / PAGE_SIZE as u64);
    }
}
