//! Tracing: a child that is borrowed for a system call notices nothing of it.

use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use rustix::fd::AsFd;
use vswap_sys::process;
use vswap_sys::trace::{Borrowed, Resume, Stop, Tracee, returned, unless_traced, wait};

use crate::Test;
use crate::common::PATIENCE;

pub(crate) const TESTS: &[Test] = &[
    ("tracing_restarts_what_it_interrupts", tracing_restarts_what_it_interrupts),
    ("tracing_keeps_mask_and_pending_signals", tracing_keeps_mask_and_pending_signals),
    ("tracing_makes_a_thread_and_only_that", tracing_makes_a_thread_and_only_that),
    ("tracing_given_up_half_way_puts_everything_back", tracing_given_up_half_way_puts_everything_back),
    ("tracing_sees_an_exec_and_one_that_fails", tracing_sees_an_exec_and_one_that_fails),
    ("tracing_ends_with_the_tracee", tracing_ends_with_the_tracee),
    ("tracing_goes_on_through_stops", tracing_goes_on_through_stops),
    ("tracing_leaves_alone_who_dispatches_its_calls", tracing_leaves_alone_who_dispatches_its_calls),
    ("tracing_keeps_its_stops_from_the_parent", tracing_keeps_its_stops_from_the_parent),
];

