//! The synchronisation primitives of this crate, and their stand-ins for the model checker.
//!
//! Everything else takes atomics, locks and directory entries from here. With `--cfg loom` they are loom's, so that the
//! model explores their interleavings; the directory's entries, which are arc-swap's, become a lock around an `Arc`,
//! which has the same meaning (a reader keeps what it read alive) and fewer states.

pub(crate) use real_or_model::*;

#[cfg(not(loom))]
mod real_or_model {
    use arc_swap::{ArcSwapOption, Guard};
    pub(crate) use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
    use std::ops::Deref;
    use std::sync::Arc;
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64};

    /// An optional shared value that is read without a lock.
    pub(crate) struct Entry<T>(ArcSwapOption<T>);

    impl<T> Entry<T> {
        pub(crate) fn empty() -> Self {
            Self(ArcSwapOption::const_empty())
        }

        pub(crate) fn get(&self) -> Option<Pin<T>> {
            let guard = self.0.load();
            guard.is_some().then_some(Pin(guard))
        }

        pub(crate) fn set(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
            self.0.swap(value)
        }
    }

    /// A value read from an [`Entry`]; it stays alive as long as this does.
    pub(crate) struct Pin<T>(Guard<Option<Arc<T>>>);

    impl<T> Pin<T> {
        pub(crate) fn share(&self) -> Arc<T> {
            Arc::clone(self.0.as_ref().expect("checked when read"))
        }
    }

    impl<T> Deref for Pin<T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("checked when read")
        }
    }

    /// A small number that stays with a thread, below `shards`: which of several equal resources it uses first.
    pub(crate) fn shard(shards: usize) -> usize {
        use std::cell::Cell;
        use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
        }
        // A thread that is being torn down has no number any more; any shard is correct.
        let number = NUMBER.try_with(|number| match number.get() {
            Some(n) => n,
            None => {
                let n = NEXT.fetch_add(1, Relaxed);
                number.set(Some(n));
                n
            }
        });
        number.unwrap_or(0) % shards
    }
}

#[cfg(loom)]
mod real_or_model {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64};
    use std::ops::Deref;
    use std::sync::Arc;

    pub(crate) use loom::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no panic in a model")
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect("no panic in a model")
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect("no panic in a model")
        }
    }

    pub(crate) struct Entry<T>(Mutex<Option<Arc<T>>>);

    impl<T> Entry<T> {
        pub(crate) fn empty() -> Self {
            Self(Mutex::new(None))
        }

        pub(crate) fn get(&self) -> Option<Pin<T>> {
            self.0.lock().clone().map(Pin)
        }

        pub(crate) fn set(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
            std::mem::replace(&mut *self.0.lock(), value)
        }
    }

    pub(crate) struct Pin<T>(Arc<T>);

    impl<T> Pin<T> {
        pub(crate) fn share(&self) -> Arc<T> {
            Arc::clone(&self.0)
        }
    }

    impl<T> Deref for Pin<T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.0
        }
    }

    pub(crate) fn shard(_shards: usize) -> usize {
        0
    }
}
