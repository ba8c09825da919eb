//! Ordinary users, who may open a userfaultfd and nothing else: forks are sound without their events, and every
//! way to make one.
//!
//! These tests are started by root, give the device to everybody in a mount namespace of their own, and drop all privileges.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Scratch, assert_code, collect_within, compiled, is_root, output, program, stderr, stdout, vswap,
};

/// A copy of vswap where other users find it, and a place for what it writes.
struct Place {
    dir: Scratch,
}

/// Opens the device to all, in a mount namespace, for the words that follow.
const WITH_DEVICE: &str = "set -e; mount -t tmpfs none \"$0\"; mknod -m 666 \"$0/device\" c 10 257
    mount --bind \"$0/device\" /dev/userfaultfd; exec \"$@\"";

impl Place {
    fn new() -> Self {
        assert!(is_root(), "these tests drop root's privileges");
        let dir = Scratch::new();
        fs::copy(env!("CARGO_BIN_EXE_vswap"), dir.file("vswap")).unwrap();
        fs::create_dir(dir.file("device")).unwrap();
        fs::create_dir(dir.file("home")).unwrap();
        std::os::unix::fs::chown(dir.file("home"), Some(65534), Some(65534)).unwrap();
        Self { dir }
    }

    fn home(&self) -> PathBuf {
        self.dir.file("home")
    }

    /// vswap as nobody, who keeps these capabilities (in setpriv's words).
    fn vswap_with(&self, capabilities: &str) -> Command {
        self.nobodys(self.dir.file("vswap").to_str().unwrap(), capabilities)
    }

    /// A program as nobody, who keeps these capabilities.
    fn nobodys(&self, program: &str, capabilities: &str) -> Command {
        let mut command = Command::new("unshare");
        for name in
            ["VSWAP_MEMORY", "VSWAP_ARGS", "VSWAP_SESSION", "NO_COLOR", "LD_PRELOAD", "XDG_RUNTIME_DIR"]
        {
            command.env_remove(name);
        }
        command.args(["--mount", "sh", "-c", WITH_DEVICE]).arg(self.dir.file("device"));
        command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(format!("--inh-caps={capabilities}")).arg(format!("--ambient-caps={capabilities}"));
        command.arg(format!("--bounding-set={capabilities}")).arg(program);
        command.stdin(Stdio::null()).current_dir(self.home());
        command
    }

    /// vswap as nobody.
    fn vswap(&self) -> Command {
        self.vswap_with("-all")
    }

    /// Runs a program in so much memory and returns its output and the figures.
    fn figures(&self, memory: &str, program: &[&str]) -> (std::process::Output, Value) {
        let json = self.home().join("run.json");
        let mut command = self.vswap();
        command.args(["run", "--quiet", "--memory", memory, "--json"]).arg(&json).args(program);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = collect_within(Duration::from_secs(180), command.spawn().expect("unshare"));
        let text = fs::read_to_string(&json).unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
        (output, serde_json::from_str(&text).unwrap())
    }
}

/// A copy of a test program where nobody may read it.
fn readable(place: &Place, name: &str) -> String {
    let path = place.dir.program(name, &fs::read(program(name)).unwrap());
    path.to_str().unwrap().to_owned()
}

#[test]
fn every_way_to_fork_copies_everything() {
    let place = Place::new();
    let binary = compiled(&place.dir, "copies.c");
    let ways = ["fork", "raw", "clone", "clone3", "int80", "vfork", "spin"];
    let mut words = vec![binary.to_str().unwrap(), "48"];
    words.extend(ways);
    let (done, figures) = place.figures("32M", &words);
    assert_code(&done, 0);
    assert_eq!(stdout(&done), ways.map(|way| format!("copies: {way} ok\n")).concat());
    let summary = &figures["summary"];
    let number = |key: &str| summary[key].as_u64().unwrap_or_else(|| panic!("{key} in {summary}"));
    // Four threads, three times, and each other way once. How much was away at each depends on how long it went on before.
    assert!(number("forks") >= 17, "{summary}");
    assert!(number("evictions") > 8192 && number("fork_pages") > 1024, "{summary}");
    assert_eq!((&summary["gate"], number("fail_stops")), (&Value::Bool(true), 0));
}

