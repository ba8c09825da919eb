//! Another process's memory, read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The memory of a process, kept open. The handle stays with that memory: after an exec it is not the new program's.
#[derive(Debug)]
pub struct Memory(File);

impl Memory {
    /// Opens the memory of process `pid`.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is no such process; `EACCES` without ptrace permission over it.
    pub fn open(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/mem")).map(Self)
    }

    /// Reads `into.len()` bytes at `address`, or fails. What is missing, and waits for a userfaultfd, is an error and brings nothing
    /// back.
    ///
    /// # Errors
    ///
    /// `EIO` where something is not mapped or missing; `UnexpectedEof` also once the memory is gone.
    pub fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_there_and_all_of_it() {
        let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        let mut read = vec![0; 10_000];
        let memory = Memory::open(std::process::id()).unwrap();
        memory.read(bytes.as_ptr() as u64, &mut read).unwrap();
        assert_eq!(read, bytes);
        assert!(memory.read(4096, &mut read).is_err());
    }

    #[test]
    fn stays_with_what_was_opened() {
        // After its exec the shell is another program; what it was is gone.
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "read line; exec cat"]);
        let mut shell =
            shell.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let memory = Memory::open(shell.id()).unwrap();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", shell.id())).unwrap();
        let first = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
        memory.read(first, &mut [0]).unwrap();
        let mut input = shell.stdin.take().unwrap();
        io::Write::write_all(&mut input, b"go on\nhere\n").unwrap();
        let mut here = [0; 5];
        io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut here).unwrap();
        assert!(memory.read(first, &mut [0]).is_err());
        drop(input);
        shell.wait().unwrap();
    }
}
