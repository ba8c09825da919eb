//! The file tier over devices that fail on purpose, and over a real file looked at from outside.

use super::clusters::CLUSTER;
use super::*;
use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

pub(super) fn slot(n: u64) -> SlotId {
    SlotId::new(n).expect("a slot")
}

pub(super) fn page(n: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    for (i, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = (n << 20 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    }
    page
}

pub(super) fn store(
    tier: &FileTier,
    slots: impl IntoIterator<Item = u64>,
) -> Vec<Result<Location, StoreError>> {
    let pages: Vec<_> = slots.into_iter().map(|n| (slot(n), page(n))).collect();
    let refs: Vec<_> = pages.iter().map(|(s, p)| (*s, p)).collect();
    let mut out = Vec::new();
    tier.store(&refs, &mut out);
    assert_eq!(out.len(), pages.len());
    out
}

pub(super) fn load(tier: &FileTier, n: u64, at: Location) -> Result<(), LoadError> {
    let mut into = [0xee; PAGE_SIZE];
    tier.load(slot(n), at, &mut into)?;
    assert!(into == page(n), "slot {n} has other contents");
    Ok(())
}

/// What goes wrong, by page of the device.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) bytes: Vec<u8>,
    /// Writes that touch these pages fail with EIO, reads too.
    dead: HashSet<u64>,
    /// Writes and reservations fail with this.
    all: Option<Errno>,
    reserve: Option<Errno>,
    settle: Option<Errno>,
    /// A write transfers no more than this.
    short: Option<usize>,
    /// The next write lands so many pages further on.
    astray: Option<u64>,
    /// The next write says it wrote all, and wrote this many bytes.
    torn: Option<usize>,
    /// Every other call is interrupted by a signal.
    signals: bool,
    calls: u64,
    punched: Vec<(u64, u64)>,
    cached: bool,
    /// So many of the next writes are lost: the next settle says so, once, whoever calls it.
    lose: u64,
    lost: bool,
    /// Writes to dead pages.
    dead_writes: u64,
    /// What another thread does while the next read is under way.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
}

#[derive(Clone, Default)]
pub(super) struct Faulty(pub(super) Arc<Mutex<Faults>>);

impl Faulty {
    pub(super) fn tier(&self, pages: u64) -> FileTier {
        FileTier::on(Box::new(self.clone()), pages * PAGE_SIZE as u64)
    }
}

impl Faults {
    fn interrupted(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.signals && self.calls % 2 == 1 { Err(Errno::INTR.into()) } else { Ok(()) }
    }

    fn hits_dead(&self, offset: u64, len: usize) -> bool {
        let page = |at: u64| at / PAGE_SIZE as u64;
        len > 0 && (page(offset)..=page(offset + len as u64 - 1)).any(|p| self.dead.contains(&p))
    }
}

impl Device for Faulty {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let meanwhile = self.0.lock().meanwhile.take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        let mut faults = self.0.lock();
        faults.interrupted()?;
        if faults.hits_dead(offset, buf.len()) {
            return Err(Errno::IO.into());
        }
        let from = faults.bytes.get(offset as usize..).unwrap_or_default();
        let n = from.len().min(buf.len());
        buf[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let page = PAGE_SIZE as u64;
        assert!(
            offset.is_multiple_of(page) && buf.len().is_multiple_of(PAGE_SIZE),
            "direct I/O goes by pages"
        );
        let mut faults = self.0.lock();
        faults.interrupted()?;
        if let Some(e) = faults.all {
            return Err(e.into());
        }
        let n = buf.len().min(faults.short.unwrap_or(usize::MAX));
        if faults.hits_dead(offset, n) {
            faults.dead_writes += 1;
            return Err(Errno::IO.into());
        }
        if faults.lose > 0 {
            faults.lose -= 1;
            faults.lost = true;
            return Ok(n);
        }
        let start = offset as usize + faults.astray.take().unwrap_or(0) as usize * PAGE_SIZE;
        let kept = faults.torn.take().unwrap_or(n).min(n);
        if faults.bytes.len() < start + n {
            faults.bytes.resize(start + n, 0);
        }
        faults.bytes[start..start + kept].copy_from_slice(&buf[..kept]);
        Ok(n)
    }

    fn is_cached(&self) -> bool {
        self.0.lock().cached
    }

