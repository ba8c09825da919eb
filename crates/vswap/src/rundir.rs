//! The run directory: where the agent's file and the pager's socket are while a tree runs.
//!
//! `vswap-<uid>-<pid>-<random>` in the first directory that is writable and lets a file be mapped executable (a `noexec`
//! mount does not). It holds `agent.so`, the sockets `pager` and `control`, and `lock`. The front makes it, the guardian removes it. If
//! both were killed it stays behind; but its lock went with them, so the next run sees that it is stale and removes it.
//! Processes of the tree may change their user id and execute more programs: the directory may be entered by all, and
//! its name is too long to guess.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest path of a socket (`sockaddr_un`), without the closing NUL.
const SOCKET_PATH_MAX: usize = 107;
/// A directory without a lock this long after it was made is nobody's: its maker takes far less.
const UNLOCKED_AGE: Duration = Duration::from_secs(60);
/// The control socket's name.
pub(crate) const CONTROL: &str = "control";
/// Length of the random part: 60 bits.
const RANDOM: usize = 12;

/// A run directory. Dropping it removes nothing: several processes hold it after a fork.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// Locked while any process holds it open.
    lock: File,
}

/// No place for a run directory: what was tried, and why not.
#[derive(Debug)]
pub(crate) struct NoRunDir(Vec<(PathBuf, io::Error)>);

impl fmt::Display for NoRunDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no directory for the agent's file; set TMPDIR to one that is writable and not mounted noexec"
        )?;
        for (dir, error) in &self.0 {
            write!(f, "\n  {}: {error}", dir.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for NoRunDir {}

impl RunDir {
    /// Makes one, with the agent's file in it, in the first fitting directory; removes stale ones of ours on the way.
    /// `agent` gives the file's contents for the socket's path.
    ///
    /// # Errors
    ///
    /// If no directory fits.
    pub(crate) fn create(agent: &dyn Fn(&Path) -> io::Result<Vec<u8>>) -> Result<Self, NoRunDir> {
        Self::create_in(candidates(), agent)
    }

    fn create_in(
        parents: Vec<PathBuf>,
        agent: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
    ) -> Result<Self, NoRunDir> {
        for parent in &parents {
            sweep(parent);
        }
        let mut tried = Vec::new();
        for parent in parents {
            match Self::try_in(&parent, agent) {
                Ok(dir) => return Ok(dir),
                Err(error) => tried.push((parent, error)),
            }
        }
        Err(NoRunDir(tried))
    }

    fn try_in(parent: &Path, agent: &dyn Fn(&Path) -> io::Result<Vec<u8>>) -> io::Result<Self> {
        check_parent(parent)?;
        let dir = loop {
            let name = format!("{}{}-{}", prefix(), std::process::id(), random_name()?);
            let path = parent.join(name);
            match DirBuilder::new().mode(0o711).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
            // The umask may have taken bits away.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
            let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path.join("lock"))?;
            match lock.try_lock() {
                Ok(()) if path.join("lock").exists() => break Self { path, lock },
                // A sweeper came between, and takes the directory away or already has.
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => {
                    let _ = fs::remove_dir_all(&path);
                    return Err(error);
                }
            }
        };
        let done = dir.place_agent(agent);
        if done.is_err() {
            dir.remove();
        }
        done.map(|()| dir)
    }

    fn place_agent(&self, agent: &dyn Fn(&Path) -> io::Result<Vec<u8>>) -> io::Result<()> {
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o755).open(self.agent())?;
        file.write_all(&agent(&self.socket())?)?;
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        vswap_sys::front_support::probe_map_exec(&file).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => io::Error::other("mounted noexec"),
            _ => error,
        })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The agent's file, for `LD_PRELOAD`.
    pub(crate) fn agent(&self) -> PathBuf {
        self.path.join("agent.so")
    }

    /// The pager's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("pager")
    }

    /// The control socket.
    pub(crate) fn control(&self) -> PathBuf {
        self.path.join(CONTROL)
    }

    /// Removes the directory and what is in it.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl AsFd for RunDir {
    /// The lock.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

fn prefix() -> String {
    format!("vswap-{}-", rustix::process::geteuid().as_raw())
}

/// Whose run directory has this name, if it is one's.
pub(crate) fn owner(name: &OsStr) -> Option<u32> {
    let mut parts = name.to_str()?.strip_prefix("vswap-")?.split('-');
    let (uid, pid, random) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let whole = pid.parse::<u32>().is_ok() && random.len() == RANDOM && parts.next().is_none();
    whole.then_some(uid)
}

/// Where it may go, the best first.
pub(crate) fn candidates() -> Vec<PathBuf> {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let dirs = [
        from("XDG_RUNTIME_DIR"),
        Some("/run".into()),
        from("TMPDIR"),
        Some("/tmp".into()),
        Some("/var/tmp".into()),
        Some("/dev/shm".into()),
    ];
    let mut unique: Vec<PathBuf> = Vec::new();
    for dir in dirs.into_iter().flatten() {
        if dir.is_absolute() && !unique.contains(&dir) {
            unique.push(dir);
        }
    }
    unique
}

