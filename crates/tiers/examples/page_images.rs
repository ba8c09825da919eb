//! Makes images of real programs' pages for `compressors`: runs a command, stops it when it has grown, and copies
//! anonymous pages of its largest process out of /proc/PID/mem.
//!
//! ```text
//! cargo run --release -p vswap-tiers --example page_images -- OUT_DIR
//! ```
//!
//! writes OUT_DIR/{python,node,cc1plus,sort}.pages, up to 4000 pages each, spread evenly over what is resident. Programs
//! that are not installed are passed over.
#![allow(missing_docs)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const PAGES: usize = 4000;

/// Name, shell command, and the MiB at which it is stopped. It should hold its memory until then.
const PROGRAMS: [(&str, &str, u64); 4] = [
    (
        "python",
        "python3 -c 'd = {i: (\"key%d\" % i, [i] * 5, {\"n\": i, \"s\": str(i * i)}) for i in range(300000)}
import time; time.sleep(20)'",
        150,
    ),
    (
        "node",
        "node -e 'const a = []; for (let i = 0; i < 600000; i++) a.push({ id: i, name: \"user\" + i, tags: [\"a\", i, i / 7] });
setTimeout(() => a.length, 20000)'",
        120,
    ),
    (
        "cc1plus",
        "(echo '#include <bits/stdc++.h>'; for i in $(seq 400); do echo \"std::string f$i(std::map<std::string,int> &m) \
         { std::ostringstream o; for (auto &p : m) o << p.first << p.second + $i; return o.str(); }\"; done) \
         | g++ -O2 -g -c -x c++ -o /dev/null -",
        200,
    ),
    ("sort", "seq 1 9000000 | awk '{ print $1 * 7919 % 1000003, \"line\", $1, \"of some text\" }' | sort -S 400M -o /dev/null", 300),
];

fn main() {
    let Some(dir) = std::env::args().nth(1) else { panic!("usage: page_images OUT_DIR") };
    fs::create_dir_all(&dir).expect("a directory to write to");
    for (name, command, mib) in PROGRAMS {
        let path = Path::new(&dir).join(format!("{name}.pages"));
        let pages = snapshot(command, mib << 20);
        println!("{}: {} pages", path.display(), pages.len() / PAGE);
        if !pages.is_empty() {
            File::create(path).expect("a file").write_all(&pages).expect("written");
        }
    }
}

fn snapshot(command: &str, bytes: u64) -> Vec<u8> {
    // A process group of its own, so that all of it can be ended.
    let mut child =
        Command::new("setsid").args(["sh", "-c", command]).stdout(Stdio::null()).spawn().expect("a shell");
    let started = Instant::now();
    let (pid, _) = loop {
        std::thread::sleep(Duration::from_millis(20));
        let largest = descendants(child.id()).into_iter().map(|p| (p, resident(p))).max_by_key(|(_, r)| *r);
        match largest {
            Some((p, r)) if r >= bytes || (started.elapsed() > Duration::from_secs(20) && r > 8 << 20) => {
                break (p, r);
            }
            Some(_) if child.try_wait().is_ok_and(|s| s.is_none()) => {}
            _ => return Vec::new(),
        }
    };
    kill("-STOP", pid);
    let pages = anonymous_pages(pid);
    for p in descendants(child.id()).into_iter().rev() {
        kill("-KILL", p);
    }
    let _ = child.wait();
    pages
}

fn kill(signal: &str, pid: u32) {
    let _ = Command::new("kill").args([signal, &pid.to_string()]).status();
}

/// The process and all below it.
fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|c| c.parse::<u32>().ok()));
        next += 1;
    }
    all
}

/// Anonymous resident bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(0, |kb| kb << 10)
}

/// Pages spread evenly over the resident anonymous memory.
fn anonymous_pages(pid: u32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("readable");
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).expect("readable");
    let mut present = Vec::new();
    for line in maps.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let anonymous = fields.len() == 5 || fields[5] == "[heap]";
        if !fields[1].starts_with("rw") || !anonymous {
            continue;
        }
        let (start, end) = fields[0].split_once('-').expect("a range");
        let hex = |s| u64::from_str_radix(s, 16).expect("an address") / PAGE as u64;
        for page in hex(start)..hex(end) {
            let mut entry = [0; 8];
            // Bit 63 of a pagemap entry: present.
            if pagemap.read_exact_at(&mut entry, page * 8).is_ok() && u64::from_le_bytes(entry) >> 63 != 0 {
                present.push(page);
            }
        }
    }
    let memory = File::open(format!("/proc/{pid}/mem")).expect("readable by the parent");
    let step = (present.len() / PAGES).max(1);
    let mut pages = Vec::new();
    for page in present.iter().step_by(step).take(PAGES) {
        let mut bytes = [0; PAGE];
        if memory.read_exact_at(&mut bytes, page * PAGE as u64).is_ok() {
            pages.extend_from_slice(&bytes);
        }
    }
    pages
}
