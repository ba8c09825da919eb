//! Views of processes through `/proc`, on this process: pagemap, maps, memory, threads; and what needs no process:
//! sockets, shared pages, poll.

mod common;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, Instant};

use common::{Area, PATIENCE, page_of, registered};
use rustix::mm::MapFlags;
use vswap_sys::maps::{Kind, Maps};
use vswap_sys::pagemap::{self, Pagemap};
use vswap_sys::poll::{EventFd, Events, poll};
use vswap_sys::process;
use vswap_sys::shared::{SharedPages, memfd_create};
use vswap_sys::socket::{Conn, FDS_MAX, Listener, socketpair};
use vswap_sys::{PAGE_SIZE, system};

const PAGE: u64 = PAGE_SIZE as u64;

fn own_pagemap() -> Pagemap {
    Pagemap::open(std::process::id()).unwrap()
}

#[test]
fn scan_finds_present_anonymous_pages_only() {
    let area = Area::new(10);
    area.advise(0..10, libc::MADV_NOHUGEPAGE);
    for page in [0, 1, 2, 5, 6, 8] {
        area.write(page, 1);
    }
    area.read(4); // the zero page
    area.advise(8..9, 102); // MADV_GUARD_INSTALL
    let mut runs = Vec::new();
    assert_eq!(own_pagemap().scan(area.whole(), 0, &mut runs).unwrap(), area.whole().end);
    assert_eq!(runs, [area.range(0..3), area.range(5..7)]);
    let mut present = Vec::new();
    assert_eq!(own_pagemap().scan_present(area.whole(), 0, &mut present).unwrap(), area.whole().end);
    assert_eq!(present, runs);

    let mut entries = [0; 10];
    assert_eq!(own_pagemap().entries(area.base / PAGE, &mut entries).unwrap(), 10);
    let there: Vec<usize> = (0..10).filter(|&page| entries[page] & pagemap::ENTRY_PRESENT != 0).collect();
    assert_eq!(there, [0, 1, 2, 4, 5, 6]);
    assert!(entries[8] & pagemap::ENTRY_GUARD != 0, "{:#x}", entries[8]);
    assert!(pagemap::is_there(entries[0]) && !pagemap::is_there(entries[3]));
    assert!(entries[0] & pagemap::ENTRY_EXCLUSIVE != 0);

    let shared = Area::with(2, MapFlags::SHARED);
    shared.write(0, 1);
    let mut runs = Vec::new();
    own_pagemap().scan(shared.whole(), 0, &mut runs).unwrap();
    assert_eq!(runs, []);
    own_pagemap().scan_present(shared.whole(), 0, &mut runs).unwrap();
    assert_eq!(runs, [shared.range(0..1)]);
}

#[test]
fn scan_goes_on_where_it_stopped() {
    let area = Area::new(1200);
    area.advise(0..1200, libc::MADV_NOHUGEPAGE);
    (0..1200).step_by(2).for_each(|page| area.write(page, 1));
    let pagemap = own_pagemap();

    let mut runs = Vec::new();
    let mut next = pagemap.scan(area.whole(), 5, &mut runs).unwrap();
    assert_eq!(runs.len(), 5);
    assert!(runs[4].end <= next && next <= area.page(10), "{runs:x?} {next:x}");

    let mut calls = 1;
    while next != area.whole().end {
        let before = runs.len();
        next = pagemap.scan(next..area.whole().end, 0, &mut runs).unwrap();
        assert!(runs.len() - before <= pagemap::SCAN_RUNS_MAX);
        calls += 1;
    }
    assert_eq!(calls, 4); // 5, 256, 256, and the rest of 600 runs
    let expected: Vec<_> = (0..1200).step_by(2).map(|page| area.range(page..page + 1)).collect();
    assert_eq!(runs, expected);
}