/// What of a directory makes it unfit before anything is written to it.
fn check_parent(parent: &Path) -> io::Result<()> {
    let name = parent.as_os_str().as_bytes();
    // The loader splits LD_PRELOAD at these, with no way to quote them.
    if name.iter().any(|byte| b" :\t\n".contains(byte)) {
        return Err(io::Error::other("has a space or colon in its name, which LD_PRELOAD cannot hold"));
    }
    let own = prefix().len() + 10 + 1 + RANDOM;
    if name.len() + 1 + own + "/control".len() > SOCKET_PATH_MAX {
        return Err(io::Error::other("its name is too long for a socket's path"));
    }
    // Root's trees often go on as another user, who must reach the agent's file.
    let meta = fs::metadata(parent)?;
    if rustix::process::geteuid().is_root() && meta.mode() & 0o001 == 0 {
        return Err(io::Error::other("closed to other users"));
    }
    Ok(())
}

/// Removes what killed runs of ours have left in `parent`.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let (prefix, uid) = (prefix(), rustix::process::geteuid().as_raw());
    for entry in entries.flatten() {
        if !entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        // Of the entry itself, not of what a link points to.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() && meta.uid() == uid {
            remove_if_stale(&entry.path(), &meta);
        }
    }
}

fn remove_if_stale(path: &Path, meta: &fs::Metadata) {
    // Held until the directory is gone, so that its maker, if it is that slow, sees that it lost it.
    let _lock = match OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path.join("lock")) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => Some(lock),
            Err(_) => return,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let age = meta.modified().ok().and_then(|time| time.elapsed().ok());
            if age.is_none_or(|age| age < UNLOCKED_AGE) {
                return;
            }
            None
        }
        Err(_) => return,
    };
    let _ = fs::remove_dir_all(path);
}

fn random_name() -> io::Result<String> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bytes: [u8; RANDOM] = random()?;
    Ok(bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte & 31)])).collect())
}

/// Bytes that nobody can guess.
///
/// # Errors
///
/// Those of reading `/dev/urandom`.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Parent(PathBuf);

    impl Parent {
        fn new(name: &str) -> Self {
            let dir = PathBuf::from(format!("/tmp/vswap-test-rundir-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
            Self(dir)
        }

        fn entries(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Parent {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn create(parents: &[&Path]) -> Result<RunDir, NoRunDir> {
        RunDir::create_in(parents.iter().map(PathBuf::from).collect(), &|path| {
            Ok(path.as_os_str().as_bytes().to_vec())
        })
    }

    #[test]
    fn holds_the_agent_and_goes() {
        let parent = Parent::new("plain");
        let dir = create(&[&parent.0]).unwrap();
        assert_eq!(fs::read(dir.agent()).unwrap(), dir.socket().as_os_str().as_bytes());
        assert_eq!(fs::metadata(dir.agent()).unwrap().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o711);
        dir.remove();
        assert_eq!(parent.entries(), 0);
    }

    #[test]
    fn live_directories_stay_and_stale_ones_go() {
        let parent = Parent::new("stale");
        let live = create(&[&parent.0]).unwrap();
        let killed = create(&[&parent.0]).unwrap();
        let stale = killed.path().to_path_buf();
        drop(killed);
        assert!(stale.exists());
        // One that is being made has no lock yet.
        fs::create_dir(parent.0.join(format!("{}1-unlocked", prefix()))).unwrap();
        fs::create_dir(parent.0.join("vswap-other")).unwrap();
        std::os::unix::fs::symlink("/", parent.0.join(format!("{}2-link", prefix()))).unwrap();
        let next = create(&[&parent.0]).unwrap();
        assert!(!stale.exists());
        assert!(live.path().exists() && next.path().exists());
        assert_eq!(parent.entries(), 5);
    }

    #[test]
    fn unfit_parents_are_passed_over_and_named() {
        let (spaced, good) = (Parent::new("a b"), Parent::new("good"));
        let absent = Path::new("/no/such/dir");
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(90)));
        let dir = create(&[&spaced.0, absent, &long, &good.0]).unwrap();
        assert_eq!(dir.path().parent(), Some(&*good.0));
        let text = create(&[&spaced.0, absent, &long]).unwrap_err().to_string();
        for word in ["TMPDIR", "colon", "/no/such/dir", "too long"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn a_mount_that_forbids_execution_is_passed_over() {
        // /proc/self/mountinfo names one on most machines; without one there is nothing to see.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let noexec = mounts.lines().find_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let writable = fields[5].starts_with("rw") && line.contains(" - tmpfs ");
            (writable && fields[5].contains("noexec")).then(|| PathBuf::from(fields[4]))
        });
        if let Some(dir) = noexec.filter(|dir| check_parent(dir).is_ok()) {
            let text = create(&[&dir]).unwrap_err().to_string();
            assert!(text.contains("noexec") || text.contains("ermission"), "{text}");
        }
    }

    #[test]
    fn names_tell_their_owner() {
        let parent = Parent::new("owner");
        let dir = create(&[&parent.0]).unwrap();
        assert_eq!(owner(dir.path().file_name().unwrap()), Some(rustix::process::geteuid().as_raw()));
        for name in
            ["vswap-1-2", "vswap-1-2-abc", "vswap-x-2-abcdefghijkl", "vswap-1-2-abcdefghijkl-x", "1-2-abc"]
        {
            assert_eq!(owner(OsStr::new(name)), None, "{name}");
        }
    }

    #[test]
    fn random_names_differ() {
        let (one, other) = (random_name().unwrap(), random_name().unwrap());
        assert_eq!(one.len(), RANDOM);
        assert_ne!(one, other);
    }
}
