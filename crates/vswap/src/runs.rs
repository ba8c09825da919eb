//! The runs of this user: found by their run directories, asked over their control sockets.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vswap_pager::{Reply, Request, Status};
use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::socket::Conn;

use crate::nested;
use crate::rundir;

/// A pager answers in less than a millisecond, and says something twice a second while it works on a wish.
const SILENCE: Duration = Duration::from_secs(5);
/// No answer is longer: root asks the pagers of other users, too.
const ANSWER_MAX: usize = 64 << 20;

/// Why a run did not answer.
#[derive(Debug)]
pub(crate) enum Deaf {
    /// It is ending, or has ended.
    Ending,
    /// Its pager is stopped, or the machine is very busy.
    Silent,
    /// It did not want to.
    Refused(String),
    /// The socket.
    Io(io::Error),
}

impl fmt::Display for Deaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ending => write!(f, "it is ending"),
            Self::Silent => {
                write!(f, "its pager has not answered for {} s: is it stopped?", SILENCE.as_secs())
            }
            Self::Refused(why) => write!(f, "{why}"),
            Self::Io(error) if error.kind() == ErrorKind::PermissionDenied => {
                write!(f, "it belongs to another user")
            }
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

/// A run that answers.
#[derive(Debug)]
pub(crate) struct Run {
    socket: PathBuf,
    pub(crate) status: Status,
}

impl Run {
    /// Whether a process is of this run: one of its tree, or of vswap's own.
    pub(crate) fn has(&self, pid: u32) -> bool {
        let status = &self.status;
        [status.pid, status.front, status.guardian, status.pager].contains(&pid)
            || status.processes.iter().any(|process| process.pid == pid)
    }

    /// Has it do something; `progress` hears what it says before its last word.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub(crate) fn ask(&self, request: &Request, progress: &mut dyn FnMut(&Reply)) -> Result<Reply, Deaf> {
        ask(&self.socket, request, progress)
    }
}

/// The runs that are meant: those with process `pid`; or, if there is none, the one that we are in; or all of this user's
/// (of every user's, for root). And why others did not answer.
pub(crate) fn find(pid: Option<u32>) -> (Vec<Run>, Vec<(PathBuf, Deaf)>) {
    let own = inside().filter(|_| pid.is_none());
    let (mut runs, mut deaf) = (Vec::new(), Vec::new());
    for dir in own.map_or_else(directories, |dir| vec![dir]) {
        let socket = dir.join(rundir::CONTROL);
        match ask(&socket, &Request::Status, &mut |_| ()) {
            Ok(Reply::Status(status)) => runs.push(Run { socket, status: *status }),
            Ok(_) => deaf.push((dir, Deaf::Refused("it gave another answer than was asked for".into()))),
            Err(why) => deaf.push((dir, why)),
        }
    }
    runs.retain(|run| pid.is_none_or(|pid| run.has(pid)));
    runs.sort_by_key(|run| run.status.pager);
    (runs, deaf)
}

/// The run directory of the tree that this process is in.
fn inside() -> Option<PathBuf> {
    let mark = std::env::var_os(nested::VARIABLE)?;
    nested::outer_pager(Some(&mark))?;
    let colon = mark.as_bytes().iter().position(|&byte| byte == b':')?;
    Some(PathBuf::from(OsStr::from_bytes(&mark.as_bytes()[colon + 1..])))
}

/// Run directories with a control socket, wherever one may be.
fn directories() -> Vec<PathBuf> {
    let uid = process::effective_uid();
    let mut found = Vec::new();
    for parent in parents(uid) {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            // The name says whose it is; a directory of somebody else with our name on it is not ours.
            let Some(owner) = rundir::owner(&entry.file_name()) else { continue };
            let Ok(meta) = entry.metadata() else { continue };
            let dir = entry.path();
            let ours = meta.is_dir() && meta.uid() == owner && (owner == uid || uid == 0);
            if ours && dir.join(rundir::CONTROL).exists() && !found.contains(&dir) {
                found.push(dir);
            }
        }
    }
    found
}

/// Where run directories may be: where ours would go, and where those do that were started in a session.
fn parents(uid: u32) -> Vec<PathBuf> {
    let mut parents = rundir::candidates();
    if uid == 0 {
        parents.extend(fs::read_dir("/run/user").into_iter().flatten().flatten().map(|entry| entry.path()));
    } else {
        parents.push(PathBuf::from(format!("/run/user/{uid}")));
    }
    parents
}

fn ask(socket: &Path, request: &Request, progress: &mut dyn FnMut(&Reply)) -> Result<Reply, Deaf> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Deaf::Ending,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Deaf::Ending,
        ErrorKind::WouldBlock => Deaf::Silent,
        _ => Deaf::Io(error),
    };
    let conn = Conn::connect(socket, SILENCE).map_err(failed)?;
    let request = serde_json::to_vec(request).map_err(|error| Deaf::Io(error.into()))?;
    conn.send(&request, &[]).map_err(failed)?;
    let mut pending = Vec::new();
    let mut packet = vec![0; 64 << 10];
    let mut heard = Instant::now();
    let mut last = None;
    loop {
        let ready = poll(&[(conn.as_fd(), Events::IN)], Some(SILENCE)).map_err(Deaf::Io)?;
        if ready.first().is_none_or(|events| events.is_empty()) {
            if heard.elapsed() < SILENCE {
                continue; // a signal
            }
            return Err(Deaf::Silent);
        }
        heard = Instant::now();
        let (length, _) = conn.recv(&mut packet).map_err(failed)?;
        if length == 0 {
            break;
        }
        pending.extend_from_slice(&packet[..length]);
        if pending.len() > ANSWER_MAX {
            return Err(Deaf::Refused("its answer has no end".into()));
        }
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let reply = serde_json::from_slice(&pending[..end]).map_err(|error| Deaf::Io(error.into()))?;
            progress(&reply);
            last = Some(reply);
            pending.drain(..=end);
        }
    }
    match last {
        Some(Reply::Refused(why)) => Err(Deaf::Refused(why)),
        Some(Reply::Reclaiming(_)) | None => Err(Deaf::Ending),
        Some(reply) => Ok(reply),
    }
}

/// One line on why there is nothing to tell of.
pub(crate) fn none(pid: Option<u32>, deaf: &[(PathBuf, Deaf)]) -> String {
    let mut text = match pid {
        Some(pid) => format!("no run of `vswap run` that you may ask has a process {pid}"),
        None => "nothing runs under `vswap run` here".into(),
    };
    for (dir, why) in deaf {
        text.push_str(&format!("\n  {}: {why}", dir.display()));
    }
    text
}
