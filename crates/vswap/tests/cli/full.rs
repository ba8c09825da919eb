//! What happens when pages that do not compress find no place, or too many cannot leave.

use crate::harness::{Scratch, assert_code, compiled, output, stderr, stdout, vswap};

/// 96 MiB that do not compress, read until the pager has had time to notice; then a word.
const INCOMPRESSIBLE: &str = "import os, sys, time, zlib
pages = [os.urandom(1 << 20) for _ in range(96)]
sums = [zlib.crc32(page) for page in pages]
end = time.monotonic() + 3
while time.monotonic() < end:
    assert [zlib.crc32(page) for page in pages] == sums
print('right')";

fn run(options: &[&str]) -> std::process::Output {
    let options = [&["run", "--memory", "48M"], options, &["--", "python3", "-c", INCOMPRESSIBLE]].concat();
    output(vswap().args(options))
}

#[test]
fn without_a_spill_file_pages_stay_over_the_limit_and_the_summary_says_so() {
    let done = run(&["--no-spill"]);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "right\n");
    let text = stderr(&done);
    assert!(text.contains("over the limit by") && text.contains("the pool is full"), "{text}");
}

#[test]
fn a_full_spill_file_ends_the_program_with_an_error_that_says_what_to_give() {
    let done = run(&["--swap-max", "8M"]);
    assert_code(&done, 125);
    assert_eq!(stdout(&done), "");
    assert!(stderr(&done).contains("--swap-max"), "{}", stderr(&done));
}

#[test]
fn with_room_in_the_file_the_limit_holds() {
    let done = run(&[]);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "right\n");
    assert!(!stderr(&done).contains("is full"), "{}", stderr(&done));
}

/// Pages that leave and come back all the time are no reason to let others wait for room.
#[test]
fn whoever_wants_memory_gets_it_if_nothing_makes_room() {
    let dir = Scratch::new();
    let held = compiled(&dir, "held.c");
    let done = output(vswap().args(["run", "--memory", "40M"]).arg(held).args(["60", "400"]));
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "400\n");
    assert!(stderr(&done).contains("over the limit by"), "{}", stderr(&done));
}
