//! Children on the real kernel: what a forked one is told to do, and those that share the memory for a while.
//!
//! Unsafe because a child of a process with threads may make system calls and touch words, and nothing else. The C
//! library's fork would hold the allocator's locks until the pager has read FORK, and the pager allocates.

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::Sender;

use rustix::pipe::{PipeFlags, pipe_with};
use vswap_sim::bare::{Call, THREADS, VFORK};
use vswap_sys::{PAGE_SIZE, process};

use crate::real::{SECONDS, addr, bytes, page};

const EXIT: u64 = 0;
const READ: u64 = 1;
const BRK: u64 = 2;
const EXEC: u64 = 3;

/// What a forked child is told: a word that says what, and one that says where or how much.
pub(crate) fn order(call: &Call) -> [u8; 16] {
    let words = match *call {
        Call::Exit => [EXIT, 0],
        Call::Read(page) => [READ, addr(page)],
        Call::Brk(pages) => [BRK, pages as u64],
        Call::Exec => [EXEC, 0],
        ref other => unreachable!("a child does not {other:?}"),
    };
    let mut order = [0; 16];
    order[..8].copy_from_slice(&words[0].to_ne_bytes());
    order[8..].copy_from_slice(&words[1].to_ne_bytes());
    order
}

/// A child that does what it is told, until it is told to exit, or to execute another program.
pub(crate) fn fork(children: &Sender<(OwnedFd, OwnedFd)>) -> i64 {
    let (into_read, into_write) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
    let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
    let ours = into_write.as_raw_fd();
    children.send((into_write, out_read)).expect("the pager lives");
    // SAFETY: the child of this process with threads makes system calls and reads words, nothing else, until it ends;
    // what it closes is the copy of its own.
    unsafe {
        let pid = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
        if pid != 0 {
            return pid.min(0);
        }
        // It ends when we do; and soon, if it waits for a page then: the alarm is not inherited.
        libc::close(ours);
        libc::alarm(SECONDS);
        loop {
            let mut order = [0u64; 2];
            if libc::read(into_read.as_raw_fd(), (&raw mut order).cast(), 16) != 16 {
                libc::_exit(0);
            }
            let answer = match order[0] {
                READ => (order[1] as *const i64).read_volatile(),
                BRK => brk(order[1] as i64),
                EXEC => exec(into_read.as_raw_fd()),
                _ => libc::_exit(0),
            };
            libc::write(out_write.as_raw_fd(), (&raw const answer).cast(), 8);
        }
    }
}

/// Moves the end of the heap, which nobody else uses in the child.
///
/// # Safety
///
/// Nothing may use the heap that it gives back.
unsafe fn brk(pages: i64) -> i64 {
    let page_size = PAGE_SIZE as i64;
    // SAFETY: 0 changes nothing; the rest is the caller's.
    unsafe {
        let end = (libc::syscall(libc::SYS_brk, 0) + page_size - 1) / page_size + pages;
        page(libc::syscall(libc::SYS_brk, end * page_size) as u64) as i64
    }
}

/// Becomes a program that lives until the pipe is closed. Returns only with an error.
///
/// # Safety
///
/// In a process of one thread.
unsafe fn exec(stays_open: i32) -> i64 {
    let argv = [c"cat".as_ptr(), std::ptr::null()];
    let env = [std::ptr::null::<libc::c_char>()];
    // SAFETY: the string and both lists end with a zero and live.
    unsafe {
        libc::dup2(stays_open, 0);
        libc::syscall(libc::SYS_execve, c"/bin/cat".as_ptr(), argv.as_ptr(), env.as_ptr());
        -i64::from(*libc::__errno_location())
    }
}

/// A child on our memory that unmaps a range.
pub(crate) fn vfork(range: Range<usize>, vforks: &Sender<i32>) -> i64 {
    extern "C" fn unmap(range: *mut libc::c_void) -> i32 {
        // SAFETY: `vfork` leaks the range, and it lies in the arena.
        unsafe {
            let range = &*range.cast::<Range<u64>>();
            libc::syscall(libc::SYS_munmap, range.start, range.end - range.start);
        }
        0
    }
    let range = Box::leak(Box::new(bytes(&range)));
    // SAFETY: the child makes one raw system call, with a range that is never freed.
    let pid = unsafe { share_memory(unmap, 0, std::ptr::from_mut(range).cast()) };
    vforks.send(pid).expect("the pager lives");
    0
}

/// vfork, and what the child does with it: posix_spawn, or nothing. Its exit status.
pub(crate) fn spawn(exec: bool) -> i64 {
    extern "C" fn nothing(_: *mut libc::c_void) -> i32 {
        0
    }
    let mut pid = 0;
    if exec {
        let argv = [c"true".as_ptr().cast_mut(), std::ptr::null_mut()];
        let env = [std::ptr::null_mut::<libc::c_char>()];
        // SAFETY: the string and both lists end with a zero and live; no attributes, no actions.
        let errno = unsafe {
            let (argv, env) = (argv.as_ptr(), env.as_ptr());
            let path = c"/bin/true".as_ptr();
            libc::posix_spawn(&raw mut pid, path, std::ptr::null(), std::ptr::null(), argv, env)
        };
        assert_eq!(errno, 0, "posix_spawn");
    } else {
        // SAFETY: the child makes no call at all.
        pid = unsafe { share_memory(nothing, libc::CLONE_VFORK, std::ptr::null_mut()) };
    }
    let status = process::wait(pid as u32).expect("wait");
    i64::from(!status.success())
}

/// A child that shares our memory.
///
/// # Safety
///
/// `child` makes system calls and touches words that outlive it, nothing else.
unsafe fn share_memory(
    child: extern "C" fn(*mut libc::c_void) -> i32,
    flags: i32,
    argument: *mut libc::c_void,
) -> i32 {
    const STACK: usize = 64 << 10;
    let stack: &'static mut [u128] = Box::leak(vec![0; STACK / 16].into_boxed_slice());
    // SAFETY: on a stack of its own that is never freed; the rest is the caller's.
    unsafe {
        let top = stack.as_mut_ptr().add(STACK / 16);
        libc::clone(child, top.cast(), libc::CLONE_VM | libc::SIGCHLD | flags, argument)
    }
}

const _: () = assert!(VFORK == THREADS, "a vfork child is not one of the threads");
