//! A userfaultfd across processes: fork events, a process that has gone; and figures of a whole process.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use vswap_sys::PAGE_SIZE;
use vswap_sys::maps::{Kind, Maps};
use vswap_sys::process::{self, MemFile};
use vswap_sys::socket::{Conn, socketpair};
use vswap_sys::uffd::{Message, Partial, RegisterMode, Uffd};

use crate::Test;
use crate::common::{Area, message, open_uffd, page_of, readable};

pub(crate) const TESTS: &[Test] = &[
    ("fork_event_hands_over_the_child", fork_event_hands_over_the_child),
    ("fork_event_waits_for_a_free_descriptor", fork_event_waits_for_a_free_descriptor),
    ("a_dead_process_answers_esrch", a_dead_process_answers_esrch),
    ("maps_by_query_equal_maps_by_text", maps_by_query_equal_maps_by_text),
    ("statm_and_smaps_see_growth", statm_and_smaps_see_growth),
];

const PAGE: u64 = PAGE_SIZE as u64;

/// A child with a registered area of four pages, whose userfaultfd we get; then it runs `act`.
fn target(act: impl FnOnce(Area, &Conn) -> i32) -> Option<(u32, Uffd, Area, Conn)> {
    drop(open_uffd()?);
    let area = Area::new(4);
    let (ours, theirs) = socketpair().unwrap();
    let child = process::fork_with(|| {
        let uffd = open_uffd().unwrap();
        uffd.register(area.whole(), RegisterMode::MISSING | RegisterMode::WP).unwrap();
        theirs.send(b"u", &[uffd.as_fd()]).unwrap();
        drop(uffd);
        act(area, &theirs)
    })
    .unwrap();
    drop(theirs);
    let (_, mut fds) = ours.recv(&mut [0; 8]).unwrap();
    Some((child, Uffd::from(fds.pop().expect("a descriptor")), area, ours))
}

/// Answers read faults with page number + `base` until the process `pid` ends; returns how many there were.
fn serve(uffd: &Uffd, area: Area, base: u8) -> impl Fn(Message) -> u64 {
    move |message| match message {
        Message::Fault { addr, .. } => {
            let page = (addr - area.base) / PAGE;
            assert_eq!(uffd.copy(addr, &page_of(base + page as u8), false), Ok(PAGE_SIZE));
            page
        }
        other => panic!("a fault was due, not {other:?}"),
    }
}

fn fork_event_hands_over_the_child() {
    let act = |area: Area, _: &Conn| {
        let grandchild = process::fork_with(|| i32::from(area.read(1) != 21)).unwrap();
        let own = i32::from(area.read(2) != 12) * 2;
        own + process::wait(grandchild).unwrap().code().unwrap()
    };
    let Some((child, uffd, area, _conn)) = target(act) else { return };
    let Message::Fork { child: fork } = message(&uffd) else { panic!("a fork event was due") };
    assert_eq!(serve(&uffd, area, 10)(message(&uffd)), 2);
    assert_eq!(serve(&fork, area, 20)(message(&fork)), 1);
    assert_eq!(process::wait(child).unwrap().code(), Some(0));
}

fn fork_event_waits_for_a_free_descriptor() {
    let act = |area: Area, _: &Conn| {
        let grandchild = process::fork_with(|| i32::from(area.read(0) != 40)).unwrap();
        process::wait(grandchild).unwrap().code().unwrap()
    };
    let Some((child, uffd, area, _conn)) = target(act) else { return };
    assert!(readable(&uffd, Duration::from_secs(10)));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let full: Vec<OwnedFd> = {
        let low = rustix::process::Rlimit { current: Some(32), ..limit };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, low).unwrap();
        std::iter::from_fn(|| rustix::io::dup(&uffd).ok()).collect()
    };
    assert_eq!(uffd.read_message().unwrap_err(), libc::EMFILE);
    drop(full);
    let Message::Fork { child: fork } = message(&uffd) else { panic!("the fork event was lost") };
    assert_eq!(serve(&fork, area, 40)(message(&fork)), 0);
    assert_eq!(process::wait(child).unwrap().code(), Some(0));
}

