//! Each rule of the protocol on a small history, with a kernel that answers as scripted.

#![allow(clippy::single_range_in_vec_init)] // one mapping is a list of one range

use std::collections::HashMap;
use std::ops::Range;

use vswap_core::SlotId;

use super::space::PAGE;
use super::*;

mod forks;
mod kernel;
mod stops;
mod ungated;

use kernel::Kernel;

const A: u64 = 0x10_0000;
const B: u64 = 0x20_0000;
const C: u64 = 0x30_0000;

fn fault(addr: u64) -> Input {
    Input::Fault(Fault { addr, write: false, tid: 1, stamp: 0 })
}

/// A space whose mapping at A has `pages` pages with contents 100, 101, …, all evicted.
fn evicted(pages: u64) -> (Kernel, AddressSpace) {
    let mut kernel = Kernel { mappings: vec![A..A + pages * PAGE], ..Kernel::default() };
    kernel.present.extend((0..pages).map(|i| (A + i * PAGE, 100 + i)));
    let mut space = AddressSpace::new(true);
    space.input(Input::Evict(pages));
    kernel.run(&mut space);
    assert_eq!((space.evicted(), kernel.present.len()), (pages, 0));
    (kernel, space)
}

fn drain(kernel: &mut Kernel, space: &mut AddressSpace) {
    space.input(Input::Drained);
    kernel.run(space);
    assert_eq!(kernel.stops, Vec::<String>::new());
}

fn mremap(old: u64, old_len: u64, new_len: u64) -> Call {
    Call::Mremap(Mremap { old, old_len, new_len, flags: 1, new: 0 })
}

#[test]
fn a_page_comes_back_as_it_left() {
    let (mut kernel, mut space) = evicted(8);
    space.input(fault(A + 3 * PAGE + 17));
    kernel.run(&mut space);
    assert_eq!(kernel.present[&(A + 3 * PAGE)], 103);
    assert_eq!((space.evicted(), kernel.held()), (7, 7));
}

#[test]
fn a_registered_mapping_is_confirmed_before_anything_leaves_it() {
    let (kernel, _) = evicted(1);
    let kinds: Vec<_> = kernel.log.iter().map(core::mem::discriminant).collect();
    let wanted = [
        Command::Mapping(0),
        Command::ProbePage(A),
        Command::Register(A..A + PAGE),
        Command::Mapping(A),
        Command::WipedOnFork(A..A + PAGE),
        Command::Probe,
        Command::Scan(A..A + PAGE, BATCH_PAGES),
        Command::Move(vec![A..A + PAGE]),
    ];
    assert_eq!(kinds, wanted.iter().map(core::mem::discriminant).collect::<Vec<_>>());
}

#[test]
fn nothing_is_installed_or_evicted_while_a_change_is_under_way() {
    let (mut kernel, mut space) = evicted(4);
    kernel.changing = true;
    space.input(fault(A));
    kernel.run(&mut space);
    assert!(space.window_open() && kernel.present.is_empty());
    space.input(Input::Evict(4));
    space.input(Input::Drained);
    kernel.log.clear();
    kernel.run(&mut space);
    assert_eq!(kernel.log, [Command::Probe], "one question, then the driver waits");
    kernel.changing = false;
    drain(&mut kernel, &mut space);
    assert!(!space.window_open());
}

#[test]
fn an_unmapped_page_dies_when_the_window_closes_and_not_before() {
    let (mut kernel, mut space) = evicted(4);
    kernel.changing = true;
    space.input(Input::Unmap(A..A + 2 * PAGE));
    kernel.run(&mut space);
    assert_eq!(kernel.held(), 4);
    kernel.changing = false;
    drain(&mut kernel, &mut space);
    assert_eq!((space.evicted(), kernel.held()), (2, 2));
}

#[test]
fn what_a_remap_lands_on_is_replaced_and_a_late_unmap_does_not_kill_the_arrival() {
    // T1: mremap(C → A) over what was at A; the UNMAP of the old A comes last.
    let (mut kernel, mut space) = evicted(2);
    kernel.mappings.push(C..C + 2 * PAGE);
    kernel.present.extend([(C, 7), (C + PAGE, 8)]);
    space.input(Input::Evict(2));
    kernel.run(&mut space);
    assert_eq!(space.evicted(), 4);
    space.input(Input::Asked(Ticket(1), mremap(C, 2 * PAGE, 2 * PAGE)));
    kernel.run(&mut space);
    kernel.registered.remove(C..C + 2 * PAGE);
    space.input(Input::Remap { from: C, to: A, len: 2 * PAGE });
    space.input(Input::Unmap(C..C + 2 * PAGE));
    space.input(Input::Unmap(A..A + 2 * PAGE));
    space.input(Input::Returned(Ticket(1), A as i64));
    drain(&mut kernel, &mut space);
    assert_eq!((space.evicted(), kernel.held(), space.counters().probed), (2, 2, 2));
    space.input(fault(A + PAGE));
    kernel.run(&mut space);
    assert_eq!(kernel.present[&(A + PAGE)], 8, "registered: the newest lives");
}

