//! The command line: what a person may say, and the texts that teach it.
//!
//! Options of `run` come from three places; the later wins: `VSWAP_MEMORY`, `VSWAP_ARGS`, the command line. There is no
//! configuration file.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::size::{Memory, Size};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold());

// Lines below 80 columns: they are not wrapped again on a narrow terminal, nor in the manual.
const AFTER_HELP: &str = "\
Examples:
  vswap run -- python3 job.py            in the memory that is there
  vswap run -m 60% -- python3 job.py     in 60 % of the machine's memory
  vswap run -m 2G --json run.json make   in 2 GiB, with the figures in a file
  vswap status                           where time and memory go meanwhile
  vswap doctor                           what works here; how to allow the rest

`vswap help run` has the rest.";

const RUN_AFTER_HELP: &str = "\
Examples:
  vswap run -- redis-server              as a container's entry point: that is all
  vswap run -m 512M sort -S 1G big.txt
  vswap run -m 60% --swap-dir /mnt/nvme -- python3 job.py
  VSWAP_ARGS='--quiet --no-spill' vswap run ./a.out

Sizes:
  A number and K, M, G or T (also KiB, MiB, ...; powers of 1024), a bare
  number of bytes, or a share of the machine's memory such as 60%.

Exit status:
  CMD's own
  128+n  signal n ended CMD
  127    CMD was not found
  126    CMD cannot be executed
  125    vswap itself failed; standard error says why

Environment:
  VSWAP_MEMORY   --memory, if it is given nowhere else
  VSWAP_ARGS     more options, split as a shell does; the command line wins
  VSWAP_LOG      what the pager does, on standard error or in VSWAP_LOG_FILE:
                 info, debug or trace, or TARGET=LEVEL,..., such as window=trace
  NO_COLOR       no colours
  TMPDIR, XDG_CACHE_HOME    where the spill file may go
  CMD gets VSWAP_SESSION, and our library before yours in LD_PRELOAD.

Signals:
  What is sent to vswap is passed on to CMD, what the terminal sends reaches
  CMD by itself. SIGKILL to vswap kills CMD. If vswap's pager dies, every
  process of the tree is killed.

Nesting:
  Inside of another `vswap run` CMD joins the outer one, and vswap says so.";

const STATUS_AFTER_HELP: &str = "\
Examples:
  vswap status                           the run, or a line for each
  vswap status 4711                      the run that process 4711 is in
  vswap status --json | jq '.runs[0].memory'
  watch -n1 vswap status

Inside of a run it shows that run. The words are those of the summary at the
end of a run; \"cached\" pages have left the program and are not yet compressed.

Exit status:
  0  something was shown
  1  nothing runs that you may ask; standard error says why";

const RECLAIM_AFTER_HELP: &str = "\
Examples:
  vswap reclaim 500M                     from the only run there is
  vswap reclaim 2G --pid 4711            from the run that process 4711 is in

The pages that were not used for longest leave first; they come back when they
are touched. What left takes some memory, compressed, so the total falls by
less: both are printed. ctrl-C stops it.

Exit status:
  0  all of SIZE was evicted
  1  less was, or nothing runs that you may ask; the output says why";

/// The whole command line.
#[derive(Parser, Debug)]
#[command(
    name = "vswap",
    version,
    about = "Run an unmodified program in less memory than it needs",
    long_about = "Virtual swap space in user space: runs an unmodified program and its children in less memory than \
                  they need, by keeping cold pages compressed in memory and, below that, in a file.",
    after_help = AFTER_HELP,
    styles = STYLES,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a program and its children within a memory limit
    #[command(
        override_usage = "vswap run [OPTIONS] [--] CMD [ARGS]...",
        after_help = RUN_AFTER_HELP,
        args_override_self = true
    )]
    Run(Run),
    /// Show where the memory and the time of a running program go
    #[command(after_help = STATUS_AFTER_HELP)]
    Status(Status),
    /// Have a running program give memory back now, whatever its limit
    #[command(after_help = RECLAIM_AFTER_HELP)]
    Reclaim(Reclaim),
    /// Check what this machine allows, and say how to allow the rest
    #[command(after_help = "\
Exit status:
  0 if `vswap run` works here (even if something is degraded)
  1 if something that it needs is missing")]
    Doctor(Doctor),
    /// Print the completions of a shell, to be saved where that shell looks for them
    #[command(after_help = "\
Examples:
  vswap completions bash > ~/.local/share/bash-completion/completions/vswap
  vswap completions zsh > \"${fpath[1]}/_vswap\"
  vswap completions fish > ~/.config/fish/completions/vswap.fish")]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page, in roff
    #[command(after_help = "\
Example:
  vswap man | man -l -")]
    Man,
}

