//! What the pager asks an agent to do, and the list of page runs that an eviction names.
//!
//! A run is one word on the wire: its address, with its length in pages in the twelve bits that a page-aligned
//! address leaves free.

use core::fmt;

use crate::codec::{Malformed, Reader, Writer};
use crate::{BATCH_PAGES, Buffer, MAX_RUNS, PAGE, USER_END};

const EVICT: u32 = 0x7673_0011;
const MREMAP: u32 = 0x7673_0012;
const RETIRE: u32 = 0x7673_0013;
const MADVISE: u32 = 0x7673_0014;

// Kind and count in one word each, then a word per run.
const _: () = assert!(8 + 8 * MAX_RUNS <= crate::MAX_MESSAGE);
const _: () = assert!((BATCH_PAGES as u64) < PAGE);

/// Consecutive pages of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Address of the first page.
    pub address: u64,
    /// Number of pages, at least one.
    pub pages: u32,
}

impl Run {
    /// The first address behind the run.
    pub fn end(self) -> u64 {
        self.address + u64::from(self.pages) * PAGE
    }

    fn is_sound(self) -> bool {
        let bytes = u64::from(self.pages) * PAGE;
        let fits = self.address <= USER_END && bytes <= USER_END - self.address;
        self.pages >= 1 && self.pages as usize <= BATCH_PAGES && self.address.is_multiple_of(PAGE) && fits
    }

    fn word(self) -> u64 {
        self.address | u64::from(self.pages)
    }

    fn from_word(word: u64) -> Run {
        Run { address: word & !(PAGE - 1), pages: (word & (PAGE - 1)) as u32 }
    }
}

/// Why a list of runs is not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunsError {
    /// No run at all.
    Empty,
    /// More than [`MAX_RUNS`] runs or [`BATCH_PAGES`] pages.
    TooMany,
    /// The run at this index is empty, too long, not page-aligned or not in user space.
    BadRun(usize),
}

impl fmt::Display for RunsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunsError::Empty => f.write_str("a batch needs at least one run"),
            RunsError::TooMany => write!(f, "a batch holds at most {BATCH_PAGES} pages"),
            RunsError::BadRun(index) => write!(f, "run {index} is no range of user pages"),
        }
    }
}

impl core::error::Error for RunsError {}

/// The runs of one batch, checked: 1 to [`MAX_RUNS`] runs with at most [`BATCH_PAGES`] pages in all.
///
/// A page's position in the batch (runs in order, pages in order) is its position in staging, in the ring and in
/// the bitmap of the answer.
#[derive(Clone, Copy)]
pub struct Runs<'a> {
    source: Source<'a>,
    pages: usize,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Runs(&'a [Run]),
    Words(&'a [[u8; 8]]),
}

impl<'a> Runs<'a> {
    /// Checks a list of runs.
    ///
    /// # Errors
    /// [`RunsError`] when it is no batch.
    pub fn new(runs: &'a [Run]) -> Result<Runs<'a>, RunsError> {
        Runs::check(Source::Runs(runs))
    }

    fn check(source: Source<'a>) -> Result<Runs<'a>, RunsError> {
        let mut runs = Runs { source, pages: 0 };
        if runs.is_empty() {
            return Err(RunsError::Empty);
        }
        if runs.len() > MAX_RUNS {
            return Err(RunsError::TooMany);
        }
        for (index, run) in runs.iter().enumerate() {
            if !run.is_sound() {
                return Err(RunsError::BadRun(index));
            }
            runs.pages += run.pages as usize;
        }
        if runs.pages > BATCH_PAGES {
            return Err(RunsError::TooMany);
        }
        Ok(runs)
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        match self.source {
            Source::Runs(runs) => runs.len(),
            Source::Words(words) => words.len(),
        }
    }

    /// Never true of a checked list.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of pages in all runs together.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The runs in batch order.
    pub fn iter(&self) -> RunsIter<'a> {
        RunsIter { source: self.source }
    }
}

impl<'a> IntoIterator for Runs<'a> {
    type Item = Run;
    type IntoIter = RunsIter<'a>;

    fn into_iter(self) -> RunsIter<'a> {
        self.iter()
    }
}

impl PartialEq for Runs<'_> {
    fn eq(&self, other: &Runs<'_>) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Runs<'_> {}

impl fmt::Debug for Runs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Iterates over [`Runs`].
#[derive(Clone)]
pub struct RunsIter<'a> {
    source: Source<'a>,
}

impl Iterator for RunsIter<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        match &mut self.source {
            Source::Runs(runs) => {
                let (first, rest) = runs.split_first()?;
                *runs = rest;
                Some(*first)
            }
            Source::Words(words) => {
                let (first, rest) = words.split_first()?;
                *words = rest;
                Some(Run::from_word(u64::from_le_bytes(*first)))
            }
        }
    }
}

