//! How much memory a process has, from the cheap figure (a microsecond) to the exact one (a walk over its page tables).

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::procfs::{field, kilobytes, malformed, read_text, reread, stat_fields};

/// Resident and virtual memory in pages. The kernel counts per CPU and sums up lazily: off by up to some dozens
/// of pages per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rss {
    /// Resident anonymous pages, those shared with a forked child included.
    pub anon_pages: u64,
    /// Resident pages of files and shared memory.
    pub file_shmem_pages: u64,
    /// Pages mapped, resident or not.
    pub vm_pages: u64,
}

/// `/proc/PID/statm`, kept open for asking every millisecond.
#[derive(Debug)]
pub struct MemFile(File);

impl MemFile {
    /// Opens the figures of process `pid`. The handle stays with that process (also across its exec).
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is no such process.
    pub fn open(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/statm")).map(Self)
    }

    /// Reads the figures; all zero for a process that has ended but is not reaped.
    ///
    /// # Errors
    ///
    /// `ESRCH` after it has been reaped.
    pub fn read(&mut self) -> io::Result<Rss> {
        let mut buffer = [0; 256];
        let text = reread(&self.0, &mut buffer)?;
        parse_statm(text).ok_or_else(|| malformed("/proc/PID/statm"))
    }
}

/// A thread of process `pid` of which `/proc` shows the memory: the first, unless that has ended while others go on.
pub fn thread_with_memory(pid: u32) -> u32 {
    let has =
        |tid: u32| MemFile::open(tid).and_then(|mut file| file.read()).is_ok_and(|rss| rss.vm_pages > 0);
    if has(pid) {
        return pid;
    }
    let mut threads = Vec::new();
    // Without any it has ended.
    let _ = super::threads(pid, &mut threads);
    threads.into_iter().find(|&tid| has(tid)).unwrap_or(pid)
}

/// `size resident shared ...`
fn parse_statm(text: &str) -> Option<Rss> {
    let mut fields = text.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
    let (size, resident, shared) = (fields.next()??, fields.next()??, fields.next()??);
    Some(Rss { anon_pages: resident.saturating_sub(shared), file_shmem_pages: shared, vm_pages: size })
}