    fn settle(&self, _: u64, _: u64) -> io::Result<()> {
        // Time for another thread to get between.
        std::thread::sleep(std::time::Duration::from_micros(50));
        let mut faults = self.0.lock();
        if std::mem::take(&mut faults.lost) {
            return Err(Errno::IO.into());
        }
        faults.settle.take().map_or(Ok(()), |e| Err(e.into()))
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut faults = self.0.lock();
        let Some(e) = faults.reserve else { return Ok(()) };
        // As a real one does: half of it, then the error.
        let half = (offset + len / 2) as usize;
        if faults.bytes.len() < half {
            faults.bytes.resize(half, 0);
        }
        Err(e.into())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut faults = self.0.lock();
        let end = faults.bytes.len().min((offset + len) as usize);
        faults.bytes[offset as usize..end].fill(0);
        faults.punched.push((offset, len));
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.lock().bytes.truncate(len as usize);
        Ok(())
    }
}

#[test]
fn a_page_that_cannot_be_written_goes_elsewhere_and_is_not_tried_again() {
    let device = Faulty::default();
    let tier = device.tier(2048);
    device.0.lock().dead = [3, 4, 64].into();
    let places: Vec<_> = store(&tier, 1..=100).into_iter().map(|r| r.expect("stored").get()).collect();
    assert_eq!(places.iter().collect::<HashSet<_>>().len(), 100);
    assert!(places.iter().all(|p| ![3, 4, 64].contains(p)), "{places:?}");
    for (n, at) in (1..).zip(&places) {
        load(&tier, n, Location::new(*at).expect("a location")).expect("there");
    }
    for (n, at) in (1..).zip(&places) {
        tier.release(slot(n), Location::new(*at).expect("a location")).expect("held");
    }
    assert_eq!((tier.usage().objects, tier.usage().device_bytes), (0, 0));
}

#[test]
fn a_dead_device_is_an_error_with_its_errno() {
    for (fault, error) in [
        (Errno::IO, StoreError::Io(5)),
        (Errno::NOSPC, StoreError::Full),
        (Errno::DQUOT, StoreError::Full),
        (Errno::NODEV, StoreError::Io(19)),
    ] {
        let device = Faulty::default();
        let tier = device.tier(2048);
        let kept = store(&tier, [500])[0].expect("stored");
        device.0.lock().all = Some(fault);
        assert_eq!(store(&tier, 1..=5), vec![Err(error); 5]);
        assert_eq!(tier.usage().objects, 1, "nothing is kept after an error");
        device.0.lock().all = None;
        assert!(store(&tier, 1..=200).iter().all(Result::is_ok));
        load(&tier, 500, kept).expect("not touched by its neighbours' errors");
        device.0.lock().dead = [kept.get()].into();
        assert_eq!(load(&tier, 500, kept), Err(LoadError::Io(5)));
    }
}

#[test]
fn no_space_for_a_cluster_uses_the_holes_that_there_are() {
    let device = Faulty::default();
    let tier = device.tier(1 << 20);
    let places = store(&tier, 1..=CLUSTER as u64);
    device.0.lock().reserve = Some(Errno::NOSPC);
    assert_eq!(store(&tier, [900]), [Err(StoreError::Full)]);
    assert_eq!(device.0.lock().bytes.len() as u64, CLUSTER_BYTES, "what was reserved in vain stays");
    for n in [7, 300] {
        tier.release(slot(n), places[n as usize - 1].expect("stored")).expect("held");
    }
    let got = store(&tier, [901, 902, 903]);
    assert!(got[0].is_ok() && got[1].is_ok());
    assert_eq!(got[2], Err(StoreError::Full));
    device.0.lock().reserve = None;
    assert!(store(&tier, [903])[0].is_ok());
}

#[test]
fn short_writes_and_signals_are_finished() {
    for short in [PAGE_SIZE, 3 * PAGE_SIZE, 3 * PAGE_SIZE + 512] {
        let device = Faulty::default();
        device.0.lock().short = Some(short);
        device.0.lock().signals = true;
        let tier = device.tier(2048);
        for (n, at) in (1..).zip(store(&tier, 1..=300)) {
            load(&tier, n, at.expect("stored")).expect("there");
        }
    }
    // Nothing at all is written: an error, not a loop.
    let device = Faulty::default();
    device.0.lock().short = Some(0);
    assert_eq!(store(&device.tier(2048), [1]), [Err(StoreError::Io(5))]);
}

