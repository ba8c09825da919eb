//! What the message of a stop tells, and that nothing is done after it.

use super::*;

#[test]
fn a_stop_names_page_slot_and_what_happened_there() {
    for by in [fault(A), Input::Evict(1), Input::Recall(1)] {
        let (mut kernel, mut space) = evicted(2);
        space.set_now(2_500_000_000);
        space.input(Input::Remove(B..B + PAGE));
        space.input(Input::Unmap(B..B + PAGE));
        drain(&mut kernel, &mut space);
        kernel.present.insert(A, 1);
        space.input(by);
        kernel.run(&mut space);
        assert_eq!(kernel.stops.len(), 1);
        let told = &kernel.stops[0];
        assert!(
            told.starts_with("a page is present at 0x100000, whose contents are in swap slot 1; "),
            "{told}"
        );
        assert!(told.ends_with(": 0.000000 evicted 0x100000-0x102000"), "{told}");
        assert_eq!(
            space.history_of(&(B..B + PAGE)).split(": ").nth(1),
            Some("2.500000 discarded 0x200000-0x201000, 2.500000 unmapped 0x200000-0x201000")
        );
        space.input(fault(A + PAGE));
        assert_eq!(space.next_command(), None);
    }
}

#[test]
fn a_page_that_cannot_be_had_is_a_stop() {
    let (mut kernel, mut space) = evicted(1);
    space.input(fault(A));
    assert!(matches!(space.next_command(), Some(Command::Copy { .. })));
    space.answer(Answer::Lost(A, "it has rotted".into()));
    kernel.run(&mut space);
    assert!(kernel.stops[0].starts_with("it has rotted; the last changes there"), "{:?}", kernel.stops);
    assert_eq!((space.evicted(), space.next_command()), (1, None));
}

#[test]
fn what_is_let_go_is_told_with_its_addresses() {
    let (_, mut space) = evicted(3);
    let slots: Vec<_> = (0..3).map(|page| space.table.get(A + page * PAGE).unwrap().slot).collect();
    assert_eq!(space.place_of(slots[2]), Some(A + 2 * PAGE));
    space.input(Input::Remove(A + PAGE..A + 2 * PAGE));
    let Some(Effect::Free(freed, addrs)) = space.effect() else { panic!("nothing was freed") };
    assert_eq!((freed, addrs), (vec![slots[1]], vec![A + PAGE]));
    assert_eq!(space.place_of(slots[1]), None);
    space.dissolve();
    let Some(Effect::Free(freed, addrs)) = space.effect() else { panic!("nothing was freed") };
    assert_eq!((freed, addrs), (vec![slots[0], slots[2]], vec![A, A + 2 * PAGE]));
}
