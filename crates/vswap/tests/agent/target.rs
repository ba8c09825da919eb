//! The program under test: this very test binary, started again with the agent preloaded.
//!
//! It takes one-word orders on standard input and answers in lines that start with "> ". Between the orders it is
//! quiet, so that each test decides what happens in which order.

use std::io::Write;

use super::mini::PAGE;

/// Starts as a target if this process was asked to be one.
///
/// An ignored test is how a test binary offers a second entry point.
#[test]
#[ignore = "the program under test, not a test"]
fn target() {
    let Ok(pages) = std::env::var("VSWAP_TEST_TARGET") else { return };
    let mut memory = Memory::new(pages.parse().unwrap());
    say(&format!("{:#x}", memory.start));
    while let Some(line) = listen() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| {
            let word = words[index];
            word.strip_prefix("0x").map_or_else(|| word.parse(), |hex| u64::from_str_radix(hex, 16)).unwrap()
        };
        match words[0] {
            "check" => say(memory.check()),
            "drop" => {
                memory.advise(number(1), number(2), libc::MADV_DONTNEED);
                for page in number(1)..number(1) + number(2) {
                    memory.expected[page as usize] = 0;
                }
                say("dropped");
            }
            // Any advice, with the answer as the program gets it.
            "advise" => {
                let size = (number(2) * PAGE) as usize;
                // SAFETY: inside the mapping, which no reference points into.
                let result =
                    unsafe { libc::madvise(memory.word(number(1), 0).cast(), size, number(3) as i32) };
                say(&format!("advised {result}"));
            }
            "empty" => say(memory.empty(number(1))),
            "protect" => {
                memory.protect(number(1), number(2));
                say("protected");
            }
            "moved" => {
                memory.start = number(1);
                say(memory.check());
            }
            "lock" => {
                // SAFETY: changes no memory that Rust knows of.
                say(if unsafe { libc::mlockall(libc::MCL_CURRENT) } == 0 { "locked" } else { "refused" });
            }
            // A child that is gone again, and leaves every page shared as far as the kernel is concerned.
            "share" => {
                // SAFETY: the child leaves at once.
                match unsafe { libc::fork() } {
                    // SAFETY: no destructors run; nothing is owed to anyone.
                    0 => unsafe { libc::_exit(0) },
                    child => say(&wait(child)),
                }
            }
            "fork" => say(&fork_and_obey(&memory, 1)),
            "errno" => {
                // SAFETY: the location is this thread's.
                unsafe { *libc::__errno_location() = 77 };
                // SAFETY: the child leaves at once.
                let child = unsafe { libc::fork() };
                // SAFETY: as above.
                let errno = unsafe { *libc::__errno_location() };
                if child == 0 {
                    say(&format!("errno {errno}"));
                    // SAFETY: no destructors run; nothing is owed to anyone.
                    unsafe { libc::_exit(0) };
                }
                say(&wait(child));
            }
            "count" => say(&memory.count(number(1))),
            "descriptors" => say(&descriptors()),
            "signals" => say(&blocked_signals()),
            other => panic!("{other}"),
        }
    }
}

/// Makes a child that takes orders in place of its parent until it is told to end.
fn fork_and_obey(memory: &Memory, generation: u32) -> String {
    // SAFETY: this process has one thread that matters, and the child leaves without running destructors.
    let child = unsafe { libc::fork() };
    if child != 0 {
        return wait(child);
    }
    say(&format!("child {}", memory.check()));
    while let Some(line) = listen() {
        if let Some(page) = line.strip_prefix("empty ") {
            say(&format!("child {}", memory.empty(page.parse().unwrap())));
            continue;
        }
        match line.trim() {
            "check" => say(&format!("child {}", memory.check())),
            "fork" => say(&format!("{} {}", generation, fork_and_obey(memory, generation + 1))),
            _ => break,
        }
    }
    // SAFETY: no destructors run; nothing is owed to anyone.
    unsafe { libc::_exit(0) }
}

struct Memory {
    start: u64,
    /// What each page was filled with; 0 for an empty one.
    expected: Vec<u64>,
}

