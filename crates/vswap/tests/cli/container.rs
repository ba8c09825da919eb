//! Containers: the capabilities and the seccomp filter of Docker's defaults, with the device, in a pid namespace.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Scratch, assert_code, collect_within, compiled, is_root, output, stdout};

/// What Docker leaves to root in a container.
const DOCKER: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,\
                      +net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";
/// A device of the container's own, as `--device` makes it, or none; then the words that follow.
const INSIDE: &str = "set -e; mount -t tmpfs none \"$0\"; mkdir \"$0/dev\"; cd \"$0/dev\"
    mknod -m 666 null c 1 3; mknod -m 666 urandom c 1 9; if [ $DEVICE = yes ]; then mknod -m 600 userfaultfd c 10 257; fi
    mount --bind . /dev; cd /; exec \"$@\"";

/// vswap as a container's first program.
fn contained(dir: &Scratch, device: &str, traces: bool) -> Command {
    assert!(is_root(), "containers are made by root");
    let mount = dir.file("device");
    fs::create_dir_all(&mount).unwrap();
    let filter = compiled(dir, "container.c");
    let mut command = Command::new("unshare");
    for name in ["VSWAP_MEMORY", "VSWAP_ARGS", "VSWAP_SESSION", "NO_COLOR", "LD_PRELOAD"] {
        command.env_remove(name);
    }
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("DEVICE", device);
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", INSIDE]).arg(mount);
    let added = if traces { ",+sys_ptrace" } else { "" };
    // The filter first: then, like Docker's, it needs no no_new_privs.
    command
        .arg(filter)
        .args(traces.then_some("ptrace"))
        .arg("setpriv")
        .arg(format!("--bounding-set={DOCKER}{added}"));
    command.args(["--inh-caps=-all", env!("CARGO_BIN_EXE_vswap")]).stdin(Stdio::null());
    command
}

fn runs(traces: bool) -> Value {
    let dir = Scratch::new();
    let copies = compiled(&dir, "copies.c");
    let json = dir.file("run.json");
    let mut command = contained(&dir, "yes", traces);
    command.args(["run", "--quiet", "--memory", "32M", "--json"]).arg(&json).arg("--").arg(copies);
    command.args(["48", "fork", "raw", "clone", "vfork"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = collect_within(Duration::from_secs(180), command.spawn().expect("unshare"));
    assert_code(&done, 0);
    assert_eq!(stdout(&done).matches(" ok\n").count(), 4);
    let figures: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    figures["summary"].clone()
}

#[test]
fn dockers_defaults_and_the_device_are_enough() {
    let summary = runs(false);
    let number = |key: &str| summary[key].as_u64().unwrap();
    // How much had left when a fork brought it back is the machine's affair.
    assert!(number("evictions") > 8192 && number("fork_pages") > 1024, "{summary}");
    assert_eq!((&summary["gate"], number("fail_stops")), (&Value::Bool(true), 0));
}

#[test]
fn with_sys_ptrace_forks_are_followed() {
    let summary = runs(true);
    assert!(summary["evictions"].as_u64() > Some(8192), "{summary}");
    assert_eq!(summary["fork_pages"], 0, "{summary}");
}

#[test]
fn doctor_tells_a_container_which_option_is_missing() {
    let dir = Scratch::new();
    let doctor = |device: &str, traces: bool| {
        let said = output(contained(&dir, device, traces).arg("doctor"));
        (said.status.code(), stdout(&said))
    };
    let (code, text) = doctor("no", false);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("docker run --device /dev/userfaultfd") && !text.contains("sudo vswap"), "{text}");
    let (code, text) = doctor("yes", false);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("docker run --cap-add SYS_PTRACE") && !text.contains("sudo vswap"), "{text}");
    let (code, text) = doctor("yes", true);
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("--cap-add"), "{text}");
    // There nothing can be installed.
    let fix = output(contained(&dir, "yes", false).args(["doctor", "--fix"]));
    assert!(
        stdout(&fix).contains("--cap-add SYS_PTRACE") && !stdout(&fix).contains("setcap"),
        "{}",
        stdout(&fix)
    );
}