#[test]
fn write_protection_shows_in_entries() {
    let Some((uffd, area)) = registered(2) else { return };
    uffd.copy(area.page(0), &page_of(1), false).unwrap();
    uffd.write_protect(area.range(0..1), true, false).unwrap();
    let mut entries = [0; 2];
    own_pagemap().entries(area.base / PAGE, &mut entries).unwrap();
    assert!(entries[0] & pagemap::ENTRY_UFFD_WP != 0, "{:#x}", entries[0]);
}

#[test]
fn maps_finds_the_covering_or_next_mapping() {
    for mut maps in
        [Maps::open(std::process::id()).unwrap(), Maps::open_text_only(std::process::id()).unwrap()]
    {
        let area = Area::new(9);
        // Two holes around a mapping of three pages.
        area.unmap(0..3);
        area.unmap(6..9);
        for addr in [area.base, area.page(3), area.page(5) + 1] {
            let found = maps.next_at_or_after(addr).unwrap().unwrap();
            assert_eq!((found.range, found.kind), (area.range(3..6), Kind::Anon));
            assert_eq!((found.read, found.write, found.exec, found.shared), (true, true, false, false));
            assert_eq!(found.inode, 0);
        }
        let above = maps.next_at_or_after(area.page(6)).unwrap().unwrap();
        assert!(above.range.start >= area.page(9), "{above:?}");
        assert_eq!(maps.next_at_or_after(1 << 47).unwrap(), None);

        let code = maps.next_at_or_after(maps_finds_the_covering_or_next_mapping as *const () as u64);
        let code = code.unwrap().unwrap();
        assert!(code.exec && !code.write && code.kind == Kind::File && code.inode != 0, "{code:?}");

        let shared = Area::with(1, MapFlags::SHARED);
        let found = maps.next_at_or_after(shared.base).unwrap().unwrap();
        assert!(found.shared && found.kind == Kind::File && found.inode != 0, "{found:?}");
    }
}

