//! Developer commands of vswap, run as `cargo xtask COMMAND`.
//!
//! Everything that takes more than `cargo build` is here, so that a person and the test machine type the same
//! words: the programs that verify themselves under `vswap run`, soak runs, the benchmark against the kernel's
//! own compressed swap, and the whole test run. But for the simulator no library of ours is linked: vswap is looked
//! at from outside, through its command line, its JSON summary, control groups and /proc.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod cgroup;
mod ci;
mod command;
mod janitor;
mod micro;
mod natural;
mod programs;
mod sample;
mod sim;
mod size;
mod soak;
mod stats;
mod summary;
mod table;
mod workspace;
mod zram;
mod zswap;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND [OPTIONS]

  ci                         the whole test run: format, lints, docs, unit and model tests, sanitizer,
                             real programs (small), torture; ends with `N passed, N failed`
                             [--only STEP] [--list]
  programs [NAME…]           real programs under vswap run at half of their natural memory, byte for byte
                             [--limit-percent N] [--quick] [--vswap PATH] [--vswap-args \"ARGS\"] [--list]
  soak                       torture on 1, 2, 4 and 8 threads at several limits, with and without the gate
                             [--ungated: only without] [--minutes N] [--seconds N, of each combination] [--seed N]
                             [--vswap PATH] [--vswap-args \"ARGS\"]
  sim                        the pager's protocol under a simulated kernel, from seeds
                             [--seeds N] [--seed S] [--threads T] [--without RULE] [--ungated] [--minutes M]
  bench [NAME…]              programs alone, on the kernel's zram and zswap, and under vswap, at equal total memory;
                             `micro`: the micro-benchmarks. Without names: all that --list names, which takes hours
                             [--runs N] [--percent N] [--sides plain,zram,zswap,vswap] [--json FILE] [--html FILE]
                             [--vswap PATH] [--vswap-args \"ARGS\"] [--list]
  sample [--limit SIZE] -- CMD…
                             runs CMD in a memory cgroup and reports its highest memory and the time over SIZE
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(command) = words.next() else {
        print!("{USAGE}");
        return ExitCode::from(2);
    };
    let rest: Vec<String> = words.collect();
    let result = match command.as_str() {
        "ci" => ci::main(rest),
        "programs" => programs::main(rest),
        "sim" => sim::main(rest),
        "soak" => soak::main(rest),
        "bench" => bench::main(rest),
        "sample" => sample::main(rest),
        janitor::COMMAND => janitor::main(),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(true)
        }
        other => Err(format!("no command `{other}`\n\n{USAGE}")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::from(2)
        }
    }
}
