//! The auxiliary vector: what the kernel told a program at its start, kept by the kernel and not to be changed by it.

use std::fs;
use std::io;

/// The vector of one process.
pub struct Auxiliary(Vec<u8>);

impl Auxiliary {
    /// Of the 64-bit process `pid`; of another it gives nothing sensible.
    pub fn of(pid: u32) -> io::Result<Self> {
        fs::read(format!("/proc/{pid}/auxv")).map(Self)
    }

    /// The value with this key (`AT_…`).
    pub fn get(&self, key: u64) -> Option<u64> {
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_ne_bytes);
        let entry = self.0.chunks_exact(16).find(|entry| number(&entry[..8]) == Some(key))?;
        number(&entry[8..])
    }
}
