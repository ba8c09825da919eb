//! `vswap doctor --fix`: what it prints is what makes it work, tried in a mount namespace with an /etc of its own.

use std::fs;
use std::process::Command;

use crate::harness::{Scratch, assert_code, is_root, output, stderr, stdout, vswap};

/// An /etc of our own, with a user, and a device that is root's, for the words that follow.
const PRIVATE_ETC: &str = "set -e
    mount -t tmpfs none \"$0\"; cp -a /etc \"$0/etc\"; mkdir -p \"$0/etc/udev/rules.d\"; rm -f \"$0/etc/udev/rules.d/60-userfaultfd.rules\"
    mknod -m 600 \"$0/device\" c 10 257; mount --bind \"$0/etc\" /etc; mount --bind \"$0/device\" /dev/userfaultfd
    useradd --no-create-home vswap-tester; export SUDO_USER=vswap-tester; eval \"$1\"";

fn in_private_etc(dir: &Scratch, script: &str) -> Command {
    assert!(is_root(), "users are made by root");
    let mount = dir.file("private");
    fs::create_dir(&mount).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_vswap"), dir.file("vswap")).unwrap();
    let mut command = Command::new("unshare");
    for name in ["VSWAP_MEMORY", "VSWAP_ARGS", "VSWAP_SESSION", "LD_PRELOAD", "XDG_RUNTIME_DIR"] {
        command.env_remove(name);
    }
    command.args(["--mount", "sh", "-c", PRIVATE_ETC]).arg(mount).arg(script).env("vswap", dir.file("vswap"));
    command.stdin(std::process::Stdio::null()).current_dir("/");
    command
}

/// What the user sees who was just let in.
const AS_USER: &str = "user() { setpriv --reuid vswap-tester --regid vswap-tester --init-groups \"$@\"; };";

#[test]
fn what_it_applies_lets_a_user_run_programs() {
    let dir = Scratch::new();
    let script = format!(
        "{AS_USER}
        user \"$vswap\" run -q -m 64M true 2>/dev/null && exit 9
        \"$vswap\" doctor --fix --apply
        echo -- rule; cat /etc/udev/rules.d/60-userfaultfd.rules; stat -c '%a %G' /dev/userfaultfd
        echo -- again; \"$vswap\" doctor --fix
        echo -- user; user \"$vswap\" doctor --json; user \"$vswap\" run -q -m 64M sh -c '(echo ran)'"
    );
    let done = output(&mut in_private_etc(&dir, &script));
    assert_code(&done, 0);
    let text = stdout(&done);
    let (applied, rest) = text.split_once("-- rule\n").unwrap();
    for word in [
        "groupadd",
        "usermod --append --groups userfaultfd vswap-tester",
        "setcap cap_sys_ptrace,cap_sys_nice=ep",
        "# ",
    ] {
        assert!(applied.contains(word), "{word}: {applied}");
    }
    let (rule, rest) = rest.split_once("-- again\n").unwrap();
    let expected = "KERNEL==\"userfaultfd\", SUBSYSTEM==\"misc\", GROUP=\"userfaultfd\", MODE=\"0660\"\n660 userfaultfd\n";
    assert_eq!(rule, expected);
    let (again, user) = rest.split_once("-- user\n").unwrap();
    assert!(again.starts_with("# Nothing to do"), "{again}");
    let (report, ran) = user.split_at(user.rfind("\nran").expect("it ran"));
    assert_eq!(ran, "\nran\n");
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    let forks = report["checks"].as_array().unwrap().iter().find(|check| check["id"] == "fork_events");
    assert_eq!(forks.unwrap()["state"], "works", "{report}");
    let priority = report["checks"].as_array().unwrap().iter().find(|check| check["id"] == "priority");
    assert_eq!(priority.unwrap()["state"], "works", "{report}");
}

#[test]
fn what_it_prints_is_a_script_that_does_the_same() {
    let dir = Scratch::new();
    let script = format!(
        "{AS_USER} \"$vswap\" doctor --fix | sh -e; user \"$vswap\" run -q -m 64M sh -c '(echo ran)'"
    );
    let done = output(&mut in_private_etc(&dir, &script));
    assert_code(&done, 0);
    assert!(stdout(&done).ends_with("ran\n"), "{}", stdout(&done));
}

#[test]
fn applying_takes_root_and_a_failure_is_said() {
    let dir = Scratch::new();
    let script = format!("{AS_USER} user \"$vswap\" doctor --fix --apply");
    let refused = output(&mut in_private_etc(&dir, &script));
    assert_code(&refused, 1);
    assert!(stdout(&refused).is_empty() && stderr(&refused).contains("sudo vswap doctor --fix --apply"));
    let dir = Scratch::new();
    // A read-only /etc.
    let script = "mount -o remount,ro,bind /etc; \"$vswap\" doctor --fix --apply";
    let failed = output(&mut in_private_etc(&dir, script));
    assert_code(&failed, 1);
    assert!(stderr(&failed).contains("groupadd --system userfaultfd"), "{}", stderr(&failed));
    assert_code(&output(vswap().args(["doctor", "--apply"])), 125);
    assert_code(&output(vswap().args(["doctor", "--fix", "--json"])), 125);
}
