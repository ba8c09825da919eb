//! The programs: how each is run, at which size, and how much of it must have been paged for the run to count.

use crate::workspace;
use std::path::PathBuf;
use std::time::Duration;

/// Sizes of a person's run (up to 1 GiB) and of the test machine's (128 to 256 MiB).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scale {
    Full,
    Quick,
}

impl Scale {
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Full => "",
            Self::Quick => "-quick",
        }
    }

    fn pick<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// What is compared with the plain run, beside the exit status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Compare {
    /// Every byte of standard output.
    Output,
    /// Nothing: it prints times and process ids, and verifies itself.
    Status,
    /// The program is the judge of a killed pager: it is told where vswap is, not put under it.
    Kill,
}

/// The least that must have happened, in percent of the program's natural pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    pub(crate) evictions: u64,
    pub(crate) pool: u64,
    pub(crate) file: u64,
}

/// Stands for the words of `vswap run … --` in a command.
pub(crate) const PREFIX: &str = "{prefix}";

/// One program.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Binaries it takes, with the Debian package of each.
    pub(crate) needs: &'static [(&'static str, &'static str)],
    /// Its words, [`PREFIX`] among them.
    pub(crate) words: fn(Scale) -> Result<Vec<String>, String>,
    /// Files whose change makes the remembered plain run void.
    pub(crate) sources: fn() -> Result<Vec<PathBuf>, String>,
    pub(crate) compare: Compare,
    /// The pool's share of the limit, in percent: so small that what this program has does not fit, and spills.
    pub(crate) pool: u64,
    pub(crate) floor: Floor,
    /// Seconds, for both scales.
    pub(crate) seconds: (u64, u64),
}

impl Program {
    pub(crate) fn timeout(&self, scale: Scale) -> Duration {
        Duration::from_secs(scale.pick(self.seconds.0, self.seconds.1))
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&w| w.to_owned()).collect()
}

/// The test machine may have no time for us: a tree that must be gone within a second gets ten there.
fn killpager(scale: Scale, rounds: &str, after: &str) -> Result<Vec<String>, String> {
    let within = scale.pick("1", "10");
    python("killpager.py", &["--rounds", rounds, "--after", after, "--within", within, PREFIX])
}

fn script(name: &str) -> String {
    workspace::program(name).to_string_lossy().into_owned()
}

fn python(name: &str, rest: &[&str]) -> Result<Vec<String>, String> {
    let mut all = vec![workspace::python()?.to_string_lossy().into_owned(), script(name)];
    all.extend(words(rest));
    Ok(all)
}

fn under(mut command: Vec<String>) -> Vec<String> {
    command.insert(0, PREFIX.to_owned());
    command
}

fn built(path: PathBuf, rest: &[&str]) -> Vec<String> {
    let mut all = vec![path.to_string_lossy().into_owned()];
    all.extend(words(rest));
    under(all)
}

const PYTHON: (&str, &str) = ("python3", "python3");
/// Of programs that run vswap themselves, and see to it that something was evicted.
const NO_FLOOR: Floor = Floor { evictions: 0, pool: 0, file: 0 };

