//! Which file CMD is, and whether vswap can page it: the search in PATH, scripts and their interpreters, ELF headers.
//!
//! The agent enters by `LD_PRELOAD`, or by ptrace where there is no dynamic loader that would heed it. The answer is "no"
//! for programs of another machine and for those that run with more privileges than their user (set-user-id, file
//! capabilities). Better said before the start than found out in a limit that does not hold.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vswap_pager::Executable;

/// Interpreters of interpreters that the kernel follows.
const SCRIPT_DEPTH: usize = 5;
/// Where programs are when there is no PATH: glibc's `execvp`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// What to execute, and what of it can be paged.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Program {
    /// The file to execute.
    pub(crate) file: PathBuf,
    /// Its arguments, `argv[0]` as the user wrote it first.
    pub(crate) args: Vec<OsString>,
    /// Why vswap cannot page it, if it cannot.
    pub(crate) unpaged: Option<Unpageable>,
    /// It has no dynamic loader: the agent enters by ptrace.
    pub(crate) without_loader: bool,
}

/// Why a program cannot be paged.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Unpageable {
    /// It is not for x86-64.
    Foreign(PathBuf),
    /// It runs with more privileges than its user: the loader ignores `LD_PRELOAD` for it.
    Secure {
        /// The program.
        file: PathBuf,
        /// What makes it so.
        what: &'static str,
    },
}

impl fmt::Display for Unpageable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(file) => write!(f, "{} is not an x86-64 program", file.display()),
            Self::Secure { file, what } => {
                write!(f, "{} is {what}, and such a program lets nobody in", file.display())
            }
        }
    }
}

/// Why a program cannot be started.
#[derive(Debug)]
pub(crate) enum LaunchError {
    /// No such program.
    NotFound {
        /// As the user wrote it.
        name: OsString,
        /// It was searched for in PATH.
        searched: bool,
    },
    /// An interpreter or loader that it names is missing.
    Interpreter {
        /// The program.
        file: PathBuf,
        /// What it names.
        interpreter: PathBuf,
    },
    /// There, but not to be executed.
    NotExecutable {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl LaunchError {
    /// The exit status that `env`, `nohup`, `timeout` and shells give for it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } | Self::Interpreter { .. } => 127,
            Self::NotExecutable { .. } => 126,
        }
    }
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { name, searched: true } => {
                write!(f, "{}: not found in PATH; check the spelling, or give its path", name.display())
            }
            Self::NotFound { name, searched: false } => write!(f, "{}: no such file", name.display()),
            Self::Interpreter { file, interpreter } => {
                write!(f, "{}: needs {}, which does not exist", file.display(), interpreter.display())
            }
            Self::NotExecutable { file, error } => match error.kind() {
                ErrorKind::PermissionDenied => {
                    write!(f, "{}: not executable (chmod +x it, or name its interpreter)", file.display())
                }
                ErrorKind::IsADirectory => write!(f, "{}: is a directory", file.display()),
                _ => write!(f, "{}: {error}", file.display()),
            },
        }
    }
}

impl std::error::Error for LaunchError {}

/// Finds the program that `command` names and looks at what it is.
///
/// # Errors
///
/// If it cannot be started; see [`LaunchError::exit_code`].
///
/// # Panics
///
/// If `command` is empty.
pub(crate) fn resolve(command: &[OsString], path: Option<&OsStr>) -> Result<Program, LaunchError> {
    let file = find(&command[0], path)?;
    let mut args = command.to_vec();
    let denied = |error| LaunchError::NotExecutable { file: file.clone(), error };
    let found = match identify(&file, SCRIPT_DEPTH)? {
        Kind::Program(found) => found,
        Kind::Text => {
            // What execvp does with ENOEXEC: an old script without a first line is the shell's.
            let shell = PathBuf::from("/bin/sh");
            args[0] = file.into_os_string();
            args.insert(0, shell.clone().into_os_string());
            let found = match identify(&shell, SCRIPT_DEPTH)? {
                Kind::Program(found) => found,
                Kind::Text | Kind::Empty => Found::default(),
            };
            return Ok(Program {
                file: shell,
                args,
                unpaged: found.unpaged,
                without_loader: found.without_loader,
            });
        }
        Kind::Empty => return Err(denied(io::Error::from_raw_os_error(libc::ENOEXEC))),
    };
    Ok(Program { file, args, unpaged: found.unpaged, without_loader: found.without_loader })
}

