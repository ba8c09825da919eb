//! Whether an agent could live with a system call filter.
//!
//! What the filter says to each call of an agent's is found out by going through it as the kernel will, along both ways wherever it asks
//! for what is not known before: addresses, descriptors. The instructions are those of seccomp(2), a part of classic BPF.

use std::collections::HashSet;
use std::io;

use vswap_sys::process;
use vswap_sys::seccomp::{ARCH_X86_64, Installs};

/// Of one filter (BPF_MAXINSNS).
const LONGEST: usize = 4096;
/// Instructions that one call may take along all its ways.
const STEPS: usize = 1 << 16;
const INSTRUCTION: usize = 8;

/// A system call and the arguments of it that are known.
type Made = (i64, &'static [(usize, u32)]);

/// The calls of an agent at work: one that failed would end its program, or its work.
const WORK: &[Made] = &[
    (libc::SYS_ioctl, &[(1, 0xc028_aa05)]), // UFFDIO_MOVE
    (libc::SYS_ioctl, &[(1, 0xc020_aa00)]), // UFFDIO_REGISTER
    (libc::SYS_ioctl, &[(1, 0x8010_aa01)]), // UFFDIO_UNREGISTER
    (libc::SYS_madvise, &[(2, libc::MADV_DONTNEED as u32)]),
    (libc::SYS_madvise, &[(2, libc::MADV_POPULATE_WRITE as u32)]),
    (libc::SYS_munlock, &[]),
    (libc::SYS_pread64, &[]),
    (libc::SYS_recvfrom, &[]),
    (libc::SYS_sendto, &[]),
    (libc::SYS_exit, &[]),
    // What says who a child is, once it has come so far.
    (libc::SYS_sendmsg, &[]),
    (libc::SYS_recvmsg, &[]),
];

/// The calls that set one up: they may fail.
const SET_UP: &[Made] = &[
    (libc::SYS_rt_sigprocmask, &[]),
    (libc::SYS_getpid, &[]),
    (libc::SYS_gettid, &[]),
    (libc::SYS_socket, &[(0, libc::AF_UNIX as u32)]),
    (libc::SYS_connect, &[]),
    (libc::SYS_userfaultfd, &[]),
    (libc::SYS_openat, &[]),
    (libc::SYS_ioctl, &[(1, 0xaa00)]), // USERFAULTFD_IOC_NEW
    (libc::SYS_close, &[]),
    (libc::SYS_close_range, &[]),
    (libc::SYS_mmap, &[(2, 0)]),
    (libc::SYS_mmap, &[(2, 3)]),
    (libc::SYS_mprotect, &[(2, 0)]),
    (libc::SYS_mprotect, &[(2, 3)]),
    (libc::SYS_munmap, &[]),
    (libc::SYS_madvise, &[]),
    (libc::SYS_memfd_create, &[]),
    (libc::SYS_ftruncate, &[]),
    (libc::SYS_fcntl, &[(1, libc::F_ADD_SEALS as u32)]),
    (
        libc::SYS_clone,
        &[(0, (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM) as u32)],
    ),
    (libc::SYS_futex, &[]),
    (libc::SYS_prctl, &[(0, libc::PR_SET_NAME as u32)]),
];

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    value: u32,
}

/// The program that a thread installs.
pub(super) fn read(tid: u32, installs: &Installs) -> io::Result<Vec<Instruction>> {
    let fault = || io::Error::from_raw_os_error(libc::EFAULT);
    // A `sock_fprog`: a length, and aligned behind it a pointer, by the caller's table of 8 or 4 bytes.
    let mut head = [0; 16];
    let head = if installs.narrow { &mut head[..8] } else { &mut head[..] };
    if process::read_memory(tid, installs.program, head)? < head.len() {
        return Err(fault());
    }
    let length = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let start = head[head.len() / 2..].iter().rev().fold(0, |start, &byte| start << 8 | u64::from(byte));
    let mut bytes = vec![0; length.min(LONGEST) * INSTRUCTION];
    if process::read_memory(tid, start, &mut bytes)? < bytes.len() {
        return Err(fault());
    }
    let instruction = |bytes: &[u8]| Instruction {
        code: u16::from_le_bytes([bytes[0], bytes[1]]),
        yes: bytes[2],
        no: bytes[3],
        value: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    Ok(bytes.chunks_exact(INSTRUCTION).map(instruction).collect())
}

/// Whether an agent can live with it, and be set up or fail to be.
pub(super) fn is_harmless(program: &[Instruction]) -> bool {
    let passes = |action| matches!(action, libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG);
    let fails = |action| passes(action) || action == libc::SECCOMP_RET_ERRNO;
    let all = |calls: &[Made], fine: &dyn Fn(u32) -> bool| {
        calls
            .iter()
            .all(|call| verdicts(program, call).is_some_and(|actions| actions.iter().all(|&a| fine(a))))
    };
    all(WORK, &passes) && all(SET_UP, &fails)
}

/// What is in the two registers, where that is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    at: usize,
    a: Option<u32>,
    x: Option<u32>,
}