#[test]
fn pythons_forks_and_pools_are_right() {
    let place = Place::new();
    let script = readable(&place, "forks.py");
    let (done, figures) = place.figures("40M", &["python3", &script, "24", "--rounds", "2"]);
    assert_code(&done, 0);
    assert!(stdout(&done).ends_with("ok\n"), "{}", stdout(&done));
    let summary = &figures["summary"];
    assert!(
        summary["evictions"].as_u64() > Some(4096) && summary["fork_pages"].as_u64() > Some(256),
        "{summary}"
    );
    // Forked children are paged again: by agents of their own.
    assert!(summary["address_spaces"].as_u64() > Some(4), "{summary}");
    assert!(!summary["unpaged"].to_string().contains("python"), "{summary}");
}

#[test]
fn a_shells_pipelines_are_right() {
    let place = Place::new();
    let script = readable(&place, "forks.sh");
    let (done, figures) = place.figures("18M", &["bash", &script, "8", "20"]);
    assert_code(&done, 0);
    let plain = output(Command::new("bash").args([&script, "8", "20"]));
    assert_eq!(stdout(&done), stdout(&plain));
    let summary = &figures["summary"];
    assert!(summary["forks"].as_u64() > Some(20) && summary["evictions"].as_u64() > Some(1024), "{summary}");
}

#[test]
fn a_daemon_that_is_not_paged_can_still_fork() {
    // Its calls at the gate must be answered as long as it lives; it has no agent, so nothing else keeps the pager.
    let place = Place::new();
    let mark = place.home().join("forked");
    let daemon = "exec >/dev/null 2>&1; sleep 1; (true) && (echo forked > \"$0\")";
    let script = format!("env -u LD_PRELOAD setsid sh -c '{daemon}' {} & exit 3", mark.display());
    let mut command = place.vswap();
    command.args(["run", "--quiet", "--memory", "64M", "sh", "-c", &script]);
    assert_code(&output(&mut command), 3);
    let found = crate::harness::within(crate::harness::PATIENCE, || {
        fs::read_to_string(&mark).is_ok_and(|text| text == "forked\n")
    });
    assert!(found, "the daemon could not fork");
}

#[test]
fn privileges_are_renounced_for_the_gate_unless_the_user_wants_them() {
    const STATUS: [&str; 3] = ["grep", "NoNewPrivs", "/proc/self/status"];
    let place = Place::new();
    let run = |capabilities: &str, words: &[&str]| {
        output(place.vswap_with(capabilities).args(["run", "--memory", "64M"]).args(words).args(STATUS))
    };
    let renounced = run("-all", &["--quiet"]);
    assert_code(&renounced, 0);
    assert_eq!(stdout(&renounced), "NoNewPrivs:\t1\n");
    // With fork events it is a choice: without the gate, as the remark and the summary say.
    let follows = "-all,+sys_ptrace";
    assert_eq!(stdout(&run(follows, &["--quiet"])), "NoNewPrivs:\t1\n");
    let kept = run(follows, &["--allow-new-privs"]);
    assert_eq!(stdout(&kept), "NoNewPrivs:\t0\n", "{}", stderr(&kept));
    assert!(stderr(&kept).contains("mremap is not serialised"), "{}", stderr(&kept));
    // Without them nothing else is sound.
    let refused = run("-all", &["--allow-new-privs"]);
    assert_code(&refused, 125);
    assert!(stdout(&refused).is_empty());
    for word in ["CAP_SYS_PTRACE", "without --allow-new-privs", "vswap doctor"] {
        assert!(stderr(&refused).contains(word), "{word}: {}", stderr(&refused));
    }
}

#[test]
fn who_may_only_read_and_write_is_left_alone() {
    // In seccomp's strict mode, which there is where there is no gate, a call for us would kill.
    let place = Place::new();
    let (program, json) = (crate::static_programs::built(&place.dir, "cc"), place.home().join("run.json"));
    let mut command = place.vswap_with("-all,+sys_ptrace");
    command.args(["run", "--quiet", "--allow-new-privs", "--memory", "64M", "--json"]).arg(&json);
    let done = output(command.arg(program).args(["8", "strict"]));
    assert_code(&done, 0);
    assert_eq!(stdout(&done), "ok\n", "{}", stderr(&done));
    let figures: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let unpaged = figures["summary"]["unpaged"].to_string();
    assert!(unpaged.contains("system-call filter"), "{unpaged}");
}