#[test]
fn status_of_this_process() {
    let status = process::status(std::process::id()).unwrap();
    assert_eq!(status.tgid, std::process::id());
    assert_eq!(status.ppid, std::os::unix::process::parent_id());
    assert_eq!(status.uid, rustix::process::getuid().as_raw());
    assert!(status.vm_hwm >= status.vm_rss && status.vm_rss >= status.rss_anon && status.rss_anon > 0);
    assert!(status.threads >= 1 && status.tracer_pid == 0 && matches!(status.state, 'R' | 'S'));
    assert_eq!(process::status(u32::MAX).unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn threads_and_their_cpus() {
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let (say, said) = std::sync::mpsc::channel();
    let cpu = *process::allowed_cpus().last().unwrap();
    let thread = std::thread::spawn(move || {
        process::set_affinity_self(cpu).unwrap();
        assert_eq!(process::current_cpu(), cpu);
        say.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
        wait.recv().unwrap_err();
        process::clear_affinity().unwrap();
        assert_eq!(
            rustix::thread::sched_getaffinity(None).unwrap().count() as usize,
            process::allowed_cpus().len()
        );
    });
    let tid = said.recv().unwrap();
    assert_eq!(process::cpu_of_thread(tid).unwrap(), cpu);
    let mut threads = vec![7];
    process::threads(std::process::id(), &mut threads).unwrap();
    assert!(threads.contains(&tid) && threads.contains(&std::process::id()) && !threads.contains(&7));
    assert!(process::tgkill_check(std::process::id(), tid));
    assert!(!process::tgkill_check(1, tid) && !process::tgkill_check(std::process::id(), 0));
    let head = process::robust_list_head(tid).unwrap();
    let mut maps = Maps::open(std::process::id()).unwrap();
    let home = maps.next_at_or_after(head).unwrap().unwrap();
    assert!(home.range.contains(&head) && home.write, "{head:#x} in {home:?}");
    drop(stop);
    thread.join().unwrap();
    let end = Instant::now() + PATIENCE;
    while process::tgkill_check(std::process::id(), tid) {
        assert!(Instant::now() < end, "the thread does not end");
    }
    assert!(process::robust_list_head(tid).is_err() && process::cpu_of_thread(tid).is_err());
    assert!(process::set_affinity_self(5000).is_err());
}

#[test]
fn sockets_keep_boundaries_and_carry_descriptors() {
    let (one, other) = socketpair().unwrap();
    let notice = EventFd::new().unwrap();
    one.send(b"first", &[notice.as_fd(), one.as_fd()]).unwrap();
    one.send(b"second", &[]).unwrap();
    let mut buffer = [0; 64];
    let (length, fds) = other.recv(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], fds.len()), (&b"first"[..], 2));
    let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    rustix::io::write(&fds[0], &3_u64.to_ne_bytes()).unwrap();
    assert_eq!(notice.drain(), 3);
    assert_eq!(notice.drain(), 0);
    let (length, none) = other.recv(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], none.len()), (&b"second"[..], 0));

    // Nonsense is refused on this side, and survived from the other.
    let many = vec![notice.as_fd(); FDS_MAX + 1];
    assert!(one.send(b"", &[]).is_err() && one.send(b"x", &many).is_err());
    one.send(&[0; 65], &[notice.as_fd()]).unwrap();
    assert_eq!(other.recv(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    other.set_nonblocking(true).unwrap();
    assert_eq!(other.recv(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(other.peer_cred().unwrap().pid, std::process::id());
    // What was refused was closed: the last copies of `one` go here.
    drop(fds);
    drop(one);
    assert_eq!(other.recv(&mut buffer).unwrap().0, 0);
}

#[test]
fn a_closed_peer_is_an_end_and_never_a_signal() {
    let (one, other) = socketpair().unwrap();
    drop(one);
    assert_eq!(other.recv(&mut [0; 8]).unwrap().0, 0);
    assert_eq!(other.send(b"x", &[]).unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn listener_has_the_mode_it_was_given() {
    let directory = std::env::temp_dir().join(format!("vswap-sys-test-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    for mode in [0o600, 0o666] {
        let path = directory.join(format!("socket-{mode:o}"));
        let listener = Listener::bind(&path, mode).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        assert!(Listener::bind(&path, mode).is_err());
        assert!(listener.accept_nonblocking().unwrap().is_none());
        let client = Conn::connect(&path, Duration::from_secs(5)).unwrap();
        let server = listener.accept_nonblocking().unwrap().unwrap();
        assert_eq!(server.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        client.send(b"hello", &[]).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(server.recv(&mut buffer).unwrap().0, 5);
        let peer = server.peer_cred().unwrap();
        assert_eq!((peer.pid, peer.uid), (std::process::id(), rustix::process::geteuid().as_raw()));
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

fn file_of(fd: &OwnedFd) -> File {
    File::from(fd.try_clone().unwrap())
}

#[test]
fn shared_pages_are_copied_and_punched() {
    let fd = memfd_create(c"test", 4).unwrap();
    let other_side = file_of(&fd);
    let shared = SharedPages::map(fd, 4).unwrap();
    other_side.write_all_at(&page_of(7), 2 * PAGE).unwrap();
    let mut page = [1; PAGE_SIZE];
    shared.copy_page_out(2, &mut page);
    assert_eq!(page, [7; PAGE_SIZE]);
    shared.copy_page_out(0, &mut page);
    assert_eq!(page, [0; PAGE_SIZE]);
    let blocks = || rustix::fs::fstat(&other_side).unwrap().st_blocks;
    let before = blocks();
    shared.punch(2..3).unwrap();
    assert!(blocks() < before);
    shared.copy_page_out(2, &mut page);
    assert_eq!(page, [0; PAGE_SIZE]);
    assert_eq!(rustix::fs::fstat(&other_side).unwrap().st_size as u64, 4 * PAGE);
    other_side.write_all_at(&0x0123_4567_89ab_cdef_u64.to_ne_bytes(), 3 * PAGE + 8).unwrap();
    assert_eq!([shared.word(3, 0), shared.word(3, 1)], [0, 0x0123_4567_89ab_cdef]);
    assert!(std::panic::catch_unwind(|| shared.word(4, 0)).is_err());
    assert!(std::panic::catch_unwind(|| shared.word(3, 512)).is_err());
    assert!(shared.punch(3..5).is_err() && shared.punch(2..2).is_err());
    assert!(std::panic::catch_unwind(|| shared.copy_page_out(4, &mut [0; PAGE_SIZE])).is_err());
}

#[test]
fn shared_pages_refuse_what_could_hurt() {
    use rustix::fs::{MemfdFlags, memfd_create as raw_memfd};
    let kind = |fd, pages| SharedPages::map(fd, pages).unwrap_err().to_string();
    assert!(kind(memfd_create(c"test", 4).unwrap(), 5).contains("smaller"));
    assert!(kind(memfd_create(c"test", 4).unwrap(), 0).contains("no pages"));
    assert!(kind(memfd_create(c"test", 4).unwrap(), usize::MAX).contains("too many"));
    let unsealed = raw_memfd(c"test", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, PAGE).unwrap();
    assert!(kind(unsealed, 1).contains("F_SEAL_SHRINK"));
    assert!(kind(File::open("/proc/self/exe").unwrap().into(), 1).contains("not a memfd"));
    if let Ok(huge) = raw_memfd(c"test", MemfdFlags::HUGETLB | MemfdFlags::ALLOW_SEALING) {
        assert!(kind(huge, 1).contains("not a memfd"));
    }
}

#[test]
fn poll_tells_who_is_ready() {
    let (quiet, loud) = (EventFd::new().unwrap(), EventFd::new().unwrap());
    let wanted = [(quiet.as_fd(), Events::IN), (loud.as_fd(), Events::IN)];
    let start = Instant::now();
    assert_eq!(poll(&wanted, Some(Duration::from_millis(20))).unwrap(), [Events::empty(); 2]);
    assert!(start.elapsed() >= Duration::from_millis(20));
    loud.notify();
    loud.notify();
    assert_eq!(poll(&wanted, None).unwrap(), [Events::empty(), Events::IN]);
    assert_eq!(loud.drain(), 2);
    assert_eq!(poll(&wanted, Some(Duration::ZERO)).unwrap(), [Events::empty(); 2]);
}

#[test]
fn the_machine_answers() {
    assert!(system::kernel_version().unwrap() >= system::KernelVersion { major: 6, minor: 8, patch: 0 });
    for limit in system::cgroup_limits().unwrap() {
        assert!(limit.path.is_dir() && limit.limit > 0, "{limit:?}");
    }
    if let Some(lowest) = system::cgroup_limit().unwrap() {
        assert!(system::cgroup_limits().unwrap().iter().all(|other| other.limit >= lowest.limit));
    }
    assert!(system::ptrace_scope().is_none_or(|scope| scope <= 3));
    assert!(system::unprivileged_userfaultfd().is_some());
    if common::is_root() && system::in_initial_user_namespace() {
        assert!(system::has_capability(system::Capability::SysPtrace));
        assert!(system::has_capability(system::Capability::SysAdmin));
    }
    if !system::tune_malloc(2) {
        println!("the allocator here (a sanitizer's?) cannot be tuned");
    }
    system::malloc_trim();
}

#[test]
fn processor_time_grows_with_work_alone() {
    let ticks = || process::cpu_ticks(std::process::id()).unwrap();
    let (before, begun) = (ticks(), Instant::now());
    while ticks() < before + 3 {
        assert!(begun.elapsed() < PATIENCE, "no processor time is counted");
    }
    assert!(process::cpu_ticks(u32::MAX / 2).is_err());
}
