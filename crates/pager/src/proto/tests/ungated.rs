//! Without the gate nobody orders mremaps and nobody tells of growth: what has two readings is a stop.

use super::*;

/// An address space without the gate, and of several threads; the pages at A, with contents 1, 2, …, have left.
fn ungated(pages: u64) -> (Kernel, AddressSpace) {
    let mut kernel = Kernel { mappings: vec![A..A + pages * PAGE], ..Kernel::default() };
    kernel.present.extend((0..pages).map(|n| (A + n * PAGE, 1 + n)));
    let mut space = AddressSpace::new(false);
    space.input(Input::Evict(pages));
    kernel.run(&mut space);
    assert_eq!(space.evicted(), pages);
    (kernel, space)
}

/// All events were read.
fn settle(kernel: &mut Kernel, space: &mut AddressSpace) {
    space.input(Input::Drained);
    kernel.run(space);
}

fn assert_stopped(kernel: &Kernel, at: u64) {
    let [why] = kernel.stops.as_slice() else { panic!("stops: {:?}", kernel.stops) };
    assert!(why.contains(&format!("{at:#x}")) && why.contains("no gate orders them"), "{why}");
}

#[test]
fn without_a_gate_two_mremaps_of_one_window_that_touch_are_a_stop_unless_one_thread_runs() {
    for (sole, stops) in [(false, 1), (true, 0)] {
        let (mut kernel, _) = evicted(1);
        let mut space = AddressSpace::new(false);
        space.set_sole_thread(sole);
        kernel.changing = true;
        space.input(Input::Remap { from: A, to: B, len: PAGE });
        space.input(Input::Unmap(A..A + PAGE));
        space.input(Input::Remap { from: B, to: C, len: PAGE });
        kernel.run(&mut space);
        assert_eq!(kernel.stops.len(), stops);
    }
}

#[test]
fn without_a_gate_what_one_thread_unmapped_and_grew_over_does_not_move_on() {
    let (mut kernel, _) = evicted(1);
    let mut space = AddressSpace::new(false);
    kernel.mappings = vec![A..A + 2 * PAGE];
    kernel.registered.insert(A..A + 2 * PAGE);
    kernel.present.extend([(A, 1), (A + PAGE, 2)]);
    space.input(Input::Evict(2));
    kernel.run(&mut space);
    space.set_sole_thread(true);
    // munmap of the second page, growth of the first one over it, which nobody tells, then both move.
    space.input(Input::Unmap(A + PAGE..A + 2 * PAGE));
    space.input(Input::Remap { from: A, to: B, len: 2 * PAGE });
    space.input(Input::Unmap(A..A + 2 * PAGE));
    kernel.registered.insert(B..B + 2 * PAGE);
    drain(&mut kernel, &mut space);
    for (page, value) in [(0, 1), (1, 0)] {
        space.input(fault(B + page * PAGE));
        kernel.run(&mut space);
        assert_eq!(kernel.present[&(B + page * PAGE)], value);
    }
}

#[test]
fn without_a_gate_what_came_and_went_and_is_mapped_may_have_been_grown_over() {
    for sole in [false, true] {
        let (mut kernel, _) = evicted(1);
        let mut space = AddressSpace::new(false);
        kernel.mappings = vec![A..A + PAGE];
        kernel.present.insert(A, 1);
        space.input(Input::Evict(1));
        kernel.run(&mut space);
        space.set_sole_thread(sole);
        space.input(Input::Remap { from: A, to: B, len: PAGE });
        space.input(Input::Unmap(A..A + PAGE));
        // munmap of B; then somebody grows a mapping below B over it, of which nobody tells.
        space.input(Input::Unmap(B..B + PAGE));
        kernel.registered.insert(B..B + PAGE);
        space.input(Input::Drained);
        kernel.run(&mut space);
        assert_eq!(kernel.stops.is_empty(), sole, "with one thread the order says that it is gone");
        assert!(!sole || space.evicted() == 0);
    }
}

/// A thread unmaps the second page and is held up before it says so. Another one grows the first over it, of which nobody
/// tells, and moves both on, or just the second.
#[test]
fn what_was_moved_from_where_something_was_unmapped_twice_had_two_owners() {
    for own in [A..A + 2 * PAGE, A + PAGE..A + 2 * PAGE] {
        let (mut kernel, mut space) = ungated(2);
        let len = own.end - own.start;
        space.input(Input::Remap { from: own.start, to: B, len });
        space.input(Input::Unmap(own));
        space.input(Input::Unmap(A + PAGE..A + 2 * PAGE));
        kernel.registered.insert(B..B + len);
        kernel.registered.remove(A + PAGE..A + 2 * PAGE);
        settle(&mut kernel, &mut space);
        assert_stopped(&kernel, A + PAGE);
    }
}

#[test]
fn what_was_moved_from_where_something_was_unmapped_and_is_mapped_had_two_owners() {
    // MREMAP_DONTUNMAP: the UNMAP is that of the page's former owner.
    let (mut kernel, mut space) = ungated(2);
    space.input(Input::Remap { from: A, to: B, len: 2 * PAGE });
    space.input(Input::Unmap(A + PAGE..A + 2 * PAGE));
    kernel.registered.insert(B..B + 2 * PAGE);
    settle(&mut kernel, &mut space);
    assert_stopped(&kernel, A + PAGE);
}

