//! Forks, the tree below a process, its end, signals.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use vswap_sys::poll::EventFd;
use vswap_sys::process::signals::{self, SignalFd};
use vswap_sys::process::{self, fork_sharing_files, fork_with};
use vswap_sys::socket::socketpair;

use crate::Test;
use crate::common::{PATIENCE, readable};

pub(crate) const TESTS: &[Test] = &[
    ("fork_with_exits_with_the_code", fork_with_exits_with_the_code),
    ("fork_is_refused_with_threads", fork_is_refused_with_threads),
    ("fork_sharing_files_shares_files_only", fork_sharing_files_shares_files_only),
    ("shared_files_survive_either_side", shared_files_survive_either_side),
    ("tree_and_subreaper", tree_and_subreaper),
    ("parent_death_signal_comes", parent_death_signal_comes),
    ("signalfd_tells_who_sent", signalfd_tells_who_sent),
    ("dispositions_and_masks", dispositions_and_masks),
    ("raise_like_ends_the_same_way", raise_like_ends_the_same_way),
    ("kill_is_never_for_groups", kill_is_never_for_groups),
    ("an_environment_is_found", an_environment_is_found),
];

fn fork_with_exits_with_the_code() {
    let mut value = 1;
    let child = fork_with(|| {
        value = 2;
        value + 40
    })
    .unwrap();
    assert_eq!(process::wait(child).unwrap().code(), Some(42));
    assert_eq!(value, 1);
    let child = fork_with(|| {
        std::panic::set_hook(Box::new(|_| {}));
        panic!("a child's panic")
    })
    .unwrap();
    assert_eq!(process::wait(child).unwrap().code(), Some(101));
    assert_eq!(process::wait(child).unwrap_err().raw_os_error(), Some(libc::ECHILD));
}

