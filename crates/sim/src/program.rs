//! What simulated programs do: threads with lists of operations, made from a seed before the run, so that a failing
//! run can be made smaller by leaving operations out.
//!
//! Operations name no addresses: `pick` chooses among what the thread owns when it gets there. So a program stays
//! free of data races whatever is left out of it, while addresses are recycled as the kernel hands them out.

use crate::rng::Rng;

/// One operation of a thread. `pick` chooses a mapping of the thread and a part of it; `pages` is a size.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the fields: each variant says what it does
pub enum Op {
    /// mmap somewhere the kernel chooses; the flags come from `pick`.
    Map { pages: usize, pick: u32 },
    /// Writes every page.
    Fill { pick: u32 },
    /// Reads every page.
    Verify { pick: u32 },
    /// Writes or reads one page.
    Touch { pick: u32, write: bool },
    /// MADV_DONTNEED, or MADV_FREE.
    Discard { pick: u32, free: bool },
    /// munmap.
    Unmap { pick: u32 },
    /// mmap(MAP_FIXED) over memory of its own.
    Over { pick: u32 },
    /// mremap without MREMAP_FIXED: grows, in place or moved, or shrinks.
    Resize { pick: u32, pages: usize, may_move: bool },
    /// mremap to an address of its own (MREMAP_FIXED), or MREMAP_DONTUNMAP.
    Move { pick: u32, onto: u32, keep: bool },
    /// MADV_GUARD_INSTALL or MADV_GUARD_REMOVE.
    Guard { pick: u32, install: bool },
    /// MADV_WIPEONFORK or MADV_KEEPONFORK.
    Wipe { pick: u32, on: bool },
    /// mprotect to read-only or back.
    Protect { pick: u32, on: bool },
    /// mlock or munlock.
    Lock { pick: u32, on: bool },
    /// A mapping goes over to another thread.
    Give { pick: u32, to: u32 },
    /// fork.
    Fork(Box<Child>),
    /// vfork; the child munmaps something of the parent's, and may be killed while it waits.
    Vfork { pick: u32, killed: bool },
}

/// What a forked child does.
#[derive(Clone, Debug)]
pub struct Child {
    /// The first thread.
    pub ops: Vec<Op>,
    /// After how many operations its agent greets; never for a raw clone.
    pub greets: Option<usize>,
    /// Threads started when the agent has greeted (or at once, without one).
    pub more: Vec<Vec<Op>>,
}

/// A whole program: the threads of the first process.
#[derive(Clone, Debug)]
pub struct Program {
    /// A list of operations per thread.
    pub threads: Vec<Vec<Op>>,
}

/// What programs are made of.
#[derive(Clone, Copy, Debug)]
pub struct Taste {
    /// Threads of the first process.
    pub threads: usize,
    /// Operations of a thread.
    pub ops: usize,
    /// Largest mapping, in pages.
    pub pages: usize,
    /// Weights of discards, unmaps, mremaps, guards and wipes, forks, vforks.
    pub weights: [usize; 6],
    /// What moves, moves on.
    pub chains: bool,
}

impl Program {
    /// The program of a seed.
    pub fn new(rng: &mut Rng, taste: &Taste) -> Self {
        let threads = (0..taste.threads).map(|_| ops(rng, taste, taste.ops, 2)).collect();
        Self { threads }
    }

    /// The number of operations, those of children included.
    pub fn size(&self) -> usize {
        self.threads.iter().map(|ops| count(ops)).sum()
    }

    /// The program without the operations whose number, in order, is not kept.
    pub fn keeping(&self, keep: &[bool]) -> Self {
        let mut at = 0;
        Self { threads: self.threads.iter().map(|ops| filter(ops, keep, &mut at)).collect() }
    }

    /// The program without one of its threads.
    pub fn without_thread(&self, index: usize) -> Self {
        let mut threads = self.threads.clone();
        threads.remove(index);
        Self { threads }
    }
}