/// `vswap run`.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// How to run it.
    #[command(flatten)]
    pub(crate) options: RunOptions,

    /// The program and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true, value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// The options of `vswap run`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunOptions {
    /// Bound on all anonymous memory of CMD, its children and vswap together: SIZE, or auto
    ///
    /// `auto`, the default, follows the limit of the control group that vswap runs in, or else what the machine has
    /// available, and reads it again each second. Page cache, shared memory and kernel memory are not bounded.
    #[arg(short, long, value_name = "SIZE", default_value = "auto")]
    pub(crate) memory: Memory,

    /// At most SIZE of that for compressed pages [default: three quarters of the limit]
    #[arg(long, value_name = "SIZE")]
    pub(crate) pool_max: Option<Size>,

    /// Check compressed pages with 44 bits instead of 12: 4 bytes a page more, for machines whose memory is not to be trusted
    ///
    /// A page that comes back is checked, and damage ends the program instead of reaching it. With 12 bits one damage in 4096
    /// goes unseen. (Pages in the spill file have 24 bits in any case.)
    #[arg(long)]
    pub(crate) wide_check: bool,

    /// End CMD when for more than this share of the last ten seconds one of its threads has waited for pages
    ///
    /// For jobs that should rather fail than crawl: what needs more memory than it gets can take many times as long. The
    /// share is that of `vswap status`, and what Linux calls `some` memory pressure. [default: never]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..100))]
    pub(crate) max_stall: Option<u8>,

    /// Evict what is cold below the limit, too, as long as CMD hardly notices
    ///
    /// For hosts that others share: memory that CMD does not use is compressed, or spilled, within minutes. A little is tried each
    /// second, and less if CMD then waits for it: its threads wait for pages in less than 0.1 % of the time, until it turns to
    /// what it has not used for long.
    #[arg(long)]
    pub(crate) proactive: bool,

    /// Directory for the spill file, on a file system that is not in memory
    ///
    /// The file has no name, grows as it is needed and is gone when vswap ends. [default: the first of $TMPDIR,
    /// /var/tmp, $XDG_CACHE_HOME that is writable and on a disk]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, overrides_with = "no_spill")]
    pub(crate) swap_dir: Option<PathBuf>,

    /// No spill file: what the pool cannot take stays resident, over the limit, and the summary says so
    #[arg(long, overrides_with_all = ["swap_dir", "swap_max"])]
    pub(crate) no_spill: bool,

    /// At most SIZE for the spill file [default: half of the free space there]
    #[arg(long, value_name = "SIZE", overrides_with = "no_spill")]
    pub(crate) swap_max: Option<Size>,

    /// Write the figures of the run to FILE as JSON ("-": standard output, after all that CMD wrote)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) json: Option<PathBuf>,

    /// No summary and no remarks; errors only
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Run CMD even if vswap cannot page it (a 32-bit or set-user-id program); its children may still be paged
    #[arg(long)]
    pub(crate) allow_unpaged: bool,

    /// Let CMD and its children gain privileges (sudo and other set-user-id programs), where that costs vswap its gate
    ///
    /// Without CAP_SYS_ADMIN a seccomp filter is only for those who renounce such gains (no_new_privs), so by default CMD does.
    /// Refused where vswap may not follow forks either. `vswap doctor` says what holds here.
    #[arg(long)]
    pub(crate) allow_new_privs: bool,
}

/// `vswap status`.
#[derive(Args, Debug)]
pub(crate) struct Status {
    /// Any process of the run: CMD, a child of it, or vswap's own [default: all runs of this user]
    pub(crate) pid: Option<u32>,

    /// For machines: one JSON object, with every run and every process
    #[arg(long)]
    pub(crate) json: bool,
}

/// `vswap reclaim`.
#[derive(Args, Debug)]
pub(crate) struct Reclaim {
    /// How much: a number and K, M, G or T, or a share of the machine's memory such as 10%
    pub(crate) size: Size,

    /// Any process of the run [default: the only run of this user]
    #[arg(long)]
    pub(crate) pid: Option<u32>,
}

/// `vswap doctor`.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// For machines: one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    /// Print the commands that let ordinary users run vswap: a udev rule for the device, a capability for this file
    #[arg(long, conflicts_with = "json")]
    pub(crate) fix: bool,

    /// Execute them, as root
    #[arg(long, requires = "fix")]
    pub(crate) apply: bool,
}

/// Only the options of `run`, as `VSWAP_ARGS` may hold them.
#[derive(Parser, Debug)]
#[command(name = "VSWAP_ARGS", no_binary_name = true, disable_help_flag = true, args_override_self = true)]
struct OptionsOnly {
    #[command(flatten)]
    _options: RunOptions,
}

/// What the environment adds to the command line.
#[derive(Clone, Default, Debug)]
pub(crate) struct Environment {
    /// `VSWAP_MEMORY`.
    pub(crate) memory: Option<OsString>,
    /// `VSWAP_ARGS`.
    pub(crate) args: Option<OsString>,
}

impl Environment {
    /// That of this process. Empty is as good as unset: container tools like to set variables to nothing.
    pub(crate) fn new() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self { memory: var("VSWAP_MEMORY"), args: var("VSWAP_ARGS") }
    }
}

