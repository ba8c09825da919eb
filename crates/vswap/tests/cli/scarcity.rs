//! What the pager or an agent needs is refused while pages are away: descriptors, address space, memory for a page, the connection.
//! The data is right at the end, or the run has ended with its own status and a reason.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::harness::{PATIENCE, assert_code, parent, stderr, stdout, within};
use crate::holder::{HOLDER, Holder};

/// The holder, which forks three children that check what they have inherited.
fn forking() -> String {
    let check = "[zlib.crc32(page) for page in pages] == sums";
    HOLDER.replace(
        "print('right'",
        &format!(
            "import os
for _ in range(3):
    if os.fork() == 0: os._exit(0 if {check} else 1)
children = [os.wait()[1] for _ in range(3)]
if any(children): print('wrong')
print('right'"
        ),
    )
}

/// A resource limit of a running process.
fn limit(pid: u32, resource: &str, value: u64) {
    let option = format!("--{resource}={value}:{value}");
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &option]).status();
    assert!(status.expect("prlimit").success());
}

/// The thread of this process that has this name.
fn thread(pid: u32, name: &str) -> u32 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap());
    let found = threads.into_iter().find(|thread| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    });
    found.expect(name).file_name().to_str().unwrap().parse().unwrap()
}

/// Has calls of one thread fail from when this returns.
fn refuse(tid: u32, call: &str, how: &str) -> Child {
    let mut command = Command::new("strace");
    command.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
    command.arg(format!("inject={call}:{how}")).args(["-p", &tid.to_string()]);
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace");
    let traced = || {
        let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    };
    assert!(within(PATIENCE, traced), "strace does not come");
    child
}

fn end(mut tracer: Child) {
    let _ = tracer.kill();
    let _ = tracer.wait();
}

/// Right at the end, or a run that has failed and says why.
#[track_caller]
fn right_or_said(mut run: Holder) {
    run.go_on();
    let done = run.collect();
    if done.status.code() == Some(125) {
        assert!(stderr(&done).contains("vswap: "), "{}", stderr(&done));
        assert!(!stdout(&done).contains("wrong"));
    } else {
        assert_code(&done, 0);
        assert_eq!(stdout(&done), "right\n");
    }
}

#[test]
fn a_pager_without_another_descriptor_is_right_or_says_so() {
    let run = Holder::start(&forking());
    assert_code(&run.reclaim("48M"), 0);
    let pager = parent(run.pid);
    let highest = fs::read_dir(format!("/proc/{pager}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap())
        .max();
    limit(pager, "nofile", highest.unwrap() + 1);
    right_or_said(run);
}

#[test]
fn a_pager_without_more_address_space_is_right_or_says_so() {
    let run = Holder::start(&forking());
    let pager = parent(run.pid);
    let pages = fs::read_to_string(format!("/proc/{pager}/statm")).unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    limit(pager, "as", pages * 4096 + (1 << 20));
    // It has to keep what it takes somewhere; how far it gets is its affair.
    run.reclaim("48M");
    right_or_said(run);
}

/// Who looks at them has no descriptor for that, or cannot look at what they bring: they go on without an agent.
#[test]
fn forked_children_that_cannot_be_let_in_are_right() {
    for (call, how) in [("openat", "error=EMFILE"), ("fstatfs", "error=ENOMEM")] {
        let mut run = Holder::start(&forking());
        assert_code(&run.reclaim("32M"), 0);
        let tracer = refuse(parent(run.pid), call, how);
        run.go_on();
        run.end();
        end(tracer);
    }
}

#[test]
fn a_gate_that_fails_says_so() {
    let run = Holder::start(&HOLDER.replace("print('right'", "import os; os.system('true'); print('right'"));
    assert_code(&run.reclaim("32M"), 0);
    let tracer = refuse(thread(parent(run.pid), "gate"), "ioctl", "error=ENOMEM");
    right_or_said(run);
    end(tracer);
}

#[test]
fn pages_come_back_though_the_kernel_has_no_memory_for_every_third_of_them() {
    let mut run = Holder::start(HOLDER);
    assert_code(&run.reclaim("48M"), 0);
    let server = thread(parent(run.pid), &format!("serve-{}", run.pid));
    let tracer = refuse(server, "ioctl", "error=ENOMEM:when=1+3");
    run.go_on();
    assert_eq!(run.end(), "");
    end(tracer);
}

#[test]
fn an_agent_that_can_move_nothing_or_not_empty_staging_loses_nothing() {
    for (call, how) in [("ioctl", "error=ENOMEM:when=1+2"), ("madvise", "error=ENOMEM")] {
        let run = Holder::start(HOLDER);
        let tracer = refuse(thread(run.pid, "vswap-agent"), call, how);
        run.reclaim("48M");
        end(tracer);
        run.finish();
    }
}

#[test]
fn an_agent_without_a_connection_ends_its_program() {
    let run = Holder::start(HOLDER);
    assert_code(&run.reclaim("32M"), 0);
    let tracer = refuse(thread(run.pid, "vswap-agent"), "recvfrom", "error=ECONNRESET");
    run.reclaim("8M");
    let done = run.collect();
    end(tracer);
    assert_code(&done, 137);
    assert_eq!(stdout(&done), "");
}
