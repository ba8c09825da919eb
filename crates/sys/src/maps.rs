//! The mappings of a process, one at a time: PROCMAP_QUERY (Linux 6.11), or `/proc/PID/maps` parsed.
//!
//! Owner: the pager's state of one address space. Every answer is fresh, never cached: the caller proves with it that a range is
//! one mapping *now*.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::Errno;
use crate::errno::last;
use crate::procfs::malformed;

/// One mapping (a `vm_area_struct`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Byte addresses, page-aligned.
    pub range: Range<u64>,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// The file's inode, 0 if there is no file.
    pub inode: u64,
    /// What it is.
    pub kind: Kind,
}

/// What a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Private memory without a file, named (`PR_SET_VMA_ANON_NAME`) or not.
    Anon,
    /// The brk heap.
    Heap,
    /// The main thread's stack; it grows down.
    Stack,
    /// A file; also a memfd, shared memory of any kind, `/dev/zero`.
    File,
    /// Code and data the kernel lends: `[vdso]`, `[vvar]`, `[vvar_vclock]`.
    Vdso,
    /// Anything else with a name in brackets (`[vsyscall]`, `[uprobes]` ...).
    Other,
}

impl Kind {
    fn new(inode: u64, name: &[u8]) -> Self {
        match name {
            _ if inode != 0 => Self::File,
            b"" => Self::Anon,
            b"[heap]" => Self::Heap,
            b"[stack]" => Self::Stack,
            b"[vdso]" | b"[vvar]" | b"[vvar_vclock]" => Self::Vdso,
            name if name.starts_with(b"[anon:") => Self::Anon,
            name if name.starts_with(b"[") => Self::Other,
            // A file with inode number 0 has a path.
            _ => Self::File,
        }
    }
}

/// `struct procmap_query`.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const _: () = assert!(size_of::<Query>() == 104);

const PROCMAP_QUERY: libc::Ioctl = libc::_IOWR::<Query>(b'f' as u32, 17);
const QUERY_READABLE: u64 = 0x01;
const QUERY_WRITABLE: u64 = 0x02;
const QUERY_EXECUTABLE: u64 = 0x04;
const QUERY_SHARED: u64 = 0x08;
const QUERY_COVERING_OR_NEXT: u64 = 0x10;

/// Room for the longest name without a file: `[anon:` and 79 bytes. A path that does not fit is a file's anyway.
const NAME_MAX: usize = 128;

/// An open `/proc/PID/maps`.
#[derive(Debug)]
pub struct Maps {
    file: File,
    /// False once the kernel has said that it has no PROCMAP_QUERY.
    query: bool,
}

impl Maps {
    /// Opens the mappings of process `pid`. The handle stays with the address space of that moment.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is no such process, `EACCES` without ptrace permission over it.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/maps"))?, query: true })
    }

    /// As [`Maps::open`], but never uses PROCMAP_QUERY (for tests, and for `doctor` to compare).
    ///
    /// # Errors
    ///
    /// As for [`Maps::open`].
    pub fn open_text_only(pid: u32) -> io::Result<Self> {
        Ok(Self { query: false, ..Self::open(pid)? })
    }

    /// Whether PROCMAP_QUERY is in use; known after the first [`Maps::next_at_or_after`].
    pub fn uses_query(&self) -> bool {
        self.query
    }

    /// The mapping that covers `addr`, or else the next one above; `None` above the last, and when the process has
    /// gone. Costs well below a microsecond by PROCMAP_QUERY; by text, a pass over all mappings
    /// below.
    ///
    /// # Errors
    ///
    /// Those of the ioctl or of reading the file; `InvalidData` if the text cannot be parsed.
    pub fn next_at_or_after(&mut self, addr: u64) -> io::Result<Option<Mapping>> {
        if self.query {
            match self.query(addr) {
                Err(libc::ENOTTY) => self.query = false,
                Err(libc::ENOENT | libc::ESRCH) => return Ok(None),
                Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
                Ok(mapping) => return Ok(Some(mapping)),
            }
        }
        self.search_text(addr)
    }

    fn query(&self, addr: u64) -> Result<Mapping, Errno> {
        let mut name = [0_u8; NAME_MAX];
        let mut query = Query {
            size: size_of::<Query>() as u64,
            query_flags: QUERY_COVERING_OR_NEXT,
            query_addr: addr,
            vma_name_size: NAME_MAX as u32,
            vma_name_addr: name.as_mut_ptr() as u64,
            ..Query::default()
        };
        let mut answer = self.query_ioctl(&mut query);
        if matches!(answer, Err(libc::ENAMETOOLONG | libc::E2BIG)) {
            // Only paths are that long; the inode says that it is a file.
            query.vma_name_size = 0;
            query.vma_name_addr = 0;
            answer = self.query_ioctl(&mut query);
        }
        answer?;
        // The size includes the closing NUL.
        let name = &name[..(query.vma_name_size as usize).saturating_sub(1).min(NAME_MAX)];
        Ok(Mapping {
            range: query.vma_start..query.vma_end,
            read: query.vma_flags & QUERY_READABLE != 0,
            write: query.vma_flags & QUERY_WRITABLE != 0,
            exec: query.vma_flags & QUERY_EXECUTABLE != 0,
            shared: query.vma_flags & QUERY_SHARED != 0,
            inode: query.inode,
            kind: Kind::new(query.inode, name),
        })
    }

    fn query_ioctl(&self, query: &mut Query) -> Result<(), Errno> {
        // SAFETY: the kernel reads and writes `query`, whose size is in its first field, and writes at most `vma_name_size` bytes at
        // `vma_name_addr`: both name the caller's live buffer, or are zero.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), PROCMAP_QUERY, std::ptr::from_mut(query)) } {
            -1 => Err(last()),
            _ => Ok(()),
        }
    }

    fn search_text(&mut self, addr: u64) -> io::Result<Option<Mapping>> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::with_capacity(64 << 10, &self.file);
        let mut line = Vec::with_capacity(256);
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
                Err(error) => return Err(error),
            }
            let mapping = parse_line(line.trim_ascii_end()).ok_or_else(|| malformed("/proc/PID/maps"))?;
            // The gate page is in the text but is not one of the process's mappings; PROCMAP_QUERY leaves it out.
            if addr < mapping.range.end && !line.trim_ascii_end().ends_with(b" [vsyscall]") {
                return Ok(Some(mapping));
            }
        }
    }
}

