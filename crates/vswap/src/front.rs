//! The front: the process that the user started, and that stands for CMD before its parent.
//!
//! It waits, passes on the signals that were sent to vswap itself, stops when CMD stops, and ends with CMD's status.
//! CMD is in the same session, process group and terminal, so what the terminal sends reaches CMD without us: the front
//! leaves those signals alone. All its signals are blocked and read from a descriptor; there are no handlers.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::PidfdFlags;
use vswap_pager::Summary;
use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::process::signals::{Received, SignalFd};

use crate::nested;
use crate::report::{Message, Receiver};
use crate::summary::Ending;

/// After CMD and, as far as we know, the whole tree has ended: how long the last figures and the clean-up may take.
const AFTERMATH: Duration = Duration::from_secs(5);
/// A shell's `fg` continues everyone one after the other: so long to wait before looking who was left out.
const CONTINUE_GRACE: Duration = Duration::from_millis(20);

/// How the run ended for the front.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How CMD ended; or an exit status and the reason of vswap's own failure.
    pub(crate) ending: Result<Ending, (u8, String)>,
    /// The figures, if any came.
    pub(crate) summary: Option<Box<Summary>>,
    /// What the pager's process wanted the user to know when it started CMD.
    pub(crate) warnings: Vec<String>,
    /// Processes of the tree that go on without us.
    pub(crate) others: u64,
}

/// CMD as the front sees it.
struct Command {
    pid: u32,
    /// Its pager, for telling the tree from the rest of the world.
    pager: Option<u32>,
    handle: Option<rustix::fd::OwnedFd>,
}

/// Waits for the end. `started` is called once CMD runs, with what the pager wants the user to know.
///
/// # Errors
///
/// Those of waiting itself, none of which a working system gives.
pub(crate) fn wait(
    guardian: u32,
    mut pager: Receiver,
    signals: &SignalFd,
    started: &mut dyn FnMut(&[String]),
) -> io::Result<Outcome> {
    let mut command: Option<Command> = None;
    let mut outcome = Outcome {
        ending: Err((
            125,
            "the guardian ended without a word; every process of the tree is gone with it".into(),
        )),
        summary: None,
        warnings: Vec::new(),
        others: 0,
    };
    let mut deadline: Option<Instant> = None;
    loop {
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let ready = poll(
            // Before CMD runs there is nobody to pass signals to: they wait.
            &[
                (pager.as_fd(), Events::IN),
                (signals.as_fd(), if command.is_some() { Events::IN } else { Events::empty() }),
            ],
            timeout,
        )?;
        if !ready[0].is_empty() {
            for message in pager.receive()? {
                match message {
                    Message::Started { pid, warnings } => {
                        started(&warnings);
                        outcome.warnings = warnings;
                        command = Some(Command::new(pid));
                    }
                    Message::NotStarted { code, text } => outcome.ending = Err((code, text)),
                    Message::Stopped { .. } => stop_too(command.as_ref()),
                    Message::Ended { status, summary, others } => {
                        outcome.ending = Ok(Ending::from_wait_status(status));
                        outcome.summary = Some(summary);
                        outcome.others = others;
                        if others > 0 {
                            return Ok(outcome);
                        }
                        deadline = Some(Instant::now() + AFTERMATH);
                    }
                    Message::Done { summary } => outcome.summary = Some(summary),
                    Message::Fatal { text } => outcome.ending = Err((125, text)),
                    // After CMD's end its status stands.
                    Message::PagerDied { how } if deadline.is_none() => {
                        let text =
                            format!("the pager died ({how}); every process of the tree has been killed");
                        outcome.ending = Err((125, text));
                    }
                    Message::PagerDied { .. } => {}
                }
            }
        }
        if let Some(command) = &command {
            while let Some(signal) = signals.next()? {
                handle(command, signal);
            }
        }
        reap_all();
        if pager.ended() {
            // Its descriptors are closed, so it is about to end: whoever adopts our orphans may not reap them.
            let _ = process::wait(guardian);
            return Ok(outcome);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(outcome);
        }
    }
}

/// Takes every child that has ended: the guardian, and as process 1 of a container the world's orphans.
fn reap_all() {
    while let Ok(Some(_)) = process::reap() {}
}

impl Command {
    fn new(pid: u32) -> Self {
        // A handle, because a process id may be another's by the time a signal is passed on.
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let handle = raw.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        Self { pid, pager: nested::stat(pid).map(|stat| stat.parent), handle }
    }

    fn send(&self, signal: i32) {
        let Some(handle) = &self.handle else { return };
        match rustix::process::Signal::from_named_raw(signal) {
            Some(signal) => {
                let _ = rustix::process::pidfd_send_signal(handle, signal);
            }
            // Real-time signals have no name. The handle is not readable while CMD lives.
            None if poll(&[(handle.as_fd(), Events::IN)], Some(Duration::ZERO))
                .is_ok_and(|r| r[0].is_empty()) =>
            {
                let _ = process::kill(self.pid, signal);
            }
            None => {}
        }
    }

    /// Whether `pid` belongs to the tree, or is the pager.
    fn is_relative(&self, pid: u32) -> bool {
        self.pager.is_some_and(|pager| process::descends_from(pid, pager).unwrap_or(false))
    }
}

/// Decides what a signal to the front means.
fn handle(command: &Command, received: Received) {
    let signal = received.signal;
    if signal == libc::SIGCHLD {
        return;
    }
    if signal == libc::SIGCONT {
        return continue_command(command);
    }
    if passes(command, &received) {
        command.send(signal);
    }
}

fn passes(command: &Command, received: &Received) -> bool {
    let own = nested::stat(std::process::id());
    if !received.was_sent() {
        // The terminal's, and CMD has had it too. Only a hang-up goes to the leader of the session alone.
        return received.signal == libc::SIGHUP && own.is_some_and(|own| own.session == std::process::id());
    }
    if std::process::id() == 1 {
        // To a container's init everything is sent on purpose.
        return true;
    }
    // A program that signals its own process group (vim when it suspends, `kill 0` in a script) has reached CMD too.
    let group = nested::stat(received.pid).map(|sender| sender.group);
    let same_group = group.is_some() && group == own.map(|own| own.group);
    !(same_group && command.is_relative(received.pid))
}

/// A signal has stopped CMD: the shell that waits for us must see a stopped job.
fn stop_too(command: Option<&Command>) {
    let stopped = |command: &Command| nested::process_state(command.pid) == Some('T');
    // It may have been continued before we heard of it.
    if command.is_none_or(|command| !stopped(command)) {
        return;
    }
    // SIGSTOP, whatever stopped CMD: the others are blocked here, and do nothing in an orphaned process group.
    let _ = process::kill(std::process::id(), libc::SIGSTOP);
    // We are here again: someone continued us.
    if let Some(command) = command {
        continue_command(command);
    }
}

/// Whoever continued vswap meant CMD; the shell's `fg` has continued both already.
fn continue_command(command: &Command) {
    std::thread::sleep(CONTINUE_GRACE);
    if nested::process_state(command.pid) == Some('T') {
        command.send(libc::SIGCONT);
    }
}