/// The actions that a call can meet with; `None` if that cannot be told.
fn verdicts(program: &[Instruction], call: &Made) -> Option<HashSet<u32>> {
    let mut actions = HashSet::new();
    let mut ways = vec![State { at: 0, a: Some(0), x: Some(0) }];
    let mut seen = HashSet::new();
    while let Some(state) = ways.pop() {
        if !seen.insert(state) {
            continue;
        }
        if seen.len() > STEPS {
            return None;
        }
        let Instruction { code, yes, no, value } = *program.get(state.at)?;
        let next = State { at: state.at + 1, ..state };
        let operand = if code & BPF_X != 0 { state.x } else { Some(value) };
        match code {
            RETURN | RETURN_A => {
                let verdict = if code == RETURN { Some(value) } else { state.a };
                actions.insert(verdict? & libc::SECCOMP_RET_ACTION_FULL);
            }
            LOAD => ways.push(State { a: loaded(call, value), ..next }),
            LOAD_VALUE => ways.push(State { a: Some(value), ..next }),
            LOADX_VALUE => ways.push(State { x: Some(value), ..next }),
            TAX => ways.push(State { x: state.a, ..next }),
            TXA => ways.push(State { a: state.x, ..next }),
            JUMP => ways.push(State { at: next.at + value as usize, ..state }),
            _ if code & CLASS == JUMPS => {
                let holds = match (state.a, operand) {
                    (Some(a), Some(value)) => Some(match code & OPERATION {
                        EQUAL => a == value,
                        GREATER => a > value,
                        GREATER_OR_EQUAL => a >= value,
                        ANY_BIT => a & value != 0,
                        _ => return None,
                    }),
                    _ => None,
                };
                if holds != Some(false) {
                    ways.push(State { at: next.at + usize::from(yes), ..state });
                }
                if holds != Some(true) {
                    ways.push(State { at: next.at + usize::from(no), ..state });
                }
            }
            _ if code & CLASS == ARITHMETIC => {
                let a = match (code & OPERATION, state.a, operand) {
                    (AND, Some(a), Some(value)) => Some(a & value),
                    _ => None,
                };
                ways.push(State { a, ..next });
            }
            // The length of what is looked at, or scratch memory.
            _ if code & CLASS == LOADS => ways.push(State { a: None, ..next }),
            _ if code & CLASS == LOADS_X => ways.push(State { x: None, ..next }),
            _ if code & CLASS == STORES || code & CLASS == STORES_X => ways.push(next),
            _ => return None,
        }
    }
    Some(actions)
}

/// The word of `seccomp_data` at this offset.
fn loaded(&(nr, known): &Made, offset: u32) -> Option<u32> {
    match offset {
        0 => Some(nr as u32),
        4 => Some(ARCH_X86_64),
        16.. => {
            let (argument, high) = ((offset as usize - 16) / 8, offset % 8 >= 4);
            let (_, value) = known.iter().find(|(index, _)| *index == argument)?;
            Some(if high { 0 } else { *value })
        }
        _ => None,
    }
}

// The codes of linux/bpf_common.h.
const CLASS: u16 = 0x07;
const OPERATION: u16 = 0xf0;
const BPF_X: u16 = 0x08;
const LOADS: u16 = 0x00;
const LOADS_X: u16 = 0x01;
const STORES: u16 = 0x02;
const STORES_X: u16 = 0x03;
const ARITHMETIC: u16 = 0x04;
const JUMPS: u16 = 0x05;
const LOAD: u16 = 0x20;
const LOAD_VALUE: u16 = 0x00;
const LOADX_VALUE: u16 = 0x01;
const RETURN: u16 = 0x06;
const RETURN_A: u16 = 0x16;
const TAX: u16 = 0x07;
const TXA: u16 = 0x87;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x10;
const GREATER: u16 = 0x20;
const GREATER_OR_EQUAL: u16 = 0x30;
const ANY_BIT: u16 = 0x40;
const AND: u16 = 0x50;

#[cfg(test)]
mod tests;
