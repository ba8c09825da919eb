//! A gate that stops forks: what copies memory waits, what shares it passes, and `clone3` is not there; and every gate: what
//! only a process with one thread may do.

use vswap_sys::process;
use vswap_sys::seccomp::{ARCH_I386, ARCH_X86_64, GatedCall, Reply};

use crate::Test;
use crate::gate::{finish, gated_with, int80, next};

pub(crate) const TESTS: &[Test] = &[
    ("fork_gate_stops_what_copies", fork_gate_stops_what_copies),
    ("fork_gate_lets_pass_what_shares", fork_gate_lets_pass_what_shares),
    ("gate_stops_what_takes_a_single_thread", gate_stops_what_takes_a_single_thread),
];

/// A fork by the bare call, and the errno of one that fails; a child ends with 7.
fn forked(number: libc::c_long, flags: u64) -> i64 {
    // SAFETY: a fork; the child makes one more system call.
    let answer = unsafe { libc::syscall(number, flags, 0, 0, 0, 0) };
    match answer {
        // SAFETY: ends the child.
        0 => unsafe { libc::_exit(7) },
        -1 => -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap()),
        pid => i64::from(process::wait(pid as u32).unwrap().code().unwrap()),
    }
}

fn fork_gate_stops_what_copies() {
    let (child, gate, _conn) = gated_with(true, |_| {
        let sigchld = libc::SIGCHLD as u64;
        let executed = [forked(libc::SYS_fork, 0), forked(libc::SYS_clone, sigchld)];
        let refused = [
            forked(libc::SYS_fork, 0),
            forked(libc::SYS_clone, sigchld | libc::CLONE_VFORK as u64),
            forked(0x4000_0000 | libc::SYS_fork, 0),
            forked(0x4000_0000 | libc::SYS_clone, sigchld),
        ];
        let i386 = [int80(2, [0; 5]), int80(120, [libc::SIGCHLD as u32, 0, 0, 0, 0])];
        executed == [7, 7] && refused == [-81, -82, -83, -84] && i386 == [-85, -86]
    });
    let expected = [
        (ARCH_X86_64, 57, Reply::Continue),
        (ARCH_X86_64, 56, Reply::Continue),
        (ARCH_X86_64, 57, Reply::Errno(81)),
        (ARCH_X86_64, 56, Reply::Errno(82)),
        (ARCH_X86_64, 0x4000_0000 | 57, Reply::Errno(83)),
        (ARCH_X86_64, 0x4000_0000 | 56, Reply::Errno(84)),
        (ARCH_I386, 2, Reply::Errno(85)),
        (ARCH_I386, 120, Reply::Errno(86)),
    ];
    for (arch, nr, reply) in expected {
        let call = next(&gate);
        assert_eq!((call.arch, call.nr, call.call()), (arch, nr, GatedCall::Fork));
        gate.respond(call.id, reply).unwrap();
    }
    finish(child);
}

fn fork_gate_lets_pass_what_shares() {
    // But for the exec nobody answers at this gate: whatever else it stopped would hang.
    let (child, gate, _conn) = gated_with(true, |_| {
        let thread = std::thread::spawn(|| 5).join().unwrap() == 5;
        let spawned = std::process::Command::new("/bin/true").status().unwrap().success();
        let clone3 =
            forked(libc::SYS_clone3, 0) == -i64::from(libc::ENOSYS) && int80(435, [0; 5]) == -libc::ENOSYS;
        thread && spawned && clone3
    });
    let call = next(&gate);
    assert_eq!(call.call(), GatedCall::Exec);
    gate.respond(call.id, Reply::Continue).unwrap();
    finish(child);
}

fn gate_stops_what_takes_a_single_thread() {
    // SAFETY: calls that are not executed, or fail for want of a descriptor or by flags of nothing.
    let call = |number, argument: u64| match unsafe { libc::syscall(number, argument, 0) } {
        -1 => -std::io::Error::last_os_error().raw_os_error().unwrap(),
        answer => answer as i32,
    };
    let (child, gate, _conn) = gated_with(false, |_| {
        let stopped = [
            call(libc::SYS_unshare, libc::CLONE_NEWUSER as u64),
            call(libc::SYS_unshare, libc::CLONE_THREAD as u64),
            call(libc::SYS_setns, u64::MAX),
        ];
        let passed = [call(libc::SYS_unshare, 0), call(libc::SYS_unshare, libc::CLONE_FILES as u64)];
        stopped == [-91, -92, -93] && passed == [0, 0]
    });
    for (nr, errno) in [(libc::SYS_unshare, 91), (libc::SYS_unshare, 92), (libc::SYS_setns, 93)] {
        let call = next(&gate);
        assert_eq!((i64::from(call.nr), call.call()), (nr, GatedCall::Alone));
        gate.respond(call.id, Reply::Errno(errno)).unwrap();
    }
    finish(child);
}
