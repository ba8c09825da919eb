//! Reading `/proc`: small files whole, and numbers out of text.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Reads a `/proc` file that is kept open again from its start into `buffer`; the text that fits.
pub(crate) fn reread<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let count = loop {
        match file.read_at(buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => break answer?,
        }
    };
    std::str::from_utf8(&buffer[..count]).map_err(io::Error::other)
}

/// Reads a `/proc` file whole, in large steps (a short read in the middle of a table makes the kernel
/// walk it again). Bytes, because names in it need not be UTF-8.
pub(crate) fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(4096);
    File::open(path)?.read_to_end(&mut text)?;
    Ok(text)
}

/// Reads a `/proc` file whole as text; bytes that are not UTF-8 are replaced.
pub(crate) fn read_text(path: &str) -> io::Result<String> {
    read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The value of `Key: value [kB]` in the text of a status-like file.
pub(crate) fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// The value of `Key: 123 kB` in bytes.
pub(crate) fn kilobytes(text: &str, key: &str) -> Option<u64> {
    field(text, key)?.strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// The fields of a `/proc/.../stat` line from the third (state) on. The second is the program's name, which may
/// hold spaces and parentheses: it ends at the *last* one.
pub(crate) fn stat_fields(text: &str) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    Some(text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace())
}

/// A file whose text is not what this crate knows.
pub(crate) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: not in the expected format"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let fields = |text| stat_fields(text).map(Iterator::collect::<Vec<_>>);
        assert_eq!(fields("7 (sh) S 1 7"), Some(vec!["S", "1", "7"]));
        assert_eq!(fields("7 (a) b (c d) R 9\n"), Some(vec!["R", "9"]));
        assert_eq!(fields("7 sh S 1"), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_key() {
        let text = "VmLck:\t       8 kB\nVmLckX: 1 kB\nTgid:\t42\nBig:\t18446744073709551615 kB\n";
        assert_eq!(kilobytes(text, "VmLck"), Some(8192));
        assert_eq!(field(text, "Tgid"), Some("42"));
        assert_eq!(kilobytes(text, "Tgid"), None);
        assert_eq!(kilobytes(text, "Big"), None);
        assert_eq!(field(text, "Vm"), None);
    }
}
