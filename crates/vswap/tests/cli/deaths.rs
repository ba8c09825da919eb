//! Who dies, and when: the pager at each step of what it does, an agent, a program that closes what is not its own. Right data
//! or a clear end, never a hang.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::harness::{
    PATIENCE, SOON, Scratch, assert_code, collect, compiled, is_dead, kill, parent, pid_in, quiet, stderr,
    stdout, vswap, within,
};
use crate::holder::{HOLDER, Holder};

/// Holds evicted pages, and forks children that read them, until it is killed.
const FORKER: &str = "
import os, sys, zlib
pages = [os.urandom(2048) * 2 for _ in range(8192)]
sums = [zlib.crc32(page) for page in pages]
open(sys.argv[1], 'w').write('%d\\n' % os.getpid())
while True:
    if os.fork() == 0: os._exit(0 if [zlib.crc32(page) for page in pages] == sums else 1)
    if os.wait()[1] != 0: print('WRONG', flush=True)
";

/// Has this happen at the `nth` of this system call of the pager from now on.
fn strike(pager: u32, call: &str, nth: &str, what: &str) -> Child {
    let mut command = Command::new("strace");
    command.args(["-qq", "-f", "-o", "/dev/null", "-p", &pager.to_string()]);
    command.arg(format!("--trace={call}")).arg(format!("--inject={call}:{what}:when={nth}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace")
}

/// Every process of a session that has not ended.
fn session(leader: u32) -> Vec<u32> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let of_it =
        |pid: &u32| crate::harness::stat(*pid, 3).as_deref() == Some(&leader.to_string()) && !is_dead(*pid);
    processes.filter(of_it).collect()
}

pub(crate) const KILL: &str = "signal=SIGKILL";

/// Runs the program, has its pager die there, and sees to it that nothing is left and nothing was wrong; what was said.
#[track_caller]
pub(crate) fn dies_at(call: &str, nth: &str, what: &str, words: &[&str], ready: &Path) -> String {
    let mut command = Command::new("setsid");
    command.args([env!("CARGO_BIN_EXE_vswap"), "run", "--quiet", "-m", "32M", "--pool-max", "8M", "--"]);
    command.args(words).env_remove("VSWAP_SESSION").env_remove("LD_PRELOAD");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let leader = child.id();
    let pager = if ready.as_os_str().is_empty() {
        let mut pager = None;
        assert!(within(PATIENCE, || {
            pager = pager_of(leader);
            pager.is_some()
        }));
        pager.unwrap()
    } else {
        parent(pid_in(ready))
    };
    let mut tracer = strike(pager, call, nth, what);
    assert!(within(PATIENCE, || is_dead(pager)), "{call} {nth}: it is not reached");
    assert!(
        within(SOON, || session(leader).is_empty()),
        "{call} {nth}: much later {:?} are alive",
        session(leader)
    );
    let _ = tracer.wait();
    let done = collect(child);
    assert_code(&done, 125);
    assert!(stderr(&done).contains("pager died (killed by signal"), "{}", stderr(&done));
    assert!(!stdout(&done).contains("WRONG"));
    stderr(&done)
}

/// The pager below a front.
fn pager_of(front: u32) -> Option<u32> {
    let below = |of: u32| {
        let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).ok()?;
        children.split_ascii_whitespace().next()?.parse::<u32>().ok()
    };
    below(below(front)?).filter(|pager| {
        fs::read_to_string(format!("/proc/{pager}/comm")).is_ok_and(|name| name == "vswap-pager\n")
    })
}

