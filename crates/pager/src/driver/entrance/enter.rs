//! Putting the agent into a process by ptrace.
//!
//! ```text
//! a thread of the program          a thread of ours                         program
//!   stops                                                                   (a shorter stop than a
//!   mmap: a stack                                                            SIGSTOP and a SIGCONT)
//!   clone ──────────────────────►  stops before its first instruction
//!                                  open, mmap …: the library, if it is
//!                                  not there by fork
//!                                  let go at `vswap_enter`: sets the agent
//!                                  up as after LD_PRELOAD, and exits
//!   put back, let go                                                        goes on
//! ```
//!
//! So the program's thread makes two system calls for us and nothing else; what opens descriptors has a table of its own,
//! of which the program sees nothing; and what goes wrong later does not concern the program. It stands still until the library
//! is there: a program that keeps a processor busy would have us wait for that one at each of a hundred steps.
//! Afterwards nobody traces it: a debugger may come.

use std::io;

use vswap_core::PAGE_SIZE;
use vswap_sys::process::{self, Remote};
use vswap_sys::trace::{Borrowed, Registers, Resume, Stop, Tracee, returned, wait};
use vswap_wire as wire;

use super::auxiliary::Auxiliary;
use super::image::Image;

const PAGE: u64 = PAGE_SIZE as u64;
/// The stack of the thread that sets the agent up. Shared memory, which no userfaultfd of ours covers.
const STACK: u64 = 16 * PAGE;
/// The code that the kernel lends to every process is not larger.
const VDSO: usize = 2 * PAGE_SIZE;
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// How the agent gets into a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The library is to be mapped.
    Load,
    /// It is there by fork, from this address on.
    Forked(u64),
}

/// Stops a thread that may be doing anything; `None` if it stands still along with its process.
pub fn stop(tid: u32) -> io::Result<Option<Tracee>> {
    let tracee = Tracee::seize(tid)?;
    tracee.interrupt()?;
    loop {
        match wait()?.1 {
            Stop::Interrupted => return Ok(Some(tracee)),
            Stop::Group => return Ok(None),
            stop => {
                tracee.interrupt()?;
                tracee.resume(Resume::Run(if let Stop::Signal(signal) = stop { signal } else { 0 }))?;
            }
        }
    }
}

/// Sends a thread of ours into the process of `tracee`, which stands still interrupted and is let go once `made` has heard of
/// the thread.
///
/// # Errors
///
/// Those of tracing, and those of what the process is made to do. The program goes on as it was in any case.
pub fn enter(tracee: Tracee, image: &Image, way: Way, made: impl FnOnce(u32)) -> io::Result<()> {
    let gadget = syscall_instruction(tracee.tid())?;
    let borrowed = Borrowed::new(tracee)?;
    let stack = borrowed.call(
        gadget,
        libc::SYS_mmap,
        [
            0,
            STACK,
            (libc::PROT_READ | libc::PROT_WRITE) as u64,
            (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64,
            u64::MAX,
            0,
        ],
    )?;
    let stack = returned(stack).map_err(io::Error::from_raw_os_error)?;
    let thread = match borrowed.make_thread(gadget, stack + STACK) {
        Ok(thread) => thread,
        Err(error) => {
            borrowed.call(gadget, libc::SYS_munmap, [stack, STACK, 0, 0, 0, 0])?;
            return Err(error);
        }
    };
    made(thread.tid());
    let registers = thread.first_registers()?;
    let helper = Helper { thread, registers, gadget };
    // The copies in its own table: the program may have as many as it may, and they keep open what it closes. Where that is
    // refused, the next one to be opened tells.
    helper.attempt(libc::SYS_close_range, [0, u64::from(u32::MAX), 0, 0, 0, 0])?;
    let (base, how) = match way {
        Way::Forked(base) => (base, wire::ENTER_FORKED),
        Way::Load => match helper.load(image, stack) {
            Ok(base) => (base, wire::ENTER_AFRESH),
            Err(error) => {
                helper.attempt(libc::SYS_munmap, [stack, STACK, 0, 0, 0, 0])?;
                // Of which nobody returns.
                let _ = helper.attempt(libc::SYS_exit, [0; 6]);
                return Err(error);
            }
        },
    };
    helper.start(base + image.entry, [how, stack, STACK])?;
    borrowed.give_back()
}

/// Where the program's copy of the kernel's code has a `syscall` instruction.
fn syscall_instruction(pid: u32) -> io::Result<u64> {
    let vdso = Auxiliary::of(pid)?.get(libc::AT_SYSINFO_EHDR).unwrap_or(0);
    let mut code = vec![0; VDSO];
    let read = process::read_memory(pid, vdso, &mut code)?;
    let at = code[..read].windows(2).position(|bytes| bytes == SYSCALL);
    at.map(|at| vdso + at as u64).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS))
}

