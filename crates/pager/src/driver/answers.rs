//! What an agent's answers may mean. An agent is part of a program that may be hostile: what it says is about its own
//! address space, and only as much of it counts as an honest one could have said.

use vswap_core::PAGE_SIZE;
use vswap_wire::{MOVED_WORDS, Run, USER_END};

use crate::proto::Call;

const PAGE: u64 = PAGE_SIZE as u64;

/// The pages of a batch that have left, with their places in the ring. `None` if the answer names pages that the batch did
/// not have.
pub fn taken(runs: &[Run], moved: &[u64; MOVED_WORDS]) -> Option<Vec<(u64, usize)>> {
    let addrs = runs.iter().flat_map(|run| (0..u64::from(run.pages)).map(|page| run.address + page * PAGE));
    let left = |index: usize| moved.get(index / 64).is_some_and(|word| word & (1 << (index % 64)) != 0);
    let all: Vec<_> = addrs.zip(0..).filter(|&(_, index)| left(index)).collect();
    let named: u32 = moved.iter().map(|word| word.count_ones()).sum();
    (all.len() as u32 == named).then_some(all)
}

/// Whether the kernel can have returned this for a call: an address where there is room, or an error number.
pub fn plausible(call: &Call, result: i64) -> bool {
    let Ok(value) = u64::try_from(result) else { return true };
    match call {
        Call::Mremap(call) => {
            let in_user = |len: u64| value.checked_add(len).is_some_and(|end| end <= USER_END);
            value.is_multiple_of(PAGE) && in_user(call.old_len) && in_user(call.new_len)
        }
        Call::Madvise { .. } => value == 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vswap_wire::BATCH_PAGES;

    use super::*;
    use crate::proto::{AddressSpace, Answer, Input, Mremap, Ticket};

    fn batch() -> impl Strategy<Value = Vec<Run>> {
        proptest::collection::vec((0u64..1 << 20, 1u32..40), 1..8).prop_map(|parts| {
            let (mut at, mut left, mut runs) = (PAGE, BATCH_PAGES as u32, Vec::new());
            for (gap, pages) in parts {
                let pages = pages.min(left);
                if pages > 0 {
                    runs.push(Run { address: at + gap * PAGE, pages });
                    at += (gap + u64::from(pages)) * PAGE;
                    left -= pages;
                }
            }
            runs
        })
    }

    fn wild() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            0u64..1 << 48,
            (0u64..64).prop_map(|n| n * PAGE),
            Just(u64::MAX),
            Just(USER_END)
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_answered_only_pages_of_the_batch_are_taken(runs in batch(), mut moved in any::<[u64; MOVED_WORDS]>(), cut in any::<bool>()) {
            let pages: usize = runs.iter().map(|run| run.pages as usize).sum();
            if cut {
                for index in pages..64 * MOVED_WORDS {
                    moved[index / 64] &= !(1 << (index % 64));
                }
            }
            match taken(&runs, &moved) {
                None => prop_assert!(!cut, "an honest answer is refused"),
                Some(all) => {
                    prop_assert!(all.len() <= pages);
                    prop_assert!(all.windows(2).all(|two| two[0].1 < two[1].1 && two[0].0 < two[1].0));
                    for (addr, index) in all {
                        prop_assert!(index < pages);
                        prop_assert!(runs.iter().any(|run| (run.address..run.end()).contains(&addr)));
                    }
                }
            }
        }

        #[test]
        fn no_result_that_passes_breaks_the_protocol(old in wild(), old_len in wild(), new_len in wild(), result in any::<i64>(), near in wild()) {
            for result in [result, near.cast_signed()] {
                let call = Call::Mremap(Mremap { old, old_len, new_len, flags: 1, new: 0 });
                if !plausible(&call, result) {
                    continue;
                }
                let mut space = AddressSpace::new(true);
                space.input(Input::Asked(Ticket(1), call));
                prop_assert!(space.next_command().is_some());
                space.answer(Answer::Done);
                space.input(Input::Returned(Ticket(1), result));
                space.input(Input::Drained);
                while space.next_command().is_some() {
                    space.answer(Answer::Done);
                }
                prop_assert!(!space.window_open() && space.effect().is_none());
            }
        }
    }

    #[test]
    fn honest_results_pass_and_nonsense_does_not() {
        let call = Call::Mremap(Mremap { old: PAGE, old_len: PAGE, new_len: 3 * PAGE, flags: 1, new: 0 });
        for (result, passes) in [
            (-12, true),
            (0x7f00_0000_0000, true),
            (0x7f00_0000_0008, false),
            (i64::MAX, false),
            (USER_END.cast_signed() - PAGE.cast_signed(), false),
        ] {
            assert_eq!(plausible(&call, result), passes, "{result:#x}");
        }
        let advice = Call::Madvise { start: PAGE, len: PAGE, advice: 102 };
        assert!(plausible(&advice, 0) && plausible(&advice, -22) && !plausible(&advice, 1));
    }
}
