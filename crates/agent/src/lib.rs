//! The agent: a library, preloaded or put in place by ptrace, that lends the pager one thread inside a target.
//!
//! Only the target itself can open a userfaultfd on its address space, move pages out of it, empty staging and
//! execute a call that the gate has stopped. That is all this library does; every decision is the pager's.
//! It must never wait for memory that the pager has taken, so it uses nothing of the program: no libc call
//! (with one exception, below), no allocation, no thread-local storage, nothing bound lazily. What it reads and
//! writes is its own code and `.data` (private file mappings, which the pager never registers) and a
//! shared mapping of a memfd, which cannot be registered with it at all.
//!
//! Life of an agent:
//!
//! ```text
//! constructor / fork child ─ connect ─ map the area ─ userfaultfd ─ Greeting ─ Welcome ─┐
//!                                                        refused or failed: clean up    │
//!    program goes on ◄── own descriptors closed ◄── futex ◄── agent thread: Started ◄───┘
//!                                                              │
//!                          Evict, Mremap, Madvise ◄──► answers ┤
//!                                             Retire ─► exit   └─ anything else: SIGKILL to the process
//! ```
//!
//! The exception is `__register_atfork`, found at load time and called once from the constructor, before the pager
//! has taken anything. Where it does not exist (musl, static programs) nobody calls us in a fork child.
//!
//! A program without a loader of ours, and a child in which nobody calls us, are entered from outside: the pager maps
//! the library, unless it is there by fork, makes a thread by ptrace and sends it to `vswap_enter`, the address that the
//! file's header gives as its entry. That thread does what the constructor or the child hook does, with a descriptor table
//! of its own, while the program goes on, and ends.
//!
//! Built by `crates/vswap/build.rs` with rustc itself. It exports no symbol at all: its constructor is found through
//! `.init_array`, and the memory functions that the compiler relies on are local copies (see `memory`).

#![no_std]
#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(clippy::undocumented_unsafe_blocks)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the agent is written for Linux on x86-64");

mod area;
mod connection;
mod evict;
mod memory;
mod setup;
mod system;
mod thread;

use core::cell::UnsafeCell;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use vswap_wire::Config;

/// The block that each run patches in its copy of the library file, and what the pager looks for behind it in memory.
#[repr(C)]
struct ConfigBlock {
    config: UnsafeCell<Config>,
    /// The beacon page that fork children read; 0 while there is none.
    beacon: AtomicU64,
}

const _: () = assert!(core::mem::offset_of!(ConfigBlock, beacon) == vswap_wire::BEACON_OFFSET);

// SAFETY: nothing writes to the block in memory; the cell only keeps the compiler from assuming the contents.
unsafe impl Sync for ConfigBlock {}

// In `.data` by name: anything in `.bss` could end up in an anonymous page, which the pager may take.
#[used]
#[unsafe(link_section = ".data")]
static CONFIG: ConfigBlock =
    ConfigBlock { config: UnsafeCell::new(Config::UNPATCHED), beacon: AtomicU64::new(0) };

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

// Referred to weakly, so that the library also loads where it is missing.
core::arch::global_asm!(".weak __register_atfork");

type Hook = Option<extern "C" fn()>;
type RegisterAtfork = extern "C" fn(prepare: Hook, parent: Hook, child: Hook, dso: *const u8) -> i32;

fn config() -> Config {
    // SAFETY: the pointer is to a live static that nothing writes to. Volatile, because the contents are
    // not those that the compiler saw.
    unsafe { black_box(CONFIG.config.get()).read_volatile() }
}

/// Where the beacon is from now on.
pub(crate) fn publish_beacon(address: u64) {
    CONFIG.beacon.store(address, Ordering::Release);
}

extern "C" fn constructor() {
    let config = config();
    if config.is_patched() && setup::set_up(&config, None) {
        register_hooks();
    }
}

/// Runs in the only thread of a fork child, before the program's own hooks if we were the first to register; or in a
/// thread that the pager made there, or in both.
extern "C" fn child() {
    let address = CONFIG.beacon.load(Ordering::Acquire);
    // The set-up has failed; or the pager has taken it, because a filter would end whoever sets an agent up.
    if address == 0 {
        return;
    }
    let mask = system::block_signals();
    // SAFETY: the beacon was mapped for good before it was published, and fork children inherit it.
    let beacon = unsafe { &*(address as *const area::BeaconPage) };
    // This may fault: then the pager, which registered the page, answers with this child's token.
    if beacon.claim() {
        // Without an agent the child is served and never evicted from; there is nobody to tell.
        setup::set_up(&config(), Some(setup::Inherited { beacon: address, token: beacon.token() }));
    }
    system::restore_signals(mask);
}

/// Runs in the thread that has forked, or failed to.
extern "C" fn parent() {
    const MADV_GUARD_INSTALL: usize = 102;
    // Without a beacon the pager has taken it: a filter might end whoever makes a call.
    if config().forks_stopped() && CONFIG.beacon.load(Ordering::Acquire) != 0 {
        // Of nothing, and without the cookie: the gate stops it, and so the pager knows that this fork is over.
        // SAFETY: advice for no memory at all.
        let _ = unsafe { system::call(system::nr::MADVISE, &[0, 0, MADV_GUARD_INSTALL]) };
    }
}

// Where a thread begins that the pager has made here by ptrace, on a stack of its own: rdi says what it is to be, rsi and
// rdx are the start and size of the stack's mapping, which goes with the thread.
core::arch::global_asm!(
    ".pushsection .text.vswap_enter, \"ax\", @progbits",
    ".globl vswap_enter",
    ".hidden vswap_enter",
    ".type vswap_enter, @function",
    "vswap_enter:",
    "xor ebp, ebp",
    "mov r12, rsi",
    "mov r13, rdx",
    "and rsp, -16",
    "call {enter}",
    "mov rdi, r12",
    "mov rsi, r13",
    "mov eax, {munmap}",
    "syscall",
    "xor edi, edi",
    "mov eax, {exit}",
    "syscall",
    "ud2",
    ".popsection",
    enter = sym enter,
    munmap = const system::nr::MUNMAP,
    exit = const system::nr::EXIT,
);

extern "C" fn enter(how: u64) {
    if how == vswap_wire::ENTER_AFRESH { constructor() } else { child() }
}

fn register_hooks() {
    let register: usize;
    // SAFETY: reads one word of our own global offset table, which is filled in by the time constructors run.
    unsafe {
        core::arch::asm!(
            "mov {}, qword ptr [rip + __register_atfork@GOTPCREL]",
            out(reg) register,
            options(nostack, preserves_flags, readonly)
        );
    }
    if register == 0 {
        return;
    }
    // SAFETY: this is glibc's function of that name and signature, stable since 2.3.2.
    let register = unsafe { core::mem::transmute::<usize, RegisterAtfork>(register) };
    // An error means that there is no memory for another hook: fork children then have no agent.
    // The library is never unloaded, so any address of its own serves as its handle.
    let _ = register(None, Some(parent), Some(child), (&raw const CONFIG).cast());
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    system::fail_stop()
}