/// A request to an agent. An [`Evict`](Command::Evict) is sent only after all before it were answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command<'a> {
    /// Move these pages out of the program and copy them to the ring.
    Evict {
        /// The pages, all in mappings registered with the agent's userfaultfd.
        runs: Runs<'a>,
    },
    /// Execute an mremap that the program was stopped at.
    Mremap {
        /// The program's five arguments, as they are.
        args: [u64; 5],
    },
    /// Execute a madvise that the program was stopped at.
    Madvise {
        /// The program's three arguments, as they are.
        args: [u64; 3],
    },
    /// End the agent's thread; the program runs on, if there is any of it left.
    Retire {
        /// What the thread ends with: if it is the last one, so does its process.
        status: u8,
    },
}

impl<'a> Command<'a> {
    /// Encodes this message.
    pub fn encode<'b>(&self, buffer: &'b mut Buffer) -> &'b [u8] {
        match self {
            Command::Evict { runs } => {
                let mut w = Writer::new(buffer, EVICT);
                w.u32(runs.len() as u32);
                for run in runs.iter() {
                    w.u64(run.word());
                }
                w.finish()
            }
            Command::Mremap { args } => encode_call(buffer, MREMAP, args),
            Command::Madvise { args } => encode_call(buffer, MADVISE, args),
            Command::Retire { status } => {
                let mut w = Writer::new(buffer, RETIRE);
                w.u32(u32::from(*status));
                w.finish()
            }
        }
    }

    /// Decodes a packet of the pager.
    ///
    /// # Errors
    /// [`Malformed`] for anything else than a command.
    pub fn decode(bytes: &'a [u8]) -> Result<Command<'a>, Malformed> {
        let mut r = Reader::new(bytes);
        match r.u32()? {
            EVICT => {
                let count = r.u32()? as usize;
                if count == 0 || count > MAX_RUNS {
                    return Err(Malformed::Field("count"));
                }
                let (words, rest) = r.rest().as_chunks::<8>();
                if words.len() < count {
                    return Err(Malformed::Short);
                }
                if words.len() > count || !rest.is_empty() {
                    return Err(Malformed::Long);
                }
                match Runs::check(Source::Words(words)) {
                    Ok(runs) => Ok(Command::Evict { runs }),
                    Err(_) => Err(Malformed::Field("runs")),
                }
            }
            MREMAP => Ok(Command::Mremap { args: decode_call(r)? }),
            MADVISE => Ok(Command::Madvise { args: decode_call(r)? }),
            RETIRE => {
                let status = u8::try_from(r.u32()?).map_err(|_| Malformed::Field("status"))?;
                r.end()?;
                Ok(Command::Retire { status })
            }
            kind => Err(Malformed::Kind(kind)),
        }
    }
}

fn encode_call<'b>(buffer: &'b mut Buffer, kind: u32, args: &[u64]) -> &'b [u8] {
    let mut w = Writer::new(buffer, kind);
    for arg in args {
        w.u64(*arg);
    }
    w.finish()
}