#[test]
fn what_was_discarded_before_it_was_moved_may_be_the_next_owners() {
    // T1 moves A to B and is held up; T2 grows over A and discards it, which is read first: B would read zeros.
    for mapped in [true, false] {
        let (mut kernel, mut space) = ungated(1);
        space.input(Input::Remove(A..A + PAGE));
        space.input(Input::Remap { from: A, to: B, len: PAGE });
        space.input(Input::Unmap(A..A + PAGE));
        kernel.registered.insert(B..B + PAGE);
        if !mapped {
            kernel.registered.remove(A..A + PAGE);
        }
        settle(&mut kernel, &mut space);
        if mapped {
            assert_stopped(&kernel, A);
        } else {
            assert!(kernel.stops.is_empty(), "one thread has discarded and moved it");
        }
    }
}

#[test]
fn what_one_owner_moves_is_no_stop() {
    for (keeps, unmaps) in [(false, true), (true, false)] {
        let (mut kernel, mut space) = ungated(2);
        space.input(Input::Remap { from: A, to: B, len: 2 * PAGE });
        if unmaps {
            space.input(Input::Unmap(A..A + 2 * PAGE));
        }
        kernel.registered.insert(B..B + 2 * PAGE);
        if !keeps {
            kernel.registered.remove(A..A + 2 * PAGE);
        }
        drain(&mut kernel, &mut space);
        space.input(fault(B + PAGE));
        kernel.run(&mut space);
        assert_eq!(kernel.present[&(B + PAGE)], 2);
    }
}

#[test]
fn a_mapping_that_is_registered_in_part_as_far_as_is_known_is_not_registered_again() {
    // It has grown in place. REGISTER is not guarded: what is mapped there by now could be another's, above our slots.
    let (mut kernel, mut space) = ungated(1);
    kernel.mappings = vec![A..A + 3 * PAGE];
    kernel.registered.insert(A..A + 3 * PAGE);
    kernel.log.clear();
    space.input(Input::RegisterAll(true));
    kernel.run(&mut space);
    assert!(!kernel.log.iter().any(|command| matches!(command, Command::Register(_))), "{:?}", kernel.log);
    assert!(space.registered.covers(&(A..A + 3 * PAGE)));
}

#[test]
fn what_a_child_has_moved_before_its_parents_events_were_read_is_in_doubt() {
    // In the parent, T1 unmaps A + PAGE and is held up; T2 grows over it and forks; the child moves it on.
    let (mut kernel, mut space) = ungated(2);
    space.input(Input::Fork(ChildKey(1)));
    kernel.run(&mut space);
    let (_, mut child) = kernel.children.pop().unwrap();
    child.set_sole_thread(true);
    child.input(Input::Remap { from: A, to: B, len: 2 * PAGE });
    child.input(Input::Unmap(A..A + 2 * PAGE));
    space.input(Input::Unmap(A + PAGE..A + 2 * PAGE));
    settle(&mut kernel, &mut space);
    assert_eq!(kernel.gone, [A + PAGE..A + 2 * PAGE]);
    child.input(Input::ParentClosed(kernel.gone.clone()));
    settle(&mut kernel, &mut child);
    assert_stopped(&kernel, A + PAGE);
}

#[test]
fn what_several_threads_moved_before_a_fork_was_read_is_in_doubt_in_the_child() {
    // Perhaps the fork came first, and the child has grown a mapping over B since.
    for (sole, mapped) in [(false, true), (false, false), (true, true)] {
        let (mut kernel, mut space) = ungated(1);
        space.set_sole_thread(sole);
        space.input(Input::Remap { from: A, to: B, len: PAGE });
        space.input(Input::Fork(ChildKey(1)));
        kernel.run(&mut space);
        let (_, mut child) = kernel.children.pop().unwrap();
        if mapped {
            kernel.registered.insert(B..B + PAGE);
        }
        child.input(Input::ParentClosed(Vec::new()));
        settle(&mut kernel, &mut child);
        match (sole, mapped) {
            (true, _) => assert!(kernel.stops.is_empty() && child.evicted() == 1, "the order is known"),
            (false, true) => assert_stopped(&kernel, B),
            (false, false) => assert!(kernel.stops.is_empty() && child.evicted() == 0, "it is not there"),
        }
    }
}

#[test]
fn what_a_parents_parent_unmapped_is_told_to_a_grandchild() {
    let (mut kernel, mut space) = ungated(2);
    space.input(Input::Fork(ChildKey(1)));
    kernel.run(&mut space);
    let (_, mut child) = kernel.children.pop().unwrap();
    child.input(Input::Fork(ChildKey(2)));
    kernel.run(&mut child);
    kernel.registered.remove(A + PAGE..A + 2 * PAGE);
    child.input(Input::ParentClosed(vec![A + PAGE..A + 2 * PAGE]));
    drain(&mut kernel, &mut child);
    assert_eq!(
        (kernel.closed.as_slice(), kernel.gone.as_slice()),
        ([ChildKey(2)].as_slice(), [A + PAGE..A + 2 * PAGE].as_slice())
    );
}

#[test]
fn what_several_threads_of_a_parent_did_before_it_died_unread_is_in_doubt_in_its_child() {
    for sole in [false, true] {
        let (mut kernel, mut space) = ungated(2);
        space.set_sole_thread(sole);
        space.input(Input::Fork(ChildKey(1)));
        space.dissolve();
        kernel.run(&mut space);
        let (_, mut child) = kernel.children.pop().unwrap();
        child.input(Input::ParentClosed(kernel.gone.clone()));
        settle(&mut kernel, &mut child);
        assert_eq!(kernel.stops.is_empty(), sole);
        if !sole {
            assert_stopped(&kernel, A + PAGE);
        }
    }
}
