//! The pager's process: starts CMD, lets go of everything that is CMD's, and serves until the tree has ended.
//!
//! Its descriptors are shared with the guardian (`CLONE_FILES`): what it closes, the guardian has closed. CMD is started
//! before any of that, so CMD inherits what vswap was given, and nothing of ours (all of it is close-on-exec).

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions};
use vswap_pager::{Config, Identity, Session, Summary, serve};
use vswap_sys::process::signals::SignalSet;
use vswap_sys::process::{self, SpawnError, Step};
use vswap_sys::seccomp::Gate;
use vswap_sys::socket::{self, Listener};
use vswap_sys::{front_support, trace};

use crate::guardian;
use crate::launch::Program;
use crate::nested;
use crate::permission::Means;
use crate::report::{Message, Sender};
use crate::rundir::RunDir;
use crate::trace::Trace;

/// The stacks of the two threads that only wait.
const SMALL_STACK: usize = 128 << 10;
/// Between two looks at CMD while it stands still for a tracer of ours.
const TRACED_PAUSE: Duration = Duration::from_millis(2);

/// Everything that the pager's process is given.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) config: Config,
    pub(crate) program: Program,
    /// What is to be written of the pager's doings.
    pub(crate) trace: Option<Trace>,
    /// CMD as the user wrote it, for `vswap status`.
    pub(crate) command: Vec<String>,
    pub(crate) means: Means,
    pub(crate) run_dir: RunDir,
    pub(crate) secret: [u8; 16],
    pub(crate) cookie: u64,
    /// The front's process id.
    pub(crate) front: u32,
    /// The signal mask that CMD gets.
    pub(crate) mask: SignalSet,
    /// Signals that vswap treats otherwise than it was told; whether CMD ignores them.
    pub(crate) dispositions: Vec<(i32, bool)>,
}

/// The pager's whole life. `listeners`, the agents' and the control socket's, are taken, never dropped by the guardian, who
/// shares their descriptors.
pub(crate) fn main(
    start: &Start,
    (listener, control): (Listener, Listener),
    front: &Arc<Sender>,
    guardian_pid: u32,
) -> i32 {
    let told = |message| {
        front.send(&message);
        guardian::TOLD
    };
    let not_started = |error: io::Error| {
        told(Message::NotStarted { code: 125, text: format!("cannot set the pager up: {error}") })
    };
    if let Err(error) = process::set_child_subreaper() {
        return not_started(error);
    }
    let started = match start_command(start) {
        Ok(started) => started,
        Err((code, text)) => return told(Message::NotStarted { code, text }),
    };
    let null = match let_go(start, [&listener, &control], front, started.gate.as_ref()) {
        Ok(null) => null,
        Err(error) => {
            let _ = process::kill(started.pid, libc::SIGKILL);
            return not_started(error);
        }
    };
    front.send(&Message::Started { pid: started.pid, warnings: started.warnings });
    let ended = Arc::new(AtomicBool::new(false));
    if let Err(error) = watch(start.front, started.pid, front, &ended) {
        return told(Message::Fatal { text: format!("cannot start a thread: {error}") });
    }

    let session = Session {
        listener,
        gate: started.gate,
        fork_events: start.means.fork_events,
        secret: start.secret,
        control,
        identity: Identity {
            command: start.command.clone(),
            root: started.pid,
            front: start.front,
            guardian: guardian_pid,
        },
        enter_root: start.program.without_loader,
        agent: start.run_dir.agent(),
    };
    let mut root_ended = |status: i32, summary: &Summary| {
        ended.store(true, Ordering::Release);
        // `vswap run CMD 2>&1 | cat` ends with CMD, whatever daemons it leaves to us.
        let _ = rustix::stdio::dup2_stderr(&null);
        let summary = Box::new(summary.clone());
        front.send(&Message::Ended { status, summary, others: living_descendants() });
    };
    let served = serve(start.config.clone(), session, &mut root_ended);
    // The guardian's work; but somebody may have killed it.
    start.run_dir.remove();
    match served {
        Ok(summary) => told(Message::Done { summary: Box::new(summary) }),
        Err(fatal) => told(Message::Fatal { text: fatal.to_string() }),
    }
}

