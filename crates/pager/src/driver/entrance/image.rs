//! The agent's library as the pager puts it into a program without a loader: its segments, its relocations, its entry.
//!
//! It is mapped from its file like any library, so that all of it lies in private mappings of a file, which are never
//! registered; only the words to be relocated are written from outside. The file is our own work: what it does not have
//! (needed libraries, thread-local storage, pages of `.bss`) is asserted where it is built.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vswap_core::PAGE_SIZE;
use vswap_wire as wire;

const PAGE: u64 = PAGE_SIZE as u64;
const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_GNU_RELRO: u64 = 0x6474_e552;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const R_X86_64_RELATIVE: u64 = 8;
const RELA: u64 = 24;

/// A part of the file and where it belongs, both from a page boundary on; addresses are relative to the library's start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Whole pages.
    pub pages: Range<u64>,
    /// Where the first page is in the file.
    pub offset: u64,
    /// Access rights, as for mmap.
    pub rights: u64,
    /// What of the pages is to be zero: behind the file's part, to the end of the page.
    pub zeros: Range<u64>,
}

/// The library.
pub struct Image {
    /// Its file.
    pub path: PathBuf,
    /// The same, as the program that maps it is given it.
    pub c_path: CString,
    /// Its file's number.
    pub inode: u64,
    /// Its parts, from the lowest up.
    pub segments: Vec<Segment>,
    /// Words that get their value plus the library's start: where, and the value.
    pub relocations: Vec<(u64, u64)>,
    /// Whole pages that are only read once that is done.
    pub sealed: Range<u64>,
    /// Where a thread enters.
    pub entry: u64,
    /// Where the configuration lies.
    config: u64,
    /// And what it is up to the address of the beacon.
    config_bytes: Vec<u8>,
}

impl Image {
    /// Reads the library of this run.
    ///
    /// # Errors
    ///
    /// Those of reading; `InvalidData` if it is not as it was built.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)?.read_to_end(&mut bytes)?;
        let inode = fs::metadata(path)?.ino();
        Self::parse(path, inode, &bytes).ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidData, format!("{}: not the agent", path.display()))
        })
    }

    fn parse(path: &Path, inode: u64, bytes: &[u8]) -> Option<Self> {
        let (table, size, count) = (long(bytes, 32)?, half(bytes, 54)?, half(bytes, 56)?);
        let mut segments = Vec::new();
        let (mut dynamic, mut sealed) = (0..0, 0..0);
        // A place in the file, and where that is in memory.
        let mut loaded = Vec::new();
        for header in (0..count).map(|index| table + index * size) {
            let (kind, flags) = (word(bytes, header)?, word(bytes, header + 4)?);
            let (offset, address) = (long(bytes, header + 8)?, long(bytes, header + 16)?);
            let (in_file, in_memory) = (long(bytes, header + 32)?, long(bytes, header + 40)?);
            match kind {
                PT_LOAD => {
                    let end = (address + in_memory).next_multiple_of(PAGE);
                    let rights = [(4, libc::PROT_READ), (2, libc::PROT_WRITE), (1, libc::PROT_EXEC)];
                    segments.push(Segment {
                        pages: address & !(PAGE - 1)..end,
                        offset: offset & !(PAGE - 1),
                        rights: rights
                            .iter()
                            .filter(|(flag, _)| flags & flag != 0)
                            .map(|(_, right)| *right as u64)
                            .sum(),
                        zeros: if flags & 2 != 0 { address + in_file..end } else { 0..0 },
                    });
                    loaded.push((offset..offset + in_file, address));
                }
                PT_DYNAMIC => dynamic = offset..offset + in_file,
                PT_GNU_RELRO => sealed = address & !(PAGE - 1)..(address + in_memory) & !(PAGE - 1),
                _ => {}
            }
        }
        let tag = |wanted: u64| {
            dynamic
                .clone()
                .step_by(16)
                .find(|&at| long(bytes, at) == Some(wanted))
                .and_then(|at| long(bytes, at + 8))
        };
        // The table of relocations is in the first segment, which is mapped as it lies in the file.
        let relocations: Option<Vec<_>> = (0..tag(DT_RELASZ)? / RELA)
            .map(|index| tag(DT_RELA).map(|table| table + index * RELA))
            .map(|at| Some((long(bytes, at?)?, long(bytes, at? + 8)?, long(bytes, at? + 16)?)))
            .filter(|entry| entry.is_none_or(|(_, kind, _)| kind == R_X86_64_RELATIVE))
            .map(|entry| entry.map(|(place, _, value)| (place, value)))
            .collect();
        let config = wire::Config::find(bytes).ok()?;
        let (range, address) = loaded.iter().find(|(range, _)| range.contains(&(config as u64)))?;
        Some(Self {
            path: path.to_owned(),
            c_path: CString::new(path.as_os_str().as_bytes()).ok()?,
            inode,
            relocations: relocations?,
            sealed,
            entry: long(bytes, 24)?,
            config: config as u64 - range.start + address,
            config_bytes: bytes.get(config..config + wire::BEACON_OFFSET)?.to_vec(),
            segments,
        })
    }

    /// Bytes of addresses that it takes.
    pub fn span(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.pages.end)
    }

    /// Where, in a copy that starts at `base`, its configuration is, and how much there is to look at.
    pub fn config(&self, base: u64) -> (u64, usize) {
        (base + self.config, wire::BEACON_OFFSET + size_of::<u64>())
    }

    /// Where, in a copy that starts at `base`, the address of the beacon is.
    pub fn beacon_at(&self, base: u64) -> u64 {
        base + self.config + wire::BEACON_OFFSET as u64
    }

    /// The address of the beacon, if this is what is found there, and if there is one.
    pub fn beacon(&self, found: &[u8]) -> Option<u64> {
        let beacon = found.strip_prefix(self.config_bytes.as_slice())?;
        Some(u64::from_ne_bytes(beacon.try_into().ok()?)).filter(|&beacon| beacon != 0)
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn word(bytes: &[u8], at: u64) -> Option<u64> {
    let at = at as usize;
    Some(u64::from(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)))
}

fn long(bytes: &[u8], at: u64) -> Option<u64> {
    let at = at as usize;
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
