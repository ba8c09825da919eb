//! The figures of a run for people (one screen, in the spirit of `time -v` and `zramctl`) and for machines (JSON).

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vswap_pager::{Backing, Summary, Timed};

use crate::figures::{count, nanos, printable, seconds, shorten, thousands};
use crate::size::human;

/// Raised when a field of the JSON changes its meaning or goes; new fields do not raise it.
pub(crate) const SCHEMA: u32 = 1;
/// Unpaged processes and warnings that the text names; the JSON names all.
const LISTED: usize = 5;

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// CMD exited with this status.
    Exited(u8),
    /// A signal ended CMD.
    Killed {
        /// Its number.
        signal: u8,
        /// A core was written.
        core: bool,
    },
}

impl Ending {
    /// From a wait status, as `waitpid` gives it.
    pub(crate) fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8) as u8),
            signal => Self::Killed { signal: signal as u8, core: status & 0x80 != 0 },
        }
    }

    /// The exit status that a shell gives for it.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed { signal, .. } => 128 + signal,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Killed { signal, core } => {
                write!(f, "killed by signal {signal}{}", if *core { " (core dumped)" } else { "" })
            }
        }
    }
}

/// What is written to `--json`.
#[derive(Serialize)]
struct Report<'a> {
    vswap: &'static str,
    schema: u32,
    command: Vec<String>,
    /// vswap's exit status.
    exit_code: u8,
    signal: Option<u8>,
    /// Why vswap failed, if it did.
    error: Option<&'a str>,
    summary: Option<&'a Summary>,
}

/// How a run ended, for machines.
///
/// # Panics
///
/// Never: all keys are strings and all figures finite or null.
pub(crate) fn json(
    command: &[OsString],
    outcome: Result<Ending, (u8, &str)>,
    summary: Option<&Summary>,
) -> String {
    let report = Report {
        vswap: env!("CARGO_PKG_VERSION"),
        schema: SCHEMA,
        command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        exit_code: outcome.map_or_else(|(code, _)| code, Ending::exit_code),
        signal: match outcome {
            Ok(Ending::Killed { signal, .. }) => Some(signal),
            _ => None,
        },
        error: outcome.err().map(|(_, text)| text),
        summary,
    };
    let mut text = serde_json::to_string_pretty(&report).expect("plain data");
    text.push('\n');
    text
}

/// Where `--json` goes.
#[derive(Debug)]
pub(crate) enum JsonTarget {
    /// Standard output.
    Stdout,
    /// A terminal, pipe or other thing that is written to as it is.
    Stream(PathBuf),
    /// A file that appears, or is replaced, whole.
    File(PathBuf),
}

impl JsonTarget {
    /// Checks at the start that it can be written at the end.
    ///
    /// # Errors
    ///
    /// Those of writing there.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stdout);
        }
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(meta) if !meta.is_file() => Ok(Self::Stream(path.into())),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                // Through a symbolic link, as any other way of writing would.
                let path = fs::canonicalize(path).unwrap_or_else(|_| path.into());
                let (draft, _) = draft(&path)?;
                fs::remove_file(draft)?;
                Ok(Self::File(path))
            }
        }
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// Those of writing; a file keeps its old contents then.
    pub(crate) fn write(&self, text: &str) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes())?;
                out.flush()
            }
            Self::Stream(path) => OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes()),
            Self::File(path) => {
                let (name, mut file) = draft(path)?;
                let done = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&name, path));
                if done.is_err() {
                    let _ = fs::remove_file(&name);
                }
                done
            }
        }
    }
}

/// A new file beside `path`, to be renamed to it.
fn draft(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(format!(".{}", std::process::id()));
    let name = path.with_file_name(name);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o666).open(&name)?;
    Ok((name, file))
}

/// The figures for people. `bold` and `plain` surround the headings (escape sequences, or nothing).
pub(crate) fn text(command: &[OsString], ending: Ending, s: &Summary, (bold, plain): (&str, &str)) -> String {
    let mut out = String::with_capacity(2048);
    // Writing to a String cannot fail.
    let _ = write_text(&mut out, command, ending, s, (bold, plain));
    out
}

