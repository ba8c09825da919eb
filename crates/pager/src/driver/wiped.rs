//! Where a forked child reads zeros: mappings with MADV_WIPEONFORK, which only smaps tells.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;

/// The ranges of `pid` that are wiped on fork. Costs a walk over all its pages: ask only when there may be some.
pub fn wiped_on_fork(pid: u32) -> std::io::Result<Vec<Range<u64>>> {
    parse(BufReader::new(File::open(format!("/proc/{pid}/smaps"))?))
}

fn parse(smaps: impl BufRead) -> std::io::Result<Vec<Range<u64>>> {
    let mut wiped = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let line = line?;
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if flags.split_ascii_whitespace().any(|flag| flag == "wf") {
                wiped.extend(mapping.take());
            }
        } else if let Some(range) = range_of(&line) {
            mapping = Some(range);
        }
    }
    Ok(wiped)
}

/// The addresses that a mapping's first line begins with.
fn range_of(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_flag_of_each_mapping() {
        let text = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nVmFlags: rd wr mr mw me ac wf \n\
                    7f00-8000 rw-p 00000000 00:00 0 [heap]\nVmFlags: rd wr mr mw me ac \n";
        assert_eq!(parse(text.as_bytes()).unwrap().as_slice(), std::slice::from_ref(&(0x1000..0x3000)));
    }
}
