//! The watchdog: a fault that waits for over a second is reported once, with its cause, and counted; one that waits because
//! somebody stopped the program or the pager is not.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{PATIENCE, Scratch, assert_code, collect, is_dead, kill, parent, stat, within};
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

/// The thread of this name in a process.
fn thread_called(pid: u32, name: &str) -> Option<u32> {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.filter_map(Result::ok);
    let named =
        |path: PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
    threads.find(|thread| named(thread.path()))?.file_name().to_str()?.parse().ok()
}

/// The agent's thread in a process.
fn agent_of(pid: u32) -> u32 {
    thread_called(pid, "vswap-agent").expect("an agent")
}

/// Whether somebody traces a thread.
fn traced(tid: &str) -> bool {
    fs::read_to_string(format!("/proc/{tid}/status")).is_ok_and(|text| !text.contains("TracerPid:\t0\n"))
}

/// The file without a name that a process has open below a directory.
fn file_below(pid: u32, dir: &str) -> String {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let mut files = files.filter_map(|file| file.into_os_string().into_string().ok());
    let file = files.find(|file| file.starts_with(dir)).expect("a spill file");
    file.trim_end_matches(" (deleted)").to_owned()
}

/// Has a fault wait for a disk that takes longer than a second; what was said of it, and the figures.
fn wait_for_the_disk(options: &[&str]) -> (String, Value) {
    let dir = Scratch::new();
    let json = dir.file("json");
    let swap = dir.path().to_str().unwrap();
    let more = ["--pool-max", "1M", "--swap-dir", swap, "--json", json.to_str().unwrap()];
    let mut run = Holder::with(&[&more, options].concat(), HOLDER);
    assert_code(&run.reclaim("32M"), 0);
    let pager = parent(run.pid);
    let server = thread_called(pager, &format!("serve-{}", run.pid)).expect("a server").to_string();
    let mut command = Command::new("strace");
    command.args(["-qq", "-o", "/dev/null", "-e", "trace=pread64", "-P", &file_below(pager, swap)]);
    command.args(["-e", "inject=pread64:delay_enter=1500000", "-p", &server]).stderr(Stdio::null());
    let mut disk = command.spawn().expect("strace");
    assert!(within(PATIENCE, || traced(&server)), "the disk is slow");
    run.go_on();
    let waits = || run.status()["slow"][0].as_str().unwrap_or_default().to_owned();
    let mut text = String::new();
    let seen = within(PATIENCE, || {
        text = waits();
        !text.is_empty()
    });
    let _ = disk.kill();
    let _ = disk.wait();
    assert!(seen, "a fault that waits is not seen");
    assert!(text.contains("its contents are being read"), "{text}");
    let said = run.end();
    (said, serde_json::from_slice(&fs::read(json).unwrap()).unwrap())
}

#[test]
fn a_fault_that_waits_for_over_a_second_is_reported_once_with_its_cause() {
    let (said, figures) = wait_for_the_disk(&[]);
    let reports: Vec<&str> =
        said.lines().filter(|line| line.contains("its contents are being read")).collect();
    let slow = figures["summary"]["slow_faults"].as_u64().unwrap();
    assert!(slow >= 1 && reports.len() as u64 <= slow, "{said}");
    assert!(reports[0].starts_with("vswap: ") && reports[0].contains("(python3)"), "{said}");
    assert!(said.contains("for over a second, the longest"), "{said}");
    assert!(figures["summary"]["longest_wait_ms"].as_u64().unwrap() >= 1000, "{figures}");
}

#[test]
fn a_quiet_run_counts_slow_faults_and_says_nothing() {
    let (said, figures) = wait_for_the_disk(&["--quiet"]);
    assert_eq!(said, "");
    assert!(figures["summary"]["slow_faults"].as_u64().unwrap() >= 1, "{figures}");
}

#[test]
fn nobody_waits_for_an_agent_that_a_debugger_has_stopped() {
    let mut run = Holder::start(HOLDER);
    assert_code(&run.reclaim("32M"), 0);
    let mut stopped = Stopped::thread(agent_of(run.pid));
    // It says that it was less: nothing leaves while the agent does not run.
    assert_code(&run.reclaim("8M"), 1);
    run.go_on();
    assert!(within(PATIENCE, || is_dead(run.pid)), "it reads all its pages and ends");
    // Who traces a thread has to look at its end.
    stopped.0.kill().unwrap();
    stopped.0.wait().unwrap();
    run.end();
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