fn fork_is_refused_with_threads() {
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv().unwrap_err());
    assert_eq!(fork_with(|| 0).unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    assert_eq!(fork_sharing_files(|| 0).unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    drop(stop);
    thread.join().unwrap();
}

fn fork_sharing_files_shares_files_only() {
    let mut value = 1;
    let (ours, theirs) = socketpair().unwrap();
    let child = fork_sharing_files(|| {
        value = 2;
        // Opened here, used there, by number; not closed here.
        let notice = EventFd::new().unwrap();
        notice.notify();
        theirs.send(&notice.as_fd().as_raw_fd().to_ne_bytes(), &[]).unwrap();
        std::mem::forget(notice);
        0
    })
    .unwrap();
    let mut number = [0; 4];
    ours.recv(&mut number).unwrap();
    assert_eq!(process::wait(child).unwrap().code(), Some(0));
    assert_eq!(value, 1);
    // SAFETY: the child opened it in our common table and left it open.
    let notice = unsafe { BorrowedFd::borrow_raw(i32::from_ne_bytes(number)) };
    assert!(readable(notice, Duration::ZERO), "not the descriptor the child opened");
    assert!(rustix::io::fcntl_getfd(&theirs).is_ok(), "the child's end closed ours");
}

/// What the guardian is for: descriptors live on when the pager is killed.
fn shared_files_survive_either_side() {
    let (ours, theirs) = socketpair().unwrap();
    let pager = fork_with(|| {
        let (held, mut peer) = (socketpair().unwrap(), Vec::new());
        peer.push(held.1);
        let guardian = fork_sharing_files(|| {
            loop {
                std::thread::sleep(Duration::from_millis(10));
            }
        })
        .unwrap();
        theirs.send(&guardian.to_ne_bytes(), &[held.0.as_fd()]).unwrap();
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    })
    .unwrap();
    drop(theirs);
    let mut number = [0; 4];
    let (_, fds) = ours.recv(&mut number).unwrap();
    let guardian = u32::from_ne_bytes(number);
    assert_eq!(process::children_of(pager).unwrap(), [guardian]);
    process::kill(pager, libc::SIGKILL).unwrap();
    process::wait(pager).unwrap();
    assert!(!readable(&fds[0], Duration::from_millis(50)), "the pager's end closed with the pager");
    process::kill(guardian, libc::SIGKILL).unwrap();
    assert!(readable(&fds[0], PATIENCE), "nobody is left and the end is open");
}

fn tree_and_subreaper() {
    process::set_child_subreaper().unwrap();
    assert_eq!(process::reap().unwrap_err().raw_os_error(), Some(libc::ECHILD));
    let (ours, theirs) = socketpair().unwrap();
    let child = fork_with(|| {
        let grandchild = fork_with(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        theirs.send(&grandchild.unwrap().to_ne_bytes(), &[]).unwrap();
        theirs.recv(&mut [0; 4]).unwrap();
        7
    })
    .unwrap();
    let mut number = [0; 4];
    ours.recv(&mut number).unwrap();
    let grandchild = u32::from_ne_bytes(number);
    let me = std::process::id();
    assert_eq!(process::children_of(me).unwrap(), [child]);
    assert_eq!(process::descendants_of(me).unwrap(), [child, grandchild]);
    assert_eq!(process::reap().unwrap(), None);

    ours.send(b"end", &[]).unwrap();
    assert_eq!(process::wait(child).unwrap().code(), Some(7));
    assert_eq!(process::children_of(me).unwrap(), [grandchild], "the orphan is not ours");
    process::kill(grandchild, libc::SIGTERM).unwrap();
    let end = Instant::now() + PATIENCE;
    let (pid, status) = loop {
        if let Some(ended) = process::reap().unwrap() {
            break ended;
        }
        assert!(Instant::now() < end, "it does not end");
    };
    assert_eq!((pid, status.signal()), (grandchild, Some(libc::SIGTERM)));
    assert_eq!(process::descendants_of(me).unwrap(), []);
}

fn parent_death_signal_comes() {
    process::set_child_subreaper().unwrap();
    let (ours, theirs) = socketpair().unwrap();
    let child = fork_with(|| {
        fork_with(|| {
            process::set_parent_death_signal(libc::SIGKILL).unwrap();
            theirs.send(b"set", &[]).unwrap();
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        })
        .unwrap();
        theirs.recv(&mut [0; 4]).unwrap();
        0
    })
    .unwrap();
    drop(theirs);
    ours.recv(&mut [0; 8]).unwrap();
    ours.send(b"end", &[]).unwrap();
    process::wait(child).unwrap();
    assert_eq!(ours.recv(&mut [0; 8]).unwrap().0, 0, "the grandchild outlives its parent");
    assert!(process::set_parent_death_signal(1000).is_err());
}

fn signalfd_tells_who_sent() {
    let fd = SignalFd::new(&[libc::SIGTERM, libc::SIGCHLD, libc::SIGALRM]).unwrap();
    assert_eq!(fd.next().unwrap(), None);
    let child = fork_with(|| {
        process::kill(std::os::unix::process::parent_id(), libc::SIGTERM).unwrap();
        3
    })
    .unwrap();
    process::pidfd_open(child).map(|pidfd| readable(pidfd, PATIENCE)).unwrap();
    let (first, second) = (fd.next().unwrap().unwrap(), fd.next().unwrap().unwrap());
    let (sent, ended) = if first.signal == libc::SIGTERM { (first, second) } else { (second, first) };
    assert_eq!((sent.signal, sent.pid, sent.was_sent()), (libc::SIGTERM, child, true));
    assert_eq!((ended.signal, ended.pid, ended.status), (libc::SIGCHLD, child, 3));
    assert!(!ended.was_sent());
    process::wait(child).unwrap();
    // SAFETY: takes an integer only.
    unsafe { libc::alarm(1) };
    assert!(readable(&fd, PATIENCE));
    assert!(fd.next().unwrap().is_some_and(|alarm| alarm.signal == libc::SIGALRM && !alarm.was_sent()));
}

fn dispositions_and_masks() {
    assert!(!signals::is_ignored(libc::SIGUSR2));
    signals::ignore(libc::SIGUSR2).unwrap();
    assert!(signals::is_ignored(libc::SIGUSR2));
    process::kill(std::process::id(), libc::SIGUSR2).unwrap();
    signals::reset(libc::SIGUSR2).unwrap();
    assert!(!signals::is_ignored(libc::SIGUSR2));
    assert!(signals::ignore(libc::SIGKILL).is_err());

    let before = signals::block_all();
    assert!(!before.contains(libc::SIGUSR2));
    process::kill(std::process::id(), libc::SIGUSR2).unwrap();
    signals::ignore(libc::SIGUSR2).unwrap(); // discards it
    signals::set_mask(&before);
    let set = signals::SignalSet::empty().with(1).with(1000).with(64);
    assert_eq!(format!("{set:?}"), "{1, 64}");
    signals::set_mask(&set);
    assert!(signals::block_all().contains(64));
    signals::unblock_all();
    assert!(!signals::block_all().contains(64));
}

fn raise_like_ends_the_same_way() {
    let how = |status: i32| {
        let child = fork_with(|| {
            signals::block_all();
            process::raise_like(std::process::ExitStatus::from_raw(status))
        });
        process::wait(child.unwrap()).unwrap()
    };
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGSEGV, libc::SIGPIPE, libc::SIGINT] {
        let status = how(signal);
        assert_eq!((status.signal(), status.core_dumped()), (Some(signal), false));
    }
    assert_eq!(how(7 << 8).code(), Some(7));
    assert_eq!(how(0).code(), Some(0));
}

fn kill_is_never_for_groups() {
    for pid in [0, u32::MAX, i32::MAX as u32 + 1] {
        assert_eq!(process::kill(pid, 0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(process::wait(pid).is_err() && process::pidfd_open(pid).is_err());
    }
    process::kill(std::process::id(), 0).unwrap();
}

fn an_environment_is_found() {
    let mut command = std::process::Command::new("sleep");
    let mut child = command.arg("60").env_clear().env("ONE", "first").env("TWO", "second").spawn().unwrap();
    let pid = child.id();
    let found = process::environment(pid).unwrap();
    let mut bytes = vec![0; (found.end - found.start) as usize];
    let read = process::read_memory(pid, found.start, &mut bytes).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(&bytes[..read], b"ONE=first\0TWO=second\0");
    assert!(process::environment(pid).is_err(), "it is gone");
}