/// `start-end rwxp offset major:minor inode   name`; the name is all that follows, spaces included.
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let (head, name) = split_fields(line)?;
    let [range, flags, _offset, _device, inode] = head;
    let (start, end) = range.split_once('-')?;
    let &[read, write, exec, shared] = flags.as_bytes() else { return None };
    let inode = inode.parse().ok()?;
    Some(Mapping {
        range: u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?,
        read: read == b'r',
        write: write == b'w',
        exec: exec == b'x',
        shared: shared == b's',
        inode,
        kind: Kind::new(inode, name),
    })
}

/// The five leading fields, and the rest without the blanks before it.
fn split_fields(line: &[u8]) -> Option<([&str; 5], &[u8])> {
    let mut rest = line;
    let mut fields = [""; 5];
    for field in &mut fields {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        *field = std::str::from_utf8(&rest[..end]).ok().filter(|text| !text.is_empty())?;
        rest = &rest[end..];
    }
    Some((fields, rest.trim_ascii_start()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &[u8] = b"\
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus-daemon
00e03000-00e24000 rw-p 00000000 00:00 0           [heap]
35b1800000-35b1820000 r--p 00000000 08:02 135522  /lib/a path with spaces (deleted)
7f0000000000-7f0000021000 rw-p 00000000 00:00 0 
7f0000021000-7f0004000000 ---p 00000000 00:00 0 
7f1000000000-7f1000001000 rw-s 00000000 00:05 42  /dev/zero (deleted)
7f1000002000-7f1000003000 rw-p 00000000 00:00 0   [anon:name \xff with bytes]
7f1000003000-7f1000004000 rw-s 00000000 00:01 0   /odd/inode/zero
7fffb2c0d000-7fffb2c2e000 rw-p 00000000 00:00 0   [stack]
7fffb2d48000-7fffb2d49000 r-xp 00000000 00:00 0   [vdso]
7fffb2d4a000-7fffb2d4b000 r-xp 00000000 00:00 0   [uprobes]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
";

    /// A file in place of `/proc/PID/maps`: it answers the query with ENOTTY, as an old kernel does.
    fn maps_of(text: &[u8]) -> Maps {
        let fd = rustix::fs::memfd_create("maps", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(fd);
        file.write_all(text).unwrap();
        Maps { file, query: true }
    }

    #[test]
    fn without_the_query_the_text_is_parsed() {
        let mut maps = maps_of(TEXT);
        let mut seen = Vec::new();
        let mut addr = 0;
        while let Some(mapping) = maps.next_at_or_after(addr).unwrap() {
            assert!(!maps.uses_query());
            addr = mapping.range.end;
            seen.push(mapping);
        }
        let kinds: Vec<Kind> = seen.iter().map(|mapping| mapping.kind).collect();
        use Kind::{Anon, File, Heap, Other, Stack, Vdso};
        assert_eq!(kinds, [File, Heap, File, Anon, Anon, File, Anon, File, Stack, Vdso, Other]);
        let expected = Mapping {
            range: 0x7f10_0000_0000..0x7f10_0000_1000,
            read: true,
            write: true,
            exec: false,
            shared: true,
            inode: 42,
            kind: File,
        };
        assert_eq!(seen[5], expected);
        assert_eq!(maps.next_at_or_after(0x7f10_0000_0fff).unwrap(), Some(expected.clone()));
        assert_eq!(maps.next_at_or_after(0x7f00_0400_0000).unwrap(), Some(expected));
        let guard = maps.next_at_or_after(0x7f00_0002_1000).unwrap().unwrap();
        assert!(!guard.read && !guard.write && !guard.exec && !guard.shared);
    }

    #[test]
    fn nonsense_is_an_error_and_nothing_is_an_end() {
        assert_eq!(maps_of(b"").next_at_or_after(0).unwrap(), None);
        for text in [&b"x"[..], b"1-2", b"1-g r--p 0 0:0 0", b"1-2 r--p 0 0:0 x", b"1-2 rwx 0 0:0 0", b"\xff"]
        {
            let answer = maps_of(text).next_at_or_after(0);
            assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::InvalidData, "{text:?}");
        }
    }
}
