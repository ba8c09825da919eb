//! System calls by instruction, never through libc: no errno of the program is touched, nothing is bound lazily.
//!
//! The kernel's interface is spelled out here; each constant is that of Linux on x86-64.

use core::arch::asm;
use core::sync::atomic::AtomicU32;

/// An error number.
pub(crate) type Errno = i32;

pub(crate) const ENOENT: Errno = 2;
pub(crate) const EINTR: Errno = 4;
pub(crate) const EAGAIN: Errno = 11;
pub(crate) const EEXIST: Errno = 17;
pub(crate) const ENOMEM: Errno = 12;
pub(crate) const EBUSY: Errno = 16;

pub(crate) const PROT_READ: usize = 1;
pub(crate) const PROT_WRITE: usize = 2;
pub(crate) const MAP_SHARED: usize = 1;
pub(crate) const MAP_PRIVATE: usize = 2;
pub(crate) const MAP_FIXED: usize = 0x10;
pub(crate) const MAP_ANONYMOUS: usize = 0x20;
pub(crate) const MAP_NORESERVE: usize = 0x4000;

pub(crate) const MADV_DONTNEED: usize = 4;
pub(crate) const MADV_DONTFORK: usize = 10;
pub(crate) const MADV_NOHUGEPAGE: usize = 15;
pub(crate) const MADV_WIPEONFORK: usize = 18;
pub(crate) const MADV_POPULATE_WRITE: usize = 23;

pub(crate) const O_CLOEXEC: usize = 0o2_000_000;
pub(crate) const O_NONBLOCK: usize = 0o4_000;

const SIGKILL: usize = 9;

/// Numbers of the system calls used here.
pub(crate) mod nr {
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const MMAP: usize = 9;
    pub(crate) const MPROTECT: usize = 10;
    pub(crate) const MUNMAP: usize = 11;
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const IOCTL: usize = 16;
    pub(crate) const PREAD64: usize = 17;
    pub(crate) const MREMAP: usize = 25;
    pub(crate) const MADVISE: usize = 28;
    pub(crate) const GETPID: usize = 39;
    pub(crate) const SOCKET: usize = 41;
    pub(crate) const CONNECT: usize = 42;
    pub(crate) const SENDTO: usize = 44;
    pub(crate) const RECVFROM: usize = 45;
    pub(crate) const SENDMSG: usize = 46;
    pub(crate) const RECVMSG: usize = 47;
    pub(crate) const CLONE: usize = 56;
    pub(crate) const EXIT: usize = 60;
    pub(crate) const KILL: usize = 62;
    pub(crate) const FCNTL: usize = 72;
    pub(crate) const FTRUNCATE: usize = 77;
    pub(crate) const MUNLOCK: usize = 150;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const GETTID: usize = 186;
    pub(crate) const FUTEX: usize = 202;
    pub(crate) const EXIT_GROUP: usize = 231;
    pub(crate) const OPENAT: usize = 257;
    pub(crate) const MEMFD_CREATE: usize = 319;
    pub(crate) const USERFAULTFD: usize = 323;
    pub(crate) const CLOSE_RANGE: usize = 436;
}

/// A system call with up to six arguments.
///
/// # Safety
/// That of the call itself: what the arguments point to must be valid for it, and it must not change memory
/// that Rust relies on.
#[inline]
pub(crate) unsafe fn raw(number: usize, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the instruction clobbers rcx and r11 besides rax; the rest is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// [`raw`] with the result split into value and error number.
///
/// # Safety
/// That of [`raw`].
#[inline]
pub(crate) unsafe fn call(number: usize, args: &[usize]) -> Result<usize, Errno> {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(args) {
        *to = *from;
    }
    // SAFETY: the caller's promise.
    let result = unsafe { raw(number, all) };
    if (-4095..0).contains(&result) { Err(-result as Errno) } else { Ok(result as usize) }
}

/// Calls again as long as the call is interrupted, as those that sleep can be. Of the others, which wait for locks of the kernel's at
/// most, only who is being killed hears that.
pub(crate) fn restart<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(EINTR) => {}
            result => return result,
        }
    }
}

