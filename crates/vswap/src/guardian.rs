//! The guardian: a process without threads that shares the pager's descriptors and outlives it.
//!
//! Never may the last userfaultfd close while a process of the tree lives: its missing pages would read as zeros. The
//! guardian's share of the descriptor table keeps them open when the pager dies, at whatever moment; then it kills every
//! process of the tree, and only then leaves. It is the child subreaper above the pager, so that the tree, orphaned by
//! the pager's death, comes to it.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::thread::sleep;
use std::time::{Duration, Instant};

use vswap_sys::process;

use crate::report::{Message, Sender};
use crate::rundir::RunDir;

/// Exit code of the pager's process for "the front knows all": ended, or failed and told.
pub(crate) const TOLD: i32 = 0;
/// The kernel's out-of-memory killer should take the program, whose death is one death, before the pager or the
/// guardian, whose death is the whole tree's. Not -1000: then nothing might be left to kill.
const OOM_SCORE: &str = "-900";
/// Between two looks at what is left of the tree, at most.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Waits for the end of the pager, ends what is left of the tree, and cleans up. Returns the guardian's exit code.
pub(crate) fn guard(pager: u32, run_dir: &RunDir, front: &Sender) -> i32 {
    // A session of its own: a signal for the user's job, sent to its process group, must not hit the one process that
    // keeps the tree from reading zeros. (The pager has done the same.)
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"vswap-guardian");
    spare_from_oom();
    // What the user stood on may be unmounted while daemons of the tree go on.
    let _ = std::env::set_current_dir("/");
    let status = process::wait(pager);
    kill_tree();
    match status {
        Ok(status) if status.code() == Some(TOLD) => {}
        Ok(status) => front.send(&Message::PagerDied { how: describe(status) }),
        Err(error) => front.send(&Message::PagerDied { how: format!("lost sight of it: {error}") }),
    }
    run_dir.remove();
    0
}

/// Asks the out-of-memory killer to look elsewhere first, which takes privileges; CMD must have been started before.
pub(crate) fn spare_from_oom() {
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => status.to_string(),
    }
}

/// Kills every descendant until there is none. They may fork meanwhile: so look again at once, and rest only when
/// nothing new was seen.
pub(crate) fn kill_tree() {
    let own = std::process::id();
    let mut pause = Duration::from_millis(1);
    let mut killed: Vec<u32> = Vec::new();
    loop {
        let mut news = false;
        if let Ok(tree) = process::descendants_of(own) {
            for &pid in &tree {
                let _ = process::kill(pid, libc::SIGKILL);
                news |= !killed.contains(&pid);
            }
            killed = tree;
        }
        let until = Instant::now() + pause;
        loop {
            match process::reap() {
                Ok(Some(_)) => news = true,
                // Children that have not ended yet.
                Ok(None) if news || Instant::now() >= until => break,
                Ok(None) => sleep(Duration::from_micros(200)),
                // No children: and whoever was below them would be a child of ours by now.
                Err(_) => return,
            }
        }
        if !news {
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
