//! Agents that do not get on in the middle of a batch, while other threads change mappings: the batch is ended without them, and
//! nothing is lost, twice there or wrong.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::{
    PATIENCE, Scratch, assert_code, collect_within, compiled, output, program, stderr, stdout, vswap, within,
};
use crate::holder::Holder;

/// Pages that a child shares, so that the agent must un-share each before it leaves; a thread that gives pages of its own up
/// and fills them again, and one that unmaps some and touches none.
const PROGRAM: &str = "
import ctypes, os, random, sys, threading, time, zlib
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_size_t] * 6
libc.munmap.argtypes = [ctypes.c_size_t] * 2
libc.madvise.argtypes = [ctypes.c_size_t] * 3
libc.memset.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t]
libc.memcmp.argtypes = [ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
pages = [random.Random(i).randbytes(2048) * 2 for i in range(8192)]
sums = [zlib.crc32(page) for page in pages]
size = 16 << 20
def fill():
    at = libc.mmap(0, size, 3, 0x22, 2**64 - 1, 0)
    ctypes.memset(at, 7, size)
    return at
refilled, unmapped = fill(), fill()
ends, begins = os.pipe()
child = os.fork()
if child == 0:
    os.close(begins)
    os.read(ends, 1)
    os._exit(0 if [zlib.crc32(page) for page in pages] == sums else 1)
over = False
some = 64 * 4096
def refill():
    # By calls that let other threads run while they wait for a page.
    while not over:
        assert libc.madvise(refilled, some, 4) == 0
        assert libc.memcmp(refilled, bytes(some), some) == 0
        libc.memset(refilled, 9, some)
        assert libc.memcmp(refilled, bytes([9]) * some, some) == 0
def unmap():
    at = unmapped
    while not over and at < unmapped + size - (4 << 20):
        assert libc.munmap(at, 4096) == 0
        at += 4096
        time.sleep(0.005)
threads = [threading.Thread(target=refill), threading.Thread(target=unmap)]
print('ready', flush=True)
sys.stdin.readline()
for thread in threads: thread.start()
libc.memset(libc.mmap(0, 72 << 20, 3, 0x22, 2**64 - 1, 0), 5, 72 << 20)
sys.stdin.readline()
over = True
for thread in threads: thread.join()
os.close(begins)
right = os.waitpid(child, 0)[1] == 0 and [zlib.crc32(page) for page in pages] == sums
for at in refilled, unmapped: right = right and ctypes.string_at(at + size - (3 << 20), 3 << 20) == bytes([7]) * (3 << 20)
print('right' if right else 'wrong')
";

/// The agent's thread in a process.
pub(crate) fn agent_of(pid: &str) -> Option<String> {
    let mut tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.filter_map(Result::ok);
    let is_agent = |name: String| name == "vswap-agent\n";
    let agent = tasks.find(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(is_agent));
    agent?.file_name().into_string().ok()
}

/// The agents of a process and its child.
fn agents(pid: u32) -> Option<(String, String)> {
    let child = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Some((agent_of(&pid.to_string())?, agent_of(child.trim())?))
}

/// Stops two threads, as a debugger does, whenever they make a call of this kind.
fn hinder((one, other): (String, String), calls: &str, delay: &str) -> Child {
    let mut command = Command::new("strace");
    command.args(["-qq", "-o", "/dev/null", "-e"]).arg(format!("trace={calls}"));
    command.arg("-e").arg(format!("inject={calls}:{delay}")).args(["-p", &one, "-p", &other]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace")
}

/// Runs the program, with agents that are stopped at these calls, until batches were taken from each of `places` a few times.
fn hindered(calls: &str, delay: &str, places: &[&str]) {
    let dir = Scratch::new();
    let (log, json) = (dir.file("log"), dir.file("json"));
    let options = ["--quiet", "-m", "128M", "--json", json.to_str().unwrap()];
    let environment = [("VSWAP_LOG", "evict=debug"), ("VSWAP_LOG_FILE", log.to_str().unwrap())];
    let mut run = Holder::in_environment(&environment, &options, PROGRAM);
    assert!(within(PATIENCE, || agents(run.pid).is_some()), "there is a child, and it has an agent");
    let mut tracer = hinder(agents(run.pid).unwrap(), calls, delay);
    // Now it wants more than there is.
    run.go_on();
    let taken = |place: &&str| {
        let line = format!("stands still, its batch is taken from {place}");
        fs::read_to_string(&log).unwrap().matches(&line).count()
    };
    let seen = within(2 * PATIENCE, || places.iter().all(|place| taken(place) >= 3));
    let _ = tracer.kill();
    let _ = tracer.wait();
    assert!(seen, "{:?} times", places.iter().map(taken).collect::<Vec<_>>());
    run.go_on();
    let done = run.collect();
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "right\n", "{}", stderr(&done));
    let figures: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(figures["summary"]["fail_stops"], 0, "{figures}");
}

#[test]
fn an_agent_that_breaks_the_sharing_of_pages_for_long() {
    hindered("madvise", "delay_enter=200000", &["staging"]);
}

#[test]
fn an_agent_that_is_stopped_before_it_moves_pages() {
    hindered("ioctl", "delay_enter=200000", &["staging"]);
}

#[test]
fn an_agent_that_is_stopped_when_it_has_moved_pages() {
    hindered("ioctl,pread64", "delay_exit=200000", &["staging"]);
}

#[test]
fn an_agent_that_is_stopped_when_it_has_emptied_staging() {
    hindered("sendto", "delay_enter=200000", &["the ring"]);
}

#[test]
fn an_agent_that_is_stopped_anywhere() {
    hindered("ioctl,madvise,pread64,sendto", "delay_enter=150000:when=1+3", &["staging", "the ring"]);
}

/// A filter for all threads ends the agent's: where it looks what has moved, and where it answers. Without the gate nobody sees it
/// coming.
#[test]
fn an_agent_that_is_ended_leaves_nothing_behind() {
    let dir = Scratch::new();
    let usual = compiled(&dir, "usual");
    let log = dir.file("log");
    for call in ["pread64", "sendto"] {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", env!("CARGO_BIN_EXE_vswap")]);
        command.args(["run", "--quiet", "--allow-new-privs", "--memory", "20M"]);
        command.env("VSWAP_LOG", "evict=debug").env("VSWAP_LOG_FILE", &log);
        command.arg(&usual).args(["24", &format!("killed-{call}")]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let done = collect_within(2 * PATIENCE, child.unwrap());
        assert_code(&done, 0);
        assert_eq!(stdout(&done), format!("killed-{call} ok\n"));
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("has ended, its batch is taken"), "{call}: {text}");
    }
}

/// LeakSanitizer stops all threads, the agent among them, and then reads all memory from a process of its own.
#[test]
fn a_sanitizer_stops_all_threads_and_reads_all_memory() {
    let dir = Scratch::new();
    let binary = dir.file("leaks");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-O1", "-fsanitize=address", "-static-libasan", "-o"])
        .arg(&binary)
        .arg(program("leaks.c"));
    assert!(compiler.status().expect("a C compiler").success());
    let plain = output(Command::new(&binary).arg("100000"));
    assert_code(&plain, 0);
    for _ in 0..5 {
        let json = dir.file("run.json");
        let mut command = vswap();
        command.args(["run", "--quiet", "--memory", "32M", "--json"]).arg(&json);
        // Of some 70 MiB, so a good part is away when the sanitizer reads all of it.
        command.arg(&binary).args(["100000", "40000"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let done = collect_within(4 * PATIENCE, child);
        assert_code(&done, 0);
        assert_eq!(stdout(&done), stdout(&plain));
        let figures: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        assert!(figures["summary"]["evictions"].as_u64() > Some(0), "{figures}");
    }
}