/// Kills the whole process: without its pager it would compute with wrong bytes.
pub(crate) fn fail_stop() -> ! {
    loop {
        // SAFETY: these calls touch no memory.
        unsafe {
            let pid = raw(nr::GETPID, [0; 6]);
            raw(nr::KILL, [pid as usize, SIGKILL, 0, 0, 0, 0]);
            // Only a filter that forbids kill lets us get here.
            raw(nr::EXIT_GROUP, [128 + SIGKILL, 0, 0, 0, 0, 0]);
        }
    }
}

/// Ends the calling thread alone, and with this status its process if no other is left.
pub(crate) fn exit_thread(status: u8) -> ! {
    loop {
        // SAFETY: touches no memory; the stack is never unmapped.
        unsafe { raw(nr::EXIT, [usize::from(status), 0, 0, 0, 0, 0]) };
    }
}

/// The process id as the process itself sees it.
pub(crate) fn getpid() -> u32 {
    // SAFETY: touches no memory.
    unsafe { raw(nr::GETPID, [0; 6]) as u32 }
}

/// The thread id as the process itself sees it.
pub(crate) fn gettid() -> u32 {
    // SAFETY: touches no memory.
    unsafe { raw(nr::GETTID, [0; 6]) as u32 }
}

/// A signal mask of the kernel's.
#[derive(Clone, Copy)]
pub(crate) struct SignalMask(u64);

/// Blocks every signal of this thread, glibc's internal ones too, and returns the mask before.
pub(crate) fn block_signals() -> SignalMask {
    const SIG_SETMASK: usize = 2;
    let all = u64::MAX;
    let mut before = 0u64;
    // SAFETY: both pointers are to live words of the size given.
    unsafe {
        raw(
            nr::RT_SIGPROCMASK,
            [SIG_SETMASK, (&raw const all) as usize, (&raw mut before) as usize, size_of::<u64>(), 0, 0],
        );
    }
    SignalMask(before)
}

/// Puts back what [`block_signals`] returned.
pub(crate) fn restore_signals(mask: SignalMask) {
    const SIG_SETMASK: usize = 2;
    // SAFETY: the pointer is to a live word of the size given.
    unsafe {
        raw(nr::RT_SIGPROCMASK, [SIG_SETMASK, (&raw const mask.0) as usize, 0, size_of::<u64>(), 0, 0]);
    }
}

/// Waits until the word is no longer 0.
pub(crate) fn futex_wait_nonzero(word: &AtomicU32) {
    const FUTEX_WAIT_PRIVATE: usize = 128;
    while word.load(core::sync::atomic::Ordering::Acquire) == 0 {
        // SAFETY: the word lives; no timeout.
        unsafe { raw(nr::FUTEX, [word.as_ptr() as usize, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0]) };
    }
}

/// Sets the word to 1 and wakes its waiter.
pub(crate) fn futex_release(word: &AtomicU32) {
    const FUTEX_WAKE_PRIVATE: usize = 129;
    word.store(1, core::sync::atomic::Ordering::Release);
    // SAFETY: the word lives: nobody unmaps the agent's area while its thread runs.
    unsafe { raw(nr::FUTEX, [word.as_ptr() as usize, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0]) };
}

/// A descriptor of the calling thread's table, closed when dropped.
#[derive(Debug)]
pub(crate) struct Descriptor(i32);

impl Descriptor {
    /// Takes over a descriptor that the kernel has just made.
    pub(crate) fn new(number: usize) -> Descriptor {
        Descriptor(number as i32)
    }

    /// Its number as an argument of a call.
    pub(crate) fn arg(&self) -> usize {
        self.0 as usize
    }

    /// Its number.
    pub(crate) fn number(&self) -> i32 {
        self.0
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: closing touches no memory.
        unsafe { raw(nr::CLOSE, [self.arg(), 0, 0, 0, 0, 0]) };
    }
}

/// Opens an existing file for reading, or for reading and writing, by a NUL-terminated path.
pub(crate) fn open(path: &core::ffi::CStr, flags: usize) -> Result<Descriptor, Errno> {
    const AT_FDCWD: usize = -100isize as usize;
    // SAFETY: the path is NUL-terminated and lives.
    restart(|| unsafe { call(nr::OPENAT, &[AT_FDCWD, path.as_ptr() as usize, flags]) }).map(Descriptor::new)
}
