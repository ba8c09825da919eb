//! Damage: what can only come of memory that rots, or of a mistake in counting references.
//!
//! The space changes nothing that it finds damaged, goes on with the rest, and remembers the first damage. Who depends on the
//! space must ask after what could show it, and end: going on would lose a page later.

use crate::word::Place;
use crate::{Location, SlotId};
use std::fmt;

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// A reference was given up or shared that nobody has: the slot was freed twice.
    Unreferenced {
        /// The slot.
        slot: SlotId,
    },
    /// What the slot's word names is not there: it was released twice, or the header or the reverse map that should name the
    /// slot is damaged.
    Misplaced {
        /// The slot.
        slot: SlotId,
        /// Who should have it.
        place: Place,
        /// Where it should be.
        location: Location,
    },
}

impl Damage {
    /// The slot concerned.
    pub const fn slot(&self) -> SlotId {
        match self {
            Self::Unreferenced { slot } | Self::Misplaced { slot, .. } => *slot,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreferenced { slot } => write!(f, "swap slot {} was freed twice", slot.get()),
            Self::Misplaced { slot, place, location } => write!(
                f,
                "{place} does not have the page of swap slot {} at {:#x}: it was released twice, or metadata is damaged",
                slot.get(),
                location.get()
            ),
        }
    }
}