/// A `syscall` instruction in the code that the kernel lends every process: a forked child has ours.
fn gadget(pid: u32) -> u64 {
    // SAFETY: asks for a number.
    let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    let mut code = [0; 4096];
    let read = process::read_memory(pid, vdso, &mut code).unwrap();
    vdso + code[..read].windows(2).position(|bytes| bytes == [0x0f, 0x05]).unwrap() as u64
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until `child` sleeps in the system call `number`.
fn sleeps_in(child: u32, number: i64) {
    until("the child sleeps", || {
        let text = std::fs::read_to_string(format!("/proc/{child}/syscall")).unwrap();
        text.split(' ').next() == Some(&number.to_string())
    });
}

fn stopped(tid: u32) -> Tracee {
    let tracee = Tracee::seize(tid).unwrap();
    tracee.interrupt().unwrap();
    assert_eq!(wait().unwrap(), (tid, Stop::Interrupted));
    tracee
}

/// Borrows the child and has it say who it is.
fn ask(child: u32) {
    let borrowed = Borrowed::new(stopped(child)).unwrap();
    let answer = borrowed.call(gadget(child), libc::SYS_getpid, [0; 6]).unwrap();
    assert_eq!(returned(answer), Ok(u64::from(child)));
    borrowed.give_back().unwrap();
}

fn succeeds(child: u32) {
    let status = process::wait(child).unwrap();
    assert!(status.success(), "the child saw something: {status}");
}

fn tracing_restarts_what_it_interrupts() {
    const NAP: Duration = Duration::from_millis(400);
    let (out, into) = rustix::pipe::pipe().unwrap();
    let child = process::fork_with(|| {
        let mut byte = [0];
        // By the bare call, which does not try again.
        let read = rustix::io::read(&out, &mut byte);
        let begun = Instant::now();
        let time = libc::timespec { tv_sec: 0, tv_nsec: NAP.as_nanos() as i64 };
        // SAFETY: the time lives; nobody wants to know how much was left.
        let slept = unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
        i32::from(read != Ok(1) || byte != [7] || slept != 0 || begun.elapsed() < NAP)
    })
    .unwrap();
    sleeps_in(child, libc::SYS_read);
    for _ in 0..3 {
        ask(child);
        sleeps_in(child, libc::SYS_read);
    }
    rustix::io::write(into.as_fd(), &[7]).unwrap();
    until("the child naps", || {
        let call = std::fs::read_to_string(format!("/proc/{child}/syscall")).unwrap();
        call.starts_with("230 ") || call.starts_with("35 ")
    });
    ask(child);
    succeeds(child);
}

fn signal_lines(child: u32) -> Vec<String> {
    let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap();
    status
        .lines()
        .filter(|line| !line.starts_with("SigQ") && (line.starts_with("Sig") || line.starts_with("Shd")))
        .map(str::to_owned)
        .collect()
}

fn tracing_keeps_mask_and_pending_signals() {
    let (out, into) = rustix::pipe::pipe().unwrap();
    let child = process::fork_with(|| {
        process::signals::ignore(libc::SIGTRAP).unwrap();
        process::signals::block_all();
        i32::from(rustix::io::read(&out, &mut [0]) != Ok(1))
    })
    .unwrap();
    sleeps_in(child, libc::SYS_read);
    process::kill(child, libc::SIGUSR1).unwrap();
    let before = signal_lines(child);
    ask(child);
    assert_eq!(signal_lines(child), before);
    sleeps_in(child, libc::SYS_read);
    rustix::io::write(into.as_fd(), &[7]).unwrap();
    succeeds(child);
}

fn tracing_makes_a_thread_and_only_that() {
    let (out, into) = rustix::pipe::pipe().unwrap();
    let child = process::fork_with(|| i32::from(rustix::io::read(&out, &mut [0]) != Ok(1))).unwrap();
    sleeps_in(child, libc::SYS_read);
    // A thread without children waits for tracees alone.
    std::thread::spawn(move || make_and_end_a_thread(child)).join().unwrap();
    // With its tracer's thread goes what is left of it.
    let mut threads = Vec::new();
    until("the thread has gone", || {
        process::threads(child, &mut threads).unwrap();
        threads == [child]
    });
    rustix::io::write(into.as_fd(), &[7]).unwrap();
    succeeds(child);
}

fn make_and_end_a_thread(child: u32) {
    let borrowed = Borrowed::new(stopped(child)).unwrap();
    // It stands still before it uses a stack.
    let thread = borrowed.make_thread(gadget(child), 0x1000).unwrap();
    let registers = thread.first_registers().unwrap();
    assert_eq!((registers.rax, registers.rsp), (0, 0x1000));
    let answer = thread.call(&registers, gadget(child), libc::SYS_gettid, [0; 6]).unwrap();
    assert_eq!(answer, i64::from(thread.tid()));
    assert_ne!(thread.tid(), child);
    let mut threads = Vec::new();
    process::threads(child, &mut threads).unwrap();
    assert_eq!(threads.len(), 2);
    // The call that ends it never returns; the one that stands still is not waited for.
    assert!(thread.call(&registers, gadget(child), libc::SYS_exit, [0; 6]).is_err());
    borrowed.give_back().unwrap();
}

fn tracing_given_up_half_way_puts_everything_back() {
    let (out, into) = rustix::pipe::pipe().unwrap();
    let child = process::fork_with(|| i32::from(rustix::io::read(&out, &mut [0]) != Ok(1))).unwrap();
    sleeps_in(child, libc::SYS_read);
    let before = signal_lines(child);
    let borrowed = Borrowed::new(stopped(child)).unwrap();
    borrowed.call(gadget(child), libc::SYS_getpid, [0; 6]).unwrap();
    drop(borrowed);
    sleeps_in(child, libc::SYS_read);
    assert_eq!(signal_lines(child), before);
    assert_eq!(process::status(child).unwrap().tracer_pid, 0);
    rustix::io::write(into.as_fd(), &[7]).unwrap();
    succeeds(child);
}

fn tracing_sees_an_exec_and_one_that_fails() {
    for (file, found) in [(c"/bin/true", true), (c"/no/such/file", false)] {
        let (out, into) = rustix::pipe::pipe().unwrap();
        let child = process::fork_with(|| {
            let _ = rustix::io::read(&out, &mut [0]);
            // SAFETY: a C string, and two lists that hold their end alone.
            unsafe { libc::execve(file.as_ptr(), [std::ptr::null()].as_ptr(), [std::ptr::null()].as_ptr()) };
            0
        })
        .unwrap();
        sleeps_in(child, libc::SYS_read);
        let tracee = stopped(child);
        tracee.resume(Resume::Run(0)).unwrap();
        rustix::io::write(into.as_fd(), &[7]).unwrap();
        if found {
            assert_eq!(wait().unwrap(), (child, Stop::Exec));
            tracee.after_exec().detach().unwrap();
        } else {
            assert_eq!(wait().unwrap_err().raw_os_error(), Some(libc::ECHILD), "it ends without a stop");
        }
        succeeds(child);
    }
}

fn tracing_ends_with_the_tracee() {
    let (out, _into) = rustix::pipe::pipe().unwrap();
    let child = process::fork_with(|| i32::from(rustix::io::read(&out, &mut [0]) != Ok(1))).unwrap();
    sleeps_in(child, libc::SYS_read);
    let borrowed = Borrowed::new(stopped(child)).unwrap();
    process::kill(child, libc::SIGKILL).unwrap();
    let call =
        borrowed.call(gadget(process::status(std::process::id()).unwrap().tgid), libc::SYS_getpid, [0; 6]);
    assert!(matches!(call.unwrap_err().raw_os_error(), Some(libc::ESRCH | libc::ECHILD)));
    drop(borrowed);
    assert!(!process::wait(child).unwrap().success(), "its end is its parent's to see");
}

fn tracing_goes_on_through_stops() {
    const THREADS: usize = 300;
    let (out, into) = rustix::pipe::pipe().unwrap();
    let child = process::fork_with(|| i32::from(rustix::io::read(&out, &mut [0]) != Ok(1))).unwrap();
    sleeps_in(child, libc::SYS_read);
    // Closed by the end of the thread that traces, whatever that is.
    let (going_on, over) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while over.try_recv() == Err(TryRecvError::Empty) {
                process::kill(child, libc::SIGSTOP).unwrap();
                process::kill(child, libc::SIGCONT).unwrap();
            }
        });
        // A thread without children waits for tracees alone.
        scope.spawn(move || {
            let _going_on = going_on;
            for _ in 0..THREADS {
                let tracee = Tracee::seize(child).unwrap();
                tracee.interrupt().unwrap();
                while wait().unwrap() != (child, Stop::Interrupted) {
                    tracee.interrupt().unwrap();
                    tracee.resume(Resume::Run(0)).unwrap();
                }
                let borrowed = Borrowed::new(tracee).unwrap();
                let thread = borrowed.make_thread(gadget(child), 0x1000).expect("whatever stops the process");
                borrowed.give_back().unwrap();
                let registers = thread.first_registers().unwrap();
                assert!(thread.call(&registers, gadget(child), libc::SYS_exit, [0; 6]).is_err());
            }
        });
    });
    process::kill(child, libc::SIGCONT).unwrap();
    rustix::io::write(into.as_fd(), &[7]).unwrap();
    succeeds(child);
}

