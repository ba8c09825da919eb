//! What has to be true: the contents that each page must have, and who holds which slot.

use vswap_core::SlotId;

use crate::world::slot;

/// What the program must find when it reads a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Not mapped.
    Nothing,
    /// What was written last, or 0.
    Value(u64),
    /// That, or 0: it is being discarded, or was freed by MADV_FREE.
    Either(u64),
    /// Whatever: a fork raced with a call that changes the page.
    Any,
    /// A guard page: not to be touched.
    Guard,
}

impl Expect {
    /// Takes what was read; `false` if it is wrong.
    pub fn meets(&mut self, value: u64) -> bool {
        match *self {
            Self::Any => true,
            Self::Value(right) => value == right,
            Self::Either(right) => {
                if value == 0 {
                    *self = Self::Value(0);
                }
                value == right || value == 0
            }
            Self::Nothing | Self::Guard => false,
        }
    }

    /// A discard of the page begins.
    pub fn discarding(self) -> Self {
        match self {
            Self::Value(value) if value != 0 => Self::Either(value),
            other => other,
        }
    }

    /// A discard of the page is over.
    pub fn discarded(self, free: bool) -> Self {
        match self {
            Self::Guard | Self::Nothing => self,
            Self::Any | Self::Either(_) if free => self,
            _ => Self::Value(0),
        }
    }
}

/// The slots, each with its contents and the number of its holders.
#[derive(Default)]
pub struct Slots {
    slots: Vec<(u64, i32)>,
}

impl Slots {
    /// A new slot, held once.
    pub fn store(&mut self, value: u64) -> SlotId {
        self.slots.push((value, 1));
        slot(self.slots.len() as u64)
    }

    /// The contents, if anybody holds the slot.
    pub fn load(&self, slot: SlotId) -> Option<u64> {
        let (value, holders) = *self.slots.get(slot.get() as usize - 1)?;
        (holders > 0).then_some(value)
    }

    /// Adds a holder, or takes one away; `false` if there was none.
    pub fn hold(&mut self, slot: SlotId, by: i32) -> bool {
        match self.slots.get_mut(slot.get() as usize - 1) {
            Some((_, holders)) if *holders > 0 => {
                *holders += by;
                true
            }
            _ => false,
        }
    }

    /// A slot that somebody holds.
    pub fn leaked(&self) -> Option<usize> {
        self.slots.iter().position(|&(_, holders)| holders != 0).map(|index| index + 1)
    }
}