/// All of them, cheap ones first.
pub(crate) static PROGRAMS: &[Program] = &[
    Program {
        name: "counters",
        what: "threads add to a counter on every page; totals exact",
        needs: &[("cc", "gcc")],
        words: |s| {
            Ok(built(
                workspace::one_file("counters")?,
                &["-t", "4", "-m", s.pick("512", "160"), "-r", s.pick("3", "1")],
            ))
        },
        sources: || Ok(vec![workspace::one_file("counters")?]),
        compare: Compare::Output,
        pool: 10,
        floor: Floor { evictions: 40, pool: 5, file: 1 },
        seconds: (400, 200),
    },
    Program {
        name: "python",
        what: "builds objects, walks them twice, hashes them",
        needs: &[PYTHON],
        words: |s| Ok(under(python("objects.py", &[s.pick("1024", "192")])?)),
        sources: || Ok(vec![workspace::program("objects.py")]),
        compare: Compare::Output,
        pool: 20,
        floor: Floor { evictions: 40, pool: 5, file: 1 },
        seconds: (600, 180),
    },
    Program {
        name: "sort",
        what: "sorts a file larger than the limit in memory",
        needs: &[("sort", "coreutils"), ("awk", "gawk")],
        words: |s| Ok(vec![script("sort.sh"), s.pick("300", "44").to_owned(), PREFIX.to_owned()]),
        sources: || Ok(vec![workspace::program("sort.sh")]),
        compare: Compare::Output,
        pool: 25,
        floor: Floor { evictions: 30, pool: 2, file: 1 },
        seconds: (1200, 400),
    },
    Program {
        name: "shell",
        what: "hundreds of short processes from a large shell",
        needs: &[("bash", "bash")],
        words: |s| {
            Ok(under(vec![
                script("forks.sh"),
                s.pick("48", "24").to_owned(),
                s.pick("400", "200").to_owned(),
            ]))
        },
        sources: || Ok(vec![workspace::program("forks.sh")]),
        compare: Compare::Output,
        pool: 10,
        floor: Floor { evictions: 20, pool: 1, file: 1 },
        seconds: (300, 180),
    },
    Program {
        name: "forks",
        what: "children and grandchildren verify what they inherited",
        needs: &[PYTHON],
        words: |s| Ok(under(python("forks.py", &[s.pick("192", "96"), "--rounds", s.pick("6", "2")])?)),
        sources: || Ok(vec![workspace::program("forks.py")]),
        compare: Compare::Output,
        pool: 15,
        floor: Floor { evictions: 20, pool: 2, file: 1 },
        seconds: (600, 240),
    },
    Program {
        name: "redis",
        what: "filled past the limit, every key verified, saved while written",
        needs: &[PYTHON, ("redis-server", "redis-server")],
        words: |s| python("redis.py", &[s.pick("400", "128"), PREFIX]),
        sources: || Ok(vec![workspace::program("redis.py")]),
        compare: Compare::Output,
        pool: 25,
        floor: Floor { evictions: 40, pool: 5, file: 1 },
        seconds: (600, 240),
    },
    Program {
        name: "stress-ng",
        what: "every memory pattern, verified",
        needs: &[("stress-ng", "stress-ng")],
        words: |s| {
            let size = s.pick("1G", "192M");
            let seconds = s.pick("20", "8");
            Ok(under(words(&[
                "stress-ng",
                "--vm",
                "2",
                "--vm-bytes",
                size,
                "--vm-method",
                "all",
                "--verify",
                "-t",
                seconds,
            ])))
        },
        sources: || Ok(vec![]),
        compare: Compare::Status,
        pool: 5,
        floor: Floor { evictions: 40, pool: 2, file: 1 },
        seconds: (400, 200),
    },
    Program {
        name: "crowd",
        what: "hundreds of processes at once, each with memory of its own and of its parent",
        needs: &[("cc", "gcc")],
        words: |s| Ok(built(workspace::one_file("crowd")?, &[s.pick("500", "150"), "128"])),
        sources: || Ok(vec![workspace::one_file("crowd")?]),
        compare: Compare::Output,
        pool: 40,
        // The pool gives way to the file while so many processes pass the limit.
        floor: Floor { evictions: 20, pool: 0, file: 5 },
        seconds: (600, 240),
    },
    Program {
        name: "inject",
        what: "system calls and allocations of the pager and calls of agents fail: right, or a clear end",
        needs: &[PYTHON, ("strace", "strace"), ("cc", "gcc")],
        words: |s| {
            let (rounds, mib) = (s.pick("120", "6"), s.pick("96", "64"));
            let mut all = python("inject.py", &["--rounds", rounds, "--pool-max", "8M", PREFIX])?;
            all.extend(python("objects.py", &[mib])?);
            Ok(all)
        },
        sources: || Ok(vec![workspace::program("objects.py")]),
        compare: Compare::Kill,
        pool: 20,
        floor: NO_FLOOR,
        seconds: (1800, 400),
    },
    Program {
        name: "storm",
        what: "threads only give pages up, without a pause; another walks its memory and verifies it",
        needs: &[("cc", "gcc")],
        words: |s| Ok(built(workspace::one_file("storm")?, &[s.pick("512", "160"), s.pick("20", "5"), "8"])),
        sources: || Ok(vec![workspace::one_file("storm")?]),
        compare: Compare::Status,
        pool: 10,
        // One walk in order: what comes back is what left first, and that is in the file by then.
        floor: Floor { evictions: 40, pool: 0, file: 5 },
        seconds: (400, 200),
    },
    Program {
        name: "rawclone",
        what: "children of the bare system call, which are entered late, grow, move and guard what was evicted",
        needs: &[("cc", "gcc")],
        words: |s| Ok(built(workspace::one_file("rawclone")?, &[s.pick("256", "96")])),
        sources: || Ok(vec![workspace::one_file("rawclone")?]),
        compare: Compare::Status,
        pool: 10,
        floor: Floor { evictions: 40, pool: 0, file: 5 },
        seconds: (400, 200),
    },
    Program {
        name: "static",
        what: "a program without a loader and its children, forked in two ways, verify what they inherited and their own",
        needs: &[("cc", "gcc")],
        words: |s| {
            Ok(built(workspace::one_static_file("fixed")?, &[s.pick("256", "64"), "fork", "exec", "raw"]))
        },
        sources: || Ok(vec![workspace::one_static_file("fixed")?]),
        compare: Compare::Output,
        pool: 10,
        // Walked in order: what comes back is what left first, and that is in the file by then.
        floor: Floor { evictions: 40, pool: 0, file: 5 },
        seconds: (400, 200),
    },
    Program {
        name: "torture",
        what: "threads change their mappings in every way and check every byte",
        needs: &[("cc", "gcc")],
        words: |s| {
            let (mib, seconds) = (s.pick("512", "224"), s.pick("60", "12"));
            Ok(built(workspace::torture()?, &["-t", "4", "-m", mib, "-s", seconds, "-S", "20261121"]))
        },
        sources: || Ok(vec![workspace::torture()?]),
        compare: Compare::Output,
        pool: 5,
        floor: Floor { evictions: 10, pool: 1, file: 1 },
        seconds: (400, 200),
    },
    Program {
        name: "kill-python",
        what: "the pager is killed at a random moment: nothing survives, nothing is wrong",
        needs: &[PYTHON],
        words: |s| {
            let (rounds, mib) = (s.pick("20", "4"), s.pick("192", "128"));
            let mut all = killpager(s, rounds, "0:3")?;
            all.extend(python("objects.py", &[mib])?);
            Ok(all)
        },
        sources: || Ok(vec![workspace::program("objects.py")]),
        compare: Compare::Kill,
        pool: 20,
        floor: NO_FLOOR,
        seconds: (400, 200),
    },
    Program {
        name: "kill-torture",
        what: "the same under torture, with children about",
        needs: &[PYTHON, ("cc", "gcc")],
        words: |s| {
            let rounds = s.pick("20", "4");
            let torture = workspace::torture()?.to_string_lossy().into_owned();
            let mut all = killpager(s, rounds, "0:4")?;
            all.extend(words(&[&torture, "-t", "3", "-m", "160", "-s", "6"]));
            Ok(all)
        },
        sources: || Ok(vec![workspace::torture()?]),
        compare: Compare::Kill,
        pool: 20,
        floor: NO_FLOOR,
        seconds: (400, 200),
    },
];
