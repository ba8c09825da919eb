//! What an agent reports.

use crate::codec::{Malformed, Reader, Writer};
use crate::{BATCH_PAGES, Buffer};

const STARTED: u32 = 0x7673_0021;
const EVICTED: u32 = 0x7673_0022;
const CALLED: u32 = 0x7673_0023;

/// Words in the bitmap of moved pages.
pub const MOVED_WORDS: usize = BATCH_PAGES / 64;

/// The largest error number the kernel returns.
const MAX_ERRNO: i64 = 4095;

/// A packet of an agent that has been welcomed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The agent's thread runs and has closed every descriptor of the program that it inherited.
    Started {
        /// Its thread id as the target sees it. A fault of this thread may come from an eviction that is under way (a page
        /// vanished between the scan and the agent's attempt to un-share it), which is answered only afterwards.
        tid: u32,
    },
    /// The answer to an eviction.
    Evicted {
        /// Bit `i % 64` of word `i / 64`: page `i` of the batch is gone from the program, its bytes are in page
        /// `i` of the ring.
        moved: [u64; MOVED_WORDS],
        /// A change of mappings is under way, as the kernel said by EAGAIN; the rest was not tried.
        again: bool,
        /// The first other error that kept a page from moving, or 0.
        first_errno: i32,
        /// Staging is empty again. If not, no later eviction moves anything.
        emptied: bool,
    },
    /// The answer to an mremap or a madvise.
    Called {
        /// What the call returned (an mremap the new address), or minus an error number.
        result: i64,
    },
}

impl Answer {
    /// Encodes this message.
    pub fn encode<'b>(&self, buffer: &'b mut Buffer) -> &'b [u8] {
        match self {
            Answer::Started { tid } => {
                let mut w = Writer::new(buffer, STARTED);
                w.u32(*tid);
                w.finish()
            }
            Answer::Evicted { moved, again, first_errno, emptied } => {
                let mut w = Writer::new(buffer, EVICTED);
                for word in moved {
                    w.u64(*word);
                }
                w.bool(*again);
                w.u32(first_errno.cast_unsigned());
                w.bool(*emptied);
                w.finish()
            }
            Answer::Called { result } => {
                let mut w = Writer::new(buffer, CALLED);
                w.u64(result.cast_unsigned());
                w.finish()
            }
        }
    }

    /// Decodes a packet of an agent.
    ///
    /// # Errors
    /// [`Malformed`] for anything else than an answer. Whether it answers the command that was sent, and whether
    /// the bitmap stays within the batch, is for the caller to check.
    pub fn decode(bytes: &[u8]) -> Result<Answer, Malformed> {
        let mut r = Reader::new(bytes);
        let answer = match r.u32()? {
            STARTED => {
                let tid = r.u32()?;
                if tid == 0 || tid > i32::MAX as u32 {
                    return Err(Malformed::Field("tid"));
                }
                Answer::Started { tid }
            }
            EVICTED => {
                let mut moved = [0; MOVED_WORDS];
                for word in &mut moved {
                    *word = r.u64()?;
                }
                let again = r.bool("again")?;
                let first_errno = r.u32()?.cast_signed();
                if !(0..=MAX_ERRNO as i32).contains(&first_errno) {
                    return Err(Malformed::Field("first_errno"));
                }
                Answer::Evicted { moved, again, first_errno, emptied: r.bool("emptied")? }
            }
            CALLED => {
                let result = r.u64()?.cast_signed();
                if result < -MAX_ERRNO {
                    return Err(Malformed::Field("result"));
                }
                Answer::Called { result }
            }
            kind => return Err(Malformed::Kind(kind)),
        };
        r.end()?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer;
    use crate::noise::{Noise, torment};

    const SAMPLES: [Answer; 5] = [
        Answer::Started { tid: 77 },
        Answer::Evicted { moved: [u64::MAX, 5], again: true, first_errno: 16, emptied: false },
        Answer::Evicted { moved: [0, 1 << 63], again: false, first_errno: 0, emptied: true },
        Answer::Called { result: -14 },
        Answer::Called { result: 0x7f00_1234_5000 },
    ];

    #[test]
    fn answers_come_back() {
        for answer in SAMPLES {
            assert_eq!(Answer::decode(answer.encode(&mut buffer())), Ok(answer));
        }
    }

    #[test]
    fn impossible_answers_are_refused() {
        for (answer, name) in [
            (Answer::Started { tid: 0 }, "tid"),
            (Answer::Started { tid: 1 << 31 }, "tid"),
            (
                Answer::Evicted { moved: [0; MOVED_WORDS], again: false, first_errno: -1, emptied: true },
                "first_errno",
            ),
            (
                Answer::Evicted { moved: [0; MOVED_WORDS], again: false, first_errno: 4096, emptied: true },
                "first_errno",
            ),
            (Answer::Called { result: -4096 }, "result"),
        ] {
            assert_eq!(Answer::decode(answer.encode(&mut buffer())), Err(Malformed::Field(name)));
        }
    }

    #[test]
    fn noise_never_panics_and_survivors_encode_to_themselves() {
        let mut noise = Noise::new(5);
        for answer in SAMPLES {
            let mut seed = buffer();
            torment(&mut noise, answer.encode(&mut seed), |bytes| {
                Answer::decode(bytes).is_ok_and(|answer| {
                    assert_eq!(answer.encode(&mut buffer()), bytes);
                    true
                })
            });
        }
    }
}
