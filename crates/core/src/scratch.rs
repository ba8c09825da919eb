//! Working memory for stores and for background work, kept from one call to the next: eviction is asked for exactly
//! when memory is short, so it must not need any.
//!
//! What is reserved: one set at the space's birth, with room for the outcomes of a batch (about 1.5 KiB). Frames are
//! written out from where they are, without a copy. A second thread that stores or writes out at the same time makes
//! another set, which is kept too. Writeback and swapoff read pages into a bounce buffer (256 KiB) that the first call makes
//! and that is kept; if there is no memory for it, pages go one by one over the stack. What tiers need is the tiers' reserve.

use crate::directory::try_boxed;
use crate::space::VirtualSwap;
use crate::{Location, PAGE_SIZE, Page, SlotId, StoreError};

/// Pages of a batch: enough to hide a tier's cost per call, and few enough to be held busy together.
pub(crate) const BATCH: usize = 64;
/// Sets that are kept.
const KEPT: usize = 4;

/// See the module's head.
pub(crate) struct Scratch {
    /// What a tier answered.
    pub(crate) outcomes: Vec<Result<Location, StoreError>>,
    /// What the pool offered.
    pub(crate) candidates: Vec<(SlotId, Location)>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { outcomes: Vec::with_capacity(BATCH), candidates: Vec::new() }
    }

    fn bytes(&self) -> u64 {
        (size_of::<Self>()
            + self.outcomes.capacity() * size_of::<Result<Location, StoreError>>()
            + self.candidates.capacity() * size_of::<(SlotId, Location)>()) as u64
    }
}

impl VirtualSwap {
    /// Runs `work` with working memory that nobody else uses meanwhile.
    pub(crate) fn with_scratch<R>(&self, work: impl FnOnce(&mut Scratch) -> R) -> R {
        let kept = self.scratch.lock().pop();
        let mut scratch = kept.unwrap_or_else(Scratch::new);
        let result = work(&mut scratch);
        scratch.outcomes.clear();
        scratch.candidates.clear();
        let mut all = self.scratch.lock();
        if all.len() < KEPT {
            all.push(scratch);
        }
        result
    }

    /// Runs `work` with a batch of pages for it, or with one if there is no memory for more.
    pub(crate) fn with_bounce<R>(&self, work: impl FnOnce(&mut [Page]) -> R) -> R {
        let kept = std::mem::take(&mut *self.bounce.lock());
        let mut bounce =
            if kept.is_empty() { try_boxed(BATCH, || [0; PAGE_SIZE]).unwrap_or_default() } else { kept };
        if bounce.is_empty() {
            return work(&mut [[0; PAGE_SIZE]]);
        }
        let result = work(&mut bounce);
        *self.bounce.lock() = bounce;
        result
    }

    /// Bytes of the sets and of the bounce buffer that are not in use now.
    pub(crate) fn scratch_bytes(&self) -> u64 {
        let sets: u64 = self.scratch.lock().iter().map(Scratch::bytes).sum();
        sets + size_of_val(&**self.bounce.lock()) as u64
    }
}
