//! `vswap run`: checks everything that can be checked before CMD starts, sets the processes up, and reports at the end.
//!
//! ```text
//! front ──► guardian ──► pager ──► CMD ──► its children
//! (waits)   (no threads; (serves    (same session, group and terminal as the front)
//!            survives)    faults)
//! ```

use std::ffi::OsString;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use vswap_pager::{Config, Limit};
use vswap_sys::process::signals::{self, SignalFd};
use vswap_sys::socket::Listener;
use vswap_sys::{front_support, process, system};

use crate::cli::{self, RunOptions};
use crate::front::{self, Outcome};
use crate::launch::{self, Program};
use crate::pager_process::{self, Start};
use crate::permission::Means;
use crate::report::{self, Message};
use crate::rundir::{self, RunDir};
use crate::size::{Memory, human};
use crate::summary::{self, Ending, JsonTarget};
use crate::trace::Trace;
use crate::{agent_image, guardian, nested, permission, spill, terminal};

/// vswap's own failure.
pub(crate) const OWN_FAILURE: u8 = 125;
/// Less than this holds no program and no pager.
const MEMORY_MIN: u64 = 16 << 20;

/// A failure: an exit status and a text.
type Failure = (u8, String);

fn own(text: impl ToString) -> Failure {
    (OWN_FAILURE, text.to_string())
}

/// Runs it and returns vswap's exit status.
pub(crate) fn run(run: &cli::Run) -> u8 {
    let json = match run.options.json.as_deref().map(JsonTarget::new).transpose() {
        Ok(json) => json,
        Err(error) => {
            let path = run.options.json.as_deref().unwrap_or("".as_ref()).display();
            complain(&format!("--json {path}: {error}"));
            return OWN_FAILURE;
        }
    };
    let result = attempt(run);
    let (ending, summary) = match &result {
        Ok(outcome) => (&outcome.ending, outcome.summary.as_deref()),
        Err(failure) => (&Err(failure.clone()), None),
    };
    if let Err((_, text)) = ending {
        complain(text);
    }
    if let (Ok(ending), Ok(outcome), false) = (ending, &result, run.options.quiet) {
        conclude(&run.command, *ending, outcome);
    }
    let code = ending.as_ref().map_or_else(|(code, _)| *code, |ending| ending.exit_code());
    if let Some(json) = json {
        let ending = ending.as_ref().copied().map_err(|(code, text)| (*code, text.as_str()));
        if let Err(error) = json.write(&summary::json(&run.command, ending, summary)) {
            complain(&format!("cannot write the figures to --json: {error}"));
        }
    }
    code
}

/// The summary, and who goes on without us.
fn conclude(command: &[OsString], ending: Ending, outcome: &Outcome) {
    let style = terminal::style(&io::stderr());
    if let Some(summary) = &outcome.summary {
        let text = summary::text(command, ending, summary, (style.bold, style.plain));
        let _ = io::stderr().write_all(text.as_bytes());
    }
    if outcome.others > 0 {
        complain(&match outcome.others {
            1 => "1 process of the tree still runs; the pager stays with it".into(),
            others => format!("{others} processes of the tree still run; the pager stays with them"),
        });
    }
}

/// One message on standard error. It may be closed; then there is nobody to tell.
pub(crate) fn complain(text: &str) {
    let style = terminal::style(&io::stderr());
    let _ = writeln!(io::stderr(), "{}vswap:{} {text}", style.bold, style.plain);
}

fn attempt(run: &cli::Run) -> Result<Outcome, Failure> {
    let options = &run.options;
    let program = launch::resolve(&run.command, std::env::var_os("PATH").as_deref())
        .map_err(|error| (error.exit_code(), error.to_string()))?;
    if let Some(pager) = nested::outer_pager(std::env::var_os(nested::VARIABLE).as_deref()) {
        return Err(join_outer(&program, pager, options));
    }
    if let Some(why) = &program.unpaged {
        if !options.allow_unpaged {
            return Err(own(format!(
                "{why}; so its memory would not be limited. --allow-unpaged runs it nevertheless (its children may \
                 be paged)"
            )));
        }
        remark(options, &format!("running unpaged: {why}"));
    }
    let means = permission::probe(options.allow_new_privs).map_err(|refusal| {
        let remedy = refusal.remedy().replace('\n', "\n  ");
        own(format!("{refusal}\nIt takes {remedy}\nNothing was started; `vswap doctor` has the details."))
    })?;
    let (config, mut warnings) = configure(options)?;
    for warning in &warnings {
        remark(options, warning);
    }
    let mut outcome = start(run, program, config, means)?;
    warnings.append(&mut outcome.warnings);
    if let Some(summary) = &mut outcome.summary {
        summary.warnings.splice(0..0, warnings);
    }
    Ok(outcome)
}

fn remark(options: &RunOptions, text: &str) {
    if !options.quiet {
        complain(text);
    }
}

