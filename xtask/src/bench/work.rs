//! What is run: page access generators with every combination of their settings, and ordinary programs.
//!
//! A generator is named by its settings, `access/PATTERN/MODE/THREADS/SET/CONTENT`, as `access/zipf/rw/2t/x2/image`:
//! SET is how many times its pages are as much as the kernel's group may have, CONTENT is `N:1` for random bytes that
//! compress so, or `image` for pages of a real program. None is zero or same-filled.

use crate::programs::PREFIX;
use crate::workspace;
use std::path::Path;

/// MiB of a generator's pages.
const SET: u64 = 512;
/// Names that end so are of generators whose pages are a real program's.
pub(crate) const IMAGE: &str = "/image";
const PATTERNS: [&str; 6] = ["seq", "stride", "random", "zipf", "phase", "chase"];

/// How much of the memory that it wants the kernel's group gets.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Share {
    /// The generator's pages divided by this.
    OfSet(f64),
    /// The share that the command line says of what the plain run took.
    OfNatural,
}

/// One program.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) name: String,
    /// With [`PREFIX`] among them.
    pub(crate) words: Vec<String>,
    pub(crate) share: Share,
    /// About what it takes.
    pub(crate) mib: u64,
}

/// The names that are run if none is given: each setting of the generators changed alone, then ordinary programs.
pub(crate) fn usual() -> Vec<String> {
    let mut names = Vec::new();
    for pattern in PATTERNS {
        names.extend(["ro", "rw"].map(|mode| format!("access/{pattern}/{mode}/1t/x2/image")));
    }
    for pattern in ["seq", "random"] {
        names.extend(["2t", "4t"].map(|threads| format!("access/{pattern}/rw/{threads}/x2/image")));
    }
    for pattern in ["seq", "zipf", "random"] {
        names.extend(["x1.2", "x4"].map(|set| format!("access/{pattern}/rw/1t/{set}/image")));
    }
    names.extend(["2:1", "4:1", "1:1"].map(|content| format!("access/zipf/rw/1t/x2/{content}")));
    names.extend(ORDINARY.iter().map(|o| o.name.to_owned()));
    names
}

struct Ordinary {
    name: &'static str,
    needs: &'static [(&'static str, &'static str)],
    mib: u64,
    words: fn() -> Result<Vec<String>, String>,
}

fn script(name: &str) -> String {
    workspace::program(name).to_string_lossy().into_owned()
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&w| w.to_owned()).collect()
}

const ORDINARY: &[Ordinary] = &[
    Ordinary {
        name: "python",
        needs: &[("python3", "python3")],
        mib: 600,
        words: || {
            let python = workspace::python()?.to_string_lossy().into_owned();
            Ok(words(&[PREFIX, &python, &script("objects.py"), "600"]))
        },
    },
    Ordinary {
        name: "redis",
        needs: &[("python3", "python3"), ("redis-server", "redis-server")],
        mib: 400,
        words: || {
            let python = workspace::python()?.to_string_lossy().into_owned();
            Ok(words(&[&python, &script("redis_load.py"), "300", "60000", PREFIX]))
        },
    },
    Ordinary {
        name: "node",
        needs: &[("node", "nodejs")],
        mib: 400,
        words: || Ok(words(&[PREFIX, "node", "--max-old-space-size=4096", &script("objects.js"), "300"])),
    },
    Ordinary {
        name: "sort",
        needs: &[("sort", "coreutils"), ("awk", "gawk")],
        mib: 300,
        words: || Ok(words(&["bash", &script("sort.sh"), "128", PREFIX])),
    },
    Ordinary {
        name: "gcc",
        needs: &[("g++", "g++")],
        mib: 500,
        words: || Ok(words(&["bash", &script("compile.sh"), "1500", PREFIX])),
    },
    Ordinary {
        name: "java",
        needs: &[("java", "default-jdk-headless")],
        mib: 500,
        words: || {
            Ok(words(&[PREFIX, "java", "-Xmx400m", "-XX:+UseSerialGC", &script("Objects.java"), "250"]))
        },
    },
];

/// The program of this name.
///
/// `images` are the files of pages that there are, needed for those that end in [`IMAGE`].
pub(crate) fn named(name: &str, images: &[String]) -> Result<Work, String> {
    if let Some(ordinary) = ORDINARY.iter().find(|o| o.name == name) {
        for (binary, package) in ordinary.needs {
            workspace::need(binary, package)?;
        }
        let words = (ordinary.words)()?;
        return Ok(Work { name: name.to_owned(), words, share: Share::OfNatural, mib: ordinary.mib });
    }
    let unknown = || format!("no program `{name}`; --list names some");
    let parts: Vec<&str> = name.split('/').collect();
    let ["access", pattern, mode, threads, set, content] = parts[..] else { return Err(unknown()) };
    let known = PATTERNS.contains(&pattern) && ["ro", "rw"].contains(&mode);
    let threads = threads.strip_suffix('t').filter(|n| n.parse().is_ok_and(|n: u32| (1..=64).contains(&n)));
    let over = set.strip_prefix('x').and_then(|x| x.parse::<f64>().ok()).filter(|x| (1.0..=16.0).contains(x));
    let (true, Some(threads), Some(over)) = (known, threads, over) else { return Err(unknown()) };
    let content = match content.strip_suffix(":1") {
        Some(ratio) if ratio.parse().is_ok_and(|n: u32| (1..=64).contains(&n)) => ratio.to_owned(),
        None if format!("/{content}") == IMAGE => image(images)?,
        _ => return Err(unknown()),
    };
    let passes = if ["seq", "stride"].contains(&pattern) { "6" } else { "3" };
    let access = workspace::one_file("access")?.to_string_lossy().into_owned();
    let words = words(&[PREFIX, &access, pattern, mode, threads, &SET.to_string(), passes, &content]);
    Ok(Work { name: name.to_owned(), words, share: Share::OfSet(over), mib: SET })
}

impl Work {
    /// What the kernel's group gets, in bytes, if the plain run took `natural`.
    pub(crate) fn limit(&self, natural: u64, percent: u64) -> u64 {
        match self.share {
            Share::OfSet(over) => ((self.mib << 20) as f64 / over) as u64,
            Share::OfNatural => natural * percent / 100,
        }
    }
}

/// The file of pages that generators of [`IMAGE`] are filled with.
fn image(files: &[String]) -> Result<String, String> {
    let python = files.iter().find(|file| Path::new(file).file_stem().is_some_and(|stem| stem == "python"));
    python.cloned().ok_or_else(|| "no image of python's pages was made".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_has_a_name_that_is_understood() {
        let images = ["a/python.pages".to_owned()];
        let generators: Vec<String> = usual().into_iter().filter(|n| n.starts_with("access")).collect();
        assert!(generators.len() > 20);
        for name in generators {
            let work = named(&name, &images).expect("known");
            assert!(work.limit(0, 50) < work.mib << 20);
        }
    }

    #[test]
    fn other_names_are_errors() {
        for name in [
            "access/seq/ro/1t/x2",
            "access/sq/ro/1t/x2/2:1",
            "access/seq/ro/t/x2/2:1",
            "access/seq/ro/1t/x0/2:1",
            "x",
        ] {
            assert!(named(name, &[]).is_err(), "{name}");
        }
    }
}
