//! `vswap doctor`: what this machine allows, tried rather than guessed where that leaves no trace, and the command that
//! allows the rest.

mod fix;

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;
use vswap_sys::maps::Maps;
use vswap_sys::system::{self, Capability, KernelVersion};
use vswap_sys::uffd::{self, Uffd};
use vswap_sys::{process, seccomp};

use crate::cli;
use crate::permission::{self, Refusal};
use crate::rundir::RunDir;
use crate::size::human;
use crate::terminal;

const KERNEL_MIN: KernelVersion = KernelVersion { major: 6, minor: 8, patch: 0 };

const FOLLOW: &str = "\
one of:
sudo vswap doctor --fix --apply                 (gives CAP_SYS_PTRACE to this vswap)
sudo vswap run ...                              (run it as root)";
const FOLLOW_IN_CONTAINER: &str = "docker run --cap-add SYS_PTRACE ...";
const FOLLOW_IN_NAMESPACE: &str =
    "a container that is not rootless, with CAP_SYS_PTRACE; only the machine's first user namespace counts";
const FIRST: &str = "\
one of:
sudo vswap doctor --fix --apply                 (gives CAP_SYS_NICE to this vswap)
an RLIMIT_RTPRIO of 1                           (`rtprio` in /etc/security/limits.conf)";
const FIRST_IN_CONTAINER: &str = "docker run --cap-add SYS_NICE ...";
const RENOUNCE_NOTHING: &str = "sudo vswap run ...    (run it as root, with CAP_SYS_ADMIN)";

/// How well something works.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Works,
    Degraded,
    Missing,
}

/// One thing that was looked at.
#[derive(Serialize, Debug)]
struct Check {
    /// For machines; does not change.
    id: &'static str,
    /// For people.
    name: &'static str,
    state: State,
    /// What was found, and what follows from it.
    detail: String,
    /// What to do; a line each.
    fix: Option<String>,
}

#[derive(Serialize)]
struct Report {
    vswap: &'static str,
    schema: u32,
    /// The worst of the checks.
    verdict: State,
    checks: Vec<Check>,
}

/// Looks at everything, prints it, and returns the exit status: 0 if `vswap run` works here, 1 if not.
pub(crate) fn run(options: &cli::Doctor) -> u8 {
    if options.fix {
        return fix::run(options.apply);
    }
    let gate = gate();
    let checks = vec![
        kernel(),
        userfaultfd(),
        fork_events(&gate),
        moving(),
        mappings(),
        gate,
        ptrace(),
        priority(),
        run_dir(),
        spill(),
        limits(),
    ];
    let verdict = checks.iter().map(|check| check.state).max().unwrap_or(State::Works);
    let text = if options.json {
        let report = Report { vswap: env!("CARGO_PKG_VERSION"), schema: 1, verdict, checks };
        serde_json::to_string_pretty(&report).expect("plain data") + "\n"
    } else {
        text(&checks, verdict)
    };
    // A closed pipe is not our problem.
    let _ = io::stdout().write_all(text.as_bytes());
    u8::from(verdict == State::Missing)
}

fn text(checks: &[Check], verdict: State) -> String {
    let style = terminal::style(&io::stdout());
    let mut out = format!("vswap {} on Linux {}\n\n", env!("CARGO_PKG_VERSION"), system::kernel_release());
    for check in checks {
        let (colour, word) = match check.state {
            State::Works => (style.green, "ok"),
            State::Degraded => (style.yellow, "degraded"),
            State::Missing => (style.red, "MISSING"),
        };
        out += &format!("  {colour}{word:<8}{}  {:<16}  {}\n", style.plain, check.name, check.detail);
        for (index, line) in check.fix.iter().flat_map(|fix| fix.lines()).enumerate() {
            let lead = if index == 0 { "to allow it:" } else { "" };
            out += &format!("            {lead:<16}  {line}\n");
        }
    }
    out += match verdict {
        State::Works => "\n`vswap run` works here.\n",
        State::Degraded => "\n`vswap run` works here, with what is degraded above.\n",
        State::Missing => "\n`vswap run` does not work here until what is missing above is allowed.\n",
    };
    out
}

fn kernel() -> Check {
    let check = |state, detail, fix: Option<&str>| Check {
        id: "kernel",
        name: "kernel",
        state,
        detail,
        fix: fix.map(Into::into),
    };
    let release = system::kernel_release();
    match system::kernel_version() {
        Ok(version) if version >= KERNEL_MIN => check(State::Works, format!("{release}, x86-64"), None),
        Ok(_) => check(
            State::Missing,
            format!("{release}: pages can be moved (UFFDIO_MOVE) from Linux 6.8 on"),
            Some("a newer kernel of your distribution (backports, hardware enablement)"),
        ),
        Err(error) => check(State::Degraded, format!("{release}: {error}"), None),
    }
}

