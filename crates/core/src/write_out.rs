//! Writing out: the oldest frames of the swap cache find their backing, by their content, and are free again.
//!
//! A batch is held busy while its pages are compressed or written. The frames' bodies are pinned by their read locks
//! meanwhile, so that no copy is needed; nobody ever waits for that: loaders read as well, and whoever would write a
//! body needs the busy bit first. A page that nobody takes stays where it is, at the head.

use crate::failure::graver;
use crate::frame::{FrameHold, former_backing};
use crate::hold::Held;
use crate::scratch::{BATCH, Scratch};
use crate::space::VirtualSwap;
use crate::word::{Backing, FrameId};
use crate::{Page, SlotId, StoreError};

/// What [`VirtualSwap::write_out`] did, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WriteOut {
    /// All that left the swap cache: the sum of the following.
    pub written: usize,
    /// Zero pages.
    pub zero: usize,
    /// Same-filled pages that fit in the slot word.
    pub filled: usize,
    /// To the pool.
    pub pooled: usize,
    /// To a tier below the pool.
    pub tiered: usize,
    /// Pages whose former backing was still good: nothing was written.
    pub clean: usize,
    /// The gravest reason why a page stayed, if one did.
    pub stuck: Option<StoreError>,
}

/// What became of one frame.
#[derive(Clone, Copy)]
enum Fate {
    /// It left.
    Written,
    /// Its slot was in another transition, or gone.
    Passed,
    /// It stays for this reason.
    Stuck(StoreError),
}

impl VirtualSwap {
    /// Writes out up to `max` pages of the swap cache, the oldest first, and frees their frames.
    ///
    /// Ends early when nothing is left, or when the pages at the head find no place. A page that is refused for its
    /// content alone is passed over by later calls as long as there are others.
    pub fn write_out(&self, max: usize) -> WriteOut {
        self.with_scratch(|scratch| {
            let mut report = WriteOut::default();
            let mut again = false;
            while report.written < max {
                let mut frames = [FrameId(0); BATCH];
                let n = self.frames.claim_oldest(&mut frames[..BATCH.min(max - report.written)], again);
                if n == 0 {
                    if again || report.written > 0 {
                        break;
                    }
                    again = true;
                    continue;
                }
                let mut progress = false;
                let mut full = false;
                let mut fates = [Fate::Passed; BATCH];
                self.write_frames(&frames[..n], scratch, &mut report, &mut fates);
                for (frame, fate) in frames[..n].iter().zip(fates) {
                    let refused = matches!(fate, Fate::Stuck(StoreError::Incompressible));
                    match fate {
                        Fate::Written => progress = true,
                        Fate::Passed => self.frames.unclaim(*frame, again),
                        Fate::Stuck(error) => {
                            self.frames.unclaim(*frame, refused);
                            progress |= refused && !again;
                            full |= !refused;
                            report.stuck = Some(report.stuck.map_or(error, |before| graver(before, error)));
                        }
                    }
                }
                if full || !progress {
                    break;
                }
            }
            report
        })
    }

    /// Writes out a batch of claimed frames.
    fn write_frames(
        &self,
        frames: &[FrameId],
        scratch: &mut Scratch,
        report: &mut WriteOut,
        fates: &mut [Fate; BATCH],
    ) {
        let mut finder = self.finder();
        let mut held: [Option<Held>; BATCH] = [const { None }; BATCH];
        let mut holds: [Option<FrameHold>; BATCH] = [const { None }; BATCH];
        for (i, frame) in frames.iter().enumerate() {
            // Without a reference: the frame may be free, the slot another's. The word decides.
            held[i] = self.frames.slot_of(*frame).and_then(|slot| {
                let at = finder.find(slot)?;
                self.try_hold(at, slot, |backing| backing == Backing::Cached(*frame))
            });
            holds[i] = held[i].as_ref().map(|_| self.frames.owned(*frame));
        }

        let mut placed = [Err(None); BATCH];
        let mut to_place = [0; BATCH];
        let mut n = 0;
        {
            let bodies = holds.each_ref().map(|hold| hold.as_ref().map(FrameHold::read));
            let empty: Page = [0; crate::PAGE_SIZE];
            let mut pages: [(SlotId, &Page); BATCH] = [(SlotId::FIRST, &empty); BATCH];
            for (i, body) in bodies.iter().enumerate() {
                let (Some(body), Some(held)) = (body, &held[i]) else { continue };
                assert_eq!(body.slot(), Some(held.slot), "a slot's frame is its own");
                if body.former().is_none() {
                    pages[n] = (held.slot, body.page());
                    to_place[n] = i;
                    n += 1;
                }
            }
            self.place(&pages[..n], scratch, &mut placed);
        }
        drop(holds);

        let shadow = self.age(held.iter().flatten().count() as u64);
        let mut fresh = to_place[..n].iter().zip(&placed).peekable();
        for (i, held) in held.into_iter().enumerate() {
            let Some(held) = held else { continue };
            let Some((_, placed)) = fresh.next_if(|(at, _)| **at == i) else {
                self.drop_clean(held, frames[i], shadow);
                report.clean += 1;
                report.written += 1;
                fates[i] = Fate::Written;
                continue;
            };
            fates[i] = match self.settle(held, *placed, Some(shadow)) {
                Ok(()) => Fate::Written,
                Err(error) => Fate::Stuck(error.unwrap_or(StoreError::Full)),
            };
            if let Ok(backing) = placed {
                report.written += 1;
                *match backing {
                    Backing::Zero => &mut report.zero,
                    Backing::Filled(_) => &mut report.filled,
                    Backing::Pool(_) => &mut report.pooled,
                    _ => &mut report.tiered,
                } += 1;
            }
        }
    }

    /// Drops the frame of a held slot whose former backing has the same page.
    fn drop_clean(&self, held: Held, frame: FrameId, shadow: u16) {
        let former = former_backing(self.frames.former(frame)).expect("checked while held");
        // The word takes it over, so the frame's release must not release it.
        self.frames.set_former(frame, None);
        self.publish(held, former, Some(shadow));
    }
}
