//! The kernel's compressed swap, set up for one run and torn down after it: zram with lz4.
//!
//! Needs root. A device that somebody else uses is left alone; then another one is added.

use crate::command::quietly;
use crate::janitor::{self, Guard, Undo};
use std::fs;
use std::path::PathBuf;

/// A zram device in use as swap, with the highest priority. Dropped: out of use, reset, removed if it was added.
pub(crate) struct Zram {
    name: String,
    // In the order in which they are undone.
    _swap: Guard,
    _reset: Guard,
    _device: Option<Guard>,
}

fn attribute(name: &str, attribute: &str) -> PathBuf {
    PathBuf::from(format!("/sys/block/{name}/{attribute}"))
}

fn read(name: &str, what: &str) -> String {
    fs::read_to_string(attribute(name, what)).unwrap_or_default()
}

fn write(name: &str, what: &str, value: &str) -> Result<(), String> {
    let path = attribute(name, what);
    fs::write(&path, value).map_err(|e| format!("writing {value} to {}: {e}", path.display()))
}

/// A device that is not set up, or a new one.
fn device() -> Result<(String, Option<Guard>), String> {
    if !PathBuf::from("/sys/class/zram-control").exists() {
        let _ = quietly("modprobe", &["zram"]);
    }
    for number in 0..32 {
        let name = format!("zram{number}");
        if read(&name, "disksize").trim() == "0" {
            return Ok((name, None));
        }
    }
    let added = fs::read_to_string("/sys/class/zram-control/hot_add")
        .map_err(|e| format!("no zram device (modprobe zram; kernel option CONFIG_ZRAM): {e}"))?;
    let number: u32 = added.trim().parse().map_err(|_| "zram-control gave no number".to_owned())?;
    Ok((format!("zram{number}"), Some(janitor::guard(Undo::ZramDevice(number))?)))
}

impl Zram {
    /// `size` bytes of swap.
    pub(crate) fn new(size: u64) -> Result<Self, String> {
        let (name, added) = device()?;
        let reset = janitor::guard(Undo::Zram(name.clone()))?;
        write(&name, "comp_algorithm", "lz4")?;
        write(&name, "disksize", &size.to_string())?;
        let node = format!("/dev/{name}");
        quietly("mkswap", &[&node])?;
        let swap = janitor::guard(Undo::Swap(node.clone().into()))?;
        quietly("swapon", &["-p", "32000", &node])?;
        Ok(Self { name, _swap: swap, _reset: reset, _device: added })
    }

    /// The memory that the device takes now for compressed pages and its allocator, in bytes.
    pub(crate) fn used(&self) -> u64 {
        // mm_stat: original, compressed, used, ...
        read(&self.name, "mm_stat").split_whitespace().nth(2).and_then(|n| n.parse().ok()).unwrap_or(0)
    }
}
