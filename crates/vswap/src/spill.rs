//! Where the spill file goes and how large it may grow.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use vswap_pager::Spill;

use crate::cli::RunOptions;
use crate::size::human;

/// Magic numbers of file systems whose files are memory.
const IN_MEMORY: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];
/// Less free space than this is no help and only fails later.
const LEAST: u64 = 16 << 20;

/// Why `--swap-dir` cannot be used.
#[derive(Debug)]
pub(crate) enum SpillError {
    /// The directory cannot be used at all.
    Dir(PathBuf, io::Error),
    /// Its files are memory.
    InMemory(PathBuf),
}

impl fmt::Display for SpillError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(dir, error) => {
                write!(f, "--swap-dir {}: {error}; name a directory that you can write to", dir.display())
            }
            Self::InMemory(dir) => write!(
                f,
                "--swap-dir {}: its files are kept in memory, which would save none; name a directory on a disk, \
                 or say --no-spill",
                dir.display()
            ),
        }
    }
}

impl std::error::Error for SpillError {}

/// What was decided, and a remark for the user if it is less than was hoped for.
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) spill: Option<Spill>,
    pub(crate) warning: Option<String>,
}

/// Decides on the spill file. `machine` is the machine's memory in bytes, for percentages.
///
/// # Errors
///
/// If the user named a directory that cannot be used. Without one, there is a default or a warning.
pub(crate) fn decide(options: &RunOptions, machine: u64) -> Result<Decision, SpillError> {
    if options.no_spill {
        return Ok(Decision { spill: None, warning: None });
    }
    let (dir, free) = match &options.swap_dir {
        Some(dir) => inspect(dir)?,
        None => match vswap_tiers::default_dir() {
            Some(found) => found,
            None => {
                let warning = "no spill file: neither $TMPDIR, /var/tmp nor $XDG_CACHE_HOME is a writable directory \
                               on a disk (name one with --swap-dir); what the pool cannot take stays in memory, over \
                               the limit";
                return Ok(Decision { spill: None, warning: Some(warning.into()) });
            }
        },
    };
    let max = options.swap_max.map_or(free / 2, |max| max.bytes(machine));
    if max < LEAST && options.swap_max.is_none() {
        let warning = format!(
            "no spill file: only {} free in {} (name another directory with --swap-dir); what the pool cannot take \
             stays in memory, over the limit",
            human(free),
            dir.display()
        );
        return Ok(Decision { spill: None, warning: Some(warning) });
    }
    let warning = (max > free).then(|| {
        format!("--swap-max is {}, but only {} is free in {}", human(max), human(free), dir.display())
    });
    Ok(Decision { spill: Some(Spill { dir, max }), warning })
}

/// The directory's absolute name and the bytes free in it.
pub(crate) fn inspect(dir: &Path) -> Result<(PathBuf, u64), SpillError> {
    let failed = |error| SpillError::Dir(dir.into(), error);
    let absolute = fs::canonicalize(dir).map_err(failed)?;
    if !absolute.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    rustix::fs::access(&absolute, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| failed(e.into()))?;
    let magic = rustix::fs::statfs(&absolute).map_err(|e| failed(e.into()))?.f_type as u64 & 0xffff_ffff;
    if IN_MEMORY.contains(&magic) {
        return Err(SpillError::InMemory(dir.into()));
    }
    let space = rustix::fs::statvfs(&absolute).map_err(|e| failed(e.into()))?;
    Ok((absolute, space.f_bavail.saturating_mul(space.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_missing_directories_are_refused_with_a_way_out() {
        let text = inspect(Path::new("/no/such/dir")).unwrap_err().to_string();
        assert!(text.contains("--swap-dir /no/such/dir"), "{text}");
        if Path::new("/dev/shm").is_dir() {
            let text = inspect(Path::new("/dev/shm")).unwrap_err().to_string();
            assert!(text.contains("--no-spill"), "{text}");
        }
        assert!(inspect(Path::new("/etc/passwd")).is_err());
    }
}
