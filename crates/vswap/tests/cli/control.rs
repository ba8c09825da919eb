//! `vswap status` and `vswap reclaim`: what they say of a run, what they do to it, and that nobody at their socket
//! can disturb it.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use vswap_sys::socket::Conn;

use crate::harness::{
    PATIENCE, assert_code, is_dead, is_root, kill, output, parent, stat, stderr, stdout, vswap, within,
};
use crate::holder::{HOLDER, Holder};
use crate::take_back::agent_of;

#[test]
fn status_tells_where_memory_is_and_reclaim_moves_it() {
    let run = Holder::start(HOLDER);
    let resident = run.resident();
    let mut before = Value::Null;
    // The governor looks now and then, on a busy machine less often.
    let agrees = |status: &Value| status["memory"]["program"].as_u64().unwrap().abs_diff(resident) < 4 << 20;
    let seen = within(PATIENCE, || {
        before = run.status();
        agrees(&before)
    });
    assert!(seen, "{before} for {resident}");
    assert_eq!(before["pager"], parent(run.pid));
    assert!(before["running"] == true && before["failing"].is_null());
    assert_eq!(before["command"][0], "python3");
    let figure = |status: &Value, key: &str| status["memory"][key].as_u64().unwrap();
    assert_eq!(figure(&before, "limit"), 512 << 20);

    let done = run.reclaim("32M");
    assert_code(&done, 0);
    assert!(stdout(&done).starts_with("reclaimed 32."), "{}", stdout(&done));
    let (after, left) = (run.status(), run.resident());
    let fell = resident.saturating_sub(left);
    assert!((30 << 20..40 << 20).contains(&fell), "resident memory fell by {fell}");
    // Half of each page is a repetition: the rest is what it takes compressed.
    assert!(figure(&after, "total") + (8 << 20) < figure(&before, "total"), "{after}");
    assert!(figure(&after, "pool") > 8 << 20, "compressed, not only out of the program: {after}");
    assert!(after["compression_ratio"].as_f64().unwrap() > 1.5, "{after}");
    let parts: u64 =
        ["pool", "frames", "metadata", "agents", "own"].iter().map(|key| figure(&after, key)).sum();
    assert_eq!(figure(&after, "total"), figure(&after, "program") + figure(&after, "pager"));
    assert!(parts >= figure(&after, "pager"), "{after}");
    let process = &after["processes"][0];
    assert_eq!((process["pid"].as_u64(), process["paged"].as_bool()), (Some(run.pid.into()), Some(true)));
    assert!(process["evicted_pages"].as_u64().unwrap() * 4096 >= 30 << 20, "{process}");
    let backing: u64 =
        after["summary"]["backing"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert!(backing * 4096 >= 30 << 20, "{after}");

    let text = run.ask(&["status", &run.pid.to_string()]);
    assert_code(&text, 0);
    for word in ["python3", "Memory", "Evicted", "in the pool", "p99", "Stalled", &run.pid.to_string()] {
        assert!(stdout(&text).contains(word), "{word}\n{}", stdout(&text));
    }
    run.finish();
}

/// Reads its pages, of which it has more than room, until it is told to end.
const READER: &str = "
import random, select, sys, zlib
pages = [random.Random(i).randbytes(2048) * 2 for i in range(16384)]
sums = [zlib.crc32(page) for page in pages]
right = True
print('ready', flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    right = right and [zlib.crc32(page) for page in pages] == sums
print('right' if right else 'wrong')
";

/// Whom the server waits for runs where it does; the program keeps its CPUs.
#[test]
fn the_agent_is_on_the_servers_cpu() {
    let run = Holder::with(&["--quiet", "-m", "40M"], READER);
    let pid = run.pid.to_string();
    let cpus = |tid: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        line.trim().to_owned()
    };
    let agent = agent_of(&pid).unwrap();
    assert!(within(PATIENCE, || cpus(&agent).parse::<u32>().is_ok()), "{}", cpus(&agent));
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(own.contains(&format!("Cpus_allowed_list:\t{}\n", cpus(&pid))), "{own}");
    run.finish();
}

#[test]
fn reclaim_says_when_it_was_less_and_why() {
    let run = Holder::start(HOLDER);
    let done = run.reclaim("4G");
    assert_code(&done, 1);
    let text = stdout(&done);
    assert!(text.contains("of 4.00 GiB") && text.contains("not more: "), "{text}");
    assert!(run.resident() < 32 << 20, "most of it could leave");
    run.finish();
}

#[test]
fn a_stopped_program_can_be_asked_about_and_is_named() {
    let run = Holder::start(HOLDER);
    kill(run.pid, "STOP");
    assert!(within(PATIENCE, || stat(run.pid, 0).as_deref() == Some("T")));
    assert_eq!(run.status()["processes"][0]["state"], "T");
    let done = run.reclaim("16M");
    assert_code(&done, 1);
    assert!(stdout(&done).contains(&format!("stopped processes cannot be evicted from (pid {})", run.pid)));
    kill(run.pid, "CONT");
    run.finish();
}

#[test]
fn a_stopped_pager_is_an_error_soon() {
    let run = Holder::start(HOLDER);
    let pager = parent(run.pid);
    kill(pager, "STOP");
    let front = run.front().to_string();
    let done = run.ask(&["status", &front]);
    // Also where so many ask that nobody more can wait.
    let socket = run.socket();
    let crowd: Vec<_> =
        std::iter::from_fn(|| Conn::connect(&socket, Duration::from_millis(100)).ok()).collect();
    let crowded = run.ask(&["status", &front]);
    kill(pager, "CONT");
    assert!(!crowd.is_empty());
    for done in [done, crowded] {
        assert_code(&done, 1);
        assert!(stderr(&done).contains("is it stopped?"), "{}", stderr(&done));
    }
    drop(crowd);
    run.finish();
}

#[test]
fn without_a_run_there_is_nothing_to_tell() {
    let run = Holder::start(HOLDER);
    // Our own shell is of no run.
    let own = std::process::id().to_string();
    for words in
        [&["status", own.as_str()][..], &["status", "--json", &own], &["reclaim", "1M", "--pid", &own]]
    {
        let done = run.ask(words);
        assert_code(&done, 1);
        assert!(stderr(&done).contains(&format!("process {own}")), "{}", stderr(&done));
    }
    run.finish();
}

#[test]
fn a_program_may_ask_about_itself() {
    let program = "import subprocess, sys, json
print('ready', flush=True)
sys.stdin.readline()
done = subprocess.run([sys.executable and '@', 'status', '--json'], capture_output=True)
runs = json.loads(done.stdout)['runs']
print('right' if len(runs) == 1 and runs[0]['command'][0] == 'python3' else (done, runs))";
    Holder::start(&program.replace('@', env!("CARGO_BIN_EXE_vswap"))).finish();
}

#[test]
fn several_runs_are_a_table_and_reclaim_wants_to_know_which() {
    let (one, other) = (Holder::start(HOLDER), Holder::start(HOLDER));
    // Both in sight: the second's directory among the parents of the first.
    let both = |words: &[&str]| {
        let mut command = vswap();
        command.env("XDG_RUNTIME_DIR", one.dir.path()).env("TMPDIR", other.dir.path()).args(words);
        output(&mut command)
    };
    let done = both(&["status"]);
    assert_code(&done, 0);
    let text = stdout(&done);
    for word in ["COMMAND", "STALLED", &parent(one.pid).to_string(), &parent(other.pid).to_string()] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    let done = both(&["reclaim", "1M"]);
    assert_code(&done, 1);
    assert!(stderr(&done).contains("--pid"), "{}", stderr(&done));
    one.finish();
    other.finish();
}

#[test]
fn who_connects_and_does_not_read_or_ask_matters_to_nobody() {
    let run = Holder::start(HOLDER);
    let socket = run.socket();
    let mut idle: Vec<Conn> = (0..40).filter_map(|_| Conn::connect(&socket, PATIENCE).ok()).collect();
    for conn in &idle {
        // Many asked and none read; some talk nonsense; some have been hung up on already.
        let _ = conn.send(b"\"status\"", &[]);
        let _ = conn.send(b"{\"reclaim\":{\"bytes\":-1}}", &[]);
    }
    idle.extend((0..10).filter_map(|_| Conn::connect(&socket, PATIENCE).ok()));
    assert!(UnixStream::connect(&socket).is_err(), "it is a socket of packets");
    let begun = Instant::now();
    assert_eq!(run.status()["pid"], run.pid);
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    // A wish whose owner has gone is not fulfilled further.
    let wish = Conn::connect(&socket, PATIENCE).unwrap();
    wish.send(b"{\"reclaim\":{\"bytes\":1000000000000}}", &[]).unwrap();
    drop(wish);
    let nonsense = Conn::connect(&socket, PATIENCE).unwrap();
    nonsense.send(b"{\"reclaim\":\"all\"}", &[]).unwrap();
    let mut answer = [0; 4096];
    let (length, _) = nonsense.recv(&mut answer).unwrap();
    assert!(answer[..length].starts_with(b"{\"refused\":"), "{}", String::from_utf8_lossy(&answer[..length]));
    assert_code(&run.reclaim("1M"), 0);
    drop(idle);
    run.finish();
}

#[test]
fn other_users_are_kept_out() {
    assert!(is_root(), "this test takes root's rights away");
    let run = Holder::start(HOLDER);
    let script = format!(
        "import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.setgid(65534); os.setuid(65534)
try:
    s.connect({:?})
    print('connected')
except PermissionError:
    print('refused')",
        run.socket().to_str().unwrap()
    );
    let done = output(std::process::Command::new("python3").args(["-c", &script]));
    assert_eq!(stdout(&done), "refused\n", "{}", stderr(&done));
    run.finish();
}

#[test]
fn a_run_that_ends_is_gone_from_sight() {
    let run = Holder::start(HOLDER);
    let (front, pager, dir) = (run.front(), parent(run.pid), run.dir.path().to_owned());
    drop(run);
    assert!(within(PATIENCE, || is_dead(pager)));
    let done = output(vswap().env("XDG_RUNTIME_DIR", dir).args(["status", &front.to_string()]));
    assert_code(&done, 1);
}