#[test]
fn an_arrival_that_was_unmapped_afterwards_dies() {
    let (mut kernel, mut space) = evicted(2);
    space.input(Input::Asked(Ticket(1), mremap(A, 2 * PAGE, 2 * PAGE)));
    kernel.run(&mut space);
    space.input(Input::Remap { from: A, to: B, len: 2 * PAGE });
    space.input(Input::Unmap(A..A + 2 * PAGE));
    space.input(Input::Returned(Ticket(1), B as i64));
    space.input(Input::Unmap(B..B + 2 * PAGE));
    kernel.registered.clear();
    drain(&mut kernel, &mut space);
    assert_eq!((space.evicted(), kernel.held()), (0, 0));
}

#[test]
fn a_remap_proves_its_source_alive() {
    // E was unmapped at A by another thread before; the event of that comes first, then A's new tenant moves on.
    let (mut kernel, mut space) = evicted(1);
    space.input(Input::Asked(Ticket(1), mremap(A, PAGE, PAGE)));
    kernel.run(&mut space);
    space.input(Input::Unmap(A..A + PAGE));
    space.input(Input::Remap { from: A, to: B, len: PAGE });
    space.input(Input::Returned(Ticket(1), B as i64));
    kernel.registered.insert(B..B + PAGE);
    drain(&mut kernel, &mut space);
    space.input(fault(B));
    kernel.run(&mut space);
    assert_eq!(kernel.present[&B], 100);
}

#[test]
fn a_granted_mremap_holds_the_window_open_and_the_next_one_waits() {
    let (mut kernel, mut space) = evicted(1);
    space.input(Input::Asked(Ticket(1), mremap(A, PAGE, PAGE)));
    space.input(Input::Asked(Ticket(2), mremap(B, PAGE, PAGE)));
    space.input(fault(A));
    kernel.log.clear();
    drain(&mut kernel, &mut space);
    assert_eq!(kernel.log, [Command::Execute(Ticket(1), mremap(A, PAGE, PAGE))]);
    space.input(Input::Returned(Ticket(1), A as i64));
    kernel.run(&mut space);
    assert_eq!(kernel.log.last(), Some(&Command::Execute(Ticket(2), mremap(B, PAGE, PAGE))));
    assert!(kernel.present.is_empty());
}

#[test]
fn growth_is_an_arrival_of_zeros() {
    // What was evicted just above A was unmapped, then A grew over it in place; the UNMAP is still unread.
    let (mut kernel, mut space) = evicted(4);
    space.input(Input::Asked(Ticket(1), mremap(A, 2 * PAGE, 4 * PAGE)));
    kernel.run(&mut space);
    space.input(Input::Returned(Ticket(1), A as i64));
    drain(&mut kernel, &mut space);
    assert_eq!((space.evicted(), kernel.held()), (2, 2));
    space.input(fault(A + 3 * PAGE));
    kernel.run(&mut space);
    assert_eq!(kernel.present[&(A + 3 * PAGE)], 0, "no old bytes");
}

#[test]
fn a_removed_page_that_is_still_resident_is_not_evicted() {
    let (mut kernel, mut space) = evicted(2);
    for page in 0..2 {
        space.input(fault(A + page * PAGE));
    }
    kernel.run(&mut space);
    space.input(Input::Remove(A..A + 2 * PAGE));
    drain(&mut kernel, &mut space);
    assert_eq!(space.evicted(), 0, "the slots went at once");
    // The zap of A has come and of A + PAGE not yet.
    kernel.present.remove(&A);
    space.input(fault(A));
    kernel.run(&mut space);
    for _ in 0..3 {
        space.input(Input::Evict(2));
        kernel.run(&mut space);
    }
    assert_eq!(kernel.present.keys().collect::<Vec<_>>(), [&(A + PAGE)], "owed");
    assert!(space.evicted() >= 1, "what we installed ourselves may leave");
}

#[test]
fn a_slot_under_a_present_page_is_a_stop() {
    let (mut kernel, mut space) = evicted(2);
    kernel.present.insert(A, 1);
    space.input(fault(A));
    kernel.run(&mut space);
    assert_eq!(kernel.stops.len(), 1);
    let (mut kernel, mut space) = evicted(2);
    kernel.present.insert(A, 1);
    space.input(Input::Evict(1));
    kernel.run(&mut space);
    assert_eq!(kernel.stops.len(), 1);
}

