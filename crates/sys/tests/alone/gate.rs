//! The gate: a child behind it, and this process answering.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::seccomp::{
    ARCH_I386, ARCH_X86_64, Exec, GATED_ADVICE, Gate, GatedCall, Installs, Notification, Reply, install_gate,
    set_no_new_privs,
};
use vswap_sys::socket::{Conn, socketpair};
use vswap_sys::{PAGE_SIZE, seccomp};

use crate::Test;
use crate::common::{Area, PATIENCE, is_root, readable};

pub(crate) const TESTS: &[Test] = &[
    ("gate_continue_executes", gate_continue_executes),
    ("gate_value_and_errno_do_not_execute", gate_value_and_errno_do_not_execute),
    ("gate_lets_the_cookie_pass", gate_lets_the_cookie_pass),
    ("gate_covers_the_other_entries", gate_covers_the_other_entries),
    ("gate_stops_advice_that_no_event_tells", gate_stops_advice_that_no_event_tells),
    ("gate_lets_other_advice_and_the_cookie_pass", gate_lets_other_advice_and_the_cookie_pass),
    ("gate_refuses_advice_from_afar", gate_refuses_advice_from_afar),
    ("gate_stops_execs", gate_stops_execs),
    ("gate_stops_filters", gate_stops_filters),
    ("gate_holds_descendants", gate_holds_descendants),
    ("gate_signal_does_not_interrupt", gate_signal_does_not_interrupt),
    ("gate_caller_that_died", gate_caller_that_died),
    ("gate_without_holder_answers_enosys", gate_without_holder_answers_enosys),
    ("gate_only_one", gate_only_one),
    ("gate_needs_privilege_or_no_new_privs", gate_needs_privilege_or_no_new_privs),
];

const COOKIE: u64 = 0x0123_4567_89ab_cdef;
const PAGE: u64 = PAGE_SIZE as u64;
const QUIET: Duration = Duration::from_millis(100);

/// A child that installs the gate, sends us the listener and runs `act`, whose `false` (or panic) fails the test.
fn gated(act: impl FnOnce(&Conn) -> bool) -> (u32, Gate, Conn) {
    gated_with(false, act)
}

/// The same, and forks may be stopped too.
pub(crate) fn gated_with(stop_forks: bool, act: impl FnOnce(&Conn) -> bool) -> (u32, Gate, Conn) {
    let (ours, theirs) = socketpair().unwrap();
    let child = process::fork_with(|| {
        if !is_root() {
            set_no_new_privs().unwrap();
        }
        let listener = install_gate(COOKIE, stop_forks).expect("the gate");
        theirs.send(b"g", &[listener.as_fd()]).unwrap();
        drop(listener);
        i32::from(!act(&theirs))
    })
    .unwrap();
    drop(theirs);
    let (_, mut fds) = ours.recv(&mut [0; 8]).unwrap();
    (child, Gate::from(fds.pop().expect("the listener")), ours)
}

pub(crate) fn finish(child: u32) {
    let status = process::wait(child).unwrap();
    assert!(status.success(), "the child saw something wrong: {status}");
}

pub(crate) fn next(gate: &Gate) -> Notification {
    assert!(readable(gate, PATIENCE), "no notification");
    gate.recv().unwrap().expect("the caller lives")
}

/// The result as the kernel gives it.
fn result(answer: i64) -> i64 {
    match answer {
        -1 => -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap()),
        _ => answer,
    }
}

/// mremap with a sixth argument.
fn raw_mremap(number: libc::c_long, area: Area, pages: u64, cookie: u64) -> i64 {
    // SAFETY: only memory of this area, which no Rust object lives in.
    result(unsafe {
        libc::syscall(number, area.base, area.pages * PAGE, pages * PAGE, libc::MREMAP_MAYMOVE, 0, cookie)
    })
}

