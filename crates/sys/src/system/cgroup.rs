//! The memory limits of the cgroups this process is in.
//!
//! `/proc/self/cgroup` names our cgroup in each hierarchy, `/proc/self/mountinfo` says where the hierarchies are mounted and
//! which part of them; a limit of any cgroup above ours binds us too.

use std::io;
use std::path::{Path, PathBuf};

use crate::procfs::read_text;

/// A memory limit that binds this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupLimit {
    /// Bytes: the hard limit, or the throttling one (`memory.high`) if that is lower.
    pub limit: u64,
    /// Bytes in use in that cgroup now, page cache included.
    pub usage: u64,
    /// The directory of the cgroup.
    pub path: PathBuf,
}

/// The lowest of [`cgroup_limits`] (the nearest of equals), `None` if nothing limits us.
///
/// # Errors
///
/// As for [`cgroup_limits`].
pub fn cgroup_limit() -> io::Result<Option<CgroupLimit>> {
    Ok(cgroup_limits()?.into_iter().min_by_key(|found| found.limit))
}

/// The limits of our memory cgroup and of those above it, as far as they can be seen, nearest first, of version 2 and 1.
///
/// # Errors
///
/// Those of reading `/proc/self/cgroup` and `/proc/self/mountinfo`; cgroups that cannot be read are left out.
pub fn cgroup_limits() -> io::Result<Vec<CgroupLimit>> {
    let directories = directories(&read_text("/proc/self/cgroup")?, &read_text("/proc/self/mountinfo")?);
    Ok(directories.into_iter().filter_map(|(version, path)| limit_of(version, path)).collect())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Our cgroup's directory and those above it up to the mount point, for each hierarchy that may limit memory.
fn directories(cgroup: &str, mountinfo: &str) -> Vec<(Version, PathBuf)> {
    let mut found = Vec::new();
    for line in cgroup.lines() {
        // `hierarchy:controllers:path`
        let mut parts = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let version = if hierarchy == "0" && controllers.is_empty() {
            Version::V2
        } else if controllers.split(',').any(|controller| controller == "memory") {
            Version::V1
        } else {
            continue;
        };
        let Some((root, mount_point)) = mount_of(version, mountinfo) else { continue };
        // A container may see only a part of the hierarchy, mounted at its own place; a path outside that part (`/..`) is
        // not visible, and then the mount point itself is the nearest we can see.
        let below = Path::new(path).strip_prefix(&root).unwrap_or(Path::new(""));
        let below =
            if below.components().any(|part| part.as_os_str() == "..") { Path::new("") } else { below };
        let own = if below.as_os_str().is_empty() { mount_point.clone() } else { mount_point.join(below) };
        found.extend(
            own.ancestors()
                .take_while(|directory| directory.starts_with(&mount_point))
                .map(|directory| (version, directory.to_owned())),
        );
    }
    found
}

/// The mounted root and the mount point of the memory hierarchy of this version.
fn mount_of(version: Version, mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    mountinfo.lines().find_map(|line| {
        // `id parent major:minor root mount-point options... - type source super-options`
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let matches = match (version, kind.next()?) {
            (Version::V2, "cgroup2") => true,
            (Version::V1, "cgroup") => kind.nth(1)?.split(',').any(|option| option == "memory"),
            _ => false,
        };
        let mut mount = mount.split(' ').skip(3);
        matches.then(|| Some((unescape(mount.next()?), unescape(mount.next()?))))?
    })
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(text: &str) -> PathBuf {
    PathBuf::from(
        text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
    )
}

fn limit_of(version: Version, path: PathBuf) -> Option<CgroupLimit> {
    // "max" is not a number and so not a limit; version 1 says it with a number near the largest one.
    const NO_LIMIT: u64 = 1 << 60;
    let number = |name| {
        let text = std::fs::read_to_string(path.join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let (limits, usage) = match version {
        Version::V1 => ([number("memory.limit_in_bytes"), None], "memory.usage_in_bytes"),
        Version::V2 => ([number("memory.max"), number("memory.high")], "memory.current"),
    };
    let limit = limits.into_iter().flatten().filter(|&limit| limit < NO_LIMIT).min()?;
    let usage = number(usage).unwrap_or(0);
    Some(CgroupLimit { limit, usage, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_MOUNT: &str = "24 18 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn paths(cgroup: &str, mountinfo: &str) -> Vec<String> {
        directories(cgroup, mountinfo)
            .into_iter()
            .map(|(version, path)| format!("{version:?} {}", path.display()))
            .collect()
    }

    #[test]
    fn version_2_walks_up_to_the_mount() {
        assert_eq!(
            paths("0::/user.slice/user-1000.slice/a b.scope\n", V2_MOUNT),
            [
                "V2 /sys/fs/cgroup/user.slice/user-1000.slice/a b.scope",
                "V2 /sys/fs/cgroup/user.slice/user-1000.slice",
                "V2 /sys/fs/cgroup/user.slice",
                "V2 /sys/fs/cgroup",
            ]
        );
        // A cgroup namespace: the root is ours, and a process moved outside it sees `/..`.
        assert_eq!(paths("0::/\n", V2_MOUNT), ["V2 /sys/fs/cgroup"]);
        assert_eq!(paths("0::/../other\n", V2_MOUNT), ["V2 /sys/fs/cgroup"]);
    }

    #[test]
    fn version_1_knows_its_controller_and_a_partial_mount() {
        let cgroup = "5:devices:/x\n4:cpu,memory:/docker/abc/inner\n0::/\n";
        let mountinfo = "\
            30 25 0:26 /docker/abc /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n\
            31 25 0:27 /docker/abc /sys/fs/cgroup/my\\040memory rw master:1 - cgroup cgroup rw,cpu,memory\n\
            32 25 0:28 /docker/abc /elsewhere rw - ext4 /dev/memory rw,memory\n";
        assert_eq!(
            paths(cgroup, mountinfo),
            ["V1 /sys/fs/cgroup/my memory/inner", "V1 /sys/fs/cgroup/my memory"]
        );
    }

    #[test]
    fn nothing_mounted_is_no_limit() {
        assert_eq!(paths("0::/a\n4:memory:/b\n", ""), Vec::<String>::new());
        assert_eq!(paths("", V2_MOUNT), Vec::<String>::new());
        assert_eq!(paths("nonsense\n", "nonsense\n"), Vec::<String>::new());
    }

    #[test]
    fn limits_are_read_from_the_directory() {
        let directory = std::env::temp_dir().join(format!("vswap-sys-cgroup-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let put = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
        let limit = |version| limit_of(version, directory.clone()).map(|found| (found.limit, found.usage));
        assert_eq!(limit(Version::V2), None);
        put("memory.max", "max\n");
        put("memory.current", "700\n");
        assert_eq!(limit(Version::V2), None);
        put("memory.high", "1000\n");
        assert_eq!(limit(Version::V2), Some((1000, 700)));
        put("memory.max", "900\n");
        assert_eq!(limit(Version::V2), Some((900, 700)));
        put("memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit(Version::V1), None);
        put("memory.limit_in_bytes", "5000\n");
        put("memory.usage_in_bytes", "60\n");
        assert_eq!(limit(Version::V1), Some((5000, 60)));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
