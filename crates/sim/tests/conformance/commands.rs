//! What commands answer: REGISTER, COPY, ZEROPAGE, WRITEPROTECT as a probe, MOVE.

use vswap_sim::bare::{Call, Command, Said, There};

use crate::Row;

pub(crate) const ROWS: &[Row] = &[
    ("REGISTER takes a range with a hole, and refuses one without a mapping", |k| {
        k.filled(0..2);
        k.filled(4..6);
        assert_eq!(k.command(0, Command::Register(10..12)), (0, libc::EINVAL));
        assert_eq!(k.command(0, Command::Register(0..6)), (0, 0));
        k.quietly(Call::Map(2..4));
        k.assert_registered(0..2, true);
        k.assert_registered(2..4, false);
        k.assert_registered(4..6, true);
    }),
    ("REGISTER is not refused while a change is counted", |k| {
        k.registered(0..4);
        k.filled(8..10);
        k.start(0, Call::Unmap(0..1));
        k.assert_counted(3);
        assert_eq!(k.command(0, Command::Register(8..10)), (0, 0));
        assert_eq!(k.finish(0).1, [Said::Unmap(0..1)]);
        k.assert_registered(8..10, true);
    }),
    ("COPY and ZEROPAGE fill what is missing, and wake", |k| {
        k.quietly(Call::Map(0..4));
        assert_eq!(k.command(0, Command::Register(0..4)), (0, 0));
        k.start(1, Call::Read(0));
        assert_eq!(k.due(0), Said::Fault { page: 0, write: false });
        k.start(2, Call::Write(1, 7));
        assert_eq!(k.due(0), Said::Fault { page: 1, write: true });
        assert_eq!(k.command(0, Command::Copy(0, vec![5])), (1, 0));
        assert_eq!(k.end(1), 5);
        assert_eq!(k.command(0, Command::Zero(1..3)), (2, 0));
        k.end(2);
        assert_eq!([k.read(0), k.read(1), k.read(2)], [5, 7, 0]);
    }),
    ("COPY and ZEROPAGE stop at what is there: EEXIST, or a short count and EAGAIN", |k| {
        k.quietly(Call::Map(0..6));
        assert_eq!(k.command(0, Command::Register(0..6)), (0, 0));
        assert_eq!(k.command(0, Command::Copy(2, vec![2])), (1, 0));
        assert_eq!(k.command(0, Command::Copy(2, vec![9])), (0, libc::EEXIST));
        assert_eq!(k.command(0, Command::Zero(2..3)), (0, libc::EEXIST));
        assert_eq!(k.command(0, Command::Copy(0, vec![1, 1, 1])), (2, libc::EAGAIN));
        assert_eq!(k.command(0, Command::Copy(4, vec![4])), (1, 0));
        assert_eq!(k.command(0, Command::Zero(3..6)), (1, libc::EAGAIN));
        assert_eq!([k.read(0), k.read(2), k.read(3), k.read(4)], [1, 2, 0, 4]);
    }),
    ("COPY and ZEROPAGE into what is not registered, or not one mapping: ENOENT", |k| {
        k.quietly(Call::Map(0..2));
        k.quietly(Call::Map(4..6));
        assert_eq!(k.command(0, Command::Register(0..2)), (0, 0));
        k.quietly(Call::Map(2..4));
        for page in [1, 2, 4, 7] {
            let two = (0, libc::ENOENT);
            assert_eq!(k.command(0, Command::Copy(page, vec![1, 1])), two, "{page}");
            assert_eq!(k.command(0, Command::Zero(page..page + 2)), two, "{page}");
        }
        assert_eq!(k.command(0, Command::Copy(1, vec![1])), (1, 0));
    }),
    ("the probe: 0 registered, ENOENT not", |k| {
        k.registered(0..2);
        k.filled(2..4);
        k.assert_registered(0..2, true);
        k.assert_registered(2..5, false);
    }),
    ("MOVE empties what it takes, and the program faults there", |k| {
        k.registered(0..8);
        assert_eq!(k.command(0, Command::Move(2..6, 0)), (4, 0));
        assert_eq!(k.there(1), There::Page);
        assert_eq!(k.there(2), There::Nothing);
        assert_eq!(k.read(1), 1001);
        k.faults(3, 33);
    }),
    ("MOVE and a hole: ENOENT at it, a short count and EAGAIN before it", |k| {
        k.registered(0..8);
        assert_eq!(k.command(0, Command::Move(3..4, 0)), (1, 0));
        assert_eq!(k.command(0, Command::Move(3..5, 1)), (0, libc::ENOENT));
        assert_eq!(k.command(0, Command::Move(1..6, 1)), (2, libc::EAGAIN));
        assert_eq!(k.command(0, Command::Move(20..21, 8)), (0, libc::ENOENT), "not mapped");
    }),
    ("MOVE to where something is: EEXIST", |k| {
        k.registered(0..8);
        assert_eq!(k.command(0, Command::Move(0..1, 1)), (1, 0));
        assert_eq!(k.command(0, Command::Move(1..2, 1)), (0, libc::EEXIST));
        assert_eq!(k.command(0, Command::Move(2..4, 0)), (1, libc::EAGAIN));
    }),
    ("MOVE to staging that is not registered: EINVAL, and what is there stays", |k| {
        k.registered(0..8);
        assert_eq!(k.command(0, Command::Move(0..2, 0)), (2, 0));
        assert_eq!(k.command(0, Command::Fence(true)), (0, 0));
        assert_eq!(k.command(0, Command::Move(2..4, 2)), (0, libc::EINVAL));
        assert_eq!(k.there(2), There::Page);
        assert_eq!(k.command(0, Command::Fence(false)), (0, 0));
        assert_eq!(k.command(0, Command::Move(2..4, 0)), (0, libc::EEXIST), "still there");
        assert_eq!(k.command(0, Command::Move(2..4, 2)), (2, 0));
    }),
    ("MOVE of read-only or locked memory, or across mappings: EINVAL", |k| {
        k.registered(0..8);
        k.quietly(Call::ReadOnly(0..2, true));
        assert_eq!(k.command(0, Command::Move(0..1, 0)), (0, libc::EINVAL));
        assert_eq!(k.command(0, Command::Move(1..3, 0)), (0, libc::EINVAL));
        assert_eq!(k.command(0, Command::Move(7..9, 0)), (0, libc::EINVAL));
        k.quietly(Call::Lock(4..6, true));
        assert_eq!(k.command(0, Command::Move(4..5, 0)), (0, libc::EINVAL));
        k.quietly(Call::Lock(4..6, false));
        k.quietly(Call::ReadOnly(0..2, false));
        assert_eq!(k.command(0, Command::Move(0..5, 0)), (5, 0));
    }),
    ("MOVE of executable or shared memory: EINVAL", |k| {
        k.registered(0..4);
        k.quietly(Call::Executable(1..2, true));
        assert_eq!(k.command(0, Command::Move(1..2, 0)), (0, libc::EINVAL));
        k.quietly(Call::Executable(1..2, false));
        assert_eq!(k.command(0, Command::Move(1..2, 0)), (1, 0));
        k.quietly(Call::MapShared(8..10));
        k.quietly(Call::Write(8, 7));
        assert_eq!(k.command(0, Command::Move(8..9, 1)), (0, libc::EINVAL));
        assert_eq!([k.read(0), k.read(8)], [1000, 7]);
    }),
    ("MOVE of what is pinned: EBUSY, until it is let go", |k| {
        k.registered(0..4);
        assert_eq!(k.quietly(Call::Pin(1..3, true)), 0);
        assert_eq!(k.command(0, Command::Move(1..3, 0)), (0, libc::EBUSY));
        assert_eq!(k.command(0, Command::Move(0..4, 0)), (1, libc::EAGAIN));
        assert_eq!([k.read(1), k.read(2)], [1001, 1002]);
        assert_eq!(k.quietly(Call::Pin(1..3, false)), 0);
        assert_eq!(k.command(0, Command::Move(1..4, 1)), (3, 0));
    }),
    ("MOVE takes the zero page", |k| {
        k.quietly(Call::Map(0..2));
        assert_eq!(k.command(0, Command::Register(0..2)), (0, 0));
        assert_eq!(k.command(0, Command::Zero(0..1)), (1, 0));
        assert_eq!(k.command(0, Command::Move(0..1, 0)), (1, 0));
        k.faults(0, 1);
    }),
    ("MOVE out of an unregistered mapping succeeds, and the program reads zeros", |k| {
        k.filled(0..2);
        assert_eq!(k.command(0, Command::Move(0..1, 0)), (1, 0));
        assert_eq!([k.read(0), k.read(1)], [0, 1001]);
    }),
    ("MOVE of a page that was freed and not written", |k| {
        k.registered(0..2);
        assert_eq!(k.call(Call::Free(0..2)).1, [Said::Remove(0..2)]);
        assert_eq!(k.command(0, Command::Move(0..2, 0)), (2, 0));
    }),
    ("guard pages: no event; COPY replaces a marker, ZEROPAGE and MOVE do not", |k| {
        k.registered(0..6);
        k.quietly(Call::Guard(1..5, true));
        assert_eq!([k.there(0), k.there(1), k.there(2)], [There::Page, There::Guard, There::Guard]);
        k.assert_registered(0..6, true);
        assert_eq!(k.command(0, Command::Zero(1..2)), (0, libc::EEXIST));
        assert_eq!(k.command(0, Command::Move(1..2, 0)), (0, libc::EFAULT));
        assert_eq!(k.command(0, Command::Copy(2, vec![22])), (1, 0));
        assert_eq!(k.read(2), 22);
        k.quietly(Call::Guard(1..5, false));
        assert_eq!([k.there(1), k.there(2), k.there(3)], [There::Nothing, There::Page, There::Nothing]);
        k.faults(3, 3);
    }),
    ("WAKE brings nothing: the thread faults again", |k| {
        k.registered(0..2);
        assert_eq!(k.command(0, Command::Move(0..1, 0)), (1, 0));
        k.start(1, Call::Read(0));
        for _ in 0..2 {
            assert_eq!(k.due(0), Said::Fault { page: 0, write: false });
            assert_eq!(k.command(0, Command::Wake(0..1)), (0, 0));
        }
        assert_eq!(k.due(0), Said::Fault { page: 0, write: false });
        assert_eq!(k.command(0, Command::Copy(0, vec![3])), (1, 0));
        assert_eq!(k.end(1), 3);
    }),
    ("PAGEMAP_SCAN finds pages: no hole, no guard, not the zero page", |k| {
        k.registered(0..10);
        assert_eq!(k.command(0, Command::Move(2..4, 0)), (2, 0));
        assert_eq!(k.command(0, Command::Zero(2..3)), (1, 0));
        k.quietly(Call::Guard(6..7, true));
        assert_eq!(k.scan(0..12, 100), (vec![0..2, 4..6, 7..10], 12));
        assert_eq!(k.scan(0..12, 3), (vec![0..2, 4..5], 5));
        assert_eq!(k.scan(5..12, 2), (vec![5..6, 7..8], 8));
    }),
    ("PROCMAP_QUERY tells the mapping, or the next one: REGISTER splits and joins them", |k| {
        k.filled(2..10);
        k.filled(20..22);
        assert_eq!(k.command(0, Command::Register(4..6)), (0, 0));
        assert_eq!([k.mapping(0), k.mapping(2)], [Some(2..4), Some(2..4)]);
        assert_eq!([k.mapping(5), k.mapping(6), k.mapping(9)], [Some(4..6), Some(6..10), Some(6..10)]);
        assert_eq!(k.mapping(10), Some(20..22));
        assert_eq!(k.command(0, Command::Register(2..10)), (0, 0));
        assert_eq!(k.mapping(6), Some(2..10));
    }),
    ("faults are read before events", |k| {
        k.registered(0..4);
        assert_eq!(k.command(0, Command::Move(0..1, 0)), (1, 0));
        k.start(0, Call::Unmap(3..4));
        k.queued(1);
        k.start(1, Call::Read(0));
        k.queued(2);
        assert_eq!(k.due(0), Said::Fault { page: 0, write: false });
        assert_eq!(k.due(0), Said::Unmap(3..4));
        k.end(0);
        assert_eq!(k.command(0, Command::Copy(0, vec![1])), (1, 0));
        assert_eq!(k.end(1), 1);
    }),
];