struct Started {
    pid: u32,
    gate: Option<Gate>,
    warnings: Vec<String>,
}

/// Starts CMD, behind the mremap gate if the kernel lets us. An error is an exit status and a text.
fn start_command(start: &Start) -> Result<Started, (u8, String)> {
    let internal =
        |error: io::Error| (125, format!("cannot start {}: {error}", start.program.file.display()));
    let program = process::Program {
        path: c_string(start.program.file.clone().into_os_string()),
        argv: start.program.args.iter().cloned().map(c_string).collect(),
        envp: environment(&start.run_dir).into_iter().map(c_string).collect(),
    };
    let (soft, hard) = process::raise_open_files_limit().map_err(internal)?;
    let mut steps = vec![Step::SignalMask(&start.mask), Step::OpenFiles(soft, hard)];
    steps.extend(start.dispositions.iter().map(|&(signal, ignored)| {
        if ignored { Step::IgnoreSignal(signal) } else { Step::DefaultSignal(signal) }
    }));
    let (ours, theirs) = socket::socketpair().map_err(internal)?;
    let plain = steps.clone();
    if start.means.no_new_privs {
        steps.push(Step::NoNewPrivs);
    }
    let gate_step = steps.len();
    let stop_forks = !start.means.fork_events;
    steps.push(Step::Gate { cookie: start.cookie, stop_forks, socket: theirs.as_fd() });
    let mut warnings = Vec::new();
    let spawned = match process::spawn(&program, &steps) {
        Err(SpawnError::Step(step, errno)) if step == gate_step && stop_forks => {
            let why = why_no_gate(errno);
            return Err((125, format!("no permission to follow forks, and no gate to stop them at ({why})")));
        }
        Err(SpawnError::Step(step, errno)) if step == gate_step => {
            warnings.push(no_gate(errno));
            process::spawn(&program, &plain).map(|pid| (pid, None))
        }
        spawned => spawned.and_then(|pid| {
            let (_, fds) = ours.recv(&mut [0; 8]).map_err(SpawnError::Fork)?;
            Ok((pid, fds.into_iter().next().map(Gate::from)))
        }),
    };
    match spawned {
        Ok((pid, gate)) => Ok(Started { pid, gate, warnings }),
        Err(SpawnError::Exec(errno)) => {
            let code = if errno == libc::ENOENT { 127 } else { 126 };
            let error = io::Error::from_raw_os_error(errno);
            Err((code, format!("{}: {error}", start.program.file.display())))
        }
        Err(error) => Err((125, error.to_string())),
    }
}

fn why_no_gate(errno: i32) -> String {
    match errno {
        libc::EACCES | libc::EPERM => "needs CAP_SYS_ADMIN".into(),
        libc::EBUSY => "the container runtime's seccomp filter has a listener already".into(),
        _ => io::Error::from_raw_os_error(errno).to_string(),
    }
}

/// What it means that the gate could not be installed.
fn no_gate(errno: i32) -> String {
    let why = why_no_gate(errno);
    format!(
        "mremap is not serialised ({why}): if two threads move memory over each other within microseconds, vswap \
         stops the program instead of guessing"
    )
}

/// CMD's environment: ours, with the agent first in `LD_PRELOAD`.
fn environment(run_dir: &RunDir) -> Vec<OsString> {
    let mut all: Vec<OsString> = std::env::vars_os()
        .filter(|(name, _)| name != "LD_PRELOAD" && name != nested::VARIABLE)
        .map(|(name, value)| joined(name, value))
        .collect();
    let mut preload = run_dir.agent().into_os_string();
    if let Some(theirs) = std::env::var_os("LD_PRELOAD").filter(|theirs| !theirs.is_empty()) {
        preload.push(":");
        preload.push(theirs);
    }
    all.push(joined("LD_PRELOAD".into(), preload));
    all.push(joined(nested::VARIABLE.into(), nested::mark(run_dir.path())));
    all
}