#[test]
fn first_touches_wait_while_memory_is_short_and_swapped_pages_do_not() {
    let (mut kernel, mut space) = evicted(2);
    kernel.mappings = vec![A..A + 8 * PAGE];
    kernel.registered.insert(A..A + 8 * PAGE);
    space.input(Input::Throttle(true));
    space.input(fault(A + 5 * PAGE));
    space.input(fault(A));
    kernel.run(&mut space);
    assert_eq!((kernel.present.len(), space.held_faults()), (1, 1));
    space.input(Input::Throttle(false));
    kernel.run(&mut space);
    assert_eq!(kernel.present.len(), 2);
}

#[test]
fn a_fault_that_is_told_again_waits_once() {
    let mut space = AddressSpace::new(true);
    space.input(Input::Throttle(true));
    for (tid, stamp) in [(1, 10), (1, 20), (2, 30), (1, 40)] {
        space.input(Input::Fault(Fault { addr: A + 8 * stamp, write: stamp == 40, tid, stamp }));
    }
    let waiting: Vec<_> = space.waiting().map(|(f, _)| (f.tid, f.stamp, f.write)).collect();
    assert_eq!(waiting, [(1, 10, true), (2, 30, false)]);
}

#[test]
fn two_threads_that_wait_for_one_page_are_both_answered() {
    let (mut kernel, mut space) = evicted(1);
    space.input(fault(A));
    space.input(Input::Fault(Fault { addr: A, write: false, tid: 2, stamp: 0 }));
    let mut woken = 0;
    while let Some(command) = space.next_command() {
        let answer = kernel.execute(command);
        space.answer(answer);
        while let Some(effect) = space.effect() {
            woken += usize::from(matches!(effect, Effect::Wake(A)));
        }
    }
    assert_eq!(woken, 1, "EEXIST does not wake by itself");
}

#[test]
fn registering_everything_registers_each_mapping_once() {
    let mut kernel = Kernel { mappings: vec![A..A + PAGE, B..B + PAGE], ..Kernel::default() };
    let mut space = AddressSpace::new(true);
    for _ in 0..2 {
        space.input(Input::RegisterAll(true));
        kernel.run(&mut space);
    }
    let registers = kernel.log.iter().filter(|c| matches!(c, Command::Register(_))).count();
    assert_eq!(registers, 2);
    assert!(kernel.registered.contains(A) && kernel.registered.contains(B));
}

#[test]
fn what_a_lost_unmap_leaves_behind_is_dropped_before_the_mapping_is_registered_again() {
    // A vfork child unmapped A and was killed while it waited; then something new was mapped there.
    let (mut kernel, mut space) = evicted(2);
    kernel.registered.clear();
    kernel.mappings = vec![A..A + 3 * PAGE];
    kernel.present.insert(A, 55);
    space.input(Input::Evict(1));
    kernel.run(&mut space);
    assert_eq!(kernel.stops, Vec::<String>::new());
    assert_eq!((space.evicted(), kernel.held(), space.counters().stale), (1, 1, 2));
    for (page, value) in [(0, 55), (1, 0)] {
        space.input(fault(A + page * PAGE));
        kernel.run(&mut space);
        assert_eq!(kernel.present[&(A + page * PAGE)], value);
    }
}

#[test]
fn what_guard_pages_will_take_comes_back_first_so_that_no_child_has_it() {
    let (mut kernel, mut space) = evicted(4);
    let call = Call::Madvise { start: A, len: 2 * PAGE, advice: 102 };
    space.input(Input::Unmap(B..B + PAGE));
    space.input(Input::Asked(Ticket(1), call));
    kernel.run(&mut space);
    assert!(kernel.present.is_empty(), "nothing comes back while a window is open");
    drain(&mut kernel, &mut space);
    assert_eq!(kernel.log.last(), Some(&Command::Execute(Ticket(1), call)));
    assert_eq!((kernel.present.len(), space.evicted()), (2, 2));
    // The agent makes them, and another thread forks before it says so.
    kernel.present.clear();
    space.input(Input::Fork(ChildKey(1)));
    space.input(Input::Guarded(A..A + 2 * PAGE));
    space.input(Input::Returned(Ticket(1), 0));
    drain(&mut kernel, &mut space);
    let (_, child) = kernel.children.pop().unwrap();
    assert_eq!((space.evicted(), child.evicted()), (2, 2));
    // The guard is taken away again, of which nobody tells.
    space.input(fault(A));
    kernel.run(&mut space);
    assert_eq!(kernel.present[&A], 0, "no old bytes");
}

