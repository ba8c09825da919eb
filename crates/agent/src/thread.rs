//! The agent's thread: how it starts, and its loop.
//!
//! It shares the program's memory and nothing else that could be avoided: its descriptor table is a copy from which
//! all but three descriptors are closed before the program goes on (a pipe whose other end the agent held would never
//! reach its end), its working directory is its own, and it takes no signals.

use core::arch::asm;
use core::sync::atomic::AtomicU32;

use vswap_wire::{Answer, Command};

use crate::area::State;
use crate::connection::{self, packet};
use crate::system::{self, Errno, call, nr};

const CLONE_VM: usize = 0x100;
const CLONE_SIGHAND: usize = 0x800;
const CLONE_THREAD: usize = 0x1_0000;
const CLONE_SYSVSEM: usize = 0x4_0000;

/// Starts the thread on the stack that ends at `stack_top`, and returns when it has let go of the program's
/// descriptors.
pub(crate) fn start(state: &'static mut State, stack_top: u64) -> Result<(), Errno> {
    let running: *const AtomicU32 = &raw const state.running;
    let mask = system::block_signals();
    let flags = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    let result: isize;
    // SAFETY: the new thread starts behind the instruction with our registers and its own empty stack, calls
    // `run` with the state that is handed over to it, and never comes back. For this thread it is an ordinary
    // system call. No CLONE_SETTLS: the thread inherits a TLS pointer that it never uses.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") nr::CLONE as isize => result,
            in("rdi") flags,
            in("rsi") stack_top,
            in("rdx") 0,
            in("r10") 0,
            in("r8") 0,
            in("r12") core::ptr::from_mut(state),
            in("r13") run as extern "C" fn(*mut State) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    if result > 0 {
        // SAFETY: the area is mapped for the rest of the process's life, and the thread uses this word, like
        // us, only as an atomic.
        system::futex_wait_nonzero(unsafe { &*running });
    }
    system::restore_signals(mask);
    if result > 0 { Ok(()) } else { Err(-result as Errno) }
}

extern "C" fn run(state: *mut State) -> ! {
    // SAFETY: `start` hands the state over; it lives as long as the process. The starting thread looks at
    // `running` alone, which is an atomic.
    let state = unsafe { &mut *state };
    keep_only([state.socket, state.userfaultfd, state.pagemap]);
    set_name();
    let mut out = packet();
    answer(state, &Answer::Started { tid: system::gettid() }, &mut out);
    system::futex_release(&state.running);
    let mut into = packet();
    loop {
        let command = connection::receive(state.socket, &mut into).map(Command::decode);
        match command {
            Some(Ok(Command::Evict { runs })) => {
                let evicted = state.evict(runs);
                answer(state, &evicted, &mut out);
            }
            Some(Ok(Command::Mremap { args: [old, old_size, new_size, flags, new] })) => {
                // SAFETY: the program itself asked for this change of its own mappings and is stopped at its call.
                let result = unsafe { execute(state, nr::MREMAP, [old, old_size, new_size, flags, new]) };
                answer(state, &Answer::Called { result }, &mut out);
            }
            Some(Ok(Command::Madvise { args: [start, size, advice] })) => {
                // SAFETY: as above.
                let result = unsafe { execute(state, nr::MADVISE, [start, size, advice, 0, 0]) };
                answer(state, &Answer::Called { result }, &mut out);
            }
            Some(Ok(Command::Retire { status })) => system::exit_thread(status),
            // The pager is gone or out of its mind, and it holds pages of this program.
            None | Some(Err(_)) => system::fail_stop(),
        }
    }
}

/// A call that the gate has stopped, made with the cookie that lets it pass.
///
/// # Safety
/// That of the call itself.
unsafe fn execute(state: &State, number: usize, args: [u64; 5]) -> i64 {
    let [a, b, c, d, e] = args.map(|arg| arg as usize);
    // SAFETY: the caller's promise; neither call looks at a sixth argument.
    unsafe { system::raw(number, [a, b, c, d, e, state.cookie as usize]) as i64 }
}

fn answer(state: &State, answer: &Answer, out: &mut vswap_wire::Buffer) {
    if connection::send(state.socket, answer.encode(out)).is_err() {
        system::fail_stop();
    }
}

/// Closes every descriptor of this thread's table but these.
fn keep_only(mut kept: [i32; 3]) {
    kept.sort_unstable();
    let mut from = 0u32;
    for keep in kept {
        let keep = keep as u32;
        if from < keep {
            close_range(from, keep - 1);
        }
        from = keep + 1;
    }
    close_range(from, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    /// Where the slow way stops: the usual limit on descriptors.
    const SLOW_LIMIT: u32 = 4096;
    // SAFETY: closes descriptors of a table that only this thread uses; touches no memory.
    unsafe {
        if call(nr::CLOSE_RANGE, &[first as usize, last as usize, 0]).is_err() {
            // A system-call filter older than the call.
            for number in first..=last.min(SLOW_LIMIT) {
                let _ = call(nr::CLOSE, &[number as usize]);
            }
        }
    }
}

/// Lets a person who lists the threads see whose this one is.
fn set_name() {
    const PR_SET_NAME: usize = 15;
    let name = c"vswap-agent";
    // SAFETY: the name is NUL-terminated and shorter than 16 bytes.
    let _ = unsafe { call(nr::PRCTL, &[PR_SET_NAME, name.as_ptr() as usize]) };
}