fn tracing_leaves_alone_who_dispatches_its_calls() {
    const SET_DISPATCH: libc::c_int = 59;
    let (out, into) = rustix::pipe::pipe().unwrap();
    let selector = 0_u8;
    let child = process::fork_with(|| {
        // SAFETY: from now on a system call of this thread is a signal, if the selector, which lives, says so.
        let set = unsafe { libc::prctl(SET_DISPATCH, 1, 0_u64, 0_u64, &raw const selector) };
        i32::from(set != 0 || rustix::io::read(&out, &mut [0]) != Ok(1))
    })
    .unwrap();
    sleeps_in(child, libc::SYS_read);
    let refused = Borrowed::new(stopped(child)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
    sleeps_in(child, libc::SYS_read);
    rustix::io::write(into.as_fd(), &[7]).unwrap();
    succeeds(child);
}

fn tracing_keeps_its_stops_from_the_parent() {
    let (out, into) = rustix::pipe::pipe().unwrap();
    let child = process::fork_with(|| i32::from(rustix::io::read(&out, &mut [0]) != Ok(1))).unwrap();
    sleeps_in(child, libc::SYS_read);
    let tracee = Tracee::seize(child).unwrap();
    tracee.interrupt().unwrap();
    until("it stands still", || process::status(child).unwrap().state == 't');
    assert_eq!(process::reap().unwrap(), None);
    assert_eq!(unless_traced(child, || ()), None);
    assert_eq!(wait().unwrap(), (child, Stop::Interrupted), "its parent took the stop away");
    tracee.detach().unwrap();
    assert_eq!(unless_traced(child, || ()), Some(()));
    rustix::io::write(into.as_fd(), &[7]).unwrap();
    succeeds(child);
}