#[test]
fn zeros_around_a_page_that_is_written_to_are_not_copied_and_a_fault_from_before_a_guard_is_not_answered() {
    let mut kernel = Kernel { mappings: vec![A..A + 8 * PAGE], ..Kernel::default() };
    let mut space = AddressSpace::new(true);
    space.input(Input::RegisterAll(true));
    kernel.run(&mut space);
    let write = |addr| Input::Fault(Fault { addr, write: true, tid: 1, stamp: 0 });
    space.input(write(A));
    kernel.run(&mut space);
    kernel.log.clear();
    space.input(write(A + PAGE));
    kernel.run(&mut space);
    let fault = Fault { addr: A + PAGE, write: true, tid: 1, stamp: 0 };
    let zero = |addr, fault| Command::Zero { addr, pages: 1, fault };
    assert_eq!(kernel.log, [zero(A + PAGE, Some(fault)), zero(A + 2 * PAGE, None)]);
    kernel.log.clear();
    let call = Call::Madvise { start: A + 4 * PAGE, len: PAGE, advice: 102 };
    space.input(Input::Asked(Ticket(1), call));
    kernel.run(&mut space);
    space.input(write(A + 4 * PAGE));
    space.input(Input::Guarded(A + 4 * PAGE..A + 5 * PAGE));
    space.input(Input::Returned(Ticket(1), 0));
    drain(&mut kernel, &mut space);
    assert_eq!(kernel.log, [Command::Execute(Ticket(1), call), Command::Probe]);
}

#[test]
fn what_is_owed_is_forgiven_once_every_thread_has_left_its_madvise_and_no_later_remove_with_it() {
    let (mut kernel, mut space) = evicted(2);
    for page in 0..2 {
        space.input(fault(A + page * PAGE));
    }
    kernel.run(&mut space);
    space.input(Input::Remove(A..A + 2 * PAGE)); // MADV_FREE: the pages stay
    drain(&mut kernel, &mut space);
    space.input(Input::SettleBegin);
    space.input(Input::Remove(A..A + PAGE));
    drain(&mut kernel, &mut space);
    space.input(Input::Settled);
    for _ in 0..3 {
        space.input(Input::Evict(2));
        kernel.run(&mut space);
    }
    assert_eq!(kernel.present.keys().collect::<Vec<_>>(), [&A], "the second REMOVE is still owed");
}

#[test]
fn what_guard_pages_would_take_untold_comes_back_before_the_caller_is_let_go() {
    let (mut kernel, mut space) = evicted(3);
    space.input(Input::Fork(ChildKey(1)));
    drain(&mut kernel, &mut space);
    let (_, mut child) = kernel.children.pop().unwrap();
    child.input(Input::ParentClosed(Vec::new()));
    let guard = Call::Madvise { start: A, len: 2 * PAGE, advice: 102 };
    child.input(Input::Asked(Ticket(1), guard));
    kernel.log.clear();
    drain(&mut kernel, &mut child);
    let at = |wanted: fn(&Command) -> bool| kernel.log.iter().position(wanted).expect("it was asked for");
    let restored = at(|command| matches!(command, Command::Copy { slots, .. } if slots.len() == 2));
    assert!(restored < at(|command| matches!(command, Command::Execute(..))));
    assert_eq!((child.evicted(), kernel.present.len()), (1, 2));
    assert!(child.granted().is_none(), "nobody will tell of its result");
}

#[test]
fn what_an_mremap_brings_owes_nothing() {
    // The zap that is due goes by address.
    let (mut kernel, mut space) = evicted(1);
    kernel.mappings.push(B..B + PAGE);
    kernel.present.insert(B, 7);
    space.input(Input::Evict(1));
    kernel.run(&mut space);
    space.input(fault(A));
    space.input(Input::Remove(B..B + PAGE));
    drain(&mut kernel, &mut space);
    space.input(Input::Asked(Ticket(1), mremap(A, PAGE, PAGE)));
    kernel.run(&mut space);
    space.input(Input::Remap { from: A, to: B, len: PAGE });
    space.input(Input::Unmap(A..A + PAGE));
    space.input(Input::Returned(Ticket(1), B as i64));
    kernel.mappings = vec![B..B + PAGE];
    let value = kernel.present.remove(&A).unwrap();
    kernel.present.insert(B, value);
    kernel.registered.remove(A..A + PAGE);
    drain(&mut kernel, &mut space);
    for _ in 0..2 {
        space.input(Input::Evict(1));
        kernel.run(&mut space);
    }
    assert_eq!((space.evicted(), kernel.present.len()), (1, 0));
}