fn decode_call<const N: usize>(mut r: Reader<'_>) -> Result<[u64; N], Malformed> {
    let mut args = [0; N];
    for arg in &mut args {
        *arg = r.u64()?;
    }
    r.end()?;
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer;
    use crate::noise::{Noise, torment};

    fn run(address: u64, pages: u32) -> Run {
        Run { address, pages }
    }

    #[test]
    fn batches_come_back() {
        let mut noise = Noise::new(3);
        for _ in 0..2000 {
            let mut runs = [run(0, 1); MAX_RUNS];
            let (mut count, mut left) = (0, BATCH_PAGES as u32);
            while left > 0 && noise.below(20) != 0 {
                let pages = 1 + noise.below(u64::from(left.min(9))) as u32;
                runs[count] = run(noise.below((USER_END >> 12) - 128) << 12, pages);
                (count, left) = (count + 1, left - pages);
            }
            let runs = &runs[..count];
            let Ok(checked) = Runs::new(runs) else {
                assert_eq!(count, 0);
                continue;
            };
            assert_eq!(checked.pages(), BATCH_PAGES - left as usize);
            assert!(checked.iter().eq(runs.iter().copied()));
            let mut buffer = buffer();
            let command = Command::Evict { runs: checked };
            assert_eq!(Command::decode(command.encode(&mut buffer)), Ok(command));
        }
    }

    #[test]
    fn the_largest_batch_fits() {
        let runs: [Run; MAX_RUNS] = core::array::from_fn(|i| run(i as u64 * 2 * PAGE, 1));
        let mut buffer = buffer();
        let command = Command::Evict { runs: Runs::new(&runs).unwrap() };
        let bytes = command.encode(&mut buffer);
        assert_eq!(bytes.len(), crate::MAX_MESSAGE);
        assert_eq!(Command::decode(bytes), Ok(command));
    }

    #[test]
    fn what_is_no_batch_is_refused() {
        let fails = |runs: &[Run], error| assert_eq!(Runs::new(runs), Err(error));
        fails(&[], RunsError::Empty);
        fails(&[run(0, 1); MAX_RUNS + 1], RunsError::TooMany);
        fails(&[run(0, 100), run(1 << 30, 29)], RunsError::TooMany);
        for bad in
            [run(0, 0), run(1, 1), run(0, 129), run(0, u32::MAX), run(USER_END - PAGE, 2), run(USER_END, 1)]
        {
            fails(&[run(0, 1), bad], RunsError::BadRun(1));
        }
        fails(&[run(!4095, 1)], RunsError::BadRun(0));
        assert!(Runs::new(&[run(USER_END - PAGE, 1)]).is_ok());
        assert_eq!(run(USER_END - PAGE, 1).end(), USER_END);
    }

    #[test]
    fn other_commands_come_back() {
        for command in [
            Command::Mremap { args: [1, 2, 3, 4, u64::MAX] },
            Command::Madvise { args: [1, u64::MAX, 102] },
            Command::Retire { status: 255 },
        ] {
            assert_eq!(Command::decode(command.encode(&mut buffer())), Ok(command));
        }
    }

    #[test]
    fn noise_never_panics_and_survivors_encode_to_themselves() {
        let mut noise = Noise::new(4);
        let runs = [run(0x1000, 3), run(0x7000, 1), run(0x7fff_0000_0000, 100)];
        for command in [
            Command::Evict { runs: Runs::new(&runs).unwrap() },
            Command::Mremap { args: [5; 5] },
            Command::Madvise { args: [5; 3] },
            Command::Retire { status: 7 },
        ] {
            let mut seed = buffer();
            torment(&mut noise, command.encode(&mut seed), |bytes| {
                Command::decode(bytes).is_ok_and(|command| {
                    assert_eq!(command.encode(&mut buffer()), bytes);
                    true
                })
            });
        }
    }
}