fn a_dead_process_answers_esrch() {
    let act = |_: Area, conn: &Conn| {
        conn.recv(&mut [0; 8]).unwrap();
        0
    };
    let Some((child, uffd, area, _conn)) = target(act) else { return };
    assert_eq!(uffd.zeropage(area.range(0..1), false), Ok(PAGE_SIZE));
    assert!(process::pidfd_open(child).is_ok_and(|fd| !readable(fd, Duration::ZERO)));
    let pidfd = process::pidfd_open(child).unwrap();
    process::kill(child, libc::SIGKILL).unwrap();
    assert!(readable(&pidfd, Duration::from_secs(10)));
    let esrch = Partial { done: 0, errno: libc::ESRCH };
    assert_eq!(uffd.copy(area.page(1), &page_of(1), false), Err(esrch));
    assert_eq!(uffd.zeropage(area.range(1..2), false), Err(esrch));
    assert_eq!(uffd.write_protect(area.whole(), false, false), Err(libc::ESRCH));
    // These two say it in their own way.
    assert_eq!(uffd.register(area.whole(), RegisterMode::MISSING), Err(libc::ENOMEM));
    assert_eq!(uffd.unregister(area.whole()), Err(libc::ENOMEM));
    assert_eq!(uffd.read_message().map(|message| message.is_none()), Ok(true));
    process::wait(child).unwrap();
}

fn maps_by_query_equal_maps_by_text() {
    // Names that only anonymous memory has, and a path that does not fit into the name's buffer.
    let named = Area::new(3);
    // SAFETY: names one page of an area of our own; the name is a C string.
    let answer = unsafe {
        libc::prctl(libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME, named.page(1), PAGE, c"a name".as_ptr())
    };
    if answer < 0 {
        println!("anonymous names are not in this kernel");
    }
    // A heap, also where the allocator (a sanitizer's) does not use one.
    // SAFETY: moves the end of the heap by a page that nobody touches.
    unsafe { libc::sbrk(PAGE_SIZE as isize) };
    let long = std::env::temp_dir().join(format!("{}-{}", "n".repeat(200), std::process::id()));
    let file = std::fs::File::create_new(&long).unwrap();
    file.set_len(PAGE).unwrap();
    // SAFETY: a new mapping at an address the kernel chooses, never accessed.
    unsafe {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        mmap(std::ptr::null_mut(), PAGE_SIZE, ProtFlags::READ, MapFlags::PRIVATE, &file, 0).unwrap();
    }
    let me = std::process::id();
    let (mut query, mut text) = (Maps::open(me).unwrap(), Maps::open_text_only(me).unwrap());
    let mut kinds = Vec::new();
    let mut addr = 0;
    loop {
        // The allocator may map memory meanwhile: only what stands still is compared.
        let (one, other, again) =
            (query.next_at_or_after(addr), text.next_at_or_after(addr), query.next_at_or_after(addr));
        let (one, again) = (one.unwrap(), again.unwrap());
        assert!(one != again || one == other.unwrap());
        let Some(mapping) = again else { break };
        addr = mapping.range.end;
        kinds.push(mapping.kind);
    }
    std::fs::remove_file(&long).unwrap();
    assert!(query.uses_query(), "PROCMAP_QUERY is missing: only the text was tested");
    for kind in [Kind::Anon, Kind::Heap, Kind::Stack, Kind::File, Kind::Vdso] {
        assert!(kinds.contains(&kind), "no {kind:?} in {kinds:?}");
    }
}

fn statm_and_smaps_see_growth() {
    let me = std::process::id();
    let mut file = MemFile::open(me).unwrap();
    let (before, pss_before) = (file.read().unwrap(), process::pss_anon(me).unwrap());
    let area = Area::new(20_000);
    (0..area.pages).for_each(|page| area.write(page, 1));
    let (after, pss_after) = (file.read().unwrap(), process::pss_anon(me).unwrap());
    // The kernel's counters lag by some dozens of pages per CPU.
    let near = |grown: u64| (19_800..20_200).contains(&grown);
    assert!(near(after.anon_pages - before.anon_pages), "{before:?} {after:?}");
    assert!(near((pss_after - pss_before) / PAGE), "{pss_before} {pss_after}");
    assert!(near(after.vm_pages - before.vm_pages), "{before:?} {after:?}");
    area.unmap(0..area.pages);

    let child = process::fork_with(|| 0).unwrap();
    let mut file = MemFile::open(child).unwrap();
    let pidfd = process::pidfd_open(child).unwrap();
    assert!(readable(pidfd, Duration::from_secs(10)));
    assert_eq!(file.read().unwrap(), process::Rss::default());
    process::wait(child).unwrap();
    assert_eq!(file.read().unwrap_err().raw_os_error(), Some(libc::ESRCH));
}
