//! What the calls of this crate cost here, in nanoseconds: `cargo run --release -p vswap-sys --example costs`.
//!
//! The best of several short batches, bound to one CPU, on this process (the best, because other work on the machine only adds). For orders of magnitude when something is put on a hot path; not
//! a benchmark to compare versions with.

use std::hint::black_box;
use std::time::Instant;

use rustix::mm::{MapFlags, ProtFlags};
use vswap_sys::maps::Maps;
use vswap_sys::pagemap::Pagemap;
use vswap_sys::poll::EventFd;
use vswap_sys::process::{self, MemFile, ThreadFile};
use vswap_sys::shared::{SharedPages, memfd_create};
use vswap_sys::uffd::{FEATURES, RegisterMode, Uffd};
use vswap_sys::{PAGE_SIZE, system};

fn cost<T>(name: &str, per: u64, mut act: impl FnMut() -> T) {
    const BATCHES: u64 = 50;
    const CALLS: u64 = 20;
    let batch = |_| {
        let start = Instant::now();
        (0..CALLS).for_each(|_| drop(black_box(act())));
        start.elapsed().as_nanos() as u64
    };
    let best = (0..BATCHES).map(batch).min().unwrap_or(0);
    println!("{name:<52} {:>10.1}", best as f64 / (CALLS * per) as f64);
}

fn main() {
    let cpu = process::current_cpu();
    process::set_affinity_self(cpu).expect("this CPU");
    let me = std::process::id();
    let pages = 4096;
    // SAFETY: a new mapping at an address the kernel chooses; used by number below.
    let base = unsafe {
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), pages * PAGE_SIZE, protection, flags)
    }
    .expect("mmap") as u64;
    let range = base..base + (pages * PAGE_SIZE) as u64;

    let shared = SharedPages::map(memfd_create(c"costs", 256).expect("memfd"), 256).expect("map");
    let mut page = [0; PAGE_SIZE];
    let mut index = 0;
    cost("shared.copy_page_out", 1, || {
        shared.copy_page_out(index, &mut page);
        index = (index + 1) % 256;
        black_box(&page);
    });
    let pagemap = Pagemap::open(me).expect("pagemap");
    let mut runs = Vec::new();
    cost("pagemap.scan, per present page", pages as u64, || {
        runs.clear();
        pagemap.scan(range.clone(), 0, &mut runs).expect("scan");
    });
    cost("pagemap.scan_present, per present page", pages as u64, || {
        runs.clear();
        pagemap.scan_present(range.clone(), 0, &mut runs).expect("scan");
    });
    let mut entries = vec![0; pages];
    cost("pagemap.entries, per page", pages as u64, || {
        pagemap.entries(base / PAGE_SIZE as u64, &mut entries).expect("entries");
    });
    let mut maps = Maps::open(me).expect("maps");
    cost("maps.next_at_or_after, anonymous", 1, || maps.next_at_or_after(base));
    let code = main as *const () as u64;
    cost("maps.next_at_or_after, file", 1, || maps.next_at_or_after(code));
    let mut text = Maps::open_text_only(me).expect("maps");
    cost("maps by text, near the end", 1, || text.next_at_or_after(base));
    let mut memory = MemFile::open(me).expect("statm");
    cost("MemFile.read", 1, || memory.read());
    cost("pss_anon", 1, || process::pss_anon(me));
    cost("status", 1, || process::status(me));
    let thread = ThreadFile::open(std::process::id(), me).expect("stat");
    cost("ThreadFile.cpu", 1, || thread.cpu());
    cost("cpu_of_thread", 1, || process::cpu_of_thread(me));
    cost("robust_list_head", 1, || process::robust_list_head(me));
    cost("tgkill_check", 1, || process::tgkill_check(me, me));
    let mut threads = Vec::new();
    cost("threads", 1, || process::threads(me, &mut threads).expect("threads"));
    cost("children_of", 1, || process::children_of(me));
    let notice = EventFd::new().expect("eventfd");
    cost("EventFd notify and drain", 1, || {
        notice.notify();
        notice.drain();
    });
    cost("mem_available", 1, system::mem_available);
    cost("cgroup_limit", 1, system::cgroup_limit);

    match Uffd::open().and_then(|uffd| uffd.api(FEATURES).map(|_| uffd)) {
        Ok(uffd) => {
            uffd.register(range.clone(), RegisterMode::MISSING | RegisterMode::WP).expect("register");
            cost("uffd.read_message, none", 1, || uffd.read_message());
            cost("uffd.wake, nobody", 1, || uffd.wake(range.clone()).expect("wake"));
            let one = base..base + PAGE_SIZE as u64;
            cost("uffd.write_protect off, one page (is it registered?)", 1, || {
                uffd.write_protect(one.clone(), false, true).expect("write_protect");
            });
            cost("uffd.copy that finds a page (EEXIST)", 1, || uffd.copy(base, &page, true));
        }
        Err(error) => println!("no userfaultfd here: {error}"),
    }
}
