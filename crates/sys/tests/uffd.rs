//! A userfaultfd on this process's own memory: commands, faults by other threads, events.

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{Area, PATIENCE, message, open_uffd, page_of, readable, registered};
use vswap_sys::PAGE_SIZE;
use vswap_sys::uffd::{FEATURES, Message, Partial, RegisterMode, Uffd};

const PAGE: usize = PAGE_SIZE;
const QUIET: Duration = Duration::from_millis(50);

/// Reads or writes one byte in a thread of its own, which may have to wait; the answer comes through the channel.
fn touch(area: Area, page: u64, write: Option<u8>) -> (u32, mpsc::Receiver<u8>) {
    let (say_tid, tid) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || {
        say_tid.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
        if let Some(value) = write {
            area.write(page, value);
        }
        let _ = answer.send(area.read(page));
    });
    (tid.recv().unwrap(), answered)
}

fn fault(uffd: &Uffd) -> (u64, bool, bool, u32) {
    match message(uffd) {
        Message::Fault { addr, write, wp, tid } => (addr, write, wp, tid),
        other => panic!("a fault was due, not {other:?}"),
    }
}

#[test]
fn api_offers_all_features_once() {
    let Some(uffd) = open_uffd() else { return };
    assert_eq!(uffd.api(FEATURES).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert!(uffd.read_message().unwrap().is_none());
}

#[test]
fn nothing_works_before_api() {
    if open_uffd().is_none() {
        return;
    }
    let uffd = Uffd::open().unwrap();
    assert_eq!(uffd.read_message().unwrap_err(), libc::EINVAL);
    assert_eq!(uffd.register(Area::new(1).whole(), RegisterMode::MISSING), Err(libc::EINVAL));
}

#[test]
fn device_and_syscall_are_equal() {
    if !common::is_root() {
        eprintln!("NOT TESTED: needs root");
        return;
    }
    for uffd in [Uffd::open_by_syscall().unwrap(), Uffd::open_by_device().unwrap()] {
        assert_eq!(uffd.api(FEATURES).unwrap() & FEATURES, FEATURES);
        assert!(uffd.read_message().unwrap().is_none(), "not non-blocking");
    }
}

/// A hostile agent sends a pipe instead, with a forged fork event that names one of our descriptors as the child's.
#[test]
fn a_false_descriptor_is_not_believed() {
    let (end, forger) = rustix::pipe::pipe().unwrap();
    let mut forged = [0; 32];
    forged[0] = 0x13;
    forged[8] = 1;
    rustix::io::write(&forger, &forged).unwrap();
    let uffd = Uffd::from(end);
    assert_eq!(uffd.read_message().unwrap_err(), libc::ENOTTY);
    assert_eq!(uffd.wake(Area::new(1).whole()), Err(libc::ENOTTY));
    assert!(rustix::io::fcntl_getfd(std::io::stdout()).is_ok());
    let Some(uffd) = open_uffd() else { return };
    let uffd = Uffd::from(std::os::fd::OwnedFd::from(uffd));
    assert!(uffd.read_message().unwrap().is_none());
}

#[test]
fn copy_resolves_a_read_fault() {
    let Some((uffd, area)) = registered(4) else { return };
    let (thread, answered) = touch(area, 2, None);
    assert_eq!(fault(&uffd), (area.page(2), false, false, thread));
    assert_eq!(uffd.copy(area.page(2), &page_of(77), false), Ok(PAGE));
    assert_eq!(answered.recv_timeout(PATIENCE).unwrap(), 77);
    assert!(uffd.read_message().unwrap().is_none());
}

#[test]
fn copy_reports_short_counts_and_reasons() {
    let Some((uffd, area)) = registered(8) else { return };
    let partial = |done, errno| Err(Partial { done: done * PAGE, errno });
    assert_eq!(uffd.copy(area.page(2), &page_of(1), false), Ok(PAGE));
    assert_eq!(uffd.copy(area.page(2), &page_of(2), false), partial(0, libc::EEXIST));
    let pages: Vec<u8> = [3, 4, 5].into_iter().flat_map(page_of).collect();
    assert_eq!(uffd.copy(area.page(0), &pages, false), partial(2, libc::EAGAIN));
    assert_eq!([area.read(0), area.read(1), area.read(2)], [3, 4, 1]);
    assert_eq!(uffd.copy(area.page(4) + 8, &page_of(0), false), partial(0, libc::EINVAL));
    assert_eq!(uffd.copy(area.page(4), &[], false), partial(0, libc::EINVAL));
    assert_eq!(uffd.copy(Area::new(1).base, &page_of(0), false), partial(0, libc::ENOENT));
}

#[test]
fn zeropage_fills_a_range_and_counts() {
    let Some((uffd, area)) = registered(8) else { return };
    assert_eq!(uffd.zeropage(area.range(0..3), false), Ok(3 * PAGE));
    assert_eq!(uffd.zeropage(area.range(0..3), false), Err(Partial { done: 0, errno: libc::EEXIST }));
    uffd.copy(area.page(6), &page_of(9), false).unwrap();
    assert_eq!(uffd.zeropage(area.range(4..8), false), Err(Partial { done: 2 * PAGE, errno: libc::EAGAIN }));
    assert_eq!((0..3).chain(4..6).map(|page| area.read(page)).max(), Some(0));
    // The range was filled for reading; it is ordinary memory for writing.
    area.write(1, 5);
    assert_eq!(area.read(1), 5);
}

#[test]
fn dont_wake_leaves_the_waiter_waiting() {
    let Some((uffd, area)) = registered(2) else { return };
    let (_, answered) = touch(area, 0, Some(8));
    let (addr, write, wp, _) = fault(&uffd);
    assert_eq!((addr, write, wp), (area.page(0), true, false));
    assert_eq!(uffd.copy(addr, &page_of(1), true), Ok(PAGE));
    assert!(answered.recv_timeout(QUIET).is_err(), "woken in spite of DONTWAKE");
    uffd.wake(area.range(0..1)).unwrap();
    assert_eq!(answered.recv_timeout(PATIENCE).unwrap(), 8);

    let (_, answered) = touch(area, 1, None);
    assert_eq!(fault(&uffd).0, area.page(1));
    assert_eq!(uffd.zeropage(area.range(1..2), true), Ok(PAGE));
    assert!(answered.recv_timeout(QUIET).is_err(), "woken in spite of DONTWAKE");
    uffd.wake(area.range(1..2)).unwrap();
    assert_eq!(answered.recv_timeout(PATIENCE).unwrap(), 0);
}

#[test]
fn write_protection_stops_writers_only() {
    let Some((uffd, area)) = registered(2) else { return };
    uffd.copy(area.page(0), &page_of(1), false).unwrap();
    uffd.write_protect(area.range(0..1), true, false).unwrap();
    assert_eq!(area.read(0), 1);
    let (thread, answered) = touch(area, 0, Some(2));
    assert_eq!(fault(&uffd), (area.page(0), true, true, thread));
    uffd.write_protect(area.range(0..1), false, true).unwrap();
    assert!(answered.recv_timeout(QUIET).is_err(), "woken in spite of DONTWAKE");
    uffd.write_protect(area.range(0..1), false, false).unwrap();
    assert_eq!(answered.recv_timeout(PATIENCE).unwrap(), 2);
    // The guarded question "is it registered?"
    assert_eq!(uffd.write_protect(Area::new(1).whole(), false, false), Err(libc::ENOENT));
}

#[test]
fn unregister_lets_waiters_have_zeros() {
    let Some((uffd, area)) = registered(2) else { return };
    let (_, answered) = touch(area, 1, None);
    fault(&uffd);
    uffd.unregister(area.whole()).unwrap();
    assert_eq!(answered.recv_timeout(PATIENCE).unwrap(), 0);
}

#[test]
fn register_refuses_nonsense() {
    let Some(uffd) = open_uffd() else { return };
    let area = Area::new(4);
    let both = RegisterMode::MISSING | RegisterMode::WP;
    assert_eq!(uffd.register(area.base + 1..area.page(2), both), Err(libc::EINVAL));
    let (start, end) = (area.page(2), area.page(1));
    assert_eq!(uffd.register(start..end, both), Err(libc::EINVAL));
    let Some(other) = open_uffd() else { return };
    other.register(area.range(0..1), both).unwrap();
    assert_eq!(uffd.register(area.whole(), both), Err(libc::EBUSY));
}

/// The change waits in its thread until its events are read; until then guarded commands fail.
fn change(uffd: &Uffd, area: Area, events: usize, act: impl FnOnce() + Send + 'static) -> Vec<String> {
    let changer = thread::spawn(act);
    assert!(readable(uffd, PATIENCE), "no event");
    assert_eq!(uffd.zeropage(area.range(7..8), false), Err(Partial { done: 0, errno: libc::EAGAIN }));
    assert!(!changer.is_finished(), "the change did not wait for its reader");
    let seen = (0..events)
        .map(|_| match message(uffd) {
            Message::Fork { .. } => panic!("nobody forked"),
            Message::Fault { .. } => panic!("nobody faulted"),
            event => format!("{event:?}"),
        })
        .collect();
    changer.join().unwrap();
    // The guarded success after the last event: every change so far has been seen.
    assert_eq!(uffd.zeropage(area.range(7..8), false), Ok(PAGE));
    assert!(uffd.read_message().unwrap().is_none());
    seen
}

/// Where a page is kept missing for `change`.
fn probe(uffd: &Uffd) -> Area {
    let area = Area::new(8);
    uffd.register(area.whole(), RegisterMode::MISSING | RegisterMode::WP).unwrap();
    area
}

#[test]
fn munmap_gives_the_callers_range() {
    let Some((uffd, area)) = registered(8) else { return };
    let seen = change(&uffd, probe(&uffd), 1, move || area.unmap(2..5));
    assert_eq!(seen, [format!("{:?}", Message::Unmap { range: area.range(2..5) })]);
}

#[test]
fn madvise_gives_remove() {
    let Some((uffd, area)) = registered(8) else { return };
    for advice in [libc::MADV_DONTNEED, libc::MADV_FREE] {
        let seen = change(&uffd, probe(&uffd), 1, move || area.advise(1..4, advice));
        assert_eq!(seen, [format!("{:?}", Message::Remove { range: area.range(1..4) })]);
    }
}

#[test]
fn mremap_gives_remap_then_unmap() {
    let Some((uffd, area)) = registered(8) else { return };
    uffd.copy(area.page(3), &page_of(33), false).unwrap();
    let target = Area::new(8);
    let seen = change(&uffd, probe(&uffd), 2, move || area.remap_onto(&target));
    assert_eq!(
        seen,
        [
            format!("{:?}", Message::Remap { from: area.base, to: target.base, len: 8 * PAGE as u64 }),
            format!("{:?}", Message::Unmap { range: area.whole() }),
        ]
    );
    // The registration went along.
    assert_eq!(target.read(3), 33);
    uffd.copy(target.page(4), &page_of(44), false).unwrap();
    assert_eq!(target.read(4), 44);
}
