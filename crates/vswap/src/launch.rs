//! Which file CMD is, and whether vswap can page it: the search in PATH, scripts and their interpreters, ELF headers.
//!
//! The agent enters by `LD_PRELOAD`, so the answer is "no" for whatever has no dynamic loader of ours: static and 32-bit
//! programs, and those that the loader runs in secure mode (set-user-id, file capabilities). Better said before the
//! start than found out in a limit that does not hold.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Interpreters of interpreters that the kernel follows.
const SCRIPT_DEPTH: usize = 5;
/// What the kernel reads of a file to recognise it (`BINPRM_BUF_SIZE`).
const HEAD: usize = 256;
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
}

/// Why a program cannot be paged.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Unpageable {
    /// It has no dynamic loader.
    Static(PathBuf),
    /// It is not for x86-64.
    Foreign(PathBuf),
    /// The loader ignores `LD_PRELOAD` for it.
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
            Self::Static(file) => {
                write!(
                    f,
                    "{} is statically linked, and vswap enters a program through its dynamic loader",
                    file.display()
                )
            }
            Self::Foreign(file) => write!(f, "{} is not an x86-64 program", file.display()),
            Self::Secure { file, what } => {
                write!(
                    f,
                    "{} is {what}, and the dynamic loader lets nobody enter such a program",
                    file.display()
                )
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
    let kind = match identify(&file, SCRIPT_DEPTH)? {
        Kind::Elf(elf) => elf,
        Kind::Script(interpreter) => interpreter,
        Kind::Text => {
            // What execvp does with ENOEXEC: an old script without a first line is the shell's.
            let shell = PathBuf::from("/bin/sh");
            args[0] = file.clone().into_os_string();
            args.insert(0, shell.clone().into_os_string());
            return Ok(Program { unpaged: inspect_shell(&shell)?, file: shell, args });
        }
        Kind::Empty => return Err(denied(io::Error::from_raw_os_error(libc::ENOEXEC))),
    };
    Ok(Program { unpaged: kind, file, args })
}

fn inspect_shell(shell: &Path) -> Result<Option<Unpageable>, LaunchError> {
    match identify(shell, SCRIPT_DEPTH)? {
        Kind::Elf(unpaged) | Kind::Script(unpaged) => Ok(unpaged),
        Kind::Text | Kind::Empty => Ok(None),
    }
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
    Elf(Option<Unpageable>),
    /// A script; what holds for its interpreter.
    Script(Option<Unpageable>),
    /// Something else: for the shell to read.
    Text,
    Empty,
}

fn identify(file: &Path, depth: usize) -> Result<Kind, LaunchError> {
    let failed = |error| LaunchError::NotExecutable { file: file.into(), error };
    let open = match File::open(file) {
        Ok(open) => open,
        // Executable but not readable: such programs exist, and are dynamic as a rule.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(Kind::Elf(secure(file))),
        Err(error) => return Err(failed(error)),
    };
    let mut head = [0; HEAD];
    let length = read_up_to(&open, &mut head, 0).map_err(failed)?;
    let head = &head[..length];
    if head.starts_with(b"\x7fELF") {
        return elf(file, &open, head);
    }
    if let Some(interpreter) = shebang(head) {
        if depth == 0 {
            return Err(failed(io::Error::from_raw_os_error(libc::ELOOP)));
        }
        let interpreter = PathBuf::from(OsStr::from_bytes(interpreter));
        if let Err(error) = executable(&interpreter) {
            return Err(if missing(&error) {
                LaunchError::Interpreter { file: file.into(), interpreter }
            } else {
                LaunchError::NotExecutable { file: interpreter, error }
            });
        }
        return Ok(match identify(&interpreter, depth - 1)? {
            Kind::Elf(unpaged) | Kind::Script(unpaged) => Kind::Script(unpaged),
            // The kernel answers ENOEXEC, and execvp reads the script with the shell.
            Kind::Text | Kind::Empty => Kind::Text,
        });
    }
    Ok(if head.is_empty() { Kind::Empty } else { Kind::Text })
}

/// The interpreter of a script's first line, as the kernel reads it.
fn shebang(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?;
    let end = line.iter().position(|&byte| byte == b'\n').unwrap_or(line.len());
    let line = line[..end].trim_ascii();
    let end = line.iter().position(|byte| matches!(byte, b' ' | b'\t' | 0)).unwrap_or(line.len());
    Some(&line[..end]).filter(|interpreter| !interpreter.is_empty())
}

const PT_INTERP: u32 = 3;
const EM_X86_64: u16 = 62;

fn elf(file: &Path, open: &File, head: &[u8]) -> Result<Kind, LaunchError> {
    let broken = || LaunchError::NotExecutable {
        file: file.into(),
        error: io::Error::new(ErrorKind::InvalidData, "a damaged ELF file"),
    };
    // Class 64 bits, little endian, x86-64.
    if head.len() < 20
        || head[4] != 2
        || head[5] != 1
        || u16::from_le_bytes([head[18], head[19]]) != EM_X86_64
    {
        return Ok(Kind::Elf(Some(Unpageable::Foreign(file.into()))));
    }
    let header = head.get(..64).ok_or_else(broken)?;
    let offset = u64_at(header, 32);
    let size = usize::from(u16::from_le_bytes([header[54], header[55]]));
    let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
    if size != 56 {
        return Err(broken());
    }
    let mut table = vec![0; size * count];
    if read_up_to(open, &mut table, offset).map_err(|_| broken())? != table.len() {
        return Err(broken());
    }
    let Some(entry) = table.chunks_exact(size).find(|entry| u32_at(entry, 0) == PT_INTERP) else {
        return Ok(Kind::Elf(Some(Unpageable::Static(file.into()))));
    };
    let (at, length) = (u64_at(entry, 8), u64_at(entry, 32));
    // As the kernel: at most PATH_MAX, with its closing NUL.
    if !(2..=4096).contains(&length) {
        return Err(broken());
    }
    let mut loader = vec![0; length as usize];
    if read_up_to(open, &mut loader, at).map_err(|_| broken())? != loader.len() {
        return Err(broken());
    }
    loader.truncate(loader.iter().position(|&byte| byte == 0).unwrap_or(loader.len()));
    let loader = PathBuf::from(OsString::from_vec(loader));
    if !loader.exists() {
        return Err(LaunchError::Interpreter { file: file.into(), interpreter: loader });
    }
    Ok(Kind::Elf(secure(file)))
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

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests;