/// madvise of the whole area with a sixth argument.
fn raw_madvise(number: libc::c_long, area: Area, advice: u64, cookie: u64) -> i64 {
    // SAFETY: only memory of this area, which no Rust object lives in.
    result(unsafe { libc::syscall(number, area.base, area.pages * PAGE, advice, 0, 0, cookie) })
}

/// process_madvise of the whole area, in this process, with a sixth argument.
fn process_madvise(number: libc::c_long, area: Area, advice: u64, cookie: u64) -> i64 {
    let range = libc::iovec { iov_base: area.base as *mut _, iov_len: (area.pages * PAGE) as usize };
    // SAFETY: takes integers.
    let own = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    assert!(own >= 0);
    // SAFETY: only memory of this area, which no Rust object lives in; the range outlives the call.
    let answer = result(unsafe { libc::syscall(number, own, &raw const range, 1, advice, 0, cookie) });
    // SAFETY: opened above, and used by nobody else.
    unsafe { libc::close(own as i32) };
    answer
}

fn mremap(area: Area, pages: u64) -> i64 {
    raw_mremap(libc::SYS_mremap, area, pages, 0)
}

fn gate_continue_executes() {
    let area = Area::new(4);
    let (child, gate, _conn) = gated(|_| {
        area.write(3, 42);
        let answer = mremap(area, 4000);
        answer > 0 && Area { base: answer as u64, pages: 4000 }.read(3) == 42
    });
    gate.set_sync_wake().unwrap();
    let call = next(&gate);
    assert_eq!((call.tid, call.arch, call.nr), (child, ARCH_X86_64, libc::SYS_mremap as u32));
    assert_eq!(call.call(), GatedCall::Mremap);
    assert_eq!(call.args[..4], [area.base, 4 * PAGE, 4000 * PAGE, libc::MREMAP_MAYMOVE as u64]);
    assert!(gate.is_valid(call.id) && !gate.is_valid(call.id + 1));
    gate.respond(call.id, Reply::Continue).unwrap();
    finish(child);
}

fn gate_value_and_errno_do_not_execute() {
    let area = Area::new(4);
    let (child, gate, _conn) = gated(|_| {
        area.write(3, 42);
        let answers = [mremap(area, 8), mremap(area, 8), mremap(area, 8)];
        answers == [0x7000, -i64::from(libc::ENOMEM), -i64::from(libc::EFAULT)] && area.read(3) == 42
    });
    for reply in [Reply::Value(0x7000), Reply::Errno(libc::ENOMEM), Reply::Errno(libc::EFAULT)] {
        let call = next(&gate);
        gate.respond(call.id, reply).unwrap();
        assert!(gate.respond(call.id, reply).is_err(), "answered twice");
    }
    finish(child);
}

fn gate_lets_the_cookie_pass() {
    let area = Area::new(4);
    let (child, gate, conn) = gated(|conn| {
        let passed = raw_mremap(libc::SYS_mremap, area, 4, COOKIE) == area.base as i64;
        conn.send(b"passed", &[]).unwrap();
        // One wrong bit in either half is a wrong cookie.
        let wrong = [COOKIE ^ 1, COOKIE ^ (1 << 31), COOKIE ^ (1 << 32), COOKIE ^ (1 << 63), 0];
        passed && wrong.iter().all(|&cookie| raw_mremap(libc::SYS_mremap, area, 4, cookie) == -5)
    });
    assert!(readable(&conn, PATIENCE), "the cookie did not pass");
    for cookie in [COOKIE ^ 1, COOKIE ^ (1 << 31), COOKIE ^ (1 << 32), COOKIE ^ (1 << 63), 0] {
        let call = next(&gate);
        assert_eq!(call.args[seccomp::COOKIE_ARGUMENT], cookie);
        gate.respond(call.id, Reply::Errno(5)).unwrap();
    }
    finish(child);
}

