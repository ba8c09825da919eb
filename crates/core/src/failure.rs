//! Why a page could not be loaded or stored: data for programs, a sentence for people.

use crate::word::{Loss, Place};
use crate::{Location, SlotId, StoreError};
use std::fmt;

/// Why a load gave no page. What was in the destination before is then unspecified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadFailure {
    /// The slot is not allocated.
    NotAllocated {
        /// The slot asked for.
        slot: SlotId,
    },
    /// The slot is allocated, but no store to it was ever completed.
    NeverStored {
        /// The slot asked for.
        slot: SlotId,
    },
    /// The device could not read the page. Its copy stays; a later load may succeed.
    Io {
        /// The slot asked for.
        slot: SlotId,
        /// Whose device failed.
        place: Place,
        /// Where the page is.
        location: Location,
        /// What the device said.
        errno: i32,
    },
    /// The only copy is lost, now or at an earlier load. Every later load fails the same way until the slot is stored
    /// to again.
    Lost {
        /// The slot asked for.
        slot: SlotId,
        /// Who lost it.
        place: Place,
        /// In which way.
        loss: Loss,
    },
}

impl fmt::Display for LoadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllocated { slot } => write!(f, "swap slot {} is not allocated", slot.get()),
            Self::NeverStored { slot } => write!(f, "nothing was ever stored in swap slot {}", slot.get()),
            Self::Io { slot, place, location, errno } => write!(
                f,
                "swap slot {}: {place} failed to read location {:#x}: {}",
                slot.get(),
                location.get(),
                std::io::Error::from_raw_os_error(*errno)
            ),
            Self::Lost { slot, place, loss: Loss::Corrupt } => {
                write!(f, "the page of swap slot {} is lost: its copy in {place} fails its check", slot.get())
            }
            Self::Lost { slot, place, loss: Loss::Missing } => write!(
                f,
                "the page of swap slot {} is lost: {place} does not know it, so metadata is damaged",
                slot.get()
            ),
        }
    }
}

impl std::error::Error for LoadFailure {}

/// Why a page was not stored. What the slot held before is still there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreFailure {
    /// Every place refused the page; this is the gravest of the reasons.
    Refused {
        /// The slot.
        slot: SlotId,
        /// The reason: I/O before full before incompressible.
        error: StoreError,
    },
    /// The page needs storage, and the space has neither a pool nor a tier.
    NoTier {
        /// The slot.
        slot: SlotId,
    },
}

impl StoreFailure {
    /// The slot that keeps what it held.
    pub const fn slot(&self) -> SlotId {
        match self {
            Self::Refused { slot, .. } | Self::NoTier { slot } => *slot,
        }
    }

    /// The reason as a tier's.
    pub const fn error(&self) -> StoreError {
        match self {
            Self::Refused { error, .. } => *error,
            Self::NoTier { .. } => StoreError::Full,
        }
    }
}

impl fmt::Display for StoreFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { slot, error } => {
                write!(f, "no place for the page of swap slot {}: ", slot.get())?;
                match error {
                    StoreError::Incompressible => {
                        f.write_str("it does not compress, and there is no tier below")
                    }
                    StoreError::Full => f.write_str("everything is full"),
                    StoreError::Io(errno) => {
                        write!(f, "a device failed: {}", std::io::Error::from_raw_os_error(*errno))
                    }
                }
            }
            Self::NoTier { slot } => {
                write!(f, "no place for the page of swap slot {}: there is neither pool nor tier", slot.get())
            }
        }
    }
}

impl std::error::Error for StoreFailure {}

/// The graver of two errors: I/O before full before incompressible.
pub(crate) fn graver(a: StoreError, b: StoreError) -> StoreError {
    let rank = |e| match e {
        StoreError::Io(_) => 2,
        StoreError::Full => 1,
        StoreError::Incompressible => 0,
    };
    if rank(b) > rank(a) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TierId;

    #[test]
    fn failures_tell_a_person_what_happened() {
        let slot = SlotId::new(513).expect("a slot");
        let location = Location::new(0x77).expect("40 bits");
        let place = Place::Tier(TierId(2));
        let says = |failure: LoadFailure, what: &[&str]| {
            let text = failure.to_string();
            for part in what {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
        };
        says(LoadFailure::Io { slot, place, location, errno: 5 }, &["513", "tier 2", "0x77", "os error 5"]);
        says(
            LoadFailure::Lost { slot, place: Place::Pool, loss: Loss::Corrupt },
            &["513", "the pool", "check"],
        );
        says(LoadFailure::NeverStored { slot }, &["513", "nothing"]);
        let failure = StoreFailure::Refused { slot, error: StoreError::Io(28) };
        assert!(failure.to_string().contains("os error 28"));
        assert_eq!(graver(StoreError::Full, StoreError::Incompressible), StoreError::Full);
        assert_eq!(graver(StoreError::Full, StoreError::Io(5)), StoreError::Io(5));
    }
}
