//! How much memory the run may take.

use std::path::Path;

use vswap_sys::system;

use crate::Limit;

const MIB: u64 = 1 << 20;
/// Whatever the surroundings say, a run gets this much: less cannot hold a program.
const LEAST: u64 = 16 * MIB;

/// What `auto` came to, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AutoLimit {
    /// Bytes.
    pub bytes: u64,
    /// For people.
    pub why: String,
}

/// The lowest limit of the cgroups we run in, less what is charged there outside the tree, less the larger of 32 MiB
/// and 5 %; without a limit, what is available less the larger of 512 MiB and 10 %.
pub fn auto_limit() -> AutoLimit {
    auto(0)
}

/// The same while a tree runs that takes `ours` bytes.
pub(crate) fn auto(ours: u64) -> AutoLimit {
    let cgroup = system::cgroup_limit().ok().flatten();
    let available = system::mem_available().unwrap_or(0) + ours;
    let free = available.saturating_sub((available / 10).max(512 * MIB)).max(LEAST);
    let machine = || AutoLimit {
        bytes: free,
        why: format!("{} MiB available on the machine, less a tenth, at least 512 MiB", available / MIB),
    };
    let Some(found) = cgroup else { return machine() };
    let charged = found.usage.saturating_sub(page_cache(&found.path));
    let outside = charged.saturating_sub(ours);
    let reserve = (found.limit / 20).max(32 * MIB);
    let bytes = found.limit.saturating_sub(outside).saturating_sub(reserve).max(LEAST);
    if bytes >= free {
        return machine();
    }
    let why = format!(
        "cgroup limit {} MiB, less {} MiB of others in it, less {} MiB of reserve",
        found.limit / MIB,
        outside / MIB,
        reserve / MIB
    );
    AutoLimit { bytes, why }
}

/// Page cache charged to a cgroup: the kernel takes it back by itself.
fn page_cache(cgroup: &Path) -> u64 {
    let Ok(text) = std::fs::read_to_string(cgroup.join("memory.stat")) else { return 0 };
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let hierarchical = field("total_inactive_file ") + field("total_active_file ");
    if hierarchical > 0 { hierarchical } else { field("inactive_file ") + field("active_file ") }
}

impl Limit {
    /// Bytes now, while the tree and the pager take `ours` bytes.
    pub(crate) fn bytes(self, ours: u64) -> u64 {
        match self {
            Limit::Bytes(bytes) => bytes,
            Limit::Auto => auto(ours).bytes,
        }
    }
}