fn gate_stops_advice_that_no_event_tells() {
    let area = Area::new(2);
    // The kernel takes an int: what lies above it is no way around.
    let advice: Vec<u64> =
        GATED_ADVICE.iter().flat_map(|&low| [u64::from(low), u64::from(low) | 0xdead_beef << 32]).collect();
    let (child, gate, conn) = gated(|conn| {
        area.write(1, 42);
        let answers = advice.iter().all(|&advice| {
            raw_madvise(libc::SYS_madvise, area, advice, COOKIE ^ 1) == 7
                && raw_madvise(libc::SYS_madvise, area, advice, 0) == -i64::from(libc::ENOMEM)
        });
        let untouched = area.read(1) == 42;
        conn.send(b"continue", &[]).unwrap();
        // The real thing: a child of this child reads zeros.
        let executed = raw_madvise(libc::SYS_madvise, area, u64::from(GATED_ADVICE[0]), 0) == 0;
        let grandchild = process::fork_with(|| area.read(1).into()).unwrap();
        answers && untouched && executed && process::wait(grandchild).unwrap().code() == Some(0)
    });
    for &advice in &advice {
        for reply in [Reply::Value(7), Reply::Errno(libc::ENOMEM)] {
            let call = next(&gate);
            assert_eq!((call.tid, call.arch, call.nr), (child, ARCH_X86_64, libc::SYS_madvise as u32));
            assert_eq!(call.call(), GatedCall::Madvise);
            assert_eq!(call.args[..3], [area.base, 2 * PAGE, advice]);
            gate.respond(call.id, reply).unwrap();
        }
    }
    conn.recv(&mut [0; 8]).unwrap();
    gate.respond(next(&gate).id, Reply::Continue).unwrap();
    finish(child);
}

fn gate_lets_other_advice_and_the_cookie_pass() {
    let area = Area::new(2);
    // Nobody answers: what does not pass hangs, and the runner's time limit fails the test.
    let (child, gate, _conn) = gated(|_| {
        let others = [libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_DONTFORK, libc::MADV_DOFORK, 103];
        let passed = |advice: u64, cookie| raw_madvise(libc::SYS_madvise, area, advice, cookie) == 0;
        area.write(1, 42);
        let others = others.iter().all(|&advice| passed(advice as u64, 0)) && area.read(1) == 0;
        area.write(1, 42);
        let [wipe, keep, guard] = GATED_ADVICE.map(u64::from);
        let wiped = passed(wipe, COOKIE)
            && process::wait(process::fork_with(|| area.read(1).into()).unwrap()).unwrap().code() == Some(0);
        let kept = passed(keep, COOKIE)
            && process::wait(process::fork_with(|| area.read(1).into()).unwrap()).unwrap().code() == Some(42);
        let guarded = passed(guard, COOKIE) && passed(103, 0) && area.read(1) == 0;
        // An answer of the kernel's, so it was asked: advice that does not exist.
        let unknown = raw_madvise(libc::SYS_madvise, area, 0x7fff, 0) == -i64::from(libc::EINVAL);
        others && wiped && kept && guarded && unknown
    });
    finish(child);
    assert!(!readable(&gate, Duration::ZERO));
}

fn gate_refuses_advice_from_afar() {
    let area = Area::new(2);
    let (child, gate, _conn) = gated(|_| {
        area.write(1, 42);
        // What lies above the int, and the cookie, make no difference.
        let refused = GATED_ADVICE.iter().all(|&advice| {
            [libc::SYS_process_madvise, 0x4000_0000 | libc::SYS_process_madvise].iter().all(|&number| {
                [u64::from(advice), u64::from(advice) | 1 << 32]
                    .iter()
                    .all(|&advice| process_madvise(number, area, advice, COOKIE) == -i64::from(libc::EPERM))
            })
        });
        let untouched = area.read(1) == 42;
        let cold = process_madvise(libc::SYS_process_madvise, area, libc::MADV_COLD as u64, 0);
        refused && untouched && cold == (2 * PAGE) as i64
    });
    finish(child);
    assert!(!readable(&gate, Duration::ZERO));
}

