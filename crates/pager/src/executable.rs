//! What the kernel would make of a file that is executed: scripts, ELF headers, and whether a dynamic loader comes with it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// What the kernel reads of a file to recognise it (`BINPRM_BUF_SIZE`).
const HEAD: usize = 256;
/// Size of an ELF program header.
const PROGRAM_HEADER: usize = 56;
/// As the kernel: a loader's name is at most `PATH_MAX` long, with its closing NUL.
const LOADER_NAME_MAX: u64 = 4096;
/// No program has a dynamic section as long.
const DYNAMIC_MAX: u64 = 1 << 16;

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_SONAME: u64 = 14;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;

/// A file, as `execve` sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Executable {
    /// An x86-64 program that this loader starts.
    Dynamic(PathBuf),
    /// An x86-64 program that is complete in itself.
    Static,
    /// A dynamic loader, to be run with a program as its argument; or any other library.
    Loader,
    /// A program for another machine.
    Foreign,
    /// A script for this interpreter.
    Script(PathBuf),
    /// Something else: `execvp` gives it to the shell.
    Text,
    /// Nothing.
    Empty,
}

impl Executable {
    /// Looks at an open file.
    ///
    /// # Errors
    ///
    /// `InvalidData`: a damaged program; those of reading.
    pub fn of(file: &File) -> io::Result<Self> {
        let mut head = [0; HEAD];
        let length = read_up_to(file, &mut head, 0)?;
        let head = &head[..length];
        if head.starts_with(b"\x7fELF") {
            return elf(file, head);
        }
        Ok(match interpreter(head) {
            Some(interpreter) => Self::Script(PathBuf::from(OsString::from_vec(interpreter.to_vec()))),
            None if head.is_empty() => Self::Empty,
            None => Self::Text,
        })
    }
}

/// The interpreter of a script's first line, as the kernel reads it.
fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?;
    let end = line.iter().position(|&byte| byte == b'\n').unwrap_or(line.len());
    let line = line[..end].trim_ascii();
    let end = line.iter().position(|byte| matches!(byte, b' ' | b'\t' | 0)).unwrap_or(line.len());
    Some(&line[..end]).filter(|interpreter| !interpreter.is_empty())
}

fn elf(file: &File, head: &[u8]) -> io::Result<Executable> {
    // Class 64 bits, little endian, x86-64.
    if head.len() < 20 || head[4] != 2 || head[5] != 1 || u16_at(head, 18) != EM_X86_64 {
        return Ok(Executable::Foreign);
    }
    let header = head.get(..64).ok_or_else(damaged)?;
    let (offset, size, count) = (u64_at(header, 32), u16_at(header, 54), usize::from(u16_at(header, 56)));
    if usize::from(size) != PROGRAM_HEADER {
        return Err(damaged());
    }
    let table = part(file, offset, (PROGRAM_HEADER * count) as u64)?;
    // A segment's place and size in the file.
    let find = |kind| {
        let header = table.chunks_exact(PROGRAM_HEADER).find(|header| u32_at(header, 0) == kind);
        header.map(|header| (u64_at(header, 8), u64_at(header, 32)))
    };
    if let Some((at, length)) = find(PT_INTERP) {
        if !(2..=LOADER_NAME_MAX).contains(&length) {
            return Err(damaged());
        }
        let mut loader = part(file, at, length)?;
        loader.truncate(loader.iter().position(|&byte| byte == 0).unwrap_or(loader.len()));
        return Ok(Executable::Dynamic(PathBuf::from(OsString::from_vec(loader))));
    }
    // What others are linked to has a name for that; a static program, position-independent or not, has none.
    if u16_at(head, 16) == ET_DYN
        && let Some((at, length)) = find(PT_DYNAMIC)
        && part(file, at, length.min(DYNAMIC_MAX))?
            .chunks_exact(16)
            .any(|entry| u64_at(entry, 0) == DT_SONAME)
    {
        return Ok(Executable::Loader);
    }
    Ok(Executable::Static)
}

fn damaged() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "a damaged ELF file")
}

fn part(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    match read_up_to(file, &mut bytes, offset) {
        Ok(read) if read == bytes.len() => Ok(bytes),
        _ => Err(damaged()),
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        assert_eq!(interpreter(b"#!/bin/sh\n"), Some(&b"/bin/sh"[..]));
        assert_eq!(interpreter(b"#! \t/usr/bin/env  python3 -x\nmore"), Some(&b"/usr/bin/env"[..]));
        assert_eq!(interpreter(b"#!/bin/sh"), Some(&b"/bin/sh"[..]));
        assert_eq!(interpreter(b"#!\n/bin/sh"), None);
        assert_eq!(interpreter(b"# comment"), None);
    }

    #[test]
    fn a_dynamic_program_and_its_loader_are_told_apart() {
        let own = Executable::of(&File::open("/proc/self/exe").unwrap()).unwrap();
        let Executable::Dynamic(loader) = own else { panic!("{own:?}") };
        assert_eq!(Executable::of(&File::open(loader).unwrap()).unwrap(), Executable::Loader);
    }
}
