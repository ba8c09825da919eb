//! The watchdog: a fault that waits for over a second is reported once, with its cause, and counted; one that waits because
//! somebody stopped the program or the pager is not.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, assert_code, collect, kill, parent, stat, within};
use crate::holder::{HOLDER, Holder};

/// Stops one thread as a debugger does, until a line comes.
const STOP_THREAD: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
tid = int(sys.argv[1])
SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
for request in SEIZE, INTERRUPT:
    assert libc.ptrace(request, tid, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.waitpid(tid, 0x40000000)
print('stopped', flush=True)
sys.stdin.readline()
assert libc.ptrace(DETACH, tid, 0, 0) == 0
";

/// As `HOLDER`, but while it checks its pages another thread grows a mapping.
fn mover() -> String {
    HOLDER.replace(
        "sys.stdin.readline()",
        "
import ctypes, threading
libc = ctypes.CDLL(None)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_size_t] * 6
libc.mremap.argtypes = [ctypes.c_size_t] * 4
area = libc.mmap(0, 1 << 20, 3, 0x22, 0, 0)
sys.stdin.readline()
threading.Thread(target=lambda: libc.mremap(area, 1 << 20, 2 << 20, 1)).start()
",
    )
}

/// A thread that is kept from running while this lives.
struct Stopped(Child);

impl Stopped {
    fn thread(tid: u32) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", STOP_THREAD, &tid.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut word = [0; 8];
        child.stdout.as_mut().unwrap().read_exact(&mut word).expect("the thread can be stopped");
        Self(child)
    }

    fn let_go(mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert_code(&collect(self.0), 0);
    }
}

/// The agent's thread in a process.
fn agent_of(pid: u32) -> u32 {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap().path());
    let agent = threads.find(|thread| fs::read_to_string(thread.join("comm")).unwrap() == "vswap-agent\n");
    agent.expect("an agent").file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// Has a fault wait for an agent that does not run; what was said of it.
fn wait_for_the_agent(options: &[&str]) -> String {
    let mut run = Holder::with(options, HOLDER);
    assert_code(&run.reclaim("32M"), 0);
    let stopped = Stopped::thread(agent_of(run.pid));
    // It says that it was less: nothing leaves while the agent does not run.
    assert_code(&run.reclaim("8M"), 1);
    run.go_on();
    let waits = || run.status()["slow"][0].as_str().unwrap_or_default().to_owned();
    assert!(within(PATIENCE, || !waits().is_empty()), "a fault that waits is not seen");
    let text = waits();
    assert!(text.contains(&format!("the agent of process {} has not answered", run.pid)), "{text}");
    assert!(run.status()["summary"]["longest_wait_ms"].as_u64().unwrap() >= 1000);
    assert_eq!(run.status()["summary"]["slow_faults"], 1, "it is one fault, however often one looks");
    stopped.let_go();
    run.end()
}

#[test]
fn a_fault_that_waits_for_over_a_second_is_reported_once_with_its_cause() {
    let said = wait_for_the_agent(&[]);
    let reports: Vec<&str> = said.lines().filter(|line| line.contains("has not answered")).collect();
    assert_eq!(reports.len(), 1, "{said}");
    assert!(reports[0].starts_with("vswap: ") && reports[0].contains("(python3)"), "{said}");
    assert!(said.contains("1 wait for over a second, the longest"), "{said}");
}

#[test]
fn a_quiet_run_counts_slow_faults_and_says_nothing() {
    assert_eq!(wait_for_the_agent(&["--quiet"]), "");
}

#[test]
fn a_fault_that_waits_for_a_change_of_mappings_is_named() {
    let mut run = Holder::with(&[], &mover());
    assert_code(&run.reclaim("48M"), 0);
    let stopped = Stopped::thread(agent_of(run.pid));
    run.go_on();
    let slow = || run.status()["slow"][0].as_str().unwrap_or_default().to_owned();
    assert!(within(PATIENCE, || !slow().is_empty()), "a fault that waits is not seen");
    let text = slow();
    let (who, why) = (
        format!("thread {0} of process {0} (python3) waits for the page at 0x", run.pid),
        "executed an mremap",
    );
    assert!(text.contains(&who) && text.contains(why), "{text}");
    stopped.let_go();
    let said = run.end();
    assert!(said.contains(&who) && said.contains(why), "{said}");
}

/// A fault waits for an agent that does not run, and meanwhile somebody stops `stopped_by` for much longer than a second.
/// What was said; `None` if this machine was too busy for the fault to have waited for less than a second beside that.
fn waits_while_stopped(stopped_by: fn(u32) -> u32) -> Option<String> {
    let mut run = Holder::with(&[], &mover());
    assert_code(&run.reclaim("48M"), 0);
    let agent = Stopped::thread(agent_of(run.pid));
    let begun = Instant::now();
    run.go_on();
    thread::sleep(Duration::from_millis(300));
    let pid = stopped_by(run.pid);
    kill(pid, "STOP");
    assert!(within(PATIENCE, || stat(pid, 0).as_deref() == Some("T")));
    let before = begun.elapsed();
    thread::sleep(Duration::from_secs(3));
    let begun = Instant::now();
    kill(pid, "CONT");
    thread::sleep(Duration::from_millis(250));
    agent.let_go();
    let after = begun.elapsed();
    let said = run.end();
    (before + after < Duration::from_millis(800)).then_some(said)
}

#[test]
fn who_stops_the_program_or_the_pager_gets_no_reports() {
    for stopped_by in [|cmd| cmd, parent] {
        let said = (0..20).find_map(|_| waits_while_stopped(stopped_by)).expect("a moment of quiet");
        assert!(said.contains("Waited") && !said.contains("over a second"), "{said}");
    }
}