/// Whether two processes have one address space: one is a child of the other between vfork and exec, say.
///
/// # Errors
///
/// `ESRCH`; `EPERM` without ptrace permission over both; `ENOSYS` from a kernel or a container without the call.
pub fn share_memory(one: u32, other: u32) -> io::Result<bool> {
    const KCMP_VM: libc::c_long = 1;
    // SAFETY: two process ids and a constant; no memory is touched.
    match unsafe {
        libc::syscall(libc::SYS_kcmp, libc::c_long::from(one), libc::c_long::from(other), KCMP_VM, 0, 0)
    } {
        0 => Ok(true),
        order if order > 0 => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Anonymous memory of process `pid` in bytes, each page divided by the number of processes that map it. Walks all
/// its page tables: tens of milliseconds for a large process.
///
/// # Errors
///
/// `ENOENT`, `ESRCH`; `EACCES` without ptrace permission over it.
pub fn pss_anon(pid: u32) -> io::Result<u64> {
    let text = read_text(&format!("/proc/{pid}/smaps_rollup"))?;
    kilobytes(&text, "Pss_Anon").ok_or_else(|| malformed("/proc/PID/smaps_rollup"))
}

/// What `/proc/PID/status` says of a process or thread. Memory is in bytes, and 0 for a process that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The program's name as the kernel shortens it.
    pub name: String,
    /// The process (thread group) it belongs to.
    pub tgid: u32,
    /// The parent process.
    pub ppid: u32,
    /// Who traces it, 0 for nobody.
    pub tracer_pid: u32,
    /// Threads of the process.
    pub threads: u32,
    /// The state: `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I`.
    pub state: char,
    /// Real user id.
    pub uid: u32,
    /// Memory locked by `mlock`.
    pub vm_lck: u64,
    /// The peak of resident memory.
    pub vm_hwm: u64,
    /// Resident memory.
    pub vm_rss: u64,
    /// Resident anonymous memory.
    pub rss_anon: u64,
    /// Kernel swap in use.
    pub vm_swap: u64,
    /// Whether it has renounced new privileges.
    pub no_new_privs: bool,
    /// Seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Seccomp filters it has, its ancestors' among them (0 before Linux 5.9, which does not tell).
    pub seccomp_filters: u32,
}

impl Status {
    /// Whether all of it has ended. That its first thread has is not enough (`state`): others may go on.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

/// Reads the status of process or thread `pid`.
///
/// # Errors
///
/// `ENOENT`, `ESRCH`; `InvalidData` if the text has no `Tgid`.
pub fn status(pid: u32) -> io::Result<Status> {
    let text = read_text(&format!("/proc/{pid}/status"))?;
    parse_status(&text).ok_or_else(|| malformed("/proc/PID/status"))
}

/// Where the stack of a process began at its exec, by its id or a thread's: the same for processes that share their memory, and
/// for others only if nothing is randomised. `None` if that may not be known, or there is no memory any more.
pub fn start_of_stack(pid: u32) -> Option<u64> {
    // Field 28; the first here is the third.
    let text = read_text(&format!("/proc/{pid}/stat")).ok()?;
    stat_fields(&text)?.nth(25)?.parse().ok().filter(|&address| address != 0)
}

/// Processor time that all threads of process `pid` have taken, in the kernel's ticks for programs (ten milliseconds).
///
/// # Errors
///
/// `ENOENT`, `ESRCH`; `InvalidData` if the text is not what Linux writes.
pub fn cpu_ticks(pid: u32) -> io::Result<u64> {
    // Fields 14 and 15; the first here is the third.
    let text = read_text(&format!("/proc/{pid}/stat"))?;
    let mut fields = stat_fields(&text).into_iter().flatten().skip(14 - 3).map(str::parse::<u64>);
    match (fields.next(), fields.next()) {
        (Some(Ok(user)), Some(Ok(system))) => Ok(user + system),
        _ => Err(malformed("/proc/PID/stat")),
    }
}

/// Where the environment is that process `pid` was executed with.
///
/// # Errors
///
/// `ENOENT`, `ESRCH`; `EPERM` without ptrace permission over it.
pub fn environment(pid: u32) -> io::Result<Range<u64>> {
    // Fields 50 and 51; the first here is the third.
    let text = read_text(&format!("/proc/{pid}/stat"))?;
    let mut fields = stat_fields(&text).ok_or_else(|| malformed("/proc/PID/stat"))?.skip(50 - 3);
    let mut next = || fields.next()?.parse::<u64>().ok().filter(|&address| address != 0);
    let range = next().zip(next()).map(|(start, end)| start..end);
    range.filter(|range| range.start <= range.end).ok_or_else(|| io::Error::from_raw_os_error(libc::EPERM))
}

/// What the first thread of process `pid` has ended with, by an exit of its own; 0 if it was a signal or goes on.
///
/// # Errors
///
/// `ENOENT`, `ESRCH`; without ptrace permission over it the answer is 0.
pub fn exit_status(pid: u32) -> io::Result<u8> {
    // Field 52, as wait(2) would tell it; the first here is the third.
    let status = stat_fields(&read_text(&format!("/proc/{pid}/stat"))?)
        .and_then(|mut fields| fields.nth(52 - 3)?.parse::<i32>().ok())
        .ok_or_else(|| malformed("/proc/PID/stat"))?;
    Ok((status >> 8) as u8)
}

fn parse_status(text: &str) -> Option<Status> {
    let number = |key| field(text, key)?.split_ascii_whitespace().next()?.parse::<u32>().ok();
    let bytes = |key| kilobytes(text, key).unwrap_or(0);
    Some(Status {
        name: field(text, "Name")?.to_owned(),
        tgid: number("Tgid")?,
        ppid: number("PPid")?,
        tracer_pid: number("TracerPid").unwrap_or(0),
        threads: number("Threads").unwrap_or(0),
        state: field(text, "State")?.chars().next()?,
        uid: number("Uid")?,
        vm_lck: bytes("VmLck"),
        vm_hwm: bytes("VmHWM"),
        vm_rss: bytes("VmRSS"),
        rss_anon: bytes("RssAnon"),
        vm_swap: bytes("VmSwap"),
        no_new_privs: number("NoNewPrivs") == Some(1),
        seccomp: number("Seccomp").unwrap_or(0),
        seccomp_filters: number("Seccomp_filters").unwrap_or(0),
    })
}
