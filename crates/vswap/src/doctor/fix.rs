//! `vswap doctor --fix`: the commands that let ordinary users of this machine run vswap as well as it goes, as a script, and
//! with `--apply` executed. Only what is not so yet is in it.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use vswap_sys::system;

use crate::permission;
use crate::run::complain;

const DEVICE: &str = "/dev/userfaultfd";
const GROUP: &str = "userfaultfd";
const RULES: &str = "/etc/udev/rules.d/60-userfaultfd.rules";
const RULE: &str = r#"KERNEL=="userfaultfd", SUBSYSTEM=="misc", GROUP="userfaultfd", MODE="0660""#;

/// A line of the script.
#[derive(PartialEq, Debug)]
enum Line {
    /// For people.
    Remark(String),
    /// For the shell.
    Run(String),
}

/// Prints the script, or executes it; returns the exit status.
pub(super) fn run(apply: bool) -> u8 {
    let lines = lines();
    if !apply {
        let text = lines.iter().fold(String::new(), |mut text, line| {
            let _ = match line {
                Line::Remark(remark) => writeln!(text, "# {remark}"),
                Line::Run(command) => writeln!(text, "{command}"),
            };
            text
        });
        // A closed pipe is not our problem.
        let _ = io::stdout().write_all(text.as_bytes());
        return 0;
    }
    if !rustix::process::geteuid().is_root() {
        complain("--apply takes root: sudo vswap doctor --fix --apply");
        return 1;
    }
    for line in lines {
        let command = match line {
            Line::Remark(remark) => {
                let _ = writeln!(io::stdout(), "# {remark}");
                continue;
            }
            Line::Run(command) => command,
        };
        let _ = writeln!(io::stdout(), "{command}");
        let status = Command::new("/bin/sh").args(["-c", &command]).stdin(Stdio::null()).status();
        let failed = match status {
            Ok(status) if status.success() => continue,
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        complain(&format!("{command}: {failed}; what stands above it is done"));
        return 1;
    }
    0
}

fn lines() -> Vec<Line> {
    let mut lines = device();
    lines.extend(capability());
    if !lines.iter().any(|line| matches!(line, Line::Run(_))) {
        lines.push(Line::Remark("Nothing to do. `vswap doctor` says what there is.".into()));
    }
    lines
}

/// Access to the device, now and after each boot.
fn device() -> Vec<Line> {
    let Ok(meta) = fs::metadata(DEVICE) else {
        return vec![Line::Remark(format!(
            "There is no {DEVICE} here. A container gets it by `docker run --device {DEVICE} ...`."
        ))];
    };
    let mut lines = Vec::new();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    let group = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, number, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (name == GROUP).then(|| (number.to_owned(), members.to_owned()))
    });
    if group.is_none() {
        lines.push(Line::Run(format!("groupadd --system {GROUP}")));
    }
    if !fs::read_to_string(RULES).is_ok_and(|text| text.lines().any(|line| line == RULE)) {
        lines.push(Line::Run(format!("mkdir -p /etc/udev/rules.d && echo '{RULE}' > {RULES}")));
    }
    let owned = group.as_ref().is_some_and(|(number, _)| *number == meta.gid().to_string());
    if !owned || meta.mode() & 0o060 != 0o060 {
        lines.push(Line::Run(format!("chgrp {GROUP} {DEVICE} && chmod 0660 {DEVICE}")));
    }
    let member = |user: &str| {
        group.as_ref().is_some_and(|(_, members)| members.split(',').any(|member| member == user))
    };
    match std::env::var("SUDO_USER").ok().filter(|user| user != "root" && !user.is_empty()) {
        Some(user) if member(&user) => {}
        Some(user) => match shlex::try_quote(&user) {
            Ok(quoted) => lines.push(Line::Run(format!("usermod --append --groups {GROUP} {quoted}"))),
            Err(error) => lines.push(Line::Remark(format!("SUDO_USER is no name: {error}"))),
        },
        None if group.is_some() => {}
        None => lines.push(Line::Remark(format!("For each user: usermod --append --groups {GROUP} USER"))),
    }
    if !lines.is_empty() {
        lines.insert(0, Line::Remark(format!("The group {GROUP} may open {DEVICE}.")));
        lines.push(Line::Remark("Who is new in a group has to log in again.".into()));
    }
    lines
}

/// Fork events, and the right to go first, for whoever runs this file.
fn capability() -> Vec<Line> {
    if permission::contained() || !system::in_initial_user_namespace() {
        // A file with a capability that nobody can get would not start at all.
        return vec![Line::Remark(
            "Nobody in this container can follow forks, or go first; `docker run --cap-add SYS_PTRACE --cap-add SYS_NICE ...` \
             allows it."
                .into(),
        )];
    }
    let Ok(file) = std::env::current_exe() else { return Vec::new() };
    if has_capabilities(&file) {
        return Vec::new();
    }
    match shlex::bytes::try_quote(file.as_os_str().as_bytes()) {
        Ok(quoted) => vec![
            Line::Remark("Forks are followed, and faults answered first, for whoever runs this file.".into()),
            Line::Run(format!("setcap cap_sys_ptrace,cap_sys_nice=ep {}", String::from_utf8_lossy(&quoted))),
        ],
        Err(_) => Vec::new(),
    }
}

/// Whether the file gives `CAP_SYS_PTRACE` and `CAP_SYS_NICE`: capabilities 19 and 23, in the first word of the permitted set
/// (`struct vfs_cap_data`).
fn has_capabilities(file: &Path) -> bool {
    const WANTED: u8 = 1 << (19 - 16) | 1 << (23 - 16);
    let mut data = [0_u8; 24];
    let read = rustix::fs::getxattr(file, "security.capability", &mut data);
    read.is_ok_and(|length| length >= 8) && data[6] & WANTED == WANTED
}