fn userfaultfd() -> Check {
    let check = |state, detail: String, fix: Option<String>| Check {
        id: "userfaultfd",
        name: "userfaultfd",
        state,
        detail,
        fix,
    };
    match permission::probe(false) {
        Err(refusal @ (Refusal::NoUserfaultfd | Refusal::Open | Refusal::Other(_))) => {
            check(State::Missing, refusal.to_string(), Some(refusal.remedy().into()))
        }
        _ => {
            let how = match (
                permission::command_keeps_ptrace() && system::has_capability(Capability::SysPtrace),
                system::unprivileged_userfaultfd(),
            ) {
                (true, _) => "by CAP_SYS_PTRACE",
                (false, Some(true)) => "by vm.unprivileged_userfaultfd=1",
                _ => "by /dev/userfaultfd",
            };
            check(State::Works, format!("programs may open one, {how}"), None)
        }
    }
}

fn fork_events(gate: &Check) -> Check {
    let (id, name) = ("fork_events", "fork events");
    match opened().map(|fd| fd.api(uffd::EVENT_FORK)) {
        Some(Ok(_)) => {
            Check { id, name, state: State::Works, detail: "children are followed".into(), fix: None }
        }
        Some(Err(error)) if error.raw_os_error() == Some(libc::EPERM) => {
            let namespace = !system::in_initial_user_namespace();
            let refusal = Refusal::ForkEvents { namespace };
            if gate.state == State::Missing {
                let (detail, fix) = (refusal.to_string(), Some(refusal.remedy().into()));
                return Check { id, name, state: State::Missing, detail, fix };
            }
            let detail = format!(
                "{refusal}: each fork waits until everything of its process is back in memory, above the limit if need be"
            );
            let fix = match (namespace, permission::contained()) {
                (true, _) => FOLLOW_IN_NAMESPACE,
                (false, true) => FOLLOW_IN_CONTAINER,
                (false, false) => FOLLOW,
            };
            Check { id, name, state: State::Degraded, detail, fix: Some(fix.into()) }
        }
        Some(Err(error)) => Check { id, name, state: State::Missing, detail: error.to_string(), fix: None },
        None => unknown(id, name),
    }
}

fn moving() -> Check {
    let (id, name) = ("move", "moving pages");
    match opened().map(|fd| fd.api(0)) {
        Some(Ok(features)) if features & uffd::MOVE != 0 => {
            Check { id, name, state: State::Works, detail: "UFFDIO_MOVE".into(), fix: None }
        }
        Some(_) => Check {
            id,
            name,
            state: State::Missing,
            detail: "the kernel has no UFFDIO_MOVE".into(),
            fix: Some("Linux 6.8 or newer".into()),
        },
        None => unknown(id, name),
    }
}

/// A descriptor to ask the kernel with, by whatever way.
fn opened() -> Option<Uffd> {
    Uffd::open().ok()
}

fn unknown(id: &'static str, name: &'static str) -> Check {
    let detail = "cannot tell without permission for userfaultfd".into();
    Check { id, name, state: State::Degraded, detail, fix: None }
}

fn mappings() -> Check {
    let (id, name) = ("procmap_query", "mappings");
    let answer = Maps::open(std::process::id()).and_then(|mut maps| {
        maps.next_at_or_after(0)?;
        Ok(maps.uses_query())
    });
    let (state, detail) = match answer {
        Ok(true) => (State::Works, "PROCMAP_QUERY".into()),
        Ok(false) => (
            State::Degraded,
            "no PROCMAP_QUERY before Linux 6.11: reading the maps file, which is slower".into(),
        ),
        Err(error) => (State::Missing, format!("/proc/self/maps: {error}; is /proc mounted?")),
    };
    Check { id, name, state, detail, fix: None }
}