impl Memory {
    fn new(pages: u64) -> Memory {
        let size = (pages * PAGE) as usize;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // A page without access on each side, so that the mapping is one of its own.
        // SAFETY: new mappings where there is room, and a part of them replaced.
        let start = unsafe {
            let all =
                libc::mmap(std::ptr::null_mut(), size + 2 * PAGE as usize, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(all, libc::MAP_FAILED);
            libc::mmap(all.byte_add(PAGE as usize), size, access, flags | libc::MAP_FIXED, -1, 0)
        };
        assert_ne!(start, libc::MAP_FAILED);
        let memory = Memory { start: start as u64, expected: (1..=pages).collect() };
        for page in 0..pages {
            for word in 0..PAGE / 8 {
                // SAFETY: inside the mapping, aligned.
                unsafe { memory.word(page, word).write_volatile(pattern(page + 1, word)) };
            }
        }
        memory
    }

    fn word(&self, page: u64, word: u64) -> *mut u64 {
        (self.start + page * PAGE + word * 8) as *mut u64
    }

    fn check(&self) -> &'static str {
        for (page, filled) in (0..).zip(&self.expected) {
            for word in 0..PAGE / 8 {
                // SAFETY: inside the mapping, aligned.
                if unsafe { self.word(page, word).read_volatile() } != pattern(*filled, word) {
                    return "corrupt";
                }
            }
        }
        "intact"
    }

    fn empty(&self, page: u64) -> &'static str {
        // SAFETY: inside the mapping, aligned.
        let nonzero = |word| unsafe { self.word(page, word).read_volatile() } != 0;
        if (0..PAGE / 8).any(nonzero) { "full" } else { "empty" }
    }

    fn advise(&self, page: u64, pages: u64, advice: i32) {
        // SAFETY: inside the mapping, which no reference points into.
        let result = unsafe { libc::madvise(self.word(page, 0).cast(), (pages * PAGE) as usize, advice) };
        assert_eq!(result, 0);
    }

    fn protect(&self, page: u64, pages: u64) {
        // SAFETY: inside the mapping, which no reference points into.
        let result =
            unsafe { libc::mprotect(self.word(page, 0).cast(), (pages * PAGE) as usize, libc::PROT_READ) };
        assert_eq!(result, 0);
    }

    /// Two threads add to every page for a while; says whether no addition was lost.
    fn count(&self, milliseconds: u64) -> String {
        use std::sync::atomic::{AtomicU64, Ordering};
        let pages = self.expected.len() as u64;
        // SAFETY: inside the mapping, aligned, and used as atomics only while this function runs.
        let counter = |page: u64, word: u64| unsafe { AtomicU64::from_ptr(self.word(page, word)) };
        let end = std::time::Instant::now() + std::time::Duration::from_millis(milliseconds);
        let total =
            || (0..pages).fold(0u64, |sum, page| sum.wrapping_add(counter(page, 9).load(Ordering::Relaxed)));
        let before = total();
        let added: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2u64)
                .map(|mut seed| {
                    scope.spawn(move || {
                        let mut added = 0;
                        while std::time::Instant::now() < end {
                            for _ in 0..20 {
                                seed = seed
                                    .wrapping_mul(0x5851_f42d_4c95_7f2d)
                                    .wrapping_add(0x1405_7b7e_f767_814f);
                                counter((seed >> 33) % pages, 9).fetch_add(1, Ordering::Relaxed);
                                added += 1;
                            }
                        }
                        added
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let found = total().wrapping_sub(before);
        if found == added { format!("counted {added}") } else { format!("{found} instead of {added}") }
    }
}

fn pattern(filled: u64, word: u64) -> u64 {
    if filled == 0 { 0 } else { (filled * 512 + word).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
}

fn say(line: &str) {
    let line = format!("\n> {line}\n");
    // The test harness captures print!, not this.
    std::io::stderr().flush().unwrap();
    // SAFETY: the buffer lives and has the length given.
    let written = unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
    assert_eq!(written, line.len() as isize);
}

/// A line of standard input, read byte by byte: a fork child takes turns with its parent.
fn listen() -> Option<String> {
    let mut line = String::new();
    loop {
        let mut byte = 0u8;
        // SAFETY: one writable byte.
        match unsafe { libc::read(0, (&raw mut byte).cast(), 1) } {
            1 if byte == b'\n' => return Some(line),
            1 => line.push(byte.into()),
            _ => return None,
        }
    }
}

fn wait(child: i32) -> String {
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: the status is writable.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    format!("status {status}")
}

fn descriptors() -> String {
    let mut open: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|link| link.display().to_string())
        .filter(|link| !link.starts_with("/proc/"))
        .map(|link| link.split(':').next().unwrap().to_string())
        .collect();
    open.sort();
    open.join(" ")
}

fn blocked_signals() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap().to_string()
}
