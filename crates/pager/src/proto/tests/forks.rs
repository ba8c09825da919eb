//! What a forked child has, what it reads as zeros, and what comes back before a fork.

use super::*;

/// `pages` present pages of a mapping at A, of which the first is wiped on fork; all have left.
fn evicted_and_wiped(pages: u64) -> (Kernel, AddressSpace) {
    let mut kernel = Kernel { mappings: vec![A..A + pages * PAGE], ..Kernel::default() };
    kernel.present.extend((0..pages).map(|n| (A + n * PAGE, 1 + n)));
    kernel.wiped.insert(A..A + PAGE);
    let mut space = AddressSpace::new(true);
    space.input(Input::Evict(pages));
    kernel.run(&mut space);
    (kernel, space)
}

/// A fork, and the parent's window closes.
fn forked(kernel: &mut Kernel, space: &mut AddressSpace) -> AddressSpace {
    space.input(Input::Fork(ChildKey(1)));
    drain(kernel, space);
    kernel.children.pop().unwrap().1
}

/// The same, and the child has been told.
fn forked_and_told(kernel: &mut Kernel, space: &mut AddressSpace) -> AddressSpace {
    let mut child = forked(kernel, space);
    child.input(Input::ParentClosed(Vec::new()));
    drain(kernel, &mut child);
    child
}

#[test]
fn a_child_has_the_table_as_it_was_at_its_place_in_the_window() {
    let (mut kernel, mut space) = evicted(4);
    space.input(Input::Unmap(A..A + PAGE)); // read before the fork, perhaps made after it
    space.input(Input::Fork(ChildKey(9)));
    space.input(Input::Unmap(A + PAGE..A + 4 * PAGE));
    kernel.run(&mut space);
    let (key, mut child) = kernel.children.pop().unwrap();
    child.input(fault(A + 2 * PAGE));
    child.input(Input::Drained);
    kernel.run(&mut child);
    assert!(kernel.present.is_empty(), "the child waits for the parent's window");
    drain(&mut kernel, &mut space);
    assert_eq!((key, kernel.closed.as_slice()), (ChildKey(9), [ChildKey(9)].as_slice()));
    assert_eq!(space.evicted(), 0);
    child.input(Input::ParentClosed(Vec::new()));
    drain(&mut kernel, &mut child);
    assert_eq!((kernel.present[&(A + 2 * PAGE)], child.evicted(), kernel.held()), (102, 3, 3));
    assert_eq!(child.counters().probed, 1, "the page unmapped before FORK was asked for");
}

#[test]
fn a_child_forgets_what_was_kept_from_it_before_it_registers_anything() {
    let (mut kernel, mut space) = evicted(4);
    let mut child = forked_and_told(&mut kernel, &mut space);
    // MADV_DONTFORK on the first two pages; the child has mapped something of its own at the first one.
    kernel.mappings = vec![A..A + PAGE, A + 2 * PAGE..A + 4 * PAGE];
    kernel.registered.remove(A..A + 2 * PAGE);
    kernel.present.insert(A, 55);
    child.input(Input::Evict(1));
    kernel.run(&mut child);
    kernel.run(&mut child);
    assert_eq!(kernel.stops, Vec::<String>::new());
    assert_eq!(child.evicted(), 3, "two inherited, and the new page at A");
    child.input(fault(A));
    kernel.run(&mut child);
    assert_eq!(kernel.present[&A], 55);
}

#[test]
fn a_child_reads_zeros_where_its_parent_is_wiped_on_fork() {
    let (mut kernel, mut space) = evicted_and_wiped(2);
    let mut child = forked_and_told(&mut kernel, &mut space);
    assert_eq!((space.evicted(), child.evicted()), (2, 1));
    child.input(fault(A));
    kernel.run(&mut child);
    assert_eq!(kernel.present[&A], 0);
}

#[test]
fn what_grows_out_of_a_wiped_mapping_is_wiped_too() {
    let (mut kernel, mut space) = evicted_and_wiped(1);
    space.input(Input::Asked(Ticket(1), mremap(A, PAGE, 2 * PAGE)));
    kernel.run(&mut space);
    space.input(Input::Returned(Ticket(1), A as i64));
    kernel.mappings = vec![A..A + 2 * PAGE];
    kernel.registered.insert(A..A + 2 * PAGE);
    kernel.present.insert(A + PAGE, 2);
    drain(&mut kernel, &mut space);
    space.input(Input::Evict(1));
    kernel.run(&mut space);
    let child = forked(&mut kernel, &mut space);
    assert_eq!((space.evicted(), child.evicted()), (2, 0));
}