/// Tried in a child: a filter cannot be taken back.
fn gate() -> Check {
    let (id, name) = ("mremap_gate", "gate");
    let privileged = system::has_capability(Capability::SysAdmin);
    // Where no event tells of forks, there is no doing without it.
    let needed = opened().is_some_and(|fd| fd.api(uffd::EVENT_FORK).is_err());
    let child = process::fork_with(|| {
        let renounced = if privileged { Ok(()) } else { seccomp::set_no_new_privs() };
        match renounced.and_then(|()| seccomp::install_gate(1, needed)) {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    });
    let errno = match child.and_then(process::wait) {
        Ok(status) => status.code().unwrap_or(libc::EIO),
        // With an agent's thread in us we cannot fork safely.
        Err(error) => {
            let detail = format!("cannot be tried from inside of a vswap run ({error})");
            return Check { id, name, state: State::Degraded, detail, fix: None };
        }
    };
    let why = match errno {
        0 if privileged => {
            let detail = "what no event tells of goes through the pager".into();
            return Check { id, name, state: State::Works, detail, fix: None };
        }
        0 => {
            let detail = "takes no_new_privs here: sudo and other set-user-id programs gain nothing inside; \
                          --allow-new-privs lets them"
                .to_owned()
                + if needed {
                    ", but is refused while there are no fork events"
                } else {
                    ", without the gate"
                };
            let fix = (!permission::contained()).then(|| RENOUNCE_NOTHING.into());
            return Check { id, name, state: State::Degraded, detail, fix };
        }
        libc::EBUSY => "a seccomp filter with a listener is above us".into(),
        errno => io::Error::from_raw_os_error(errno).to_string(),
    };
    let (state, detail) = if needed {
        (State::Missing, format!("{why}; it takes the gate to stop forks at, or fork events"))
    } else {
        let detail = format!(
            "{why}: if two threads move memory over each other within microseconds, the program is stopped"
        );
        (State::Degraded, detail)
    };
    let fix = (errno == libc::EBUSY).then(|| {
        "a container without seccomp notification (docker run --security-opt seccomp=unconfined ...)".into()
    });
    Check { id, name, state, detail, fix }
}

fn ptrace() -> Check {
    let capable = system::has_capability(Capability::SysPtrace);
    let (state, detail, fix) = match (system::ptrace_scope(), capable) {
        (None, _) => (State::Works, "not restricted (no Yama)".into(), None),
        (Some(scope @ (0 | 1)), _) => (State::Works, format!("yama ptrace_scope {scope}"), None),
        (Some(2), true) => (State::Works, "yama ptrace_scope 2, with CAP_SYS_PTRACE".into(), None),
        (Some(scope), _) => (
            State::Degraded,
            format!(
                "yama ptrace_scope {scope}: a process cannot be stopped for a moment when its mappings change fast"
            ),
            Some("sudo sysctl kernel.yama.ptrace_scope=1    (3 lasts until the next boot)".into()),
        ),
    };
    Check { id: "ptrace", name: "ptrace", state, detail, fix }
}

/// Tried in a thread that ends with it.
fn priority() -> Check {
    let (id, name) = ("priority", "priority");
    let tried = std::thread::spawn(process::set_realtime_self).join();
    if matches!(tried, Ok(Ok(()))) {
        let detail = "faults are answered first, on the CPU of who waits".into();
        return Check { id, name, state: State::Works, detail, fix: None };
    }
    let detail = "no real-time priority: while a CPU is idle, a fault takes several times as long".into();
    let fix = if permission::contained() { FIRST_IN_CONTAINER } else { FIRST };
    Check { id, name, state: State::Degraded, detail, fix: Some(fix.into()) }
}

fn run_dir() -> Check {
    let (id, name) = ("run_directory", "run directory");
    match RunDir::create(&|_| Ok(vec![0])) {
        Ok(dir) => {
            let parent = dir.path().parent().map(PathBuf::from).unwrap_or_default();
            dir.remove();
            Check { id, name, state: State::Works, detail: parent.display().to_string(), fix: None }
        }
        Err(error) => Check {
            id,
            name,
            state: State::Missing,
            detail: error.to_string().replace('\n', ";"),
            fix: Some("TMPDIR=DIR vswap run ...    (writable, not noexec)".into()),
        },
    }
}

fn spill() -> Check {
    let (id, name) = ("spill_directory", "spill file");
    match vswap_tiers::default_dir() {
        Some((dir, free)) => {
            let detail = format!("in {}, at most {} (half of what is free)", dir.display(), human(free / 2));
            Check { id, name, state: State::Works, detail, fix: None }
        }
        None => Check {
            id,
            name,
            state: State::Degraded,
            detail: "no writable directory on a disk: what the pool cannot take stays in memory".into(),
            fix: Some("vswap run --swap-dir DIR ...".into()),
        },
    }
}

fn limits() -> Check {
    let (id, name) = ("memory", "memory");
    let auto = vswap_pager::auto_limit();
    let total = system::mem_total().unwrap_or(0);
    let cgroup = match system::cgroup_limit() {
        Ok(Some(found)) => format!("limit {} in {}", human(found.limit), found.path.display()),
        Ok(None) => "no limit by control groups".into(),
        Err(error) => format!("control groups cannot be read ({error})"),
    };
    let detail =
        format!("{} in the machine, {cgroup}; --memory auto is {} now", human(total), human(auto.bytes));
    Check { id, name, state: State::Works, detail, fix: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_decides() {
        assert!(State::Missing > State::Degraded && State::Degraded > State::Works);
    }

    #[test]
    fn fixes_stand_below_what_they_fix() {
        let checks = [Check {
            id: "x",
            name: "thing",
            state: State::Missing,
            detail: "not there".into(),
            fix: Some("one\ntwo".into()),
        }];
        let text = text(&checks, State::Missing);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[2].contains("MISSING") && lines[2].contains("not there"), "{text}");
        assert!(lines[3].contains("to allow it:") && lines[3].ends_with("one"), "{text}");
        assert!(lines[4].ends_with("two"), "{text}");
        assert!(text.contains("does not work here"));
    }

    #[test]
    fn nothing_here_leaves_a_trace() {
        // Each must answer, whatever this machine allows. (The gate's check forks, which a test with threads may not.)
        for check in [
            kernel(),
            userfaultfd(),
            fork_events(&limits()),
            moving(),
            mappings(),
            ptrace(),
            priority(),
            run_dir(),
            spill(),
            limits(),
        ] {
            assert!(!check.detail.is_empty(), "{}", check.id);
        }
        assert!(process::fork_with(|| 0).is_err() || gate().detail.len() > 5);
    }
}