/// Executes CMD in our place; returns only if that fails.
fn join_outer(program: &Program, pager: u32, options: &RunOptions) -> Failure {
    remark(options, &format!("already inside of a vswap run (pager {pager}): joining it, under its limit"));
    let mut command = Command::new(&program.file);
    command.arg0(&program.args[0]).args(&program.args[1..]);
    let error = command.exec();
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    (code, format!("{}: {error}", program.file.display()))
}

/// Sizes and places, and what the user should know of them.
fn configure(options: &RunOptions) -> Result<(Config, Vec<String>), Failure> {
    let machine = system::mem_total().map_err(|error| own(format!("/proc/meminfo: {error}")))?;
    let limit = match options.memory {
        Memory::Auto => {
            let auto = vswap_pager::auto_limit();
            remark(options, &format!("memory limit {} (auto: {})", human(auto.bytes), auto.why));
            Limit::Auto
        }
        Memory::Fixed(size) => {
            let bytes = size.bytes(machine);
            if bytes < MEMORY_MIN {
                // Most likely someone who thinks in megabytes.
                let hint = if bytes < 1 << 20 { format!("; did you mean {bytes}M?") } else { String::new() };
                return Err(own(format!(
                    "--memory {}: too little, it takes at least {}{hint}",
                    human(bytes),
                    human(MEMORY_MIN)
                )));
            }
            Limit::Bytes(bytes)
        }
    };
    let decision = spill::decide(options, machine).map_err(own)?;
    let pool_max = options.pool_max.map(|size| size.bytes(machine));
    let config = Config {
        limit,
        pool_max,
        spill: decision.spill,
        wide_check: options.wide_check,
        max_stall: options.max_stall,
        proactive: options.proactive,
        allow_unpaged: options.allow_unpaged,
        quiet: options.quiet,
    };
    Ok((config, decision.warning.into_iter().collect()))
}

/// Starts the guardian, the pager and CMD, and waits.
fn start(run: &cli::Run, program: Program, config: Config, means: Means) -> Result<Outcome, Failure> {
    let io = |what: &'static str| move |error: io::Error| own(format!("{what}: {error}"));
    // Before anything could die: a parent that ignores SIGCHLD has left us unable to wait for children.
    let dispositions = vec![
        (libc::SIGCHLD, signals::is_ignored(libc::SIGCHLD)),
        (libc::SIGPIPE, front_support::sigpipe_was_ignored()),
    ];
    signals::reset(libc::SIGCHLD).map_err(io("SIGCHLD"))?;

    let trace = Trace::new().map_err(own)?;
    let secret: [u8; 16] = rundir::random().map_err(io("/dev/urandom"))?;
    let cookie = u64::from_ne_bytes(rundir::random().map_err(io("/dev/urandom"))?);
    let run_dir = RunDir::create(&|socket| {
        agent_image::image(socket, secret, cookie, !means.fork_events)
            .map_err(|error| io::Error::other(error.to_string()))
    })
    .map_err(own)?;
    let mask = signals::block_all();
    let path = run_dir.path().to_owned();
    let prepared = (|| {
        // Processes of the tree may change their user; the secret in the agent keeps strangers out.
        let listener = Listener::bind(&run_dir.socket(), 0o666)?;
        let control = Listener::bind(&run_dir.control(), 0o600)?;
        let all: Vec<i32> = (1..=64).collect();
        Ok(((listener, control), SignalFd::new(&all)?, report::channel()?))
    })();
    let (listeners, signal_fd, (sender, receiver)) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            run_dir.remove();
            return Err(io("cannot set up")(error));
        }
    };
    let start = Start {
        config,
        program,
        trace,
        command: run.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        means,
        run_dir,
        secret,
        cookie,
        front: std::process::id(),
        mask,
        dispositions,
    };
    // What moves into the closure leaves this process with it: only the guardian and the pager keep it open.
    let forked = process::fork_with(move || {
        let front = Arc::new(sender);
        let own_pid = std::process::id();
        // The guardian's copy: to drop it would close what the pager has closed itself.
        let mut listeners = ManuallyDrop::new(Some(listeners));
        let forked = process::set_child_subreaper().and_then(|()| {
            process::fork_sharing_files(|| {
                let listeners = listeners.take().expect("taken once, in the pager's copy of this memory");
                pager_process::main(&start, listeners, &front, own_pid)
            })
        });
        match forked {
            Ok(pager) => guardian::guard(pager, &start.run_dir, &front),
            Err(error) => {
                let text = format!("cannot start the pager: {error}");
                front.send(&Message::NotStarted { code: OWN_FAILURE, text });
                start.run_dir.remove();
                0
            }
        }
    });
    let guardian = forked.map_err(|error| {
        let _ = std::fs::remove_dir_all(path);
        io("cannot start the guardian")(error)
    })?;
    front::wait(guardian, receiver, &signal_fd, &mut |warnings| {
        for warning in warnings {
            remark(&run.options, warning);
        }
    })
    .map_err(io("cannot wait for the program"))
}