#[test]
fn torn_and_misdirected_writes_and_rot_are_corrupt() {
    let device = Faulty::default();
    let tier = device.tier(2048);
    let before = store(&tier, 1..=10);
    device.0.lock().torn = Some(512);
    let torn = store(&tier, [11])[0].expect("the device said so");
    assert_eq!(load(&tier, 11, torn), Err(LoadError::Corrupt));

    // The first write tears, and what it leaves is an older page of the same slot.
    let at = store(&tier, [12])[0].expect("stored");
    tier.release(slot(12), at).expect("held");
    device.0.lock().astray = Some(100);
    let lost = store(&tier, [13])[0].expect("the device said so");
    assert_eq!(lost, at, "the place is used again");
    assert_eq!(load(&tier, 13, lost), Err(LoadError::Corrupt), "an older page of another slot");

    // Backwards, so that nothing is read ahead.
    for (i, at) in before.iter().enumerate().rev() {
        let n = i as u64 + 1;
        let at = at.expect("stored");
        load(&tier, n, at).expect("whole");
        for (byte, bit) in [(0usize, 0u8), (2049, 3), (4095, 7)] {
            let flip = || device.0.lock().bytes[at.get() as usize * PAGE_SIZE + byte] ^= 1 << bit;
            flip();
            assert_eq!(load(&tier, n, at), Err(LoadError::Corrupt));
            flip();
        }
        load(&tier, n, at).expect("whole again");
    }

    // A write of slot 14 that lands on slot 1: both are found out, and what slot 1 gets back is no data of 14.
    device.0.lock().astray = Some(0);
    let place = before[0].expect("stored").get();
    let swapped = page(14);
    let start = place as usize * PAGE_SIZE;
    device.0.lock().bytes[start..start + PAGE_SIZE].copy_from_slice(&swapped);
    assert_eq!(load(&tier, 1, before[0].expect("stored")), Err(LoadError::Corrupt));
    // The file ends before the page does.
    device.0.lock().bytes.truncate(start + 100);
    assert_eq!(load(&tier, 2, before[1].expect("stored")), Err(LoadError::Corrupt));
}

#[test]
fn a_write_that_does_not_settle_is_written_again() {
    let device = Faulty::default();
    device.0.lock().cached = true;
    let tier = device.tier(2048);
    device.0.lock().settle = Some(Errno::IO);
    for (n, at) in (1..).zip(store(&tier, 1..=20)) {
        load(&tier, n, at.expect("stored by the second try")).expect("there");
    }
}

#[test]
fn a_page_that_becomes_anothers_while_it_is_read_is_stale() {
    let device = Faulty::default();
    let tier = Arc::new(device.tier(1 << 16));
    let places: Vec<_> = store(&tier, 1..=20).into_iter().map(|r| r.expect("stored")).collect();
    // The second load is one that reads ahead.
    for n in [9, 10] {
        let (other, at) = (tier.clone(), places[n - 1]);
        device.0.lock().meanwhile = Some(Box::new(move || {
            other.release(slot(n as u64), at).expect("held");
            assert_eq!(store(&other, [n as u64 + 1000]), [Ok(at)]);
        }));
        assert_eq!(load(&tier, n as u64, at), Err(LoadError::Stale), "slot {n}");
        load(&tier, n as u64 + 1000, at).expect("there");
    }
}