fn write_text(
    out: &mut String,
    command: &[OsString],
    ending: Ending,
    s: &Summary,
    (bold, plain): (&str, &str),
) -> fmt::Result {
    let head = |name: &str| format!("  {bold}{name:<10}{plain}");
    let more = " ".repeat(12);
    writeln!(out, "{bold}vswap:{plain} {ending} after {}: {}", seconds(s.wall_ms), shorten(command))?;
    writeln!(
        out,
        "{}limit {}, peak {}: program {} resident, vswap {}",
        head("Memory"),
        human(s.limit),
        human(s.peak_total),
        human(s.peak_resident),
        human(s.peak_pager)
    )?;
    writeln!(out, "{more}{} virtual: what it would have taken without vswap", human(s.peak_virtual))?;
    over_limit(out, &more, s)?;
    let (b, peak) = (&s.backing_at_peak, s.peak_evicted_pages);
    writeln!(
        out,
        "{}{} pages, at most {} at one time ({}), which then were:",
        head("Evicted"),
        thousands(s.evictions),
        thousands(peak),
        human(peak * 4096)
    )?;
    writeln!(out, "{more}{}", backing(b))?;
    writeln!(
        out,
        "{more}compression ratio {}, metadata {} per slot, spill file {} at most ({} pages written)",
        ratio(s.compression_ratio),
        if s.metadata_per_slot > 0.0 { format!("{:.1} B", s.metadata_per_slot) } else { "-".into() },
        human(s.peak_file_bytes),
        thousands(s.spilled)
    )?;
    faults(out, &head("Faults"), s)?;
    writeln!(
        out,
        "{}in {:.1} % of the time, {} over all threads, {} of it for memory to come free",
        head("Waited"),
        s.stalled_some_ms as f64 * 100.0 / s.wall_ms.max(1) as f64,
        seconds(s.stalled_ms),
        seconds(s.throttled_ms)
    )?;
    if s.slow_faults > 0 {
        let longest = seconds(s.longest_wait_ms);
        writeln!(out, "{more}{} for over a second, the longest {longest}", count(s.slow_faults, "wait"))?;
    }
    writeln!(
        out,
        "{}{}, {}, {}, {}, gate {}",
        head("Tree"),
        count(s.address_spaces, "address space"),
        count(s.forks, "fork"),
        count(s.freezes, "freeze"),
        count(s.fail_stops, "fail-stop"),
        if s.gate { "on" } else { "off" }
    )?;
    if s.fork_pages > 0 {
        writeln!(
            out,
            "{more}{} came back before forks, which waited {} (no fork events: `vswap doctor`)",
            count(s.fork_pages, "page"),
            seconds(s.fork_wait_ms)
        )?;
    }
    list(out, &head("Unpaged"), s.unpaged.iter().map(|u| format!("{} {}: {}", u.pid, u.name, u.reason)))?;
    list(out, &head("Warnings"), s.warnings.iter().cloned())
}

/// How far and how long the limit was passed, if it was.
pub(crate) fn over_limit(out: &mut String, more: &str, s: &Summary) -> fmt::Result {
    if s.over_limit_bytes == 0 {
        return Ok(());
    }
    let (bytes, time) = (human(s.over_limit_bytes), seconds(s.over_limit_ms));
    writeln!(out, "{more}over the limit by {bytes} at most, for {time} in all")
}

/// What pages that are away are backed by.
pub(crate) fn backing(b: &Backing) -> String {
    format!(
        "{} cached, {} zero, {} filled, {} in the pool, {} in the file",
        thousands(b.cached),
        thousands(b.zero),
        thousands(b.filled),
        thousands(b.pool),
        thousands(b.file)
    )
}

/// A ratio; 0 means that there is none yet.
pub(crate) fn ratio(ratio: f64) -> String {
    if ratio > 0.0 { format!("{ratio:.2}") } else { "-".into() }
}

/// The table of faults, by what answered them.
pub(crate) fn faults(out: &mut String, head: &str, s: &Summary) -> fmt::Result {
    let more = " ".repeat(12);
    writeln!(out, "{head}{:<6}{:>14}{:>11}{:>11}", "", "count", "p50", "p99")?;
    for (name, timed) in
        [("soft", s.faults.soft), ("pool", s.faults.pool), ("file", s.faults.file), ("zero", s.faults.zero)]
    {
        let Timed { count, p50_ns, p99_ns } = timed;
        let time = |ns| if count == 0 { "-".into() } else { nanos(ns) };
        writeln!(out, "{more}{name:<6}{:>14}{:>11}{:>11}", thousands(count), time(p50_ns), time(p99_ns))?;
    }
    writeln!(
        out,
        "{more}{:<6}{:>14} pages brought in around them",
        "around",
        thousands(s.faults.around_pages)
    )?;
    Ok(())
}

