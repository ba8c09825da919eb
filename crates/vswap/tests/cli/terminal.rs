//! A terminal's view: job control, ctrl-C once, colours. Played by python's pty module.

use std::process::Command;

use crate::harness::{Scratch, assert_code, output, stderr, stdout};

/// Runs a script that has `Terminal`: an interactive shell at a new terminal.
fn play(script: &str) -> String {
    let dir = Scratch::new();
    let file = dir.program("play.py", format!("{PRELUDE}\n{script}").as_bytes());
    let mut command = Command::new("python3");
    command.arg(file).env("VSWAP", env!("CARGO_BIN_EXE_vswap")).current_dir(dir.path());
    for name in ["VSWAP_MEMORY", "VSWAP_ARGS", "VSWAP_SESSION", "NO_COLOR", "LD_PRELOAD"] {
        command.env_remove(name);
    }
    let done = output(&mut command);
    assert!(done.status.success(), "{}\n{}", stdout(&done), stderr(&done));
    assert_code(&done, 0);
    stdout(&done)
}

const PRELUDE: &str = r#"
import os, pty, select, sys, time
VSWAP = os.environ["VSWAP"]

class Terminal:
    def __init__(self, *argv, env={}):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update({"PS1": "ready> ", "TERM": "xterm"} | env)
            os.execvp(argv[0], argv)
    def type(self, text):
        os.write(self.fd, text.encode())
    def expect(self, text, seconds=15):
        """Reads until `text` comes; what came before it is dropped."""
        end = time.time() + seconds
        while text not in self.seen:
            if not select.select([self.fd], [], [], max(0, end - time.time()))[0]:
                sys.exit("no %r in %r" % (text, self.seen))
            try:
                data = os.read(self.fd, 4096)
            except OSError:
                data = b""
            if not data:
                sys.exit("the end before %r: %r" % (text, self.seen))
            self.seen += data.decode(errors="replace")
        before, self.seen = self.seen.split(text, 1)
        return before
    def rest(self):
        text = self.seen
        try:
            while True:
                data = os.read(self.fd, 4096)
                if not data: break
                text += data.decode(errors="replace")
        except OSError:
            pass
        return text

def shell():
    terminal = Terminal("bash", "--norc", "--noprofile", "-i")
    terminal.expect("ready> ")
    return terminal
"#;

#[test]
fn ctrl_z_stops_the_job_and_fg_continues_it() {
    play(
        r#"
t = shell()
t.type(VSWAP + " run -q -m 256M -- sh -c 'echo u\"\"p; exec sleep 100'\n")
t.expect("up\r\n")
t.type("\x1a")
t.expect("Stopped")
t.expect("ready> ")
t.type("jobs; echo al''ive\n")
t.expect("Stopped")
t.expect("alive")
t.type("fg\n")
time.sleep(0.5)
t.type("\x1a")
t.expect("Stopped")
t.expect("ready> ")
t.type("fg\n")
time.sleep(0.3)
t.type("\x03")
t.expect("ready> ")
t.type("echo status=$?\n")
t.expect("status=130")
"#,
    );
}

#[test]
fn ctrl_c_arrives_once() {
    play(
        r#"
t = shell()
count = "import signal,time; n=[]; signal.signal(2, lambda *a: n.append(1)); print('lis'+'tening', flush=True); time.sleep(1); time.sleep(0.5); print('ints', len(n))"
t.type(VSWAP + ' run -q -m 256M -- python3 -c "' + count + '"\n')
t.expect("listening")
t.type("\x03")
t.expect("ints 1")
t.expect("ready> ")
"#,
    );
}

#[test]
fn a_program_talks_to_the_terminal() {
    play(
        r#"
t = shell()
t.type(VSWAP + " run -q -m 256M -- python3 -c 'import os; print(os.isatty(0), os.isatty(1), os.isatty(2), os.tcgetpgrp(0) == os.getpgrp()); print(input() * 2)'\n")
t.expect("True True True True")
t.type("ab\n")
t.expect("abab")
t.expect("ready> ")
"#,
    );
}

#[test]
fn an_interactive_shell_inside_has_jobs_of_its_own() {
    play(
        r#"
t = shell()
t.type("PS1='inner> ' " + VSWAP + " run -q -m 256M -- bash --norc --noprofile -i\n")
t.expect("inner> ")
t.type("sleep 100\n")
time.sleep(0.3)
t.type("\x1a")
t.expect("Stopped")
t.expect("inner> ")
t.type("fg\n")
time.sleep(0.3)
t.type("\x03")
t.expect("inner> ")
t.type("exit 3\n")
t.expect("ready> ")
t.type("echo status=$?\n")
t.expect("status=3")
"#,
    );
}

#[test]
fn a_background_job_that_reads_the_terminal_stops() {
    play(
        r#"
t = shell()
t.type(VSWAP + " run -q -m 256M cat &\n")
for attempt in range(50):
    time.sleep(0.2)
    t.type("jobs\n")
    t.expect("jobs")
    if "Stopped" in t.expect("ready> "):
        break
else:
    sys.exit("it never stopped")
t.type("fg\n")
time.sleep(0.3)
t.type("xyz\n")
t.expect("xyz\r\nxyz")
t.type("\x04")
t.expect("ready> ")
"#,
    );
}

#[test]
fn a_hang_up_reaches_a_program_that_has_the_terminal_to_itself() {
    play(
        r#"
t = Terminal(VSWAP, "run", "-q", "-m", "256M", "sh", "-c", "trap 'echo hup > caught; exit' HUP; echo u''p; while :; do sleep 0.1; done")
t.expect("up\r\n")
os.close(t.fd)
for attempt in range(100):
    if os.path.exists("caught"):
        break
    time.sleep(0.1)
else:
    sys.exit("no hang-up")
os.waitpid(t.pid, 0)
"#,
    );
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let text = play(
        r#"
for env in {}, {"NO_COLOR": "1"}, {"TERM": "dumb"}:
    t = Terminal(VSWAP, "run", "-m", "256M", "true", env=env)
    text = t.rest()
    os.waitpid(t.pid, 0)
    print("\x1b[" in text, "Memory" in text)
"#,
    );
    assert_eq!(text, "True True\nFalse True\nFalse True\n");
}
