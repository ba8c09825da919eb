//! Runs seeds and prints what is found.
fn main() {
    let mut args = std::env::args().skip(1);
    let from: u64 = args.next().and_then(|a| a.parse().ok()).unwrap_or(0);
    let count: u64 = args.next().and_then(|a| a.parse().ok()).unwrap_or(1000);
    let trace = args.next().is_some();
    if let Some(name) = std::env::var_os("RULES") {
        for rule in vswap_sim::RULES {
            if name != "all" && name != rule.name { continue; }
            let options = vswap_sim::Options { rules: rule.off(), ..vswap_sim::Options::default() };
            let start = std::time::Instant::now();
            let found = (0..count).find_map(|seed| {
                let (setup, program) = vswap_sim::of_seed(seed, &options);
                vswap_sim::run(&setup, &program, 0, false).0.map(|failure| (seed, failure.why))
            });
            println!("{:24} {:6.2} s {found:?}", rule.name, start.elapsed().as_secs_f64());
        }
        return;
    }
    let options = vswap_sim::Options { gated: std::env::var_os("UNGATED").is_none(), ..vswap_sim::Options::default() };
    let start = std::time::Instant::now();
    let mut steps = 0;
    let mut total = vswap_sim::Stats::default();
    for seed in from..from + count {
        let (setup, program) = vswap_sim::of_seed(seed, &options);
        let (failure, stats, log) = vswap_sim::run(&setup, &program, 0, trace);
        steps += stats.steps;
        total.checks += stats.checks; total.faults += stats.faults; total.events += stats.events; total.evicted += stats.evicted;
        total.forks += stats.forks; total.lost += stats.lost; total.refused += stats.refused; total.commands += stats.commands;
        if let Some(failure) = failure {
            for line in &log { println!("{line}"); }
            if count == 1 && !trace {
                let small = vswap_sim::shrink(&setup, &program, 0);
                println!("{:#?}", small.program);
                for line in &small.history { println!("{line}"); }
            }
            println!("seed {seed}: step {} of threads {} {}", failure.step, program.threads.len(), failure.why);
        }
    }
    let time = start.elapsed().as_secs_f64();
    println!("{steps} steps in {time:.2} s, {:.2} M/s {total:?}", steps as f64 / time / 1e6);
}