/// The thread of ours in the program, still traced.
struct Helper {
    thread: Tracee,
    registers: Registers,
    gadget: u64,
}

impl Helper {
    fn call(&self, number: i64, args: [u64; 6]) -> io::Result<u64> {
        returned(self.attempt(number, args)?).map_err(io::Error::from_raw_os_error)
    }

    /// The same, whatever comes of the call: an error says that the thread has gone.
    fn attempt(&self, number: i64, args: [u64; 6]) -> io::Result<i64> {
        self.thread.call(&self.registers, self.gadget, number, args)
    }

    /// Maps the library and says where. `scratch` is memory to write a path to.
    fn load(&self, image: &Image, scratch: u64) -> io::Result<u64> {
        let pid = self.thread.tid();
        let path = image.c_path.as_bytes_with_nul();
        process::write_memory(pid, &[Remote { address: scratch, bytes: path }])?;
        let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
        // Its table of descriptors goes with the thread.
        let file = self.call(libc::SYS_openat, [libc::AT_FDCWD as u64, scratch, flags, 0, 0, 0]).map_err(
            |error| {
                let path = image.path.display();
                io::Error::other(format!("what it sees of the file system lacks {path} (chroot?): {error}"))
            },
        )?;
        // Nobody can take a half-mapped library for a whole one: until its last part is there, nothing is to be read there.
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
        let base = self.call(libc::SYS_mmap, [0, image.span(), 0, flags, u64::MAX, 0])?;
        let mapped = self.map(image, base, file);
        if mapped.is_err() {
            self.call(libc::SYS_munmap, [base, image.span(), 0, 0, 0, 0])?;
        }
        mapped.map(|()| base)
    }

    fn map(&self, image: &Image, base: u64, file: u64) -> io::Result<()> {
        let pid = self.thread.tid();
        let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64;
        for segment in &image.segments {
            let (start, length) = (base + segment.pages.start, segment.pages.end - segment.pages.start);
            self.call(libc::SYS_mmap, [start, length, segment.rights, flags, file, segment.offset])?;
            let zeros = vec![0; (segment.zeros.end - segment.zeros.start) as usize];
            process::write_memory(pid, &[Remote { address: base + segment.zeros.start, bytes: &zeros }])?;
        }
        let values: Vec<_> = image
            .relocations
            .iter()
            .map(|(place, value)| (base + place, (base + value).to_ne_bytes()))
            .collect();
        let words: Vec<_> =
            values.iter().map(|(address, bytes)| Remote { address: *address, bytes }).collect();
        process::write_memory(pid, &words)?;
        let sealed = [base + image.sealed.start, image.sealed.end - image.sealed.start];
        self.call(libc::SYS_mprotect, [sealed[0], sealed[1], libc::PROT_READ as u64, 0, 0, 0]).map(drop)
    }

    /// Lets the thread go at `entry`, with these arguments.
    fn start(mut self, entry: u64, args: [u64; 3]) -> io::Result<()> {
        [self.registers.rdi, self.registers.rsi, self.registers.rdx] = args;
        self.registers.rip = entry;
        self.registers.orig_rax = u64::MAX;
        self.thread.set_registers(&self.registers)?;
        self.thread.detach()
    }
}
