//! Numbers, times and command lines as people read them on one line of a terminal.

use std::ffi::OsStr;
use std::time::Duration;

/// A command line that fits beside its exit status.
pub(crate) fn shorten(command: &[impl AsRef<OsStr>]) -> String {
    const MAX: usize = 60;
    let text = command.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    let text = printable(&text);
    match text.char_indices().nth(MAX) {
        None => text,
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// Without what would act on a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A number and its noun.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// With commas.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span of time, from milliseconds.
pub(crate) fn seconds(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..100_000 => format!("{:.1} s", ms as f64 / 1e3),
        _ => {
            let s = Duration::from_millis(ms).as_secs();
            format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
        }
    }
}

/// A latency, from nanoseconds.
pub(crate) fn nanos(ns: u64) -> String {
    match ns {
        0..1000 => format!("{ns} ns"),
        1000..100_000 => format!("{:.1} µs", ns as f64 / 1e3),
        100_000..1_000_000 => format!("{} µs", ns / 1000),
        _ => format!("{:.1} ms", ns as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn long_commands_are_cut() {
        let long = words(&["sh", "-c", &"é".repeat(100)]);
        let line = shorten(&long);
        assert_eq!(line.chars().count(), 61);
        assert!(line.ends_with('…'));
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1000), "1,000");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(seconds(999), "999 ms");
        assert_eq!(seconds(61_000), "61.0 s");
        assert_eq!(seconds(3_661_000), "1:01:01");
        assert_eq!(nanos(999), "999 ns");
        assert_eq!(nanos(350_000), "350 µs");
    }

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }
}