/// The i386 entry, for calls that the gate ends or that fail.
pub(crate) fn int80(number: i32, args: [u32; 5]) -> i32 {
    let answer: i32;
    // SAFETY: a system call that is not executed or fails: no address in it is real. The register rbx is saved by
    // hand, because the compiler reserves it.
    unsafe {
        std::arch::asm!(
            "xchg {first:r}, rbx",
            "int 0x80",
            "xchg {first:r}, rbx",
            first = inout(reg) u64::from(args[0]) => _,
            inlateout("eax") number => answer,
            in("ecx") args[1], in("edx") args[2], in("esi") args[3], in("edi") args[4],
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    answer
}

fn gate_covers_the_other_entries() {
    let area = Area::new(1);
    let guard = GATED_ADVICE[2];
    let (child, gate, _conn) = gated(|_| {
        // Even with the cookie: only the agent knows it, and it is a 64-bit program.
        let x32 = [
            raw_mremap(0x4000_0000 | libc::SYS_mremap, area, 2, COOKIE),
            raw_madvise(0x4000_0000 | libc::SYS_madvise, area, guard.into(), COOKIE),
        ];
        let i386 = [int80(163, [0x1000, 0x1000, 0x2000, 1, 0]), int80(219, [0x1000, 0x1000, guard, 0, 0])];
        // Refused, not stopped.
        let afar = int80(440, [u32::MAX, 0x1000, 1, guard, 0]);
        // The numbers of the 64-bit table are other calls here, and pass: stime and oldfstat with bad pointers.
        let passed =
            int80(25, [16, 0, 0, 0, 0]) == -libc::EFAULT && int80(28, [0, 16, guard, 0, 0]) == -libc::EFAULT;
        x32 == [-71, -73] && i386 == [-72, -74] && afar == -libc::EPERM && passed
    });
    for (number, call_is, errno) in [(25, GatedCall::Mremap, 71), (28, GatedCall::Madvise, 73)] {
        let call = next(&gate);
        assert_eq!((call.arch, call.nr, call.call()), (ARCH_X86_64, 0x4000_0000 | number, call_is));
        gate.respond(call.id, Reply::Errno(errno)).unwrap();
    }
    if !poll(&[(gate.as_fd(), Events::IN)], Some(PATIENCE)).unwrap()[0].contains(Events::IN) {
        // A kernel without the 32-bit entry kills whoever uses it.
        println!("NOT TESTED: no i386 entry in this kernel");
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&process::wait(child).unwrap()),
            Some(libc::SIGSEGV)
        );
        return;
    }
    for (number, call_is, errno) in [(163, GatedCall::Mremap, 72), (219, GatedCall::Madvise, 74)] {
        let call = next(&gate);
        assert_eq!((call.arch, call.nr, call.call()), (ARCH_I386, number, call_is));
        assert_eq!(call.args[1], 0x1000);
        gate.respond(call.id, Reply::Errno(errno)).unwrap();
    }
    finish(child);
}