#[test]
fn killed_at_each_step_the_pager_takes_everything_along() {
    // Asking an agent for a batch and hearing of it; letting a forked child in, after its FORK and before its
    // greeting; serving; spilling; the thread of a new child.
    for (call, nth) in [
        ("sendmsg", "1"),
        ("sendmsg", "7"),
        ("recvmsg", "5"),
        ("accept4", "2"),
        ("ioctl", "1"),
        ("ioctl", "40"),
        ("read", "3"),
        ("pwrite64", "2"),
        ("clone3", "1"),
        ("ppoll,poll", "20"),
        ("openat", "9"),
        ("futex", "2"),
    ] {
        let dir = Scratch::new();
        let ready = dir.file("ready");
        dies_at(call, nth, KILL, &["python3", "-c", FORKER, ready.to_str().unwrap()], &ready);
    }
}

#[test]
fn an_aborted_pager_takes_everything_along() {
    let dir = Scratch::new();
    let ready = dir.file("ready");
    // It gives up where a forked child cannot be given a server, for its descriptor must not be closed.
    let words = ["python3", "-c", FORKER, ready.to_str().unwrap()];
    let said = dies_at("clone3", "1+", "error=EAGAIN", &words, &ready);
    assert!(said.contains("a forked child cannot be served") && said.contains("signal 6"), "{said}");
}

#[test]
fn killed_while_threads_are_frozen_it_takes_everything_along() {
    let dir = Scratch::new();
    let storm = compiled(&dir, "storm.c");
    dies_at("ptrace", "2", KILL, &[storm.to_str().unwrap(), "64", "60", "8"], Path::new(""));
}

#[test]
fn who_kills_the_agents_thread_kills_its_process() {
    let run = Holder::start(HOLDER);
    assert_code(&run.reclaim("32M"), 0);
    let threads = fs::read_dir(format!("/proc/{}/task", run.pid)).unwrap().map(|entry| entry.unwrap().path());
    let agent = threads
        .into_iter()
        .find(|thread| fs::read_to_string(thread.join("comm")).unwrap() == "vswap-agent\n")
        .expect("an agent");
    kill(agent.file_name().unwrap().to_str().unwrap().parse().unwrap(), "KILL");
    let done = run.collect();
    assert_code(&done, 137);
    assert_eq!(stdout(&done), "");
}

#[test]
fn a_program_that_closes_every_descriptor_is_paged_on() {
    let closes = HOLDER.replace(
        "print('ready'",
        "import os; os.closerange(3, 100000); assert sorted(map(int, os.listdir('/proc/self/fd'))) == [0, 1, 2, 3]\nprint('ready'",
    );
    let run = Holder::start(&closes);
    assert_code(&run.reclaim("48M"), 0);
    run.finish();
}

#[test]
fn a_program_with_all_the_mappings_it_may_have_is_paged_and_right() {
    let dir = Scratch::new();
    let (program, json) = (compiled(&dir, "mappings.c"), dir.file("json"));
    let mut command = vswap();
    command.args(["run", "--quiet", "-m", "64M", "--json"]).arg(&json).arg(program).args(["64", "3"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let done = crate::harness::collect_within(4 * PATIENCE, child);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "right\n");
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert!(figures["summary"]["evictions"].as_u64().unwrap() > 4096, "{figures}");
}

/// Forks until the system refuses, at every level; each child reads what it inherited.
const BOMB: &str = "
import os, resource, sys, zlib
pages = [os.urandom(2048) * 2 for _ in range(4096)]
sums = [zlib.crc32(page) for page in pages]
os.setgroups([]); os.setgid(54321); os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (40, 40))
refused = False
def grow(depth):
    global refused
    children = []
    while depth < 6:
        try: child = os.fork()
        except BlockingIOError: refused = True; break
        if child == 0:
            refused = False
            grow(depth + 1)
            right = [zlib.crc32(page) for page in pages] == sums
            os._exit(0 if right else 1)
        children.append(child)
        if len(children) == 40: break
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
grow(0)
assert refused and [zlib.crc32(page) for page in pages] == sums
print('right')
";

#[test]
fn a_fork_bomb_up_to_the_limit_ends_right() {
    let mut command = quiet();
    command.args(["--memory", "64M", "python3", "-c", BOMB]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let done = crate::harness::collect_within(4 * PATIENCE, child);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "right\n");
}
