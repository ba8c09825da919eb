//! The agent against a pager in miniature: real processes, real faults, every command and every way to end.

#[path = "../../src/agent_image.rs"]
#[allow(unreachable_pub)]
mod agent_image;
mod calls;
mod costs;
mod forks;
mod mini;
mod programs;
mod target;

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::time::{Duration, Instant};

use mini::{Evicted, PAGE, Pager, Program, Target};
use vswap_sys::uffd::{FEATURES, RegisterMode, Uffd};
use vswap_wire::{BATCH_PAGES, Command as Order, Hello, Reason, Run, Welcome, buffer};

/// All signals but SIGKILL and SIGSTOP.
const EVERY_SIGNAL: &str = "fffffffffffbfeff";

/// This binary as a target with so many pages of its own.
fn target_command(pager: &Pager, pages: u64) -> Command {
    let mut command = pager.command(std::env::current_exe().unwrap());
    command.args(["--exact", "target::target", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("VSWAP_TEST_TARGET", pages.to_string());
    command
}

/// A welcomed target, with the address of its pages, which are registered.
fn start(pager: &Pager, pages: u64) -> (Program, Target, u64) {
    let mut program = Program::start(&mut target_command(pager, pages));
    let target = pager.welcome();
    let start = u64::from_str_radix(program.hear().strip_prefix("0x").unwrap(), 16).unwrap();
    target.register(start, pages);
    (program, target, start)
}

fn run(address: u64, pages: u32) -> Run {
    Run { address, pages }
}

fn bits(count: u32) -> u128 {
    if count == 128 { u128::MAX } else { (1 << count) - 1 }
}

/// What an undisturbed eviction of so many pages answers.
fn all(pages: u32) -> Evicted {
    Evicted { moved: bits(pages), again: false, first_errno: 0, emptied: true }
}

fn status_field(task: &str, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{task}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_string()
}

#[test]
fn an_ordinary_program_greets_and_runs() {
    let pager = Pager::new();
    let mut program = Program::start(pager.command("/bin/sleep").arg("0.5"));
    let target = pager.welcome();
    let greeting = &target.greeting;
    assert_eq!((greeting.forked, greeting.token, greeting.pid), (false, 0, program.pid()));

    let task = format!("{}/task/{}", program.pid(), target.tid);
    assert!(program.has_agent());
    assert_eq!(std::fs::read_to_string(format!("/proc/{task}/comm")).unwrap(), "vswap-agent\n");
    assert_eq!(status_field(&task, "SigBlk"), EVERY_SIGNAL);
    let links = |task: &str| -> Vec<String> {
        let entries = std::fs::read_dir(format!("/proc/{task}/fd")).unwrap();
        let mut links: Vec<String> = entries
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .map(|link| link.display().to_string())
            .map(|link| link.split([':', '[']).next().unwrap().to_string())
            .collect();
        links.sort();
        links
    };
    let pagemap = format!("/proc/{0}/task/{0}/pagemap", program.pid());
    assert_eq!(links(&task), [pagemap.as_str(), "anon_inode", "socket"]);
    // The program closes its own when it has heard that the agent runs.
    let deadline = Instant::now() + mini::PATIENCE;
    let is_ours = |link: &String| {
        ["socket", "/memfd", "anon_inode", &pagemap].iter().any(|name| link.starts_with(name))
    };
    while links(&program.pid().to_string()).iter().any(is_ours) {
        assert!(Instant::now() < deadline, "{:?}", links(&program.pid().to_string()));
    }

    let maps = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).unwrap();
    let ours = maps.lines().filter(|line| line.contains("agent.so"));
    assert!(ours.clone().count() > 0);
    assert!(ours.clone().all(|line| !line.contains("wx")), "{maps}");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn the_end_of_the_pager_ends_the_program() {
    let pager = Pager::new();
    let mut program = Program::start(pager.command("/bin/sleep").arg("60"));
    let target = pager.welcome();
    let before = Instant::now();
    drop(target);
    assert_eq!(program.end().signal(), Some(libc::SIGKILL));
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_malformed_command_ends_the_program() {
    let pager = Pager::new();
    let long = [0x11u8; 5000];
    for packet in [&b"\x11\0sv\x01\0\0\0"[..], b"x", &long] {
        let mut program = Program::start(pager.command("/bin/sleep").arg("60"));
        let target = pager.welcome();
        target.conn.send(packet, &[]).unwrap();
        assert_eq!(program.end().signal(), Some(libc::SIGKILL));
    }
}

#[test]
fn a_retired_agent_leaves_the_program_alone() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 8);
    assert_eq!(target.evict(&[run(start, 8)]), all(8));
    target.send(Order::Retire { status: 3 });
    assert!(target.ended());
    assert_eq!(program.ask("check"), "intact");
    let Target { conn, service, .. } = target;
    drop(conn);
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(program.end().code(), Some(0));
    drop(service);
}

#[test]
fn without_a_pager_nothing_happens() {
    let pager = Pager::new();
    std::fs::remove_file(pager.directory.join("pager")).unwrap();
    let mut program = Program::start(&mut target_command(&pager, 1));
    program.hear();
    assert!(!program.has_agent());
    assert_eq!(program.ask("fork"), "child intact");
    program.tell("end");
    assert_eq!(program.hear(), "status 0");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn the_unpatched_library_does_nothing() {
    let pager = Pager::new();
    let unpatched = pager.directory.join("unpatched.so");
    std::fs::write(&unpatched, agent_image::UNPATCHED).unwrap();
    let mut program = Program::start(target_command(&pager, 1).env("LD_PRELOAD", unpatched));
    program.hear();
    assert!(!program.has_agent());
    assert!(pager.nobody_came());
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn a_program_that_is_not_welcome_runs_unpaged() {
    let pager = Pager::new();
    for goodbye in [true, false] {
        let mut program = Program::start(&mut target_command(&pager, 1));
        let (conn, hello, fds) = pager.hello();
        let Hello::Greeting(greeting) = hello else { panic!("{hello:?}") };
        // As far as a pager may have come.
        let mut fds = fds.into_iter();
        let uffd = Uffd::from(fds.next().unwrap());
        uffd.api(FEATURES).unwrap();
        uffd.register(greeting.staging..greeting.staging + BATCH_PAGES as u64 * PAGE, RegisterMode::WP)
            .unwrap();
        if goodbye {
            conn.send(Welcome { accepted: false, reason: 3 }.encode(&mut buffer()), &[]).unwrap();
        }
        drop((conn, fds, uffd));
        program.hear();
        assert!(!program.has_agent());
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).unwrap();
        assert!(!maps.contains("vswap-ring"), "{maps}");
        let page = |address: u64| format!("{address:x}-{:x}", address + PAGE);
        assert!(!maps.contains(&page(greeting.beacon)), "{maps}");
        assert!(!has_ours(&program.ask("descriptors")));
        assert_eq!(program.end().code(), Some(0));
    }
}

/// Whether a list of descriptors contains one that an agent opens.
fn has_ours(descriptors: &str) -> bool {
    ["socket", "anon_inode", "/memfd"].iter().any(|name| descriptors.contains(name))
}

#[test]
fn a_program_without_the_right_says_so_and_runs() {
    let everyone = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap();
    assert_eq!(
        everyone.trim(),
        "0",
        "nobody is without the right here: sysctl vm.unprivileged_userfaultfd=0"
    );
    let pager = Pager::new();
    // Nobody; that the device is for root alone is how Linux makes it.
    let mut program = Program::start(pager.command("/bin/sleep").arg("0.1").uid(65534).gid(65534));
    let refusal = pager.refusal();
    assert_eq!((refusal.pid, refusal.forked, refusal.token), (program.pid(), false, 0));
    assert_eq!(refusal.reason, Reason::Userfaultfd);
    assert!([libc::EACCES, libc::EPERM, libc::ENOENT].contains(&refusal.errno), "{refusal:?}");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn a_batch_goes_out_and_comes_back() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 300);
    for round in 0..3 {
        assert_eq!(target.evict(&[run(start, 128)]), all(128), "round {round}");
        let runs: Vec<Run> = (0..64).map(|i| run(start + (128 + 2 * i) * PAGE, 1)).collect();
        assert_eq!(target.evict(&runs), all(64));
        assert_eq!(target.evict(&[run(start + 290 * PAGE, 10), run(start + 270 * PAGE, 3)]), all(13));
        assert_eq!(target.service.store.lock().unwrap().len(), 205);
        assert_eq!(program.ask("check"), "intact");
        assert!(target.service.store.lock().unwrap().is_empty());
    }
    // Emptying staging raised no event.
    assert_eq!(target.service.events(), [""; 0]);
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn holes_and_mappings_that_cannot_be_moved_are_left_out() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 64);
    assert_eq!(program.ask("drop 3 2"), "dropped");
    assert_eq!(program.ask("drop 8 1"), "dropped");
    let answer = target.evict(&[run(start, 9), run(start + 10 * PAGE, 2)]);
    let moved = bits(11) & !(0b11 << 3) & !(1 << 8);
    assert_eq!(answer, Evicted { moved, first_errno: libc::ENOENT, emptied: true, again: false });
    assert_eq!(program.ask("check"), "intact");

    assert_eq!(program.ask("protect 20 4"), "protected");
    // The first run lies in the read-only mapping, the second crosses into it, the third is fine.
    let answer =
        target.evict(&[run(start + 20 * PAGE, 2), run(start + 18 * PAGE, 4), run(start + 24 * PAGE, 3)]);
    assert_eq!(answer, Evicted { moved: 0b111 << 6, first_errno: libc::EINVAL, emptied: true, again: false });
    assert_eq!(program.ask("check"), "intact");
    // Nothing moved at all: nothing to empty.
    let answer = target.evict(&[run(start + 20 * PAGE, 2)]);
    assert_eq!(answer, Evicted { moved: 0, first_errno: libc::EINVAL, emptied: true, again: false });
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn pages_shared_by_a_fork_are_made_the_programs_own() {
    let mut pager = Pager::new();
    pager.follow_forks = false;
    let (mut program, target, start) = start(&pager, 40);
    // Before anything is registered with fork events, the child would be served; here it is gone at once.
    program.tell("share");
    let child = pager.welcome();
    drop(child.conn);
    assert!(program.hear().starts_with("status"));
    assert_eq!(program.ask("drop 7 1"), "dropped");
    let answer = target.evict(&[run(start, 20), run(start + 20 * PAGE, 20)]);
    let moved = bits(40) & !(1 << 7);
    assert_eq!(answer, Evicted { moved, first_errno: libc::ENOENT, emptied: true, again: false });
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn a_pager_that_unregisters_staging_gets_nothing_more() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 64);
    assert_eq!(target.tally(), (0, 0));
    assert_eq!(target.evict(&[run(start, 8), run(start + 9 * PAGE, 1)]).moved, bits(9));
    assert_eq!(target.tally(), (1, bits(9)));
    let staging = target.greeting.staging..target.greeting.staging + BATCH_PAGES as u64 * PAGE;
    target.service.uffd.unregister(staging.clone()).unwrap();
    let answer = target.evict(&[run(start + 20 * PAGE, 8), run(start + 40 * PAGE, 8)]);
    assert_eq!(answer, Evicted { moved: 0, first_errno: libc::EINVAL, emptied: true, again: false });
    assert_eq!(target.tally(), (2, 0));
    target.service.uffd.register(staging, RegisterMode::WP).unwrap();
    assert_eq!(target.evict(&[run(start + 20 * PAGE, 40)]), all(40));
    assert_eq!(target.tally(), (3, bits(40)));
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn locked_memory_does_not_fill_staging() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 16);
    assert_eq!(program.ask("lock"), "locked");
    let answer = target.evict(&[run(start, 8)]);
    assert!(answer.emptied, "{answer:?}");
    // From now on staging is not locked, and pages that are do not move.
    let answer = target.evict(&[run(start + 8 * PAGE, 8)]);
    assert_eq!(answer, Evicted { moved: 0, first_errno: libc::EINVAL, emptied: true, again: false });
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn nothing_is_lost_while_threads_write() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 512);
    program.tell("count 1500");
    let end = Instant::now() + Duration::from_millis(1400);
    let mut moved = 0;
    while Instant::now() < end {
        for batch in 0..4 {
            let runs: Vec<Run> = (0..16).map(|i| run(start + (batch * 128 + i * 8) * PAGE, 8)).collect();
            let store = target.service.store.lock().unwrap();
            let runs: Vec<Run> = runs
                .into_iter()
                .filter(|run| !(0..8).any(|page| store.contains_key(&(run.address + page * PAGE))))
                .collect();
            drop(store);
            if !runs.is_empty() {
                let answer = target.evict(&runs);
                assert!(answer.emptied && !answer.again, "{answer:?}");
                moved += answer.moved.count_ones();
            }
        }
    }
    let said = program.hear();
    assert!(said.starts_with("counted "), "{said} after {moved} moves");
    assert!(moved > 1000, "{moved}");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn an_unread_event_stops_a_batch() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 64);
    let quiet = target.service.pause();
    // Waits in the middle of its system call until the event is read.
    program.tell("drop 60 1");
    let deadline = Instant::now() + mini::PATIENCE;
    loop {
        let answer = target.evict(&[run(start + 63 * PAGE, 1)]);
        if answer.again {
            assert_eq!(answer, Evicted { moved: 0, again: true, first_errno: 0, emptied: true });
            break;
        }
        assert!(Instant::now() < deadline, "the program does not change its mappings");
        // Too early: the page is out.
        target.put_back(start + 63 * PAGE);
    }
    let answer = target.evict(&[run(start, 8), run(start + 9 * PAGE, 3)]);
    assert_eq!(answer, Evicted { moved: 0, again: true, first_errno: 0, emptied: true });
    drop(quiet);
    assert_eq!(program.hear(), "dropped");
    assert_eq!(target.evict(&[run(start, 60)]), all(60));
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn a_child_that_cannot_find_the_pager_is_served_without_an_agent() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 32);
    assert_eq!(target.evict(&[run(start, 32)]), all(32));
    std::fs::remove_file(pager.directory.join("pager")).unwrap();
    assert_eq!(program.ask("fork"), "child intact");
    program.tell("end");
    assert_eq!(program.hear(), "status 0");
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn an_executed_program_greets_anew() {
    let pager = Pager::new();
    let mut program = Program::start(pager.command("/bin/sh").args(["-c", "exec /bin/sleep 0.2"]));
    let shell = pager.welcome();
    let sleep = pager.welcome();
    assert_eq!((shell.greeting.pid, sleep.greeting.pid), (program.pid(), program.pid()));
    assert!(!sleep.greeting.forked);
    assert!(shell.ended());
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn pipes_reach_their_end() {
    let pager = Pager::new();
    // Each of these agents holds a descriptor table that once had both ends of the pipe.
    let script = "echo one | cat | cat; exec >&-; sleep 0.5";
    let mut program = Program::start(pager.command("/bin/sh").args(["-c", script]));
    let mut output = program.0.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let before = Instant::now();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut output, &mut text).unwrap();
        (text, before.elapsed())
    });
    let mut targets = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    while program.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the pipeline hangs");
        if let Some(target) = pager.welcome_if_any() {
            targets.push(target);
        }
    }
    let (text, took) = reader.join().unwrap();
    assert_eq!(text, "one\n");
    // The shell itself has closed its output half a second before its end.
    assert!(took < Duration::from_millis(480), "{took:?}");
    assert!(targets.len() >= 5, "{}", targets.len());
    assert_eq!(program.end().code(), Some(0));
}
