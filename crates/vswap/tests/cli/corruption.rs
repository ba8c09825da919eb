//! Memory or a disk that lies: what the pager keeps is damaged from outside, as root, and the tree ends with a message that
//! names process, address and slot; never does the program see a wrong byte.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::harness::{PATIENCE, Scratch};
use crate::harness::{assert_code, kill, parent, stat, stderr, stdout, within};
use crate::holder::Holder;

/// Holds pages that compress to a third and begin as `MARK`; then reads or unmaps them. The interpreter's own pages are
/// none of these, and are left alone.
const PROGRAM: &str = "
import mmap, random, sys
size = 24 << 20
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def page(at): return (b'vswap-corruption' + random.Random(at).randbytes(1008)) * 4
for at in range(0, size, 4096): area[at:at + 4096] = page(at)
print('ready', flush=True)
sys.stdin.readline()
if WHAT == 'read':
    for at in range(0, size, 4096):
        if area[at:at + 4096] != page(at): print('WRONG')
else:
    area.close()
print('right')
";
const SIZE: u64 = 24 << 20;
const MARK: &[u8] = b"vswap-corruption";

const PAGE: usize = 4096;
const SEGMENT: usize = 1 << 20;

/// What is damaged, in every object of the pool or every page of the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Slot,
    Payload,
    File,
}

/// Flips a bit in each object of a segment of the pool, if that is what this is; says of how many.
fn damage_segment(memory: &mut [u8], what: Where) -> usize {
    let mut objects = Vec::new();
    let mut at = 0;
    while at + 8 <= memory.len() {
        let header = u64::from_le_bytes(memory[at..at + 8].try_into().unwrap());
        let (slot, length) = (header >> 24, (header & 0xfff) as usize);
        if slot == 0 || slot > 1 << 30 || !(8..3100).contains(&length) || at + 8 + length > memory.len() {
            break;
        }
        objects.push((at, length));
        at += 8 + length.next_multiple_of(8);
    }
    // What is no segment does not look like a long row of them.
    if objects.len() < 20 {
        return 0;
    }
    let marked = |&(at, length): &(usize, usize)| {
        memory[at + 8..at + 8 + length.min(32)].windows(MARK.len()).any(|bytes| bytes == MARK)
    };
    objects.retain(marked);
    for &(at, length) in &objects {
        let byte = if what == Where::Slot { at + 5 } else { at + 8 + length / 2 };
        memory[byte] ^= 0x10;
    }
    objects.len()
}

/// Damages the pool of a pager that stands still; how many objects.
fn damage_pool(pager: u32, what: Where) -> usize {
    let memory = File::options().read(true).write(true).open(format!("/proc/{pager}/mem")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pager}/maps")).unwrap();
    let mut damaged = 0;
    for line in maps.lines() {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let (start, end) = words[0].split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (start, end) = (number(start), number(end));
        if words[1] != "rw-p" || words.len() > 5 || !(end - start).is_multiple_of(SEGMENT as u64) {
            continue;
        }
        for at in (start..end).step_by(SEGMENT) {
            let mut bytes = vec![0; SEGMENT];
            memory.read_exact_at(&mut bytes, at).unwrap();
            let objects = damage_segment(&mut bytes, what);
            if objects > 0 {
                memory.write_all_at(&bytes, at).unwrap();
            }
            damaged += objects;
        }
    }
    damaged
}

