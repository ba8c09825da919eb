//! Taking a batch of pages out of the program: moved to staging, copied to the ring, dropped from staging.
//!
//! Page `i` of the batch goes to page `i` of staging and of the ring. Whether a page was moved is never taken from what
//! UFFDIO_MOVE returned: Linux 6.18 can report an error, or too small a count, for pages that it did move. Staging
//! was empty before, so what staging's pagemap shows now is the truth: present, or *swapped*, which is also how a
//! page looks while it is being compacted. Only an mlockall of the program puts pages there as well, of zeros; and those are
//! not reported as moved.
//!
//! The pager may end a batch without us, if we do not run: because a debugger has stopped us, or because we wait for a page that
//! only it can bring. Then it has unregistered staging, so no MOVE succeeds any more, and has read what was there. For that to be
//! all that has moved, nothing is dropped from staging before the tally says that it is in the ring, nothing is moved after
//! that, and staging is registered again only after the last MOVE. Our answer comes late, and says nothing new.

use core::sync::atomic::{AtomicU64, Ordering};

use vswap_wire::{Answer, BATCH_PAGES, MOVED_WORDS, PAGE, Run, Runs, TALLY};

use crate::area::State;
use crate::system::{
    self, EAGAIN, EBUSY, EEXIST, ENOENT, Errno, MADV_DONTNEED, MADV_POPULATE_WRITE, call, nr, raw, restart,
};

const UFFDIO_REGISTER: usize = 0xc020_aa00;
const UFFDIO_UNREGISTER: usize = 0x8010_aa01;
const UFFDIO_MOVE: usize = 0xc028_aa05;

const REGISTER_MODE_WP: u64 = 2;
/// Nobody ever waits for a page of staging.
const MOVE_MODE_DONTWAKE: u64 = 1;

const PAGEMAP_PRESENT: u64 = 1 << 63;
const PAGEMAP_SWAPPED: u64 = 1 << 62;

#[repr(C)]
struct Move {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    moved: i64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// How a batch went, apart from what moved.
#[derive(Default)]
struct Outcome {
    again: bool,
    first_errno: Errno,
    /// Pages of the MOVEs that succeeded. What else is in staging may also have come there by an mlockall.
    certain: [u64; MOVED_WORDS],
}

impl Outcome {
    fn certainly_moved(&mut self, first: u64, pages: u64) {
        for index in first..first + pages {
            if let Some(word) = self.certain.get_mut(index as usize / 64) {
                *word |= 1 << (index % 64);
            }
        }
    }

    fn note(&mut self, errno: Errno) {
        if self.first_errno == 0 {
            self.first_errno = errno;
        }
    }
}

impl State {
    /// Executes one batch.
    pub(crate) fn evict(&mut self, runs: Runs<'_>) -> Answer {
        if self.full {
            return Answer::Evicted {
                moved: [0; MOVED_WORDS],
                again: false,
                first_errno: EEXIST,
                emptied: false,
            };
        }
        let mut outcome = Outcome::default();
        let mut position = 0;
        for run in runs {
            if !outcome.again {
                self.take(run, position, &mut outcome);
            }
            position += u64::from(run.pages);
        }
        let (moved, filled) = self.copy_out(position, &outcome.certain);
        self.tally(&moved);
        if filled && let Err(errno) = self.empty_staging() {
            outcome.note(errno);
            self.full = true;
        }
        Answer::Evicted { moved, again: outcome.again, first_errno: outcome.first_errno, emptied: !self.full }
    }

    /// Moves what can be moved of one run, whose first page has this position in the batch.
    fn take(&self, run: Run, position: u64, outcome: &mut Outcome) {
        let pages = u64::from(run.pages);
        let (mut done, mut unshared) = (0, 0);
        while done < pages {
            let from = run.address + done * PAGE;
            let to = self.staging + (position + done) * PAGE;
            let left = pages - done;
            let Err(errno) = self.move_pages(from, to, left) else {
                outcome.certainly_moved(position + done, left);
                return;
            };
            let progress = self.present_pages(to, left);
            if progress > 0 {
                // What stopped it is the next page's matter, and the next call will say.
                done += progress;
                continue;
            }
            match errno {
                EAGAIN => {
                    outcome.again = true;
                    return;
                }
                // Shared by fork, or pinned: break the sharing, once.
                EBUSY if done >= unshared => {
                    // Only pages that are there: one that is not would wait for the pager. (One that
                    // vanishes just now still does; then the pager ends the batch, and serves it.)
                    let there = self.present_pages(from, left);
                    unshared = done + there;
                    if there > 0 {
                        let args = [from as usize, (there * PAGE) as usize, MADV_POPULATE_WRITE];
                        // SAFETY: writes nothing; makes pages of the program its own.
                        // When it fails, the retry says why the page does not move.
                        let _ = restart(|| unsafe { call(nr::MADVISE, &args) });
                    } else {
                        outcome.note(ENOENT);
                        done += 1;
                    }
                }
                EBUSY | ENOENT => {
                    outcome.note(errno);
                    done += 1;
                }
                _ => {
                    outcome.note(errno);
                    return;
                }
            }
        }
    }