#[test]
fn an_unmap_read_before_a_fork_does_not_hand_wiped_pages_to_the_child() {
    let (mut kernel, mut space) = evicted_and_wiped(1);
    space.input(Input::Unmap(A..A + PAGE)); // made after the fork, but delivered first
    space.input(Input::Fork(ChildKey(1)));
    kernel.run(&mut space);
    let (_, child) = kernel.children.pop().unwrap();
    assert_eq!((space.evicted(), child.evicted()), (1, 0));
}

#[test]
fn in_the_child_of_a_fork_beside_an_mremap_a_resident_page_is_right_and_its_slot_stale() {
    let (mut kernel, mut space) = evicted(3);
    space.input(Input::Asked(Ticket(1), mremap(B, PAGE, PAGE)));
    kernel.run(&mut space);
    space.input(Input::Fork(ChildKey(1)));
    space.input(Input::Returned(Ticket(1), -12));
    drain(&mut kernel, &mut space);
    let (_, mut child) = kernel.children.pop().unwrap();
    child.input(Input::ParentClosed(Vec::new()));
    drain(&mut kernel, &mut child);
    // In the child, two of the pages are what the mremap had brought there.
    kernel.present.extend([(A, 7), (A + PAGE, 8)]);
    child.input(fault(A));
    child.input(Input::Evict(1));
    kernel.run(&mut child);
    kernel.run(&mut child);
    assert_eq!(kernel.stops, Vec::<String>::new());
    child.input(fault(A + PAGE));
    kernel.run(&mut child);
    assert_eq!((kernel.present[&A].max(8), kernel.present[&(A + PAGE)], space.evicted()), (8, 8, 3));
}

#[test]
fn what_an_mremap_leaves_mapped_is_still_wiped_on_fork() {
    // DONTUNMAP takes A to B; what is left at A is wiped on fork as before, and then moves onto B.
    let (mut kernel, mut space) = evicted_and_wiped(1);
    for ticket in 1..3 {
        space.input(Input::Asked(Ticket(ticket), mremap(A, PAGE, PAGE)));
        kernel.run(&mut space);
        space.input(Input::Remap { from: A, to: B, len: PAGE });
        space.input(Input::Returned(Ticket(ticket), B as i64));
        drain(&mut kernel, &mut space);
    }
    kernel.mappings = vec![B..B + PAGE];
    kernel.registered.insert(B..B + PAGE);
    kernel.present.insert(B, 2);
    kernel.wiped.insert(B..B + PAGE);
    space.input(Input::Evict(1));
    kernel.run(&mut space);
    let child = forked(&mut kernel, &mut space);
    assert_eq!((space.evicted(), child.evicted()), (1, 0));
}

#[test]
fn a_recall_brings_everything_back_in_turns() {
    let (mut kernel, mut space) = evicted(40);
    space.input(Input::Recall(33));
    kernel.run(&mut space);
    assert_eq!((space.evicted(), kernel.held()), (7, 7));
    space.input(Input::Recall(33));
    kernel.run(&mut space);
    assert_eq!((space.evicted(), space.counters().recalled), (0, 40));
    assert!((0..40).all(|i| kernel.present[&(A + i * PAGE)] == 100 + i));
}

#[test]
fn a_recall_waits_for_changes_and_does_not_cross_mappings() {
    let (mut kernel, mut space) = evicted(4);
    kernel.changing = true;
    space.input(Input::Recall(8));
    kernel.run(&mut space);
    assert_eq!(space.evicted(), 4, "nothing is installed while a change is under way");
    // What the change was: the second half has gone.
    let gone = A + 2 * PAGE..A + 4 * PAGE;
    space.input(Input::Unmap(gone.clone()));
    (kernel.changing, kernel.mappings) = (false, vec![A..A + 2 * PAGE]);
    kernel.registered.remove(gone);
    drain(&mut kernel, &mut space);
    space.input(Input::Recall(8));
    kernel.run(&mut space);
    assert_eq!((space.evicted(), kernel.held(), kernel.present.len()), (0, 0, 2));
}

#[test]
fn a_recall_onto_a_present_page_is_a_stop() {
    let (mut kernel, mut space) = evicted(1);
    kernel.present.insert(A, 5);
    space.input(Input::Recall(1));
    kernel.run(&mut space);
    assert_eq!(kernel.stops.len(), 1);
}

#[test]
fn a_child_is_served_only_what_is_mapped_there() {
    let (mut kernel, mut space) = evicted(2);
    let mut child = forked(&mut kernel, &mut space);
    child.input(fault(A));
    child.input(Input::ParentClosed(Vec::new()));
    assert!(!child.verified());
    // MADV_DONTFORK on the second page.
    kernel.mappings = vec![A..A + PAGE];
    kernel.registered.remove(A + PAGE..A + 2 * PAGE);
    drain(&mut kernel, &mut child);
    assert!(child.verified());
    assert_eq!((kernel.present[&A], child.evicted()), (100, 0), "the other slot is gone");
}