/// Some of the items below one heading.
pub(crate) fn list(
    out: &mut String,
    head: &str,
    items: impl ExactSizeIterator<Item = String>,
) -> fmt::Result {
    let rest = items.len().saturating_sub(LISTED);
    let more = " ".repeat(12);
    for (index, item) in items.take(LISTED).enumerate() {
        writeln!(out, "{}{}", if index == 0 { head } else { &more }, printable(&item))?;
    }
    if rest > 0 {
        writeln!(out, "{more}and {rest} more (--json names them all)")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn sample() -> Summary {
        Summary {
            limit: 512 << 20,
            peak_total: 508 << 20,
            peak_virtual: 1100 << 20,
            evictions: 1_234_567,
            compression_ratio: 3.375,
            faults: vswap_pager::Faults {
                pool: Timed { count: 9000, p50_ns: 5100, p99_ns: 2_500_000 },
                ..Default::default()
            },
            wall_ms: 12_345,
            unpaged: (0..9)
                .map(|pid| vswap_pager::Unpaged { pid, name: "x\x1b[2J".into(), reason: "static".into() })
                .collect(),
            ..Summary::default()
        }
    }

    #[test]
    fn text_is_one_screen_with_every_figure() {
        let text = text(&command(&["python3", "job.py"]), Ending::Exited(3), &sample(), ("", ""));
        assert!(text.lines().count() <= 24, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        for word in [
            "exit status 3",
            "12.3 s",
            "python3 job.py",
            "1,234,567",
            "3.38",
            "5.1 µs",
            "2.5 ms",
            "and 4 more",
        ] {
            assert!(text.contains(word), "{word}\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn an_idle_run_prints_no_nonsense() {
        let text = text(&command(&["true"]), Ending::Exited(0), &Summary::default(), ("", ""));
        assert!(
            !text.contains("NaN") && !text.contains("over the limit") && !text.contains("Unpaged"),
            "{text}"
        );
        assert!(!text.contains("before forks"), "{text}");
    }

    #[test]
    fn pages_that_forks_brought_back_are_told() {
        let summary = Summary { forks: 2, fork_pages: 4321, fork_wait_ms: 1500, ..Summary::default() };
        let text = text(&command(&["make"]), Ending::Exited(0), &summary, ("", ""));
        assert!(text.contains("4,321 pages came back before forks, which waited 1.5 s"), "{text}");
    }

    #[test]
    fn json_has_the_promised_keys() {
        let parse = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
        let value = parse(json(&command(&["a", "b"]), Ok(Ending::Exited(0)), Some(&sample())));
        assert_eq!(value["schema"], 1);
        assert_eq!(value["command"][1], "b");
        assert_eq!(value["exit_code"], 0);
        assert!(value["signal"].is_null() && value["error"].is_null());
        assert_eq!(value["summary"]["evictions"], 1_234_567);
        let killed = Ending::Killed { signal: 9, core: false };
        let value = parse(json(&command(&["a"]), Ok(killed), None));
        assert_eq!((&value["exit_code"], &value["signal"]), (&137.into(), &9.into()));
        let value = parse(json(&command(&["a"]), Err((125, "no")), None));
        assert_eq!((&value["exit_code"], &value["error"]), (&125.into(), &"no".into()));
    }

    #[test]
    fn json_files_appear_whole() {
        let dir = std::env::temp_dir().join(format!("vswap-json-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("out.json");
        let target = JsonTarget::new(&path).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "the check leaves nothing");
        target.write("one").unwrap();
        target.write("two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        let link = dir.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        JsonTarget::new(&link).unwrap().write("three").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(matches!(JsonTarget::new(Path::new("-")), Ok(JsonTarget::Stdout)));
        assert!(matches!(JsonTarget::new(Path::new("/dev/null")), Ok(JsonTarget::Stream(_))));
        assert!(JsonTarget::new(&dir).is_err());
        assert!(JsonTarget::new(&dir.join("no/such")).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn wait_statuses() {
        assert_eq!(Ending::from_wait_status(0x0300), Ending::Exited(3));
        assert_eq!(Ending::from_wait_status(9), Ending::Killed { signal: 9, core: false });
        assert_eq!(Ending::from_wait_status(0x8b), Ending::Killed { signal: 11, core: true });
        assert_eq!(Ending::from_wait_status(0x8b).exit_code(), 139);
        assert_eq!(Ending::Killed { signal: 64, core: false }.exit_code(), 192);
    }
}
