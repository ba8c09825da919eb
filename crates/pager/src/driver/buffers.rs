//! Buffers for pages on their way, lent to whoever needs one for the moment: hundreds of address spaces with a buffer
//! each would take more memory than they give. As many stay as were in use at one time, but few.

use parking_lot::Mutex;
use vswap_core::{PAGE_SIZE, Page};

/// Buffers kept: two cores can use no more at one time, but for threads that wait for a disk.
const KEPT: usize = 4;

/// What is not lent.
#[derive(Default)]
pub struct Buffers(Mutex<Vec<Vec<Page>>>);

impl Buffers {
    /// A buffer of so many pages or more, with whatever is in it.
    pub fn lend(&self, pages: usize) -> Vec<Page> {
        let mut buffer = self.0.lock().pop().unwrap_or_default();
        if buffer.len() < pages {
            buffer.resize(pages, [0; PAGE_SIZE]);
        }
        buffer
    }

    /// Takes a buffer back.
    pub fn take_back(&self, buffer: Vec<Page>) {
        let mut kept = self.0.lock();
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}
