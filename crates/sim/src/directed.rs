//! Programs made for a rule, where what it prevents is too rare among programs that follow from a seed: seeds only decide about the
//! schedule then.

use crate::program::{Op, Program};

/// One thread grows its mapping over what the other one is about to unmap, and moves it on.
pub fn two_owners() -> Program {
    let old = vec![
        Op::Map { pages: 1, pick: 0 },
        Op::Fill { pick: 0 },
        Op::Map { pages: 1, pick: 0 },
        Op::Unmap { pick: 0 },
    ];
    let rest = std::iter::repeat_n(Op::Touch { pick: 0, write: false }, 12);
    let new = [Op::Map { pages: 1, pick: 0 }, Op::Fill { pick: 0 }].into_iter().chain(rest).chain([
        Op::Resize { pick: 0, pages: 2, may_move: false },
        Op::Move { pick: 0, onto: 0, keep: true },
    ]);
    Program { threads: vec![new.collect(), old] }
}
