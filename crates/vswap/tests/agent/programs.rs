//! Programs that are not ours, under agents that are given nothing to do.

use std::process::Command;
use std::time::Instant;

use crate::mini::{PATIENCE, Pager, Program};

/// Programs that start, fork and run others in their own ways; each must behave as without us.
#[test]
fn other_peoples_programs_do_what_they_did() {
    let scripts = [
        ("sh", "for i in 1 2 3 4 5; do (echo $i; (echo sub)); done | sort | uniq -c | tr -d ' '"),
        (
            "bash",
            "exec 3< <(echo process); cat <&3; coproc { read line; echo \"co $line\"; }; echo x >&${COPROC[1]}; cat <&${COPROC[0]}",
        ),
        ("timeout", "timeout 0.2 sleep 5; echo $?; timeout 5 sh -c 'kill -INT $$'; echo $?"),
        ("setsid", "setsid -w sh -c 'echo session; (sleep 0.1; echo orphan) & '; sleep 0.3"),
        ("env", "env -i /bin/echo clean; env -i /bin/sh -c '(echo no agent)'"),
        (
            "perl",
            "perl -e '$|=1; for (1..5) { if (!fork) { print qq(kid\\n); exit } wait } print qq(done\\n)'",
        ),
        (
            "python3",
            "python3 -c 'import multiprocessing as m; print(sum(m.get_context(\"fork\").Pool(3).map(abs, range(-50, 0))))'",
        ),
        (
            "python3",
            "python3 -c 'import subprocess as s, threading as t; x=[t.Thread(target=lambda: s.run([\"true\"], check=True)) for _ in range(8)]; [y.start() for y in x]; [y.join() for y in x]; print(s.check_output([\"echo\", \"hi\"]))'",
        ),
        (
            "python3",
            "python3 -c 'import os; print(sorted(os.listdir(\"/proc/self/fd\"))); os.execvp(\"echo\", [\"echo\", \"executed\"])'",
        ),
        ("cc", "echo 'int main(void) { return 0; }' | cc -x c -O1 -S -o - - | tail -1 | cut -c1-9"),
        ("node", "node -e 'require(\"child_process\").exec(\"echo from node\", (e, o) => console.log(o))'"),
        ("git", "git --version | cut -c1-11"),
    ];
    let pager = Pager::new();
    for (needs, script) in scripts {
        let output = |command: &mut Command| {
            let mut program = Program::start(command.args(["-c", script]));
            let mut output = program.0.stdout.take().unwrap();
            let reader = std::thread::spawn(move || {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut output, &mut text).unwrap();
                text
            });
            let deadline = Instant::now() + 3 * PATIENCE;
            let mut targets = Vec::new();
            let code = loop {
                assert!(Instant::now() < deadline, "this hangs: {script}");
                targets.extend(pager.welcome_if_any());
                if let Some(status) = program.0.try_wait().unwrap() {
                    break status;
                }
            };
            // A program that outlives its parent may hold on to the output for a little longer.
            while !reader.is_finished() {
                assert!(Instant::now() < deadline, "the output does not end: {script}");
                targets.extend(pager.welcome_if_any());
            }
            (code, reader.join().unwrap(), targets.len())
        };
        let there = Command::new("sh").args(["-c", &format!("command -v {needs} >/dev/null")]).status();
        if !there.unwrap().success() {
            continue;
        }
        let (code, text, none) = output(pager.command("/bin/bash").env_remove("LD_PRELOAD"));
        assert_eq!(none, 0);
        let (code_here, text_here, agents) = output(&mut pager.command("/bin/bash"));
        assert_eq!((code, &text), (code_here, &text_here), "{script}");
        println!("{needs}: {agents} agents, {text:?}");
        assert!(agents > 0);
    }
}