/// Damages the program's pages in the pager's file.
fn damage_file(pager: u32) -> usize {
    let fds = fs::read_dir(format!("/proc/{pager}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let spill = fds
        .filter(|fd| fs::metadata(fd).is_ok_and(|file| file.is_file() && file.len() > SIZE / 4))
        .find(|fd| fs::read_link(fd).is_ok_and(|link| link.to_string_lossy().ends_with("(deleted)")));
    let file = File::options().read(true).write(true).open(spill.expect("a spill file")).unwrap();
    let mut damaged = 0;
    let mut page = [0; PAGE];
    for at in (0..file.metadata().unwrap().len()).step_by(PAGE) {
        file.read_exact_at(&mut page, at).unwrap();
        if page.starts_with(MARK) {
            file.write_all_at(&[page[700] ^ 1], at + 700).unwrap();
            damaged += 1;
        }
    }
    file.sync_all().unwrap();
    damaged
}

/// Where the program keeps its pages.
fn area_of(pid: u32) -> std::ops::Range<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let ranges = maps.lines().filter(|line| line.split_ascii_whitespace().count() == 5).map(|line| {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap()
    });
    ranges.into_iter().max_by_key(|range| if range.end - range.start >= SIZE { 1 } else { 0 }).unwrap()
}

/// Evicts, damages, and has the program go on; what was said, after that it was ended and named everything.
#[track_caller]
fn ends(options: &[&str], what: Where, then: &str) -> String {
    // The program's own user may not look into its pager; root may.
    let program = PROGRAM.replace("WHAT", &format!("'{then}'"));
    let spill = Scratch::new();
    let mut all = vec!["--quiet", "--swap-dir", spill.path().to_str().unwrap()];
    all.extend(options);
    let mut run = Holder::with(&all, &program);
    assert_code(&run.reclaim("24M"), 0);
    if what == Where::File {
        let spilled = || run.status()["summary"]["backing"]["file"].as_u64().unwrap() > SIZE / 2 / 4096;
        assert!(within(PATIENCE, spilled), "{}", run.status());
    }
    let (pid, pager, area) = (run.pid, parent(run.pid), area_of(run.pid));
    kill(pager, "STOP");
    assert!(within(PATIENCE, || stat(pager, 0).as_deref() == Some("T")));
    let damaged = match what {
        Where::Slot | Where::Payload => damage_pool(pager, what),
        Where::File => damage_file(pager),
    };
    kill(pager, "CONT");
    assert!(damaged > 2000, "{damaged} pages were damaged");
    run.go_on();
    let done = run.collect();
    assert_code(&done, 125);
    assert_eq!(stdout(&done), "", "no page came back wrong, and the program did not reach its end");
    let said = stderr(&done);
    assert!(said.contains(&format!("vswap: process {pid}: the page at 0x")), "{said}");
    let address = said.split("page at 0x").nth(1).unwrap().split([' ', ':']).next().unwrap();
    assert!(area.contains(&u64::from_str_radix(address, 16).unwrap()), "{area:x?}: {said}");
    assert!(said.contains("swap slot ") && said.contains(" evicted 0x"), "{said}");
    said
}

#[test]
fn an_object_that_names_another_slot_ends_the_tree() {
    let said = ends(&[], Where::Slot, "read");
    assert!(said.contains("the pool does not know it"), "{said}");
}

#[test]
fn an_object_with_a_flipped_bit_ends_the_tree() {
    // With 12 bits one in 4096 would not be seen: the program itself would have to.
    let said = ends(&["--wide-check"], Where::Payload, "read");
    assert!(said.contains("its copy in the pool fails its check"), "{said}");
}

#[test]
fn what_cannot_be_released_ends_the_tree() {
    let said = ends(&[], Where::Slot, "unmap");
    assert!(said.contains("the pool does not have the page of swap slot"), "{said}");
    assert!(said.contains(" unmapped 0x"), "{said}");
}

#[test]
fn a_page_of_the_file_with_a_flipped_bit_ends_the_tree() {
    let said = ends(&["--pool-max", "2M"], Where::File, "read");
    assert!(said.contains("its copy in tier 0 fails its check"), "{said}");
}

/// 320 MiB of pages that are one word each, too wide for the slot's word: objects of the least size.
const WORDS: &str = "
import mmap, struct, sys
size = 320 << 20
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 4096): area[at:at + 4096] = struct.pack('<Q', 0x0123456789abcdef + (at << 24)) * 512
print('ready', flush=True)
sys.stdin.readline()
for at in range(0, size, 4096):
    assert area[at:at + 4096] == struct.pack('<Q', 0x0123456789abcdef + (at << 24)) * 512
print('right')
";

#[test]
fn a_wide_check_takes_room() {
    let pool = |options: &[&str]| {
        let run = Holder::with(&[&["--quiet"], options].concat(), WORDS);
        assert_code(&run.reclaim("310M"), 0);
        let status = run.status();
        let (pool, pages) = (&status["memory"]["pool"], &status["summary"]["backing"]["pool"]);
        let each = pool.as_u64().unwrap() as f64 / pages.as_u64().unwrap() as f64;
        run.finish();
        each
    };
    let (narrow, wide) = (pool(&[]), pool(&["--wide-check"]));
    // 16 and 24 bytes, and what is open in segments.
    assert!(wide > narrow + 6.0 && narrow > 16.0, "{narrow} and {wide} bytes a page");
}