/// The file that `execvp` would run.
fn find(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, LaunchError> {
    if name.is_empty() {
        return Err(LaunchError::NotFound { name: name.into(), searched: false });
    }
    if name.as_bytes().contains(&b'/') {
        let file = PathBuf::from(name);
        return match executable(&file) {
            Ok(()) => Ok(file),
            Err(error) if missing(&error) => {
                Err(LaunchError::NotFound { name: name.into(), searched: false })
            }
            Err(error) => Err(LaunchError::NotExecutable { file, error }),
        };
    }
    let mut denied = None;
    for dir in path.unwrap_or(OsStr::new(DEFAULT_PATH)).as_bytes().split(|&byte| byte == b':') {
        // An empty entry means the current directory.
        let dir = if dir.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(dir) };
        let file = Path::new(dir).join(name);
        match executable(&file) {
            Ok(()) => return Ok(file),
            Err(error) if missing(&error) => {}
            // As execvp: remember it, and look further.
            Err(error) => {
                denied.get_or_insert(LaunchError::NotExecutable { file, error });
            }
        }
    }
    Err(denied.unwrap_or(LaunchError::NotFound { name: name.into(), searched: true }))
}

fn missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn executable(file: &Path) -> io::Result<()> {
    let meta = fs::metadata(file)?;
    if meta.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !meta.is_file() {
        return Err(ErrorKind::PermissionDenied.into());
    }
    // The effective ids decide, not the real ones: that is what exec does.
    rustix::fs::accessat(rustix::fs::CWD, file, rustix::fs::Access::EXEC_OK, rustix::fs::AtFlags::EACCESS)?;
    Ok(())
}

/// What the kernel would take a file for.
#[derive(Debug)]
enum Kind {
    /// A program, or a script and what holds for its interpreter.
    Program(Found),
    /// Something else: for the shell to read.
    Text,
    Empty,
}

/// What holds for a program.
#[derive(Debug, Default)]
struct Found {
    unpaged: Option<Unpageable>,
    without_loader: bool,
}

fn identify(file: &Path, depth: usize) -> Result<Kind, LaunchError> {
    let failed = |error| LaunchError::NotExecutable { file: file.into(), error };
    let program = |without_loader| Kind::Program(Found { unpaged: secure(file), without_loader });
    let open = match File::open(file) {
        Ok(open) => open,
        // Executable but not readable: such programs exist, and are dynamic as a rule.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(program(false)),
        Err(error) => return Err(failed(error)),
    };
    Ok(match Executable::of(&open).map_err(failed)? {
        Executable::Dynamic(loader) if !loader.exists() => {
            return Err(LaunchError::Interpreter { file: file.into(), interpreter: loader });
        }
        Executable::Dynamic(_) | Executable::Loader => program(false),
        Executable::Static => program(true),
        Executable::Foreign => {
            Kind::Program(Found { unpaged: Some(Unpageable::Foreign(file.into())), without_loader: false })
        }
        Executable::Script(interpreter) => {
            if depth == 0 {
                return Err(failed(io::Error::from_raw_os_error(libc::ELOOP)));
            }
            if let Err(error) = executable(&interpreter) {
                return Err(if missing(&error) {
                    LaunchError::Interpreter { file: file.into(), interpreter }
                } else {
                    LaunchError::NotExecutable { file: interpreter, error }
                });
            }
            match identify(&interpreter, depth - 1)? {
                // The kernel answers ENOEXEC, and execvp reads the script with the shell.
                Kind::Text | Kind::Empty => Kind::Text,
                program => program,
            }
        }
        Executable::Text => Kind::Text,
        Executable::Empty => Kind::Empty,
    })
}

/// Whether the loader would run it in secure mode (`AT_SECURE`), where it ignores our library.
fn secure(file: &Path) -> Option<Unpageable> {
    // Without privileges to gain the bits mean nothing.
    if rustix::thread::no_new_privs().unwrap_or(false) {
        return None;
    }
    let meta = fs::metadata(file).ok()?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mode = meta.mode();
    let what = if mode & libc::S_ISUID != 0 && meta.uid() != uid {
        "set-user-id"
    } else if mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP && meta.gid() != gid {
        "set-group-id"
    } else if uid != 0 && rustix::fs::getxattr(file, "security.capability", &mut [0_u8; 64]).is_ok() {
        "given capabilities (setcap)"
    } else {
        return None;
    };
    Some(Unpageable::Secure { file: file.into(), what })
}

#[cfg(test)]
mod tests;
