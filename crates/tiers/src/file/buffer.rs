//! Page-aligned buffers for direct I/O, kept for reuse: one mapping each, so that their memory is counted exactly.

use memmap2::MmapMut;
use parking_lot::Mutex;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use vswap_core::PAGE_SIZE;

/// Buffers of one size that are kept when nobody uses them.
const KEPT: usize = 4;

/// A page-aligned buffer of whole pages.
pub(super) struct Buffer(MmapMut);

impl Buffer {
    /// A zeroed buffer of so many pages.
    pub(super) fn map(pages: usize) -> io::Result<Self> {
        Ok(Self(MmapMut::map_anon(pages * PAGE_SIZE)?))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Buffers of one size.
pub(super) struct Buffers {
    pages: usize,
    kept: Mutex<Vec<Buffer>>,
    /// Bytes of all buffers, kept or lent.
    bytes: AtomicU64,
}

impl Buffers {
    pub(super) fn new(pages: usize) -> Self {
        Self { pages, kept: Mutex::new(Vec::with_capacity(KEPT)), bytes: AtomicU64::new(0) }
    }

    /// Bytes of all buffers, kept or lent.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Lends a buffer, whatever is in it, to `f`.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Buffer) -> T) -> io::Result<T> {
        let size = (self.pages * PAGE_SIZE) as u64;
        let kept = self.kept.lock().pop();
        let mut buffer = match kept {
            Some(buffer) => buffer,
            None => {
                let buffer = Buffer::map(self.pages)?;
                self.bytes.fetch_add(size, Relaxed);
                buffer
            }
        };
        let result = f(&mut buffer);
        let mut kept = self.kept.lock();
        if kept.len() < KEPT {
            kept.push(buffer);
        } else {
            drop(kept);
            drop(buffer);
            self.bytes.fetch_sub(size, Relaxed);
        }
        Ok(result)
    }
}
