//! Forks, children that share the memory, and the end.

use vswap_sim::bare::{CHILD, Call, Command, Said, There};

use crate::Row;
use crate::history::Kernel;

pub(crate) const ROWS: &[Row] = &[
    ("fork: FORK; the child's is registered too, and faults on its own", |k| {
        k.registered(0..4);
        k.registered(8..9);
        assert_eq!(k.command(0, Command::Move(1..2, 0)), (1, 0));
        k.start(0, Call::Fork);
        k.assert_counted(8);
        assert_eq!(k.finish(0), (0, vec![Said::Fork]));
        k.start(CHILD, Call::Read(1));
        assert_eq!(k.due(1), Said::Fault { page: 1, write: false });
        assert_eq!(k.command(1, Command::Probe(0)), (0, 0));
        assert_eq!(k.command(1, Command::Copy(1, vec![11])), (1, 0));
        assert_eq!(k.end(CHILD), 11);
        assert_eq!(k.there(1), There::Nothing, "the parent's is missing as before");
        k.faults(1, 12);
    }),
    ("fork without anything registered to inherit: no FORK", |k| {
        k.registered(0..2);
        k.filled(4..5);
        k.quietly(Call::DontFork(0..2));
        k.quietly(Call::Fork);
        k.start(CHILD, Call::Read(4));
        assert_eq!(k.end(CHILD), 1004);
    }),
    ("MOVE of what a fork shares: EBUSY, also when the child is dead, until it is written", |k| {
        k.registered(0..4);
        assert_eq!(k.call(Call::Fork).1, [Said::Fork]);
        assert_eq!(k.command(0, Command::Move(0..2, 0)), (0, libc::EBUSY));
        k.start(CHILD, Call::Exit);
        k.end(CHILD);
        assert_eq!(k.command(0, Command::Move(0..2, 0)), (0, libc::EBUSY));
        k.quietly(Call::Write(0, 5));
        assert_eq!(k.command(0, Command::Move(0..2, 0)), (1, libc::EAGAIN));
    }),
    ("MADV_POPULATE_WRITE ends the sharing of a fork, and faults where nothing is", |k| {
        k.registered(0..4);
        assert_eq!(k.command(0, Command::Move(3..4, 0)), (1, 0));
        assert_eq!(k.call(Call::Fork).1, [Said::Fork]);
        k.quietly(Call::Populate(0..2));
        assert_eq!(k.command(0, Command::Move(0..3, 1)), (2, libc::EAGAIN));
        k.start(0, Call::Populate(2..4));
        assert_eq!(k.due(0), Said::Fault { page: 3, write: true });
        assert_eq!(k.command(0, Command::Copy(3, vec![4])), (1, 0));
        assert_eq!(k.finish(0), (0, vec![]));
        assert_eq!([k.read(2), k.read(3)], [1002, 4]);
        assert_eq!(k.child(Call::Read(1)), 1001);
    }),
    ("commands on another process: all but MOVE", |k| {
        k.registered(0..4);
        k.filled(6..7);
        assert_eq!(k.command(0, Command::Move(1..3, 0)), (2, 0));
        assert_eq!(k.call(Call::Fork).1, [Said::Fork]);
        assert_eq!(k.command(1, Command::Move(0..1, 4)), (0, libc::EINVAL));
        assert_eq!(k.command(1, Command::Zero(1..2)), (1, 0));
        assert_eq!(k.command(1, Command::Copy(2, vec![9])), (1, 0));
        assert_eq!(k.command(1, Command::Register(6..7)), (0, 0));
        assert_eq!(k.command(1, Command::Probe(6)), (0, 0));
        assert_eq!(k.command(0, Command::Probe(6)), (0, libc::ENOENT));
        for (page, value) in [(0, 1000), (1, 0), (2, 9), (6, 1006)] {
            assert_eq!(k.child(Call::Read(page)), value);
        }
        assert_eq!([k.there(1), k.there(2)], [There::Nothing, There::Nothing]);
    }),
    ("exit: nothing; the process answers ESRCH, and ENOMEM to REGISTER", |k| leaves(k, Call::Exit)),
    ("exec: nothing; the process answers as after an exit", |k| leaves(k, Call::Exec)),
    ("brk: nothing where the heap grows, and what is new is not registered; UNMAP where it shrinks", |k| {
        k.registered(0..1);
        assert_eq!(k.call(Call::Fork).1, [Said::Fork]);
        let end = k.child(Call::Brk(4)) as usize;
        assert_eq!(k.command(1, Command::Register(end - 4..end)), (0, 0));
        assert_eq!(k.child(Call::Brk(3)) as usize, end + 3);
        assert_eq!(k.command(1, Command::Probe(end - 1)), (0, 0));
        assert_eq!(k.command(1, Command::Probe(end)), (0, libc::ENOENT));
        assert_eq!(k.child(Call::Brk(-1)) as usize, end + 2);
        k.start(CHILD, Call::Brk(-3));
        assert_eq!(k.due(1), Said::Unmap(end - 1..end + 2));
        assert_eq!(k.end(CHILD) as usize, end - 1);
        assert_eq!(k.command(1, Command::Probe(end - 2)), (0, 0));
        assert_eq!(k.command(1, Command::Probe(end - 1)), (0, libc::ENOENT));
    }),
    ("vfork and posix_spawn: nothing; it stays registered, and is not shared as after a fork", |k| {
        k.registered(0..4);
        for exec in [false, true] {
            assert_eq!(k.quietly(Call::Spawn { exec }), 0);
        }
        k.assert_registered(0..4, true);
        assert_eq!(k.read(3), 1003);
        assert_eq!(k.command(0, Command::Move(0..4, 0)), (4, 0));
        k.faults(1, 5);
    }),
    ("a child on our memory: its munmap says UNMAP here", |k| {
        k.registered(0..4);
        k.start(0, Call::Vfork(1..2));
        assert_eq!(k.due(0), Said::Unmap(1..2));
        k.quiet();
        k.assert_registered(0..1, true);
        k.assert_registered(1..2, false);
    }),
    (
        "a child on our memory that is killed while its munmap waits: UNMAP is lost, and nothing is counted",
        |k| {
            k.registered(0..4);
            k.start(0, Call::Vfork(1..2));
            k.queued(1);
            assert_eq!(k.command(0, Command::Probe(0)), (0, libc::EAGAIN));
            k.kill_vfork();
            assert_eq!(k.message(0), None);
            k.assert_registered(0..1, true);
            k.assert_registered(1..2, false);
        },
    ),
];

/// The forked child leaves its memory.
fn leaves(k: &mut dyn Kernel, by: Call) {
    k.registered(0..2);
    assert_eq!(k.call(Call::Fork).1, [Said::Fork]);
    assert_eq!(k.command(1, Command::Probe(0)), (0, 0));
    assert_eq!(k.child(by), 0);
    assert_eq!(k.command(1, Command::Probe(0)), (0, libc::ESRCH));
    assert_eq!(k.command(1, Command::Copy(0, vec![1])), (0, libc::ESRCH));
    assert_eq!(k.command(1, Command::Zero(0..1)), (0, libc::ESRCH));
    assert_eq!(k.command(1, Command::Register(0..1)), (0, libc::ENOMEM));
    assert_eq!(k.read(1), 1001);
}
