//! The calls of the program that the agent executes for it, as orders and behind a real gate.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::sync::{Arc, mpsc};

use vswap_sys::seccomp::{Gate, GatedCall, Notification, Reply, install_gate, set_no_new_privs};
use vswap_sys::socket::socketpair;

use crate::mini::{COOKIE, PAGE, PATIENCE, Pager, Program};
use crate::{all, run, start, target_command};

const WIPE_ON_FORK: u64 = libc::MADV_WIPEONFORK as u64;
const KEEP_ON_FORK: u64 = libc::MADV_KEEPONFORK as u64;
const GUARD_INSTALL: u64 = 102;
const GUARD_REMOVE: u64 = 103;

#[test]
fn mremap_is_executed_for_the_program() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 16);
    assert_eq!(target.evict(&[run(start + 2 * PAGE, 5)]), all(5));
    let maymove = libc::MREMAP_MAYMOVE as u64;
    // A guard page follows, so growing means moving.
    assert_eq!(target.mremap([start, 16 * PAGE, 32 * PAGE, 0, 0]), i64::from(-libc::ENOMEM));
    let moved = target.mremap([start, 16 * PAGE, 32 * PAGE, maymove, 0]).cast_unsigned();
    assert!(moved != start && moved.is_multiple_of(PAGE));
    assert_eq!(program.ask(&format!("moved {moved:#x}")), "intact");
    let length = 16 * PAGE;
    let end = start + length;
    assert_eq!(
        target.service.events(),
        [format!("remap {start:#x} {moved:#x} {length:#x}"), format!("gone {start:#x}..{end:#x}")]
    );
    assert_eq!(target.mremap([1, PAGE, PAGE, 0, 0]), i64::from(-libc::EINVAL));
    assert_eq!(target.mremap([start, PAGE, 2 * PAGE, maymove, 0]), i64::from(-libc::EFAULT));
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn guard_pages_are_installed_for_the_program() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 16);
    // One of the guarded pages is out, the other present.
    assert_eq!(target.evict(&[run(start + 2 * PAGE, 2)]), all(2));
    let guarded = [start + 3 * PAGE, 2 * PAGE, GUARD_INSTALL];
    assert_eq!(target.madvise(guarded), 0);
    assert!(target.service.events().is_empty(), "then the gate need not stop it");
    // What a pager does.
    target.service.store.lock().unwrap().remove(&(start + 3 * PAGE));
    assert_eq!(program.ask(&format!("advise 3 2 {GUARD_REMOVE}")), "advised 0");
    for (page, expected) in [(2, "full"), (3, "empty"), (4, "empty"), (5, "full")] {
        assert_eq!(program.ask(&format!("empty {page}")), expected, "{page}");
    }
    assert_eq!(target.madvise(guarded), 0);
    program.tell("empty 4");
    assert_eq!(program.end().signal(), Some(libc::SIGSEGV));
}

#[test]
fn wiping_on_fork_is_switched_for_the_program() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 16);
    assert_eq!(target.evict(&[run(start + 8 * PAGE, 4)]), all(4));
    // What lies above the int does not count.
    assert_eq!(target.madvise([start + 3 * PAGE, 2 * PAGE, WIPE_ON_FORK | 1 << 32]), 0);
    program.tell("fork");
    let child = pager.welcome();
    assert_eq!(program.hear(), "child corrupt");
    for (page, expected) in [(2, "full"), (3, "empty"), (4, "empty"), (5, "full"), (9, "full")] {
        assert_eq!(program.ask(&format!("empty {page}")), format!("child {expected}"), "{page}");
    }
    program.tell("end");
    assert_eq!(program.hear(), "status 0");
    drop(child);
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(target.madvise([start, 16 * PAGE, KEEP_ON_FORK]), 0);
    program.tell("fork");
    let _child = pager.welcome();
    assert_eq!(program.hear(), "child intact");
    program.tell("end");
    assert_eq!(program.hear(), "status 0");
    assert_eq!(target.service.events(), ["fork", "fork"]);

    assert_eq!(target.madvise([start + 1, PAGE, WIPE_ON_FORK]), i64::from(-libc::EINVAL));
    assert_eq!(target.madvise([0x1000, PAGE, WIPE_ON_FORK]), i64::from(-libc::ENOMEM));
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(program.end().code(), Some(0));
}

/// A target behind a gate, and the calls it is stopped at. An mremap goes on at once: the C library may make some.
fn start_behind_a_gate(pager: &Pager) -> (Program, Arc<Gate>, mpsc::Receiver<Notification>) {
    let (ours, theirs) = socketpair().unwrap();
    let mut command = target_command(pager, 16);
    let install = move || {
        set_no_new_privs()?;
        theirs.send(&[0], &[install_gate(COOKIE, false)?.as_fd()])
    };
    // SAFETY: between fork and exec it makes system calls, and allocates nothing unless one fails.
    unsafe { command.pre_exec(install) };
    // The exec is stopped as well, and the spawn returns after it.
    let exec = std::thread::spawn(move || {
        let (_, mut fds) = ours.recv(&mut [0; 8]).unwrap();
        let gate = Gate::from(fds.pop().unwrap());
        let call = gate.recv().unwrap().unwrap();
        assert_eq!(call.call(), GatedCall::Exec);
        gate.respond(call.id, Reply::Continue).unwrap();
        gate
    });
    // EBUSY: a filter above us has a listener; then nothing of the gate can be tested here.
    let program = Program(command.spawn().unwrap());
    let gate = Arc::new(exec.join().unwrap());
    let (tell, calls) = mpsc::channel();
    let receiver = gate.clone();
    std::thread::spawn(move || {
        loop {
            match receiver.recv() {
                Ok(Some(call)) => {
                    if call.call() == GatedCall::Mremap {
                        receiver.respond(call.id, Reply::Continue).unwrap();
                    }
                    // Nobody listens any more when a test has ended.
                    let _ = tell.send(call);
                }
                Ok(None) => {}
                Err(error) => return assert_eq!(error.kind(), io::ErrorKind::BrokenPipe),
            }
        }
    });
    (program, gate, calls)
}

#[test]
fn the_agent_passes_the_gate_and_the_program_does_not() {
    let pager = Pager::new();
    let (mut program, gate, calls) = start_behind_a_gate(&pager);
    let target = pager.welcome();
    let start = u64::from_str_radix(program.hear().strip_prefix("0x").unwrap(), 16).unwrap();
    target.register(start, 16);
    let not_the_agent = |call: Notification| call.call() == GatedCall::Mremap && call.tid != target.tid;
    assert!(calls.try_iter().all(not_the_agent), "the agent is stopped when it starts");
    for advice in [WIPE_ON_FORK, KEEP_ON_FORK, GUARD_INSTALL] {
        program.tell(&format!("advise 4 2 {advice}"));
        let call = calls.recv_timeout(PATIENCE).unwrap();
        assert_eq!(call.call(), GatedCall::Madvise);
        let [at, size, seen, ..] = call.args;
        assert_eq!([at, size, seen], [start + 4 * PAGE, 2 * PAGE, advice]);
        let answer = target.madvise([at, size, seen]);
        gate.respond(call.id, Reply::Value(answer)).unwrap();
        assert_eq!(program.hear(), "advised 0");
    }
    let shrunk = target.mremap([start, 4 * PAGE, 2 * PAGE, 0, 0]);
    assert_eq!(shrunk.cast_unsigned(), start);
    program.tell("empty 4");
    assert_eq!(program.end().signal(), Some(libc::SIGSEGV));
    assert!(calls.try_iter().all(not_the_agent), "the agent is stopped at what it executes");
}
