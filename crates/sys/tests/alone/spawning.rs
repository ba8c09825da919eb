//! Starting programs.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;

use vswap_sys::process::signals::{self, SignalSet};
use vswap_sys::process::{self, Program, SpawnError, Step, spawn};
use vswap_sys::seccomp::{Gate, Reply};
use vswap_sys::socket::socketpair;

use crate::Test;
use crate::common::{is_root, readable};

pub(crate) const TESTS: &[Test] = &[
    ("spawn_runs_with_arguments_and_environment", spawn_runs_with_arguments_and_environment),
    ("spawn_reports_exec_errors", spawn_reports_exec_errors),
    ("spawn_reports_failed_steps", spawn_reports_failed_steps),
    ("spawn_takes_steps", spawn_takes_steps),
    ("spawn_behind_the_gate", spawn_behind_the_gate),
    ("spawn_with_threads_around", spawn_with_threads_around),
];

fn shell(script: &str) -> Program {
    let c = |text: &str| CString::new(text).unwrap();
    Program {
        path: c("/bin/sh"),
        argv: vec![c("sh"), c("-c"), c(script), c("zero"), c("one two")],
        envp: vec![c("PATH=/usr/bin:/bin"), c("GREETING=hello world")],
    }
}

fn run(script: &str, steps: &[Step<'_>]) -> Option<i32> {
    process::wait(spawn(&shell(script), steps).unwrap()).unwrap().code()
}

fn spawn_runs_with_arguments_and_environment() {
    assert_eq!(
        run(r#"test "$GREETING" = "hello world" && test "$0 $1" = "zero one two" && exit 7"#, &[]),
        Some(7)
    );
    let child = spawn(&shell("kill -TERM $$"), &[]).unwrap();
    assert_eq!(process::wait(child).unwrap().signal(), Some(libc::SIGTERM));
}

fn spawn_reports_exec_errors() {
    let with = |path: &str| Program { path: CString::new(path).unwrap(), ..shell("") };
    assert!(matches!(spawn(&with("/no/such/file"), &[]), Err(SpawnError::Exec(libc::ENOENT))));
    assert!(matches!(spawn(&with("/etc/passwd"), &[]), Err(SpawnError::Exec(libc::EACCES))));
    // The failed children are gone.
    assert_eq!(process::reap().unwrap_err().raw_os_error(), Some(libc::ECHILD));
}

fn spawn_reports_failed_steps() {
    let steps = [Step::NewProcessGroup, Step::ParentDeathSignal(1000), Step::NewProcessGroup];
    let error = spawn(&shell("exit 0"), &steps).unwrap_err();
    assert!(matches!(error, SpawnError::Step(1, libc::EINVAL)), "{error}");
}

fn spawn_takes_steps() {
    // Not a SEQPACKET socket: the shell reads byte by byte.
    let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    signals::ignore(libc::SIGUSR1).unwrap();
    process::set_affinity_self(*process::allowed_cpus().last().unwrap()).unwrap();
    let mask = SignalSet::empty().with(libc::SIGUSR2);
    let steps = [
        Step::NoNewPrivs,
        Step::DefaultSignal(libc::SIGUSR1),
        Step::IgnoreSignal(libc::SIGHUP),
        Step::SignalMask(&mask),
        Step::Nice(5),
        Step::OpenFiles(99, 100),
        Step::ClearAffinity,
        Step::NewProcessGroup,
        Step::Inherit { fd: theirs.as_fd(), target: 7 },
    ];
    let child = spawn(&shell("read line <&7; exit 9"), &steps).unwrap();
    let text = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap();
    let line = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}"));
        line.trim().to_owned()
    };
    let has = |key: &str, signal: i32| u64::from_str_radix(&line(key), 16).unwrap() >> (signal - 1) & 1 == 1;
    assert_eq!(line("NoNewPrivs:"), "1");
    assert!(has("SigIgn:", libc::SIGHUP) && !has("SigIgn:", libc::SIGUSR1));
    assert!(
        has("SigBlk:", libc::SIGUSR2) && !has("SigBlk:", libc::SIGTERM) && !has("SigBlk:", libc::SIGCHLD)
    );
    let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    assert_eq!((fields[2], fields[16]), (child.to_string().as_str(), "5"), "process group, nice");
    let limits = std::fs::read_to_string(format!("/proc/{child}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_ascii_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["99", "100"]);
    let cpus = rustix::thread::sched_getaffinity(rustix::process::Pid::from_raw(child as i32)).unwrap();
    assert_eq!(cpus.count() as usize, process::allowed_cpus().len());
    rustix::io::write(&ours, b"line\n").unwrap();
    assert_eq!(process::wait(child).unwrap().code(), Some(9));

    // Without steps the program has our own mask, although spawning blocks everything meanwhile. (Read by the shell
    // itself: while it starts another program it blocks signals too.)
    let script = "while read key value; do test $key = SigBlk: && break; done </proc/$$/status; \
                  test $value = 0000000000000000 && exit 4";
    assert_eq!(run(script, &[]), Some(4));
}

fn spawn_behind_the_gate() {
    let (ours, theirs) = socketpair().unwrap();
    let gate_step = Step::Gate { cookie: 99, stop_forks: false, socket: theirs.as_fd() };
    let steps: &[Step<'_>] = if is_root() { &[gate_step] } else { &[Step::NoNewPrivs, gate_step] };
    let child = spawn(&shell("exit 5"), steps).unwrap();
    let (length, mut fds) = ours.recv(&mut [1; 8]).unwrap();
    assert_eq!((length, fds.len()), (1, 1));
    let gate = Gate::from(fds.pop().unwrap());
    // Whatever its loader or it may ask for is granted.
    let pidfd = process::pidfd_open(child).unwrap();
    while !readable(&pidfd, std::time::Duration::ZERO) {
        let waiting = readable(&gate, std::time::Duration::from_millis(1));
        if let Some(call) = waiting.then(|| gate.recv().ok()).flatten().flatten() {
            gate.respond(call.id, Reply::Continue).unwrap();
        }
    }
    assert_eq!(process::wait(child).unwrap().code(), Some(5));
    assert_eq!(gate.recv().unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

fn spawn_with_threads_around() {
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        // Allocates all the time: a child that took the allocator's lock would hang.
        while wait.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            std::hint::black_box(vec![0_u8; 1000]);
        }
    });
    for _ in 0..50 {
        assert_eq!(run("exit 3", &[Step::DefaultSignal(libc::SIGPIPE)]), Some(3));
    }
    let (soft, hard) = process::raise_open_files_limit().unwrap();
    assert!(soft <= hard);
    assert_eq!(process::raise_open_files_limit().unwrap(), (hard, hard));
    drop(stop);
    thread.join().unwrap();
}