#[test]
fn redis_saves_while_it_is_written_to() {
    let place = Place::new();
    let (script, json) = (readable(&place, "redis.py"), place.home().join("run.json"));
    // Written by the script, which also verifies every key and the saved file.
    let mut command = place.nobodys("/usr/bin/python3", "-all");
    command.arg(script).arg("64").arg(place.dir.file("vswap")).env("TMPDIR", place.home());
    command.args(["run", "--quiet", "--memory", "56M", "--json"]).arg(&json).arg("--");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = collect_within(Duration::from_secs(180), command.spawn().expect("unshare"));
    assert_code(&done, 0);
    assert!(stdout(&done).contains("keys ok"), "{}", stdout(&done));
    let figures: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let summary = &figures["summary"];
    assert!(summary["forks"].as_u64() >= Some(1) && summary["fork_pages"].as_u64() > Some(256), "{summary}");
}

#[test]
fn sandboxes_work_inside() {
    let place = Place::new();
    let inside = |words: &[&str]| {
        let done = output(place.vswap().args(["run", "--quiet", "--memory", "64M"]).args(words));
        assert_code(&done, 0);
        stdout(&done)
    };
    assert_eq!(inside(&["unshare", "-Ur", "sh", "-c", "(id -u)"]), "0\n");
    let sandbox = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "--proc", "/proc", "--dev", "/dev"];
    // Threads of an agent take numbers of the new namespace, too.
    let number: u32 = inside(&[&sandbox[..], &["sh", "-c", "(echo $$)"]].concat()).trim().parse().unwrap();
    assert!((2..10).contains(&number), "{number}");
}

#[test]
fn a_program_that_changes_its_user_borrows_the_device() {
    // As entry points do (gosu, su-exec): root's vswap, whose device is root's, and a program that is nobody's.
    let place = Place::new();
    let script = readable(&place, "forks.py");
    let json = place.dir.file("run.json");
    let mut command = vswap();
    // Not root's own python.
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    command.args(["run", "--quiet", "--memory", "40M", "--json"]).arg(&json);
    command.args([
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "python3",
        &script,
        "24",
        "--rounds",
        "1",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = collect_within(Duration::from_secs(180), command.spawn().unwrap());
    assert_code(&done, 0);
    assert!(stdout(&done).ends_with("ok\n"), "{}", stdout(&done));
    let figures: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let summary = &figures["summary"];
    assert!(summary["evictions"].as_u64() > Some(4096), "{summary}");
    assert!(!summary["unpaged"].to_string().contains("python"), "{summary}");
}

#[test]
fn doctor_says_what_is_degraded() {
    let place = Place::new();
    let doctor = |capabilities: &str| {
        let answer = output(place.vswap_with(capabilities).args(["doctor", "--json"]));
        assert_code(&answer, 0);
        let report: Value = serde_json::from_str(&stdout(&answer)).unwrap();
        let state = |id: &str| {
            let checks = report["checks"].as_array().unwrap();
            let check =
                checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no check {id}"));
            format!("{}: {}", check["state"].as_str().unwrap(), check["detail"].as_str().unwrap())
        };
        [state("fork_events"), state("mremap_gate"), state("userfaultfd"), state("priority")]
    };
    let [forks, gate, device, priority] = doctor("-all");
    assert!(priority.starts_with("degraded: "), "{priority}");
    assert!(forks.starts_with("degraded: ") && forks.contains("CAP_SYS_PTRACE"), "{forks}");
    assert!(gate.starts_with("degraded: ") && gate.contains("sudo") && gate.contains("refused"), "{gate}");
    assert!(device.contains("/dev/userfaultfd"), "{device}");
    let [forks, gate, device, _] = doctor("-all,+sys_ptrace");
    assert!(forks.starts_with("works: "), "{forks}");
    assert!(gate.starts_with("degraded: ") && gate.contains("without the gate"), "{gate}");
    assert!(device.contains("CAP_SYS_PTRACE"), "{device}");
    let [_, gate, _, priority] = doctor("-all,+sys_ptrace,+sys_admin,+sys_nice");
    assert!(priority.starts_with("works: "), "{priority}");
    assert!(gate.starts_with("works: "), "{gate}");
}
