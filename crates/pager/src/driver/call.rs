//! How a thread that rests is told that there is something to do.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// One thread waits, anybody calls.
#[derive(Default)]
pub struct Call {
    called: Mutex<bool>,
    ready: Condvar,
}

impl Call {
    /// There is something to do.
    pub fn call(&self) {
        *self.called.lock() = true;
        self.ready.notify_one();
    }

    /// Waits for a call (one since the last wait counts), at most so long; says whether it came.
    pub fn wait(&self, most: Duration) -> bool {
        let mut called = self.called.lock();
        if !*called {
            self.ready.wait_for(&mut called, most);
        }
        std::mem::take(&mut *called)
    }
}