/// Parses a command line, together with what the environment adds.
///
/// # Errors
///
/// A clap error: print it with [`clap::Error::print`]; help and version are among them.
pub(crate) fn parse(mut args: Vec<OsString>, environment: &Environment) -> Result<Cli, clap::Error> {
    if args.get(1).is_some_and(|arg| arg == "run") {
        let mut words = Vec::new();
        if let Some(memory) = &environment.memory {
            if let Err(error) = memory.to_string_lossy().parse::<Memory>() {
                return Err(refuse(format!("VSWAP_MEMORY={}: {error}", memory.display())));
            }
            words.extend(["--memory".into(), memory.clone()]);
        }
        if let Some(extra) = &environment.args {
            words.extend(split(extra)?);
        }
        args.splice(2..2, words);
    }
    Cli::try_parse_from(args)
}

fn refuse(text: String) -> clap::Error {
    Cli::command().error(clap::error::ErrorKind::InvalidValue, text)
}

/// The words of `VSWAP_ARGS`, checked to be options.
fn split(extra: &OsStr) -> Result<Vec<OsString>, clap::Error> {
    let words: Vec<OsString> = {
        let mut lexer = shlex::bytes::Shlex::new(extra.as_bytes());
        let words = lexer.by_ref().map(OsString::from_vec).collect();
        if lexer.had_error {
            return Err(refuse(format!("VSWAP_ARGS: a quote is not closed: {}", extra.display())));
        }
        words
    };
    // Checked alone, so that a mistake there is not blamed on the command line, and so that it cannot name a CMD.
    OptionsOnly::try_parse_from(&words).map_err(|error| {
        let text = error.to_string();
        let text = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        refuse(format!("VSWAP_ARGS may hold options of `vswap run` only: {text}"))
    })?;
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str], extra: Option<&str>) -> Result<Run, clap::Error> {
        let args = ["vswap", "run"].iter().chain(args).map(OsString::from).collect();
        let environment = Environment { args: extra.map(OsString::from), memory: None };
        match parse(args, &environment)?.command {
            Command::Run(run) => Ok(run),
            other => panic!("not run: {other:?}"),
        }
    }

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
        OptionsOnly::command().debug_assert();
    }

    #[test]
    fn everything_after_cmd_is_its_own() {
        let parsed = run(&["-m", "1G", "sort", "-m", "--quiet", "--", "x"], None).unwrap();
        assert_eq!(parsed.command, ["sort", "-m", "--quiet", "--", "x"]);
        assert!(!parsed.options.quiet);
        let parsed = run(&["--", "-odd-name", "x"], None).unwrap();
        assert_eq!(parsed.command, ["-odd-name", "x"]);
    }

    #[test]
    fn unknown_options_are_not_commands() {
        assert!(run(&["--memroy", "1G", "true"], None).is_err());
        assert!(run(&["-m", "1G"], None).is_err());
    }

    #[test]
    fn later_options_win() {
        let gib = Memory::Fixed(Size::Bytes(1 << 30));
        assert_eq!(run(&["-m", "2G", "-m", "1G", "true"], None).unwrap().options.memory, gib);
        assert_eq!(run(&["-m", "1G", "true"], Some("--memory 4G -q")).unwrap().options.memory, gib);
        let parsed = run(&["true"], Some("--memory '1G' -q")).unwrap();
        assert_eq!(parsed.options.memory, gib);
        assert!(parsed.options.quiet);
        let parsed = run(&["--swap-dir", "/x", "true"], Some("--no-spill")).unwrap();
        assert!(!parsed.options.no_spill);
        let parsed = run(&["--no-spill", "true"], Some("--swap-dir /x --swap-max 1G")).unwrap();
        assert!(parsed.options.no_spill && parsed.options.swap_dir.is_none());
    }

    #[test]
    fn vswap_memory_is_the_weakest() {
        let memory = |value: &str, args: &[&str], extra: Option<&str>| {
            let environment = Environment { memory: Some(value.into()), args: extra.map(OsString::from) };
            let args = ["vswap", "run"].iter().chain(args).map(OsString::from).collect();
            match parse(args, &environment) {
                Ok(Cli { command: Command::Run(run) }) => Ok(run.options.memory),
                Ok(other) => panic!("not run: {other:?}"),
                Err(error) => Err(error.to_string()),
            }
        };
        let gib = |n: u64| Ok(Memory::Fixed(Size::Bytes(n << 30)));
        assert_eq!(memory("1G", &["true"], None), gib(1));
        assert_eq!(memory("1G", &["true"], Some("-m 2G")), gib(2));
        assert_eq!(memory("1G", &["-m", "3G", "true"], Some("-m 2G")), gib(3));
        assert!(memory("lots", &["true"], None).unwrap_err().contains("VSWAP_MEMORY=lots"));
    }

    #[test]
    fn vswap_args_holds_options_only() {
        for bad in ["-m 1G true", "--nonsense", "-m 'x", "-m 5MB", "--help"] {
            let text = run(&["true"], Some(bad)).unwrap_err().to_string();
            assert!(text.contains("VSWAP_ARGS"), "{bad}: {text}");
        }
        assert!(run(&["true"], Some("")).is_ok());
    }
}
