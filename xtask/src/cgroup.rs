//! A memory control group around one run: the outside view of what it takes. Version 1 and version 2.
//!
//! Needs root and the memory controller; [`Group::new`] says so if it is not there.

use crate::janitor::{self, Guard, Undo};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// One group; removed when dropped.
pub(crate) struct Group {
    memory: PathBuf,
    /// The cpuacct hierarchy's twin in version 1; the same directory in version 2.
    cpu: Option<PathBuf>,
    unified: bool,
    _undo: Vec<Guard>,
}

/// Seconds of processor time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

/// Where a controller of version 1 is mounted, or version 2 with `memory` among its controllers.
fn mounts() -> (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>) {
    let (mut memory, mut cpuacct, mut unified) = (None, None, None);
    for line in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, place, kind, options, ..] = fields[..] else { continue };
        let has = |name| options.split(',').any(|o| o == name);
        match kind {
            "cgroup" if has("memory") => memory = Some(PathBuf::from(place)),
            "cgroup" if has("cpuacct") => cpuacct = Some(PathBuf::from(place)),
            "cgroup2"
                if read(Path::new(place), "cgroup.controllers").split_whitespace().any(|c| c == "memory") =>
            {
                unified = Some(PathBuf::from(place));
            }
            _ => {}
        }
    }
    // One mount may hold both controllers.
    (memory.clone(), cpuacct.or(memory), unified)
}

fn read(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap_or_default()
}

fn number(dir: &Path, file: &str) -> u64 {
    read(dir, file).trim().parse().unwrap_or(0)
}

fn field(text: &str, name: &str) -> u64 {
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok()).unwrap_or(0)
}

impl Group {
    pub(crate) fn new() -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vswap-xtask-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (memory, cpu, unified) = mounts();
        let create = |root: &Path| -> Result<(PathBuf, Guard), String> {
            let path = root.join(&name);
            let guard = janitor::guard(Undo::Cgroup(path.clone()))?;
            fs::create_dir(&path)
                .map_err(|e| format!("a memory cgroup needs root: {}: {e}", path.display()))?;
            Ok((path, guard))
        };
        if let Some(root) = memory {
            let (memory, guard) = create(&root)?;
            let mut undo = vec![guard];
            let cpu = match cpu {
                Some(other) if other != root => {
                    let (path, guard) = create(&other)?;
                    undo.push(guard);
                    Some(path)
                }
                _ => None,
            };
            return Ok(Self { memory, cpu, unified: false, _undo: undo });
        }
        let root = unified.ok_or("no memory cgroup controller is mounted")?;
        let _ = fs::write(root.join("cgroup.subtree_control"), "+memory +cpu");
        let (memory, guard) = create(&root)?;
        Ok(Self { cpu: Some(memory.clone()), memory, unified: true, _undo: vec![guard] })
    }

    /// The words that put a command into the group, to be set before it.
    pub(crate) fn prefix(&self) -> Vec<String> {
        let mut script = String::new();
        for dir in std::iter::once(&self.memory).chain(&self.cpu) {
            script += &format!("echo $$ > '{}/cgroup.procs' && ", dir.display());
        }
        ["sh", "-c", &(script + "exec \"$@\""), "sh"].map(str::to_owned).to_vec()
    }

    /// Bounds what the kernel charges; swap is not bounded.
    pub(crate) fn limit(&self, bytes: u64) -> Result<(), String> {
        let file = self.memory.join(if self.unified { "memory.max" } else { "memory.limit_in_bytes" });
        fs::write(&file, bytes.to_string()).map_err(|e| format!("{}: {e}", file.display()))
    }

    /// Anonymous memory now, in bytes: huge pages included, shared memory not.
    pub(crate) fn anonymous(&self) -> u64 {
        field(&read(&self.memory, "memory.stat"), if self.unified { "anon" } else { "total_rss" })
    }

    /// Major faults of everything that ever ran in the group.
    pub(crate) fn major_faults(&self) -> u64 {
        field(
            &read(&self.memory, "memory.stat"),
            if self.unified { "pgmajfault" } else { "total_pgmajfault" },
        )
    }

    /// Processor time of everything that ever ran in the group.
    pub(crate) fn cpu(&self) -> Cpu {
        let Some(dir) = &self.cpu else { return Cpu::default() };
        if self.unified {
            let stat = read(dir, "cpu.stat");
            let seconds = |name| field(&stat, name) as f64 / 1e6;
            return Cpu { user: seconds("user_usec"), system: seconds("system_usec") };
        }
        let seconds = |file| number(dir, file) as f64 / 1e9;
        Cpu { user: seconds("cpuacct.usage_user"), system: seconds("cpuacct.usage_sys") }
    }

    /// The processes in it.
    pub(crate) fn processes(&self) -> Vec<u32> {
        read(&self.memory, "cgroup.procs").lines().filter_map(|l| l.parse().ok()).collect()
    }
}