fn gate_stops_execs() {
    const X32: i64 = 0x4000_0000;
    let (child, gate, _conn) = gated(|_| {
        let exec = |number: i64, cookie: u64| {
            // SAFETY: an exec of no path at all fails, or answers what the gate says.
            match unsafe { libc::syscall(number, -100_i64, 0_i64, 0_i64, 0_i64, 0_i64, cookie) } {
                -1 => std::io::Error::last_os_error().raw_os_error().unwrap(),
                _ => 0,
            }
        };
        let stopped =
            [libc::SYS_execve, libc::SYS_execveat, X32 | 520, X32 | 545].map(|number| exec(number, 0));
        let passed = [libc::SYS_execve, libc::SYS_execveat].map(|number| exec(number, COOKIE));
        let i386 = [int80(11, [0; 5]), int80(358, [5, 0, 0, 0, 0])];
        stopped == [81, 82, 83, 84] && passed == [libc::EFAULT; 2] && i386 == [-85, -86]
    });
    let relative = |path| Exec { directory: None, path };
    let expected = [
        (relative(-100_i64 as u64), 81),
        (relative(0), 82),
        (relative(-100_i64 as u64), 83),
        (relative(0), 84),
        (relative(0), 85),
        (Exec { directory: Some(5), path: 0 }, 86),
    ];
    for (exec, errno) in expected {
        let call = next(&gate);
        assert_eq!((call.call(), call.exec()), (GatedCall::Exec, exec));
        gate.respond(call.id, Reply::Errno(errno)).unwrap();
    }
    finish(child);
}

fn gate_stops_filters() {
    const PROGRAM: u64 = 0x1234_5678_9000;
    let (child, gate, _conn) = gated(|_| {
        // SAFETY: there is no filter at that address: what is not stopped fails, or answers a question.
        let call = |number: i64, args: [u64; 3]| unsafe {
            result(libc::syscall(number, args[0], args[1], args[2], 0, 0, 0))
        };
        let (filter, all) = (u64::from(libc::SECCOMP_SET_MODE_FILTER), libc::SECCOMP_FILTER_FLAG_TSYNC);
        let (set, mode) = (libc::PR_SET_SECCOMP as u64, u64::from(libc::SECCOMP_MODE_FILTER));
        let stopped = [
            call(libc::SYS_seccomp, [filter, all, PROGRAM]),
            call(libc::SYS_seccomp, [filter, 0, PROGRAM]),
            call(libc::SYS_prctl, [set, mode, PROGRAM]),
        ];
        let passed = [
            call(libc::SYS_seccomp, [u64::from(libc::SECCOMP_GET_ACTION_AVAIL), 0, 0]),
            call(libc::SYS_prctl, [libc::PR_GET_SECCOMP as u64, mode, 0]),
            call(libc::SYS_prctl, [set, 77, 0]),
        ];
        let x32 = 0x4000_0000;
        let narrow = [
            call(x32 | libc::SYS_seccomp, [filter, all, PROGRAM]),
            call(x32 | libc::SYS_prctl, [set, mode, PROGRAM]),
            int80(354, [filter as u32, all as u32, PROGRAM as u32, 0, 0]).into(),
            int80(172, [set as u32, mode as u32, PROGRAM as u32, 0, 0]).into(),
        ];
        // The number of the 64-bit table is another call here; and a question passes.
        let passed_narrow = int80(317, [u32::MAX, 0, 0, 0, 0]) != -84
            && int80(172, [21, mode as u32, 0, 0, 0]) == mode as i32;
        stopped == [-81, -82, -83]
            && narrow == [-84, -85, -86, -87]
            && passed_narrow
            && passed
                == [-i64::from(libc::EFAULT), i64::from(libc::SECCOMP_MODE_FILTER), -i64::from(libc::EINVAL)]
    });
    for (narrow, all_threads, errno) in [
        (false, true, 81),
        (false, false, 82),
        (false, false, 83),
        (true, true, 84),
        (true, false, 85),
        (true, true, 86),
        (true, false, 87),
    ] {
        let call = next(&gate);
        assert_eq!(call.call(), GatedCall::Filter);
        let program = if narrow { PROGRAM & u64::from(u32::MAX) } else { PROGRAM };
        assert_eq!(call.installs(), Installs { program, narrow, all_threads });
        gate.respond(call.id, Reply::Errno(errno)).unwrap();
    }
    finish(child);
}

