//! What vswap says: help, version, completions, manual, doctor, summary, JSON.

use std::fs;

use serde_json::Value;

use crate::harness::{Scratch, assert_code, output, quiet, stderr, stdout, vswap};

#[test]
fn help_teaches() {
    let help = output(vswap().args(["run", "--help"]));
    assert_code(&help, 0);
    let text = stdout(&help);
    for word in [
        "Examples:",
        "Exit status:",
        "Environment:",
        "VSWAP_ARGS",
        "VSWAP_MEMORY",
        "125",
        "126",
        "127",
        "128+n",
        "--memory",
        "--pool-max",
        "--swap-dir",
        "--no-spill",
        "--swap-max",
        "--json",
        "--quiet",
        "--allow-unpaged",
        "NO_COLOR",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    assert!(!text.contains('\x1b'), "colours without a terminal");
    let help = stdout(&output(vswap().arg("--help")));
    for word in ["run", "status", "reclaim", "doctor", "completions", "man", "Examples:"] {
        assert!(help.contains(word), "{word}\n{help}");
    }
}

#[test]
fn version_completions_and_manual() {
    let version = output(vswap().arg("--version"));
    assert_eq!(stdout(&version), format!("vswap {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let text = stdout(&output(vswap().args(["completions", shell])));
        assert!(text.contains("vswap") && text.contains("memory"), "{shell}");
    }
    let manual = output(vswap().arg("man"));
    assert_code(&manual, 0);
    let text = stdout(&manual);
    assert!(
        text.contains(".TH vswap 1") && text.contains("swap\\-dir") && text.contains("Exit status"),
        "{text}"
    );
}

#[test]
fn errors_say_what_to_do() {
    for (words, hint) in [
        (&["run", "-m", "5MB", "true"][..], "5M"),
        (&["run", "-m", "512", "true"], "512M"),
        (&["run", "-m", "5Q", "true"], "K, M, G"),
        (&["run", "--memroy", "1G", "true"], "--memory"),
        (&["run", "--swap-dir", "/dev/shm", "true"], "--no-spill"),
    ] {
        let text = stderr(&output(vswap().args(words)));
        assert!(text.contains(hint), "{words:?}: {hint} is not in: {text}");
    }
}

#[test]
fn settings_come_from_the_environment_too() {
    let dir = Scratch::new();
    let json = dir.file("a b.json");
    let args = format!("--quiet --memory 128M --json '{}'", json.display());
    let done = output(vswap().env("VSWAP_ARGS", &args).args(["run", "sleep", "0.3"]));
    assert_code(&done, 0);
    assert!(done.stderr.is_empty(), "{}", stderr(&done));
    let limit = |path| -> Value {
        let value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        value["summary"]["limit"].clone()
    };
    assert_eq!(limit(&json), 128 << 20);
    let done = output(vswap().env("VSWAP_ARGS", &args).args(["run", "-m", "192M", "sleep", "0.3"]));
    assert_code(&done, 0);
    assert_eq!(limit(&json), 192 << 20);
    let done = output(
        vswap().env("VSWAP_MEMORY", "96M").args(["run", "-q", "--json"]).arg(&json).args(["sleep", "0.3"]),
    );
    assert_code(&done, 0);
    assert_eq!(limit(&json), 96 << 20);
    let bad = output(vswap().env("VSWAP_MEMORY", "lots").args(["run", "true"]));
    assert_code(&bad, 125);
    assert!(stderr(&bad).contains("VSWAP_MEMORY=lots"));
    let bad = output(vswap().env("VSWAP_ARGS", "--quiet true").args(["run", "true"]));
    assert_code(&bad, 125);
    assert!(stderr(&bad).contains("VSWAP_ARGS"));
    assert_code(
        &output(vswap().env("VSWAP_MEMORY", "").env("VSWAP_ARGS", "").args(["run", "-q", "true"])),
        0,
    );
}

#[test]
fn json_has_its_shape() {
    let dir = Scratch::new();
    let file = dir.file("run.json");
    let read = || -> Value { serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap() };
    let done = output(quiet().arg("--json").arg(&file).args(["sh", "-c", "kill -INT $$"]));
    assert_code(&done, 130);
    let value = read();
    assert_eq!(value["schema"], 1);
    assert_eq!(value["vswap"], env!("CARGO_PKG_VERSION"));
    assert_eq!(value["command"][0], "sh");
    assert_eq!((&value["exit_code"], &value["signal"]), (&130.into(), &2.into()));
    assert!(value["error"].is_null());
    let summary = &value["summary"];
    for key in [
        "limit",
        "peak_total",
        "peak_resident",
        "peak_virtual",
        "over_limit_bytes",
        "evictions",
        "stalled_ms",
        "stalled_some_ms",
        "freezes",
        "address_spaces",
        "forks",
    ] {
        assert!(summary[key].is_u64(), "{key}: {summary}");
    }
    for kind in ["soft", "pool", "file", "zero"] {
        for key in ["count", "p50_ns", "p99_ns"] {
            assert!(summary["faults"][kind][key].is_u64(), "{kind} {key}");
        }
    }
    assert!(summary["address_spaces"].as_u64() >= Some(1), "the program was paged: {summary}");

    assert_code(&output(quiet().arg("--json").arg(&file).arg("no-such-program")), 127);
    let value = read();
    assert_eq!(value["exit_code"], 127);
    assert!(value["error"].is_string() && value["summary"].is_null());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "drafts are left");
}

#[test]
fn json_to_standard_output_comes_last() {
    let done = output(quiet().args(["--json", "-", "echo", "first"]));
    let text = stdout(&done);
    let rest = text.strip_prefix("first\n").expect("the program's own output first");
    assert_eq!(serde_json::from_str::<Value>(rest).unwrap()["exit_code"], 0);
}

#[test]
fn the_summary_is_one_screen() {
    let done = output(vswap().args(["run", "sh", "-c", "exit 3"]));
    assert_code(&done, 3);
    let text = stderr(&done);
    for word in [
        "(auto:",
        "exit status 3",
        "Memory",
        "virtual",
        "Evicted",
        "ratio",
        "per slot",
        "soft",
        "pool",
        "file",
        "zero",
        "p99",
        "Waited",
        "freezes",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    assert!(text.lines().count() <= 25 && !text.contains('\x1b'), "{text}");
}

#[test]
fn doctor_answers_people_and_machines() {
    let people = output(vswap().arg("doctor"));
    assert_code(&people, 0);
    for word in
        ["kernel", "userfaultfd", "fork events", "gate", "ptrace", "spill file", "memory", "works here"]
    {
        assert!(stdout(&people).contains(word), "{word}\n{}", stdout(&people));
    }
    let machines = output(vswap().args(["doctor", "--json"]));
    assert_code(&machines, 0);
    let value: Value = serde_json::from_str(&stdout(&machines)).unwrap();
    assert!(["works", "degraded"].contains(&value["verdict"].as_str().unwrap()));
    for check in value["checks"].as_array().unwrap() {
        assert!(check["id"].is_string() && check["state"].is_string() && check["detail"].is_string());
    }
}
