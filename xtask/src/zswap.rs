//! The kernel's compressed cache before a swap file, set up for one run and torn down after it: zswap with lz4, or with
//! its default compressor where the kernel has no lz4 for it.
//!
//! Needs root. The settings of zswap are put back as they were.

use crate::command::quietly;
use crate::janitor::{self, Guard, Undo};
use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const PARAMETERS: &str = "/sys/module/zswap/parameters";

/// Switches zswap on, with lz4 if it can be had: only a zswap that is on says whether it can.
fn switch_on() -> Result<Vec<Guard>, String> {
    let enabled = set("enabled", "Y")?;
    Ok([Some(enabled), set("compressor", "lz4").ok()].into_iter().flatten().collect())
}

/// The compressor of a run.
pub(crate) fn compressor() -> Result<String, String> {
    let _settings = switch_on()?;
    let name = fs::read_to_string(Path::new(PARAMETERS).join("compressor"));
    Ok(name.map_err(|e| format!("zswap's compressor: {e}"))?.trim().to_owned())
}

/// zswap before a swap file with the highest priority. Dropped: out of use, the file removed, the settings restored.
pub(crate) struct Zswap {
    // In the order in which they are undone.
    _swap: Guard,
    _file: Guard,
    _settings: Vec<Guard>,
}

/// Writes a setting, and remembers what it was.
fn set(name: &str, value: &str) -> Result<Guard, String> {
    let path = Path::new(PARAMETERS).join(name);
    let problem = |e| format!("zswap (kernel option CONFIG_ZSWAP): {}: {e}", path.display());
    let before = fs::read_to_string(&path).map_err(problem)?;
    let guard = janitor::guard(Undo::Write(path.clone(), before.trim().to_owned()))?;
    fs::write(&path, value).map_err(problem)?;
    Ok(guard)
}

impl Zswap {
    /// A swap file of `size` bytes in this directory.
    pub(crate) fn new(dir: &Path, size: u64) -> Result<Self, String> {
        let settings = switch_on()?;
        let path: PathBuf = dir.join(format!("swap-{}", std::process::id()));
        let file_guard = janitor::guard(Undo::File(path.clone()))?;
        let problem = |e| format!("the swap file {}: {e}", path.display());
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(problem)?;
        // Without holes, or swapon refuses it.
        let zeros = vec![0; 1 << 20];
        for at in (0..size).step_by(zeros.len()) {
            file.write_all_at(&zeros, at).map_err(problem)?;
        }
        file.sync_all().map_err(problem)?;
        let name = path.to_string_lossy().into_owned();
        quietly("mkswap", &[&name])?;
        let swap = janitor::guard(Undo::Swap(path))?;
        quietly("swapon", &["-p", "32000", &name])?;
        Ok(Self { _swap: swap, _file: file_guard, _settings: settings })
    }

    /// Memory of its pool now, in bytes.
    pub(crate) fn used() -> u64 {
        let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let line = info.lines().find_map(|l| l.strip_prefix("Zswap:"));
        line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
    }
}