#[test]
fn a_lost_write_is_noticed_by_the_thread_whose_it_is() {
    let device = Faulty::default();
    device.0.lock().cached = true;
    let tier = device.tier(1 << 16);
    let refused = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for t in 0..4u64 {
            let (tier, device, refused) = (&tier, &device, &refused);
            scope.spawn(move || {
                for round in 0..50 {
                    let first = t * 10_000 + round * 10 + 1;
                    if round % 5 == 0 {
                        device.0.lock().lose = 1;
                    }
                    for (n, at) in (first..).zip(store(tier, first..first + 10)) {
                        // The second try can be lost as well, on behalf of another thread: then it says so.
                        match at {
                            Ok(at) => load(tier, n, at).expect("there"),
                            Err(error) => {
                                assert_eq!(error, StoreError::Io(5));
                                refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
    });
    // 40 writes are lost, each in a batch of ten; a page is refused only if two of them meet.
    let refused = refused.into_inner();
    assert!(refused <= 200, "{refused} of 2000 pages were refused");
}

#[test]
fn bad_pages_stay_bad_when_their_cluster_comes_again() {
    let device = Faulty::default();
    let tier = device.tier(4 * CLUSTER as u64);
    device.0.lock().dead = [17].into();
    let c = CLUSTER as u64;
    let places: Vec<_> = store(&tier, 1..=2 * c).into_iter().map(|r| r.expect("stored")).collect();
    let found = device.0.lock().dead_writes;
    for (n, at) in (1..).zip(&places).filter(|(_, at)| at.get() < c) {
        tier.release(slot(n), *at).expect("held");
    }
    assert_eq!(device.0.lock().punched.len(), 1, "the first cluster is closed, the others are not");
    let again = store(&tier, 10_000..10_000 + 3 * c);
    assert_eq!(device.0.lock().dead_writes, found, "a page known to be bad was written to");
    let stored = again.iter().filter(|r| r.is_ok()).count() as u64;
    let kept = places.iter().filter(|at| at.get() >= c).count() as u64;
    assert_eq!(stored, 4 * c - 1 - kept, "all but the bad page is used");
}

#[test]
fn storage_goes_back_by_clusters_and_at_the_end() {
    let device = Faulty::default();
    let tier = device.tier(1 << 20);
    let n = 4 * CLUSTER as u64;
    let places: Vec<_> = store(&tier, 1..=n).into_iter().map(|r| r.expect("stored")).collect();
    assert_eq!(tier.usage().device_bytes, 4 * CLUSTER_BYTES);
    let release = |from: u64, to: u64| {
        for n in from..to {
            tier.release(slot(n + 1), places[n as usize]).expect("held");
        }
    };
    let c = CLUSTER as u64;
    release(c, 2 * c - 1);
    assert_eq!(device.0.lock().punched, []);
    release(2 * c - 1, 2 * c);
    assert_eq!(device.0.lock().punched, [(CLUSTER_BYTES, CLUSTER_BYTES)]);
    assert_eq!(tier.usage().device_bytes, 3 * CLUSTER_BYTES);
    release(2 * c, 3 * c);
    release(3 * c, 4 * c);
    assert_eq!(device.0.lock().bytes.len() as u64, CLUSTER_BYTES, "the holes at the end are cut off too");
    load(&tier, 1, places[0]).expect("there");
    release(0, c);
    assert_eq!(device.0.lock().bytes.len(), 0);
    assert_eq!(tier.usage().device_bytes, 0);
    assert_eq!(tier.clusters.lock().live(), 0);
}

#[test]
fn batches_are_written_in_long_runs() {
    let device = Faulty::default();
    let tier = device.tier(1 << 20);
    store(&tier, 1..=1024);
    assert_eq!(device.0.lock().calls, 1024 / RUN_MAX as u64);
    // Holes of one page each do not tempt it while the file can grow.
    let places = store(&tier, 2000..3024);
    for (n, at) in (2000..).zip(&places).step_by(2) {
        tier.release(slot(n), at.expect("stored")).expect("held");
    }
    let before = device.0.lock().calls;
    store(&tier, 4000..4000 + RUN_MAX as u64);
    assert_eq!(device.0.lock().calls - before, 1);
}

#[test]
fn a_stream_of_loads_is_read_in_windows() {
    let device = Faulty::default();
    let tier = device.tier(1 << 20);
    let places: Vec<_> =
        store(&tier, 1..=CLUSTER as u64 * 2).into_iter().map(|r| r.expect("stored")).collect();
    let reads = || std::mem::take(&mut device.0.lock().calls);
    reads();
    for (n, at) in (1..).zip(&places) {
        load(&tier, n, *at).expect("there");
    }
    assert!((32..=35).contains(&reads()), "1024 pages in windows of 32");
    // No stream: every other page, backwards.
    for n in (1..=1000u64).rev().step_by(3) {
        load(&tier, n, places[n as usize - 1]).expect("there");
    }
    assert!((290..=334).contains(&reads()), "nothing is read that nobody wants");
}

#[test]
fn readahead_gives_nobody_old_data_and_hides_no_error() {
    let device = Faulty::default();
    let tier = device.tier(CLUSTER as u64);
    let places: Vec<_> = store(&tier, 1..=CLUSTER as u64).into_iter().map(|r| r.expect("stored")).collect();
    let load_all =
        |from: u64, to: u64| (from..to).map(|n| load(&tier, n, places[n as usize - 1])).collect::<Vec<_>>();
    assert!(load_all(1, 3).iter().all(Result::is_ok));
    // Pages 2 to 33 are read ahead. Number 5 is another's now, number 6 is the same slot's with other data.
    tier.release(slot(5), places[4]).expect("held");
    assert_eq!(load(&tier, 5, places[4]), Err(LoadError::Stale));
    assert_eq!(store(&tier, [1005]), [Ok(places[4])]);
    load(&tier, 1005, places[4]).expect("there");
    tier.release(slot(6), places[5]).expect("held");
    let other = page(4711);
    let mut out = Vec::new();
    tier.store(&[(slot(6), &other)], &mut out);
    assert_eq!(out, [Ok(places[5])]);
    let mut into = [0; PAGE_SIZE];
    tier.load(slot(6), places[5], &mut into).expect("there");
    assert!(into == other);
    // Number 7 is stored again as it was: its word is the same, and still what was read before does not count.
    tier.release(slot(7), places[6]).expect("held");
    assert_eq!(store(&tier, [7]), [Ok(places[6])]);
    let before = device.0.lock().calls;
    load(&tier, 7, places[6]).expect("there");
    assert_eq!(device.0.lock().calls, before + 1, "given out of an old window");

    // A page among those read ahead that is rotten, and one that cannot be read: theirs alone is the error.
    device.0.lock().bytes[110 * PAGE_SIZE] ^= 1;
    device.0.lock().dead = [150].into();
    for (n, loaded) in (100..).zip(load_all(100, 200)) {
        let expected = match n - 1 {
            110 => Err(LoadError::Corrupt),
            150 => Err(LoadError::Io(5)),
            _ => Ok(()),
        };
        assert_eq!(loaded, expected, "slot {n}");
    }
}

/// Blocks of the device and bytes of the page cache that a real file has.
fn outside(file: &std::fs::File) -> (u64, u64) {
    let meta = file.metadata().expect("stat");
    (meta.blocks() * 512, meta.len())
}

#[test]
fn a_real_file_holds_what_it_says_and_ends_with_nothing() {
    let Some((dir, _)) = default_dir() else { panic!("no directory on a disk to test in") };
    let file = SpillFile::create(&dir).expect("a file");
    let seen = file.file().try_clone().expect("dup");
    assert_eq!(
        (seen.metadata().expect("stat").nlink(), seen.metadata().expect("stat").mode() & 0o777),
        (0, 0o600)
    );
    let tier = FileTier::on(Box::new(file), 64 << 20);
    assert_eq!(outside(&seen), (0, 0));
    let n = 3 * CLUSTER as u64;
    let places: Vec<_> = store(&tier, 1..=n).into_iter().map(|r| r.expect("stored")).collect();
    assert_eq!(outside(&seen).0, tier.usage().device_bytes);
    assert_eq!(cached_pages(&seen), 0, "the page cache is charged to somebody");
    for (n, at) in (1..).zip(&places).take(CLUSTER) {
        tier.release(slot(n), *at).expect("held");
    }
    assert_eq!(outside(&seen), (2 * CLUSTER_BYTES, 3 * CLUSTER_BYTES), "a hole was punched");
    for (n, at) in (1..).zip(&places).skip(CLUSTER) {
        load(&tier, n, *at).expect("there");
        tier.release(slot(n), *at).expect("held");
    }
    assert_eq!(outside(&seen), (0, 0));
}

#[test]
fn a_file_system_without_direct_io_works_and_keeps_no_cache() {
    let Some((dir, _)) = default_dir() else { panic!("no directory on a disk to test in") };
    let file = SpillFile::buffered(&dir).expect("a file");
    let seen = file.file().try_clone().expect("dup");
    let tier = FileTier::on(Box::new(file), 64 << 20);
    seen.write_all_at(&page(1), 8 << 20).expect("written");
    assert_eq!(cached_pages(&seen), 1, "or this test shows nothing");
    seen.set_len(0).expect("cut");
    let places: Vec<_> = store(&tier, 1..=200).into_iter().map(|r| r.expect("stored")).collect();
    assert_eq!(cached_pages(&seen), 0, "after the stores");
    for (n, at) in (1..).zip(&places) {
        load(&tier, n, *at).expect("there");
    }
    assert_eq!(cached_pages(&seen), 0, "after the loads");
}

/// Pages of the file that are in the page cache, as util-linux tells it.
fn cached_pages(file: &std::fs::File) -> u64 {
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let fincore = ["--raw", "--noheadings", "--output", "PAGES", &path];
    let told =
        std::process::Command::new("fincore").args(fincore).output().expect("fincore of util-linux runs");
    assert!(told.status.success(), "{told:?}");
    String::from_utf8_lossy(&told.stdout).trim().parse().expect("a number")
}

#[test]
fn in_memory_file_systems_work_too() {
    // tmpfs refused O_DIRECT before Linux 6.6; the probe must cope either way.
    let tier = FileTier::create(Path::new("/dev/shm"), 8 << 20).expect("a file");
    for (n, at) in (1..).zip(store(&tier, 1..=100)) {
        load(&tier, n, at.expect("stored")).expect("there");
    }
    assert!(FileTier::create(Path::new("/proc/nowhere"), 8 << 20).is_err());
}