fn joined(mut name: OsString, value: OsString) -> OsString {
    name.push("=");
    name.push(value);
    name
}

/// Arguments, paths and variables come from the kernel, as C strings.
fn c_string(text: OsString) -> CString {
    let mut bytes = text.into_vec();
    bytes.truncate(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
    CString::new(bytes).expect("no NUL is left")
}

/// Keeps, for this process and the guardian, standard error and what is ours; returns /dev/null.
fn let_go(
    start: &Start,
    listeners: [&Listener; 2],
    front: &Sender,
    gate: Option<&Gate>,
) -> io::Result<OwnedFd> {
    let null: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    let mut keep = vec![null.as_fd(), front.as_fd(), start.run_dir.as_fd()];
    keep.extend(listeners.map(AsFd::as_fd));
    keep.extend(start.trace.as_ref().and_then(Trace::descriptor));
    keep.extend(gate.map(AsFd::as_fd));
    front_support::close_all_but(&keep)?;
    // See the guardian: no signal for the user's job may hit us. CMD stays in the job, it has been started already.
    rustix::process::setsid()?;
    let _ = rustix::thread::set_name(c"vswap-pager");
    std::env::set_current_dir("/")?;
    guardian::spare_from_oom();
    start.trace.as_ref().map_or(Ok(()), Trace::begin)?;
    Ok(null)
}

/// Starts the two threads that watch over CMD's stops and over the front.
fn watch(front_pid: u32, root: u32, front: &Arc<Sender>, ended: &Arc<AtomicBool>) -> io::Result<()> {
    let root_pid = root;
    let root = i32::try_from(root).ok().and_then(rustix::process::Pid::from_raw);
    let root = root.ok_or(io::ErrorKind::InvalidInput)?;
    let handle = rustix::process::pidfd_open(root, PidfdFlags::empty())?;

    let front_gone = Arc::new(AtomicBool::new(false));
    let (sender, ended, gone) = (Arc::clone(front), Arc::clone(ended), Arc::clone(&front_gone));
    thread::Builder::new().name("front-watch".into()).stack_size(SMALL_STACK).spawn(move || {
        sender.wait_for_end();
        gone.store(true, Ordering::Release);
        if !ended.load(Ordering::Acquire) {
            // Whoever kills vswap means CMD; this is the one signal that the front cannot pass on itself.
            let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
        }
    })?;

    let sender = Arc::clone(front);
    thread::Builder::new().name("stop-watch".into()).stack_size(SMALL_STACK).spawn(move || {
        let wanted = WaitIdOptions::STOPPED | WaitIdOptions::CONTINUED;
        // It fails when CMD has ended.
        loop {
            // Looks before it takes: the stop may be one for which another thread traces CMD.
            match rustix::process::waitid(WaitId::Pid(root), wanted | WaitIdOptions::NOWAIT) {
                Ok(Some(status)) if status.trapped() => {
                    thread::sleep(TRACED_PAUSE);
                    continue;
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            let taken = trace::unless_traced(root_pid, || {
                rustix::process::waitid(WaitId::Pid(root), wanted | WaitIdOptions::NOHANG)
            });
            match taken {
                Some(Ok(Some(status))) => match status.stopping_signal() {
                    Some(signal) => sender.send(&Message::Stopped { signal }),
                    // Stopped as CMD was, the front can only be continued from outside.
                    None if !front_gone.load(Ordering::Acquire) => {
                        let _ = process::kill(front_pid, libc::SIGCONT);
                    }
                    None => {}
                },
                Some(_) => {}
                None => thread::sleep(TRACED_PAUSE),
            }
        }
    })?;
    Ok(())
}

/// Processes of the tree that have not ended.
fn living_descendants() -> u64 {
    let tree = process::descendants_of(std::process::id()).unwrap_or_default();
    tree.into_iter().filter(|&pid| process::status(pid).is_ok_and(|status| !status.has_ended())).count()
        as u64
}