fn gate_holds_descendants() {
    let area = Area::new(1);
    let (child, gate, _conn) = gated(|_| {
        let grandchild = process::fork_with(|| i32::from(mremap(area, 1) != -9)).unwrap();
        process::wait(grandchild).unwrap().success()
    });
    let call = next(&gate);
    assert_ne!(call.tid, child);
    assert_eq!(process::children_of(child).unwrap(), [call.tid]);
    gate.respond(call.id, Reply::Errno(9)).unwrap();
    finish(child);
}

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn handle(_: i32) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

fn gate_signal_does_not_interrupt() {
    let area = Area::new(4);
    let (child, gate, _conn) = gated(|_| {
        // SAFETY: the handler only counts. Zeros are a valid sigaction without SA_RESTART.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
        }
        let answer = mremap(area, 4000);
        answer > 0 && HANDLED.load(Ordering::Relaxed) == 1
    });
    let call = next(&gate);
    process::kill(child, libc::SIGUSR1).unwrap();
    assert!(!readable(&gate, QUIET), "the call was made twice");
    assert!(gate.is_valid(call.id), "a signal ended the call");
    gate.respond(call.id, Reply::Continue).unwrap();
    finish(child);
}

fn gate_caller_that_died() {
    let area = Area::new(1);
    let act = |_: &Conn| mremap(area, 1) == 0;
    // Before we looked, while another process lives behind the gate.
    let (child, gate, conn) = gated(|conn| {
        let caller = process::fork_with(|| mremap(area, 1) as i32).unwrap();
        conn.send(&caller.to_ne_bytes(), &[]).unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&process::wait(caller).unwrap());
        conn.send(b"gone", &[]).unwrap();
        conn.recv(&mut [0; 8]).unwrap();
        killed == Some(libc::SIGKILL)
    });
    let mut number = [0; 4];
    conn.recv(&mut number).unwrap();
    assert!(readable(&gate, PATIENCE));
    process::kill(u32::from_ne_bytes(number), libc::SIGKILL).unwrap();
    conn.recv(&mut number).unwrap();
    assert_eq!(gate.recv().unwrap(), None);
    // Nobody is left: that is something else.
    conn.send(b"end", &[]).unwrap();
    finish(child);
    assert!(poll(&[(gate.as_fd(), Events::IN)], Some(PATIENCE)).unwrap()[0].contains(Events::HUP));
    assert_eq!(gate.recv().unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    // After: a waiter can be killed, and then there is nobody to answer.
    let (child, gate, _conn) = gated(act);
    let call = next(&gate);
    process::kill(child, libc::SIGKILL).unwrap();
    process::wait(child).unwrap();
    assert!(!gate.is_valid(call.id));
    assert_eq!(gate.respond(call.id, Reply::Continue).unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

fn gate_without_holder_answers_enosys() {
    let area = Area::new(1);
    let (child, gate, conn) = gated(|conn| {
        conn.recv(&mut [0; 8]).unwrap();
        mremap(area, 1) == -i64::from(libc::ENOSYS)
    });
    drop(gate);
    conn.send(b"go", &[]).unwrap();
    finish(child);
}

fn gate_only_one() {
    let (child, gate, _conn) =
        gated(|_| install_gate(1, false).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)));
    let call = next(&gate);
    assert_eq!(call.call(), GatedCall::Filter);
    gate.respond(call.id, Reply::Continue).unwrap();
    finish(child);
}

fn gate_needs_privilege_or_no_new_privs() {
    if is_root() {
        rustix::thread::set_thread_res_uid(
            rustix::process::Uid::from_raw(65534),
            rustix::process::Uid::from_raw(65534),
            rustix::process::Uid::from_raw(65534),
        )
        .unwrap();
    }
    assert_eq!(install_gate(COOKIE, false).unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert!(!process::status(std::process::id()).unwrap().no_new_privs, "it must not renounce by itself");
    set_no_new_privs().unwrap();
    install_gate(COOKIE, false).unwrap();
    let status = process::status(std::process::id()).unwrap();
    assert!(status.no_new_privs && status.seccomp == 2);
}
