//! What each change of mappings says, in which order, and what is registered afterwards.

use vswap_sim::bare::{Call, Command, Said, There};

use crate::Row;

pub(crate) const ROWS: &[Row] = &[
    ("munmap: UNMAP with the caller's range, holes included, after the change", |k| {
        k.registered(0..2);
        k.registered(4..6);
        k.registered(8..9);
        k.start(0, Call::Unmap(1..5));
        k.assert_counted(8);
        assert_eq!(k.there(1), There::Nothing, "the change is made already");
        assert_eq!(k.finish(0), (0, vec![Said::Unmap(1..5)]));
        k.assert_registered(0..1, true);
        k.assert_registered(1..5, false);
        k.assert_registered(5..6, true);
    }),
    ("munmap of what is not registered: nothing", |k| {
        k.registered(0..2);
        k.filled(4..6);
        k.quietly(Call::Unmap(4..6));
    }),
    ("MAP_FIXED over: UNMAP, and what is new is not registered", |k| {
        k.registered(0..4);
        k.registered(8..9);
        k.start(0, Call::Map(1..3));
        k.assert_counted(8);
        assert_eq!(k.finish(0), (1, vec![Said::Unmap(1..3)]));
        k.assert_registered(1..3, false);
        k.assert_registered(3..4, true);
        assert_eq!(k.read(1), 0);
    }),
    ("MADV_DONTNEED: REMOVE before the zap, still registered", |k| {
        k.registered(0..4);
        k.registered(8..9);
        k.start(0, Call::DontNeed(1..3));
        k.assert_counted(8);
        assert_eq!(k.there(1), There::Page, "the zap comes later");
        assert_eq!(k.finish(0), (0, vec![Said::Remove(1..3)]));
        assert_eq!([k.there(0), k.there(1), k.there(2)], [There::Page, There::Nothing, There::Nothing]);
        k.assert_registered(0..4, true);
        k.faults(1, 0);
    }),
    ("MADV_FREE: REMOVE, and a page that is written again stays", |k| {
        k.registered(0..4);
        assert_eq!(k.call(Call::Free(1..3)), (0, vec![Said::Remove(1..3)]));
        k.quietly(Call::Write(1, 77));
        k.assert_registered(0..4, true);
        assert_eq!([k.read(0), k.read(1)], [1000, 77]);
    }),
    ("mremap grows in place: no event, and what is new is registered at once", |k| {
        k.registered(0..4);
        assert_eq!(k.quietly(Call::Resize { old: 0..4, pages: 8 }), 0);
        k.assert_registered(0..8, true);
        k.faults(6, 0);
    }),
    ("mremap shrinks in place: UNMAP of the tail", |k| {
        k.registered(0..4);
        k.registered(8..9);
        k.start(0, Call::Resize { old: 0..4, pages: 1 });
        k.assert_counted(8);
        assert_eq!(k.finish(0), (0, vec![Said::Unmap(1..4)]));
        k.assert_registered(0..1, true);
        k.assert_registered(1..4, false);
    }),
    ("mremap moves: REMAP, then UNMAP of the source; all of it is registered", |k| {
        k.registered(0..4);
        k.registered(8..9);
        k.start(0, Call::Move { old: 0..4, new: 20..24 });
        k.assert_counted(8);
        assert_eq!(k.due(0), Said::Remap { from: 0, to: 20, len: 4 });
        k.assert_counted(8);
        assert_eq!(k.finish(0), (20, vec![Said::Unmap(0..4)]));
        k.assert_registered(0..4, false);
        k.assert_registered(20..24, true);
        assert_eq!(k.read(21), 1001);
    }),
    ("mremap of a part moves that part", |k| {
        k.registered(0..6);
        let (_, said) = k.call(Call::Move { old: 2..4, new: 20..22 });
        assert_eq!(said, [Said::Remap { from: 2, to: 20, len: 2 }, Said::Unmap(2..4)]);
        k.assert_registered(0..2, true);
        k.assert_registered(2..4, false);
        k.assert_registered(4..6, true);
        k.assert_registered(20..22, true);
    }),
    ("mremap grows and moves: REMAP with the old length, and what grew is registered", |k| {
        k.registered(0..2);
        k.filled(2..3);
        let (to, said) = k.call(Call::Resize { old: 0..2, pages: 5 });
        let to = to as usize;
        assert_eq!(said, [Said::Remap { from: 0, to, len: 2 }, Said::Unmap(0..2)]);
        k.assert_registered(to..to + 5, true);
        k.assert_registered(0..2, false);
        assert_eq!(k.read(to + 1), 1001);
        k.faults(to + 3, 0);
    }),
    ("mremap FIXED and longer: REMAP with the old length", |k| {
        k.registered(0..2);
        let (_, said) = k.call(Call::Move { old: 0..2, new: 20..25 });
        assert_eq!(said, [Said::Remap { from: 0, to: 20, len: 2 }, Said::Unmap(0..2)]);
        k.assert_registered(20..25, true);
    }),
    ("mremap FIXED and shorter: REMAP with the new length, UNMAP of the tail, UNMAP of the source", |k| {
        k.registered(0..4);
        let (_, said) = k.call(Call::Move { old: 0..4, new: 20..22 });
        assert_eq!(said, [Said::Remap { from: 0, to: 20, len: 2 }, Said::Unmap(2..4), Said::Unmap(0..2)]);
        k.assert_registered(0..4, false);
        k.assert_registered(20..22, true);
    }),
    ("mremap FIXED onto what is registered: UNMAP of the target first", |k| {
        k.registered(0..2);
        k.registered(20..23);
        let (_, said) = k.call(Call::Move { old: 0..2, new: 20..22 });
        assert_eq!(said, [Said::Unmap(20..22), Said::Remap { from: 0, to: 20, len: 2 }, Said::Unmap(0..2)]);
        k.assert_registered(20..23, true);
        assert_eq!([k.read(20), k.read(21), k.read(22)], [1000, 1001, 1022]);
    }),
    ("mremap of what is not registered onto what is: UNMAP of the target only", |k| {
        k.filled(0..2);
        k.registered(20..23);
        assert_eq!(k.call(Call::Move { old: 0..2, new: 20..22 }).1, [Said::Unmap(20..22)]);
        k.assert_registered(20..22, false);
        k.assert_registered(22..23, true);
        assert_eq!(k.read(20), 1000);
    }),
    ("mremap of what is not registered: nothing", |k| {
        k.registered(30..31);
        k.filled(0..2);
        k.quietly(Call::Move { old: 0..2, new: 20..22 });
        k.assert_registered(20..22, false);
    }),
    ("mremap DONTUNMAP: REMAP only; the source is empty, and both are registered", |k| {
        k.registered(0..2);
        let (to, said) = k.call(Call::MoveKeeping(0..2));
        let to = to as usize;
        assert_eq!(said, [Said::Remap { from: 0, to, len: 2 }]);
        k.assert_registered(0..2, true);
        k.assert_registered(to..to + 2, true);
        assert_eq!(k.there(0), There::Nothing);
        assert_eq!(k.read(to), 1000);
        k.faults(0, 0);
    }),
    (
        "mremap of several mappings: only unregistered ones move; at a registered one EFAULT, and the rest has moved",
        |k| {
            k.filled(0..2);
            k.filled(2..4);
            assert_eq!(k.command(0, Command::Register(2..4)), (0, 0));
            let failed = (-i64::from(libc::EFAULT), vec![]);
            assert_eq!(k.call(Call::Move { old: 0..4, new: 20..24 }), failed);
            assert_eq!(k.read(20), 1000);
            assert_eq!([k.there(0), k.there(2), k.there(22)], [There::Nothing, There::Page, There::Nothing]);
            k.filled(4..6);
            assert_eq!(k.call(Call::Move { old: 2..6, new: 30..34 }), failed);
            assert_eq!([k.there(2), k.there(4), k.there(30)], [There::Page, There::Page, There::Nothing]);
            k.filled(40..42);
            k.filled(42..44);
            k.quietly(Call::ReadOnly(42..44, true));
            assert_eq!(k.quietly(Call::Move { old: 40..44, new: 50..54 }), 50);
            assert_eq!([k.read(50), k.read(53)], [1040, 1043]);
            // The count is as it was: nothing is left over from the failures.
            k.assert_registered(2..4, true);
        },
    ),
    ("mmap, mprotect, mlock: nothing; mprotect and mlock leave it registered", |k| {
        k.registered(0..4);
        k.quietly(Call::Map(8..9));
        k.quietly(Call::ReadOnly(0..2, true));
        k.quietly(Call::Lock(2..4, true));
        k.assert_registered(0..4, true);
        k.assert_registered(8..9, false);
        k.quietly(Call::ReadOnly(0..2, false));
        k.quietly(Call::Lock(2..4, false));
        assert_eq!([k.read(0), k.read(3)], [1000, 1003]);
    }),
    ("mlock brings in what is missing, by faults", |k| {
        k.registered(0..2);
        assert_eq!(k.command(0, Command::Move(0..1, 0)), (1, 0));
        k.start(0, Call::Lock(0..2, true));
        assert!(matches!(k.due(0), Said::Fault { page: 0, .. }));
        assert_eq!(k.command(0, Command::Copy(0, vec![5])), (1, 0));
        assert_eq!(k.finish(0), (0, vec![]));
        assert_eq!(k.read(0), 5);
    }),
    ("several mappings in one DONTNEED: a REMOVE for each that is registered", |k| {
        k.registered(0..2);
        k.filled(2..4);
        k.registered(4..6);
        let (result, said) = k.call(Call::DontNeed(0..6));
        assert_eq!((result, said), (0, vec![Said::Remove(0..2), Said::Remove(4..6)]));
        assert!((0..6).all(|page| k.there(page) == There::Nothing));
    }),
    ("several mappings in one munmap: one UNMAP", |k| {
        k.filled(0..2);
        k.registered(2..4);
        k.filled(4..6);
        k.registered(6..8);
        assert_eq!(k.call(Call::Unmap(0..8)), (0, vec![Said::Unmap(0..8)]));
    }),
    ("a stack grows: no event; what is new is registered where the stack was", |k| {
        k.quietly(Call::MapStack(600..602));
        k.quietly(Call::Write(590, 7));
        assert_eq!([k.there(589), k.there(590), k.there(591)], [There::Nothing, There::Page, There::Nothing]);
        k.quietly(Call::Write(595, 8));
        assert_eq!(k.command(0, Command::Register(590..602)), (0, 0));
        // The first word of it is a fault in a page that nobody has registered.
        k.faults(580, 9);
        k.assert_registered(580..602, true);
        k.assert_registered(579..580, false);
        assert_eq!([k.read(590), k.read(595)], [7, 8]);
    }),
    ("events come in another order than their changes", |k| {
        k.registered(0..2);
        k.registered(10..12);
        k.registered(20..22);
        // What was at 0 is unmapped, and 10 has moved there: but the first is told first, and waited for.
        k.start(0, Call::Move { old: 10..12, new: 0..2 });
        k.queued(1);
        k.start(1, Call::Move { old: 20..22, new: 10..12 });
        k.appears(10);
        k.asleep(1);
        assert_eq!(k.due(0), Said::Unmap(0..2));
        assert_eq!(k.due(0), Said::Remap { from: 20, to: 10, len: 2 }, "the second change");
        let later = [k.due(0), k.due(0), k.due(0)];
        let at = |said| later.iter().position(|other| *other == said).expect("it is said");
        let first = at(Said::Remap { from: 10, to: 0, len: 2 });
        assert!(first < at(Said::Unmap(10..12)), "what is unmapped there is what the first change has left");
        at(Said::Unmap(20..22));
        assert_eq!([k.end(0), k.end(1)], [0, 10]);
        assert_eq!([k.read(0), k.read(10)], [1010, 1020]);
    }),
];
