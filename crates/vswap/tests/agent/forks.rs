//! Fork children: with a token, without one, without a pager, and children of theirs.

use vswap_wire::Hello;

use crate::mini::{PAGE, Pager, Program};
use crate::{EVERY_SIGNAL, all, has_ours, run, start, status_field, target_command};

#[test]
fn a_fork_child_is_known_by_its_token() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 200);
    assert_eq!(target.evict(&[run(start, 128)]), all(128));
    program.tell("fork");
    let child = pager.welcome();
    assert_eq!(program.hear(), "child intact");
    let greeting = &child.greeting;
    assert!(greeting.forked && greeting.token != 0);
    assert_ne!(greeting.pid, program.pid());
    assert_eq!(greeting.beacon, target.greeting.beacon);
    assert_eq!(status_field(&format!("{}/task/{}", greeting.pid, child.tid), "SigBlk"), EVERY_SIGNAL);

    // The child is a target of its own; none of its pages is the parent's business.
    let answer = child.evict(&[run(start + 10 * PAGE, 100)]);
    assert_eq!(answer, all(100));
    assert_eq!(program.ask("check"), "child intact");
    program.tell("end");
    assert_eq!(program.hear(), "status 0");
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(target.evict(&[run(start, 128)]), all(128));
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(target.service.events(), ["fork"]);
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn children_of_children_are_known_too() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 60);
    let mut line = vec![target];
    for _ in 0..4 {
        assert_eq!(line.last().unwrap().evict(&[run(start, 60)]), all(60));
        program.tell("fork");
        line.push(pager.welcome());
        assert_eq!(program.hear(), "child intact");
    }
    let mut tokens: Vec<u64> = line.iter().map(|target| target.greeting.token).collect();
    tokens.dedup();
    assert_eq!(tokens.len(), 5, "{tokens:?}");
    assert!(line.iter().all(|target| target.greeting.beacon == line[0].greeting.beacon));
    for generation in (0..4).rev() {
        program.tell("end");
        let said = program.hear();
        assert_eq!(said, if generation == 0 { "status 0".into() } else { format!("{generation} status 0") });
    }
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn a_fork_child_without_a_token_starts_afresh() {
    let mut pager = Pager::new();
    pager.follow_forks = false;
    // Nothing is registered that a child would inherit, so there is no event.
    let mut program = Program::start(&mut target_command(&pager, 50));
    let target = pager.welcome();
    let start = u64::from_str_radix(program.hear().strip_prefix("0x").unwrap(), 16).unwrap();
    program.tell("fork");
    let child = pager.welcome();
    assert_eq!(program.hear(), "child intact");
    assert!(child.greeting.forked && child.greeting.token == 0);
    assert_eq!(child.greeting.beacon, target.greeting.beacon);
    child.register(start, 50);
    assert_eq!(child.evict(&[run(start, 50)]), all(50));
    assert_eq!(program.ask("check"), "child intact");
    program.tell("end");
    assert_eq!(program.hear(), "status 0");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn a_fork_leaves_errno_mask_and_descriptors_as_they_were() {
    let pager = Pager::new();
    let (mut program, _target, _) = start(&pager, 1);
    let descriptors = program.ask("descriptors");
    assert!(!has_ours(&descriptors), "{descriptors}");
    assert_eq!(program.ask("signals"), "0000000000000000");
    program.tell("errno");
    let child = pager.welcome();
    assert_eq!(program.hear(), "errno 77");
    assert_eq!(program.hear(), "status 0");
    drop(child);
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn a_child_whose_pager_has_gone_is_killed() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 8);
    assert_eq!(target.evict(&[run(start, 8)]), all(8));
    program.tell("fork");
    // The child has its token and says hello; nobody answers.
    let (conn, hello, fds) = pager.hello();
    assert!(matches!(hello, Hello::Greeting(greeting) if greeting.token != 0));
    drop((conn, fds));
    assert_eq!(program.hear(), format!("status {}", libc::SIGKILL));
    assert_eq!(program.ask("check"), "intact");
    assert_eq!(program.end().code(), Some(0));
}