fn count(ops: &[Op]) -> usize {
    let inside = |op: &Op| match op {
        Op::Fork(child) => count(&child.ops) + child.more.iter().map(|ops| count(ops)).sum::<usize>(),
        _ => 0,
    };
    ops.iter().map(|op| 1 + inside(op)).sum()
}

fn filter(ops: &[Op], keep: &[bool], at: &mut usize) -> Vec<Op> {
    let mut kept = Vec::new();
    for op in ops {
        let this = keep[*at];
        *at += 1;
        let op = match op {
            Op::Fork(child) => Op::Fork(Box::new(Child {
                ops: filter(&child.ops, keep, at),
                greets: child.greets,
                more: child.more.iter().map(|ops| filter(ops, keep, at)).collect(),
            })),
            op => op.clone(),
        };
        if this {
            kept.push(op);
        }
    }
    kept
}

fn ops(rng: &mut Rng, taste: &Taste, length: usize, generations: usize) -> Vec<Op> {
    let mut list = Vec::with_capacity(length);
    for _ in 0..2 {
        list.push(Op::Map { pages: 1 + rng.below(taste.pages), pick: rng.next() as u32 });
        list.push(Op::Fill { pick: rng.next() as u32 });
    }
    while list.len() < length {
        let op = op(rng, taste, length, generations);
        if taste.chains && matches!(op, Op::Move { .. } | Op::Resize { .. }) {
            let again = Op::Move { pick: rng.next() as u32, onto: rng.next() as u32, keep: rng.one_in(2) };
            list.extend([op.clone(), again]);
        }
        let fills = matches!(op, Op::Map { .. } | Op::Over { .. } | Op::Resize { .. });
        list.push(op);
        if fills && !rng.one_in(3) {
            list.push(Op::Fill { pick: rng.next() as u32 });
        }
    }
    list
}

fn op(rng: &mut Rng, taste: &Taste, length: usize, generations: usize) -> Op {
    let [discards, unmaps, mremaps, guards, forks, vforks] = taste.weights;
    let pick = rng.next() as u32;
    let pages = 1 + rng.below(taste.pages);
    let mut roll = rng.below(12 + discards + unmaps + mremaps + guards + forks + vforks);
    let mut within = |weight: usize| {
        let hit = roll < weight;
        roll = roll.wrapping_sub(weight);
        hit
    };
    if within(3) {
        Op::Map { pages, pick }
    } else if within(3) {
        Op::Fill { pick }
    } else if within(3) {
        Op::Verify { pick }
    } else if within(2) {
        Op::Touch { pick, write: rng.one_in(2) }
    } else if within(1) {
        match rng.below(3) {
            0 => Op::Protect { pick, on: rng.one_in(2) },
            1 => Op::Lock { pick, on: rng.one_in(2) },
            _ => Op::Give { pick, to: rng.next() as u32 },
        }
    } else if within(discards) {
        Op::Discard { pick, free: rng.one_in(3) }
    } else if within(unmaps) {
        if rng.one_in(3) { Op::Over { pick } } else { Op::Unmap { pick } }
    } else if within(mremaps) {
        match rng.below(3) {
            0 => Op::Move { pick, onto: rng.next() as u32, keep: rng.one_in(3) },
            _ => Op::Resize { pick, pages, may_move: !rng.one_in(4) },
        }
    } else if within(guards) {
        let on = rng.one_in(2);
        if rng.one_in(2) { Op::Guard { pick, install: on } } else { Op::Wipe { pick, on } }
    } else if within(forks) && generations > 0 {
        let size = |rng: &mut Rng| 1 + rng.below(length / 2 + 1);
        let first = size(rng);
        let first = ops(rng, taste, first, generations - 1);
        let more = (0..rng.below(3)).map(|_| {
            let size = size(rng);
            ops(rng, taste, size, generations - 1)
        });
        let more = more.collect();
        let greets = if rng.one_in(4) { None } else { Some(rng.below(6)) };
        Op::Fork(Box::new(Child { ops: first, greets, more }))
    } else if within(vforks) {
        Op::Vfork { pick, killed: rng.one_in(2) }
    } else {
        Op::Verify { pick }
    }
}