    fn move_pages(&self, from: u64, to: u64, pages: u64) -> Result<(), Errno> {
        let mut request = Move { to, from, len: pages * PAGE, mode: MOVE_MODE_DONTWAKE, moved: 0 };
        let args = [self.userfaultfd as usize, UFFDIO_MOVE, (&raw mut request) as usize];
        // SAFETY: the request lives. The pages named are the program's, which nothing in Rust refers to; the
        // pager answers for their contents from here on.
        unsafe { call(nr::IOCTL, &args) }.map(drop)
    }

    /// Copies to the ring what has moved to staging; returns which pages these are, and whether there was anything in staging.
    fn copy_out(&self, pages: u64, certain: &[u64; MOVED_WORDS]) -> ([u64; MOVED_WORDS], bool) {
        let (mut moved, mut filled) = ([0; MOVED_WORDS], false);
        let mut entries = [0; BATCH_PAGES];
        for (index, entry) in self.pagemap(self.staging, pages, &mut entries).iter().enumerate() {
            if !is_there(*entry) {
                continue;
            }
            filled = true;
            let (word, bit) = (index / 64, 1 << (index % 64));
            let from = (self.staging + index as u64 * PAGE) as *const u8;
            // A page of zeros that nobody answers for reads as zeros, whether it has moved or not.
            if certain.get(word).is_none_or(|certain| certain & bit == 0) && is_zero(from) {
                continue;
            }
            if let Some(word) = moved.get_mut(word) {
                *word |= bit;
            }
            let to = (self.ring + index as u64 * PAGE) as *mut u8;
            // SAFETY: both pages lie in our own mappings, which do not overlap; only the pager, a process of its own,
            // also looks at the ring, and not before it has the answer.
            unsafe { core::ptr::copy_nonoverlapping(from, to, PAGE as usize) };
        }
        (moved, filled)
    }

    /// Lets the pager know that the batch is in the ring.
    fn tally(&mut self, moved: &[u64; MOVED_WORDS]) {
        self.batches += 1;
        let tally = (self.ring + TALLY as u64 * PAGE) as *const AtomicU64;
        // SAFETY: the tally lies in our own shared mapping, behind the ring, aligned, and is only used as atomics.
        let words = unsafe { core::slice::from_raw_parts(tally, 1 + MOVED_WORDS) };
        let [count, bits @ ..] = words else { return };
        for (word, moved) in bits.iter().zip(moved) {
            word.store(*moved, Ordering::Relaxed);
        }
        count.store(self.batches, Ordering::Release);
    }

    /// Drops all pages of staging. Staging is not registered meanwhile: so no event is raised, which would
    /// have to be waited for.
    fn empty_staging(&self) -> Result<(), Errno> {
        let (start, len) = (self.staging, BATCH_PAGES as u64 * PAGE);
        let mut range = [start, len];
        let mut register = Register { start, len, mode: REGISTER_MODE_WP, ioctls: 0 };
        let userfaultfd = self.userfaultfd as usize;
        // SAFETY: the requests live; the discarded pages are our own staging, whose contents are in the ring.
        unsafe {
            call(nr::IOCTL, &[userfaultfd, UFFDIO_UNREGISTER, (&raw mut range) as usize])?;
            let drop_all = || call(nr::MADVISE, &[start as usize, len as usize, MADV_DONTNEED]);
            let mut dropped = drop_all();
            if dropped.is_err() {
                // mlockall locked staging too.
                raw(nr::MUNLOCK, [start as usize, len as usize, 0, 0, 0, 0]);
                dropped = drop_all();
            }
            call(nr::IOCTL, &[userfaultfd, UFFDIO_REGISTER, (&raw mut register) as usize])?;
            dropped?;
        }
        Ok(())
    }

    /// How many pages from here on are there without a gap.
    fn present_pages(&self, start: u64, pages: u64) -> u64 {
        let mut entries = [0; BATCH_PAGES];
        self.pagemap(start, pages, &mut entries).iter().take_while(|entry| is_there(**entry)).count() as u64
    }

    /// The pagemap entries of at most [`BATCH_PAGES`] pages.
    fn pagemap<'e>(&self, start: u64, pages: u64, entries: &'e mut [u64; BATCH_PAGES]) -> &'e [u64] {
        let bytes = pages as usize * size_of::<u64>();
        let offset = start / PAGE * size_of::<u64>() as u64;
        let Some(wanted) = entries.get_mut(..pages as usize) else { system::fail_stop() };
        let args = [self.pagemap as usize, wanted.as_mut_ptr() as usize, bytes, offset as usize];
        // SAFETY: the buffer lives, is ours to write and has the length given.
        let read = restart(|| unsafe { call(nr::PREAD64, &args) });
        if read != Ok(bytes) {
            // Pages may have moved, and nobody can say which.
            system::fail_stop();
        }
        wanted
    }
}

/// Whether the page of staging at this address, which is there, holds zeros.
fn is_zero(page: *const u8) -> bool {
    let words = page.cast::<u64>();
    // SAFETY: a page of our own mapping, aligned, which this thread alone writes to.
    (0..PAGE as usize / size_of::<u64>()).all(|index| unsafe { words.add(index).read() } == 0)
}

fn is_there(entry: u64) -> bool {
    entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED) != 0
}
