//! Measurements, ignored unless asked for.

use std::time::Instant;

use vswap_wire::{Command as Order, Runs};

use crate::agent_image;
use crate::mini::{PAGE, Pager, Program};
use crate::{run, start};

/// What the agent costs a program that does nothing: `cargo test --release -p vswap --test agent -- --ignored
/// --nocapture costs::`.
#[test]
#[ignore = "a measurement"]
fn what_a_start_costs() {
    const ROUNDS: u32 = 300;
    let pager = Pager::new();
    let unpatched = pager.directory.join("unpatched.so");
    std::fs::write(&unpatched, agent_image::UNPATCHED).unwrap();
    let mut targets = 0;
    let mut took = [const { Vec::new() }; 3];
    // Interleaved, so that whatever else the machine does hits all three.
    for _ in 0..ROUNDS {
        for (kind, took) in took.iter_mut().enumerate() {
            let mut command = pager.command("/bin/true");
            match kind {
                0 => drop(command.env_remove("LD_PRELOAD")),
                1 => drop(command.env("LD_PRELOAD", &unpatched)),
                _ => {}
            }
            let before = Instant::now();
            let mut program = Program::start(&mut command);
            let target = (kind == 2).then(|| pager.welcome());
            program.0.wait().unwrap();
            took.push(before.elapsed());
            targets += u32::from(target.is_some());
        }
    }
    assert_eq!(targets, ROUNDS);
    let [plain, idle, paged] = took.map(|mut took| {
        took.sort();
        took[took.len() / 2]
    });
    println!("/bin/true, median: alone {plain:?}, agent idle {idle:?}, agent at work {paged:?}");
}

/// What a batch costs, from the command to the answer.
#[test]
#[ignore = "a measurement"]
fn what_a_batch_costs() {
    let pager = Pager::new();
    let (mut program, target, start) = start(&pager, 128);
    let mut took = Vec::new();
    for _ in 0..200 {
        let before = Instant::now();
        target.send(Order::Evict { runs: Runs::new(&[run(start, 128)]).unwrap() });
        let answer = target.answer();
        took.push(before.elapsed());
        assert!(matches!(answer, vswap_wire::Answer::Evicted { moved: [u64::MAX, u64::MAX], .. }));
        for page in 0..128 {
            let mut bytes = [0; PAGE as usize];
            target.ring.copy_page_out(page, &mut bytes);
            target.service.uffd.copy(start + page as u64 * PAGE, &bytes, false).unwrap();
        }
    }
    took.sort();
    println!("128 pages: p50 {:?}, p90 {:?}", took[100], took[180]);
    assert_eq!(program.ask("check"), "intact");
}
