//! The mremap gate: a child behind it, and this process answering.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::seccomp::{
    ARCH_I386, ARCH_X86_64, Gate, Notification, Reply, install_mremap_gate, set_no_new_privs,
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
    let (ours, theirs) = socketpair().unwrap();
    let child = process::fork_with(|| {
        if !is_root() {
            set_no_new_privs().unwrap();
        }
        let listener = install_mremap_gate(COOKIE).expect("the gate");
        theirs.send(b"g", &[listener.as_fd()]).unwrap();
        drop(listener);
        i32::from(!act(&theirs))
    })
    .unwrap();
    drop(theirs);
    let (_, mut fds) = ours.recv(&mut [0; 8]).unwrap();
    (child, Gate::from(fds.pop().expect("the listener")), ours)
}

fn finish(child: u32) {
    let status = process::wait(child).unwrap();
    assert!(status.success(), "the child saw something wrong: {status}");
}

fn next(gate: &Gate) -> Notification {
    assert!(readable(gate, PATIENCE), "no notification");
    gate.recv().unwrap().expect("the caller lives")
}

/// mremap with a sixth argument; the result as the kernel gives it.
fn raw_mremap(number: libc::c_long, area: Area, pages: u64, cookie: u64) -> i64 {
    // SAFETY: only memory of this area, which no Rust object lives in.
    let answer = unsafe {
        libc::syscall(number, area.base, area.pages * PAGE, pages * PAGE, libc::MREMAP_MAYMOVE, 0, cookie)
    };
    if answer == -1 { -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap()) } else { answer }
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

/// The i386 entry with the number of *its* mremap.
fn mremap_by_int80() -> i32 {
    let answer: i32;
    // SAFETY: a system call that the gate answers without executing it; no address in it is real. The number of the
    // 64-bit table's register rbx is saved by hand, because the compiler reserves it.
    unsafe {
        std::arch::asm!(
            "xchg {base:r}, rbx",
            "int 0x80",
            "xchg {base:r}, rbx",
            base = inout(reg) 0x1000_u64 => _,
            inlateout("eax") 163 => answer,
            in("ecx") 0x1000, in("edx") 0x2000, in("esi") 1, in("edi") 0,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    answer
}

fn gate_covers_the_other_entries() {
    let area = Area::new(1);
    let (child, gate, _conn) = gated(|_| {
        // Even with the cookie: only the agent knows it, and it is a 64-bit program.
        let x32 = raw_mremap(0x4000_0000 | libc::SYS_mremap, area, 2, COOKIE);
        let i386 = mremap_by_int80();
        // The same number in the other table is a different call: it passes.
        // SAFETY: number 25 of i386 is stime: fails with a null pointer.
        x32 == -71 && i386 == -72
    });
    let call = next(&gate);
    assert_eq!((call.arch, call.nr), (ARCH_X86_64, 0x4000_0000 | 25));
    gate.respond(call.id, Reply::Errno(71)).unwrap();
    if !poll(&[(gate.as_fd(), Events::IN)], Some(PATIENCE)).unwrap()[0].contains(Events::IN) {
        // A kernel without the 32-bit entry kills whoever uses it.
        println!("NOT TESTED: no i386 entry in this kernel");
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&process::wait(child).unwrap()),
            Some(libc::SIGSEGV)
        );
        return;
    }
    let call = next(&gate);
    assert_eq!((call.arch, call.nr, call.args[1]), (ARCH_I386, 163, 0x1000));
    gate.respond(call.id, Reply::Errno(72)).unwrap();
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
    let (child, _gate, _conn) =
        gated(|_| install_mremap_gate(1).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)));
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
    assert_eq!(install_mremap_gate(COOKIE).unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert!(!process::status(std::process::id()).unwrap().no_new_privs, "it must not renounce by itself");
    set_no_new_privs().unwrap();
    install_mremap_gate(COOKIE).unwrap();
    let status = process::status(std::process::id()).unwrap();
    assert!(status.no_new_privs && status.seccomp == 2);
}
