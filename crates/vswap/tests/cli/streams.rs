//! What CMD is given, it gets as it is; what it writes arrives as it is.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Scratch, assert_code, collect_within, output, quiet, run, stderr, stdout, vswap};

/// Bytes without any pattern that a text layer would keep.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[test]
fn standard_input_and_output_pass_byte_for_byte() {
    let dir = Scratch::new();
    let bytes = noise(1 << 20);
    fs::write(dir.file("in"), &bytes).unwrap();
    // With the summary: it must not reach standard output.
    let mut command = vswap();
    command.args(["run", "-m", "256M", "cat"]).stdin(File::open(dir.file("in")).unwrap());
    let done = output(&mut command);
    assert_code(&done, 0);
    assert!(done.stdout == bytes, "{} bytes came of {}", done.stdout.len(), bytes.len());
    assert!(stderr(&done).contains("Memory"));
}

#[test]
fn quiet_is_silent() {
    let done = run(&["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((stdout(&done).as_str(), stderr(&done).as_str()), ("out\n", "err\n"));
}

#[test]
fn a_program_sees_the_same_world() {
    // Descriptors, masks and dispositions of signals, limits, directory, group and session, umask.
    let look = "import os,resource,signal; \
        status=open('/proc/self/status').read().splitlines(); \
        print(sorted(os.listdir('/proc/self/fd'))); \
        print([l for l in status if l.startswith(('SigBlk','SigIgn','SigCgt','CapEff','NoNewPrivs','Umask'))]); \
        print([resource.getrlimit(n) for n in range(16)]); \
        print(os.getcwd(), os.getpgid(0), os.getsid(0), os.nice(0), sorted(os.sched_getaffinity(0))); \
        print(open('/proc/self/oom_score_adj').read())";
    let dir = Scratch::new();
    for group in [None, Some(0)] {
        let prepare = |command: &mut Command| {
            command.args(["python3", "-c", look]).current_dir(dir.path());
            if let Some(group) = group {
                command.process_group(group);
            }
            stdout(&output(command))
        };
        let mut plain = Command::new("env");
        plain.stdin(Stdio::null()).env_remove("LD_PRELOAD");
        let lines = |text: String| text.lines().map(String::from).collect::<Vec<_>>();
        let (alone, inside) = (lines(prepare(&mut plain)), lines(prepare(&mut quiet())));
        assert_eq!(alone.len(), 6, "{alone:?}");
        for (index, (alone, inside)) in alone.iter().zip(&inside).enumerate() {
            // In a group of its own the number differs; that it is vswap's is tested below.
            if !(index == 3 && group.is_some()) {
                assert_eq!(alone, inside);
            }
        }
    }
}

#[test]
fn an_ignored_sigpipe_stays_ignored() {
    let look = "grep SigIgn /proc/self/status";
    for trap in ["", "trap '' PIPE;"] {
        let script = |prefix: &str| format!("{trap} exec {prefix} {look}");
        let vswap_words = format!("{} run -q -m 256M", env!("CARGO_BIN_EXE_vswap"));
        let alone = output(Command::new("sh").args(["-c", &script("")]));
        let inside = output(Command::new("sh").args(["-c", &script(&vswap_words)]));
        assert_code(&inside, 0);
        assert_eq!(stdout(&alone), stdout(&inside), "{trap}");
    }
}

#[test]
fn inherited_descriptors_are_cmds_alone() {
    let dir = Scratch::new();
    fs::write(dir.file("seven"), "through seven\n").unwrap();
    let script = format!(
        "exec 7<{}; exec {} run -q -m 256M -- sh -c 'cat <&7'",
        dir.file("seven").display(),
        env!("CARGO_BIN_EXE_vswap")
    );
    let done = output(Command::new("sh").args(["-c", &script]));
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "through seven\n");
}

#[test]
fn a_pipe_ends_with_cmd_not_with_its_daemons() {
    let start = std::time::Instant::now();
    let mut command = vswap();
    command.args(["run", "-m", "256M", "sh", "-c", "sleep 60 >/dev/null 2>&1 </dev/null & echo started"]);
    // `output` waits for the end of both pipes.
    let done = output(&mut command);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "started\n");
    assert!(start.elapsed().as_secs() < 40, "held open for {:?}", start.elapsed());
    assert!(stderr(&done).contains("1 process of the tree still runs"), "{}", stderr(&done));
}

#[test]
fn the_users_own_preload_is_kept() {
    let dir = Scratch::new();
    // Any library will do.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let library = maps
        .lines()
        .find_map(|line| line.split(' ').next_back().filter(|name| name.contains("/libc.so")))
        .unwrap();
    let done = output(quiet().env("LD_PRELOAD", library).args(["sh", "-c", "echo \"$LD_PRELOAD\""]));
    assert_code(&done, 0);
    let text = stdout(&done);
    let (first, second) = text.trim_end().split_once(':').expect("two libraries");
    assert!(first.ends_with("/agent.so"), "{text}");
    assert_eq!(second, library);
    drop(dir);
}

#[test]
fn closed_standard_streams_are_no_obstacle() {
    let script =
        format!("exec {} run -q -m 256M -- sh -c 'exit 9' <&- >&- 2>&-", env!("CARGO_BIN_EXE_vswap"));
    assert_code(&output(Command::new("sh").args(["-c", &script])), 9);
}

/// Two threads and a child read what was evicted again and again, and bind themselves meanwhile.
const BINDER: &str = "
import os, threading, zlib
given = os.sched_getaffinity(0)
pages = [os.urandom(2048) * 2 for _ in range(10240)]
sums = [zlib.crc32(page) for page in pages]
wrong = []
def walk():
    for cpus in [given, {min(given)}, {max(given)}, given]:
        os.sched_setaffinity(0, cpus)
        for page, total in zip(pages, sums):
            if zlib.crc32(page) != total: wrong.append('data')
            if os.sched_getaffinity(0) != cpus: wrong.append((cpus, os.sched_getaffinity(0)))
thread = threading.Thread(target=walk)
thread.start()
walk()
thread.join()
if os.fork() == 0:
    walk()
    os._exit(1 if wrong else 0)
if os.wait()[1] != 0: wrong.append('child')
print('right' if not wrong else wrong[:5])
";

#[test]
fn faults_leave_a_thread_the_cpus_that_it_has_chosen() {
    let dir = Scratch::new();
    let json = dir.file("json");
    let mut command = vswap();
    command.args(["run", "--quiet", "-m", "36M", "--json"]).arg(&json).args(["python3", "-c", BINDER]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let done = collect_within(Duration::from_secs(180), child);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "right\n");
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let faults = |kind: &str| figures["summary"]["faults"][kind]["count"].as_u64().unwrap();
    assert!(faults("soft") + faults("pool") > 500, "{figures}");
}
