//! `vswap status`: what a run does right now, in the words of the summary at its end.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use serde::Serialize;
use vswap_pager::{Process, Status};

use crate::cli;
use crate::figures::{count, printable, seconds, shorten, thousands};
use crate::run::complain;
use crate::runs;
use crate::size::human;
use crate::summary::{self, backing, faults, list, over_limit, ratio};
use crate::terminal;

/// Nothing to tell of.
const NONE: u8 = 1;
/// Processes that the text names; the JSON names all.
const LISTED: usize = 10;
const PAGE: u64 = 4096;

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    vswap: &'static str,
    schema: u32,
    runs: Vec<&'a Status>,
}

/// Prints it and returns the exit status.
pub(crate) fn run(options: &cli::Status) -> u8 {
    let (runs, deaf) = runs::find(options.pid);
    if runs.is_empty() {
        complain(&runs::none(options.pid, &deaf));
    } else {
        for (dir, why) in deaf.iter().filter(|(_, why)| !matches!(why, runs::Deaf::Ending)) {
            complain(&format!("{}: {why}", dir.display()));
        }
    }
    let all: Vec<&Status> = runs.iter().map(|run| &run.status).collect();
    let text = if options.json {
        let report = Report { vswap: env!("CARGO_PKG_VERSION"), schema: summary::SCHEMA, runs: all.clone() };
        serde_json::to_string_pretty(&report).map_or_else(|error| error.to_string(), |text| text + "\n")
    } else {
        let style = terminal::style(&io::stdout());
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = match all[..] {
            [] => Ok(()),
            [one] => details(&mut text, one, (style.bold, style.plain)),
            _ => table(&mut text, &all, (style.bold, style.plain)),
        };
        text
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => crate::run::OWN_FAILURE,
        _ if all.is_empty() => NONE,
        _ => 0,
    }
}

fn evicted(status: &Status) -> u64 {
    let now = &status.summary.backing;
    now.cached + now.zero + now.filled + now.pool + now.file
}

/// The share of the last seconds in which somebody waited.
fn stalled(status: &Status) -> String {
    let recent = &status.recent;
    format!("{:.1} %", recent.stalled_some_ms as f64 * 100.0 / recent.over_ms.max(1) as f64)
}

/// A line for each run.
pub(crate) fn table(out: &mut String, all: &[&Status], (bold, plain): (&str, &str)) -> fmt::Result {
    writeln!(
        out,
        "{bold}{:>8} {:>9} {:>10} {:>10} {:>10} {:>8}  COMMAND{plain}",
        "PAGER", "TIME", "LIMIT", "MEMORY", "EVICTED", "STALLED"
    )?;
    for status in all {
        writeln!(
            out,
            "{:>8} {:>9} {:>10} {:>10} {:>10} {:>8}  {}",
            status.pager,
            seconds(status.summary.wall_ms),
            human(status.memory.limit),
            human(status.memory.total),
            human(evicted(status) * PAGE),
            stalled(status),
            shorten(&status.command)
        )?;
    }
    Ok(())
}

/// One run, on a screen.
pub(crate) fn details(out: &mut String, s: &Status, (bold, plain): (&str, &str)) -> fmt::Result {
    let head = |name: &str| format!("  {bold}{name:<10}{plain}");
    let more = " ".repeat(12);
    let (m, b, sum) = (&s.memory, &s.summary.backing, &s.summary);
    let state =
        if s.running { format!("pid {}", s.pid) } else { "ended; what it left behind goes on".into() };
    writeln!(out, "{bold}vswap:{plain} {} ({state}) for {}", shorten(&s.command), seconds(sum.wall_ms))?;
    if let Some(why) = &s.failing {
        writeln!(out, "{}{}", head("Ending"), printable(why))?;
    }
    writeln!(
        out,
        "{}{} of {}: program {} resident, vswap {}",
        head("Memory"),
        human(m.total),
        human(m.limit),
        human(m.program),
        human(m.pager)
    )?;
    writeln!(
        out,
        "{more}vswap: pool {}, frames {}, metadata {}, agents {}, own {}",
        human(m.pool),
        human(m.frames),
        human(m.metadata),
        human(m.agents),
        human(m.own)
    )?;
    writeln!(out, "{more}peak {}, without vswap {}", human(sum.peak_total), human(sum.peak_virtual))?;
    over_limit(out, &more, sum)?;
    writeln!(
        out,
        "{}{} pages ({}), {} in all so far; now they are:",
        head("Evicted"),
        thousands(evicted(s)),
        human(evicted(s) * PAGE),
        thousands(sum.evictions)
    )?;
    writeln!(out, "{more}{}", backing(b))?;
    let ratio = ratio(s.compression_ratio);
    writeln!(out, "{more}compression ratio {ratio}, {} pages written to the file", thousands(sum.spilled))?;
    faults(out, &head("Faults"), sum)?;
    let recent = &s.recent;
    writeln!(
        out,
        "{}a thread waited in {} of the last {}: {}, {} evicted",
        head("Stalled"),
        stalled(s),
        seconds(recent.over_ms),
        count(recent.faults, "fault"),
        count(recent.evictions, "page")
    )?;
    writeln!(
        out,
        "{more}{} over all threads so far, {} of it for memory to come free",
        seconds(sum.stalled_ms),
        seconds(sum.throttled_ms)
    )?;
    list(out, &head("Waiting"), s.slow.iter().cloned())?;
    if sum.slow_faults > 0 {
        writeln!(out, "{more}{} over a second so far", count(sum.slow_faults, "wait"))?;
    }
    writeln!(
        out,
        "{}{}, {}, {}, pager {}, mremap gate {}",
        head("Tree"),
        count(s.processes.len() as u64, "process").replace("processs", "processes"),
        count(sum.freezes, "freeze"),
        count(sum.fail_stops, "fail-stop"),
        s.pager,
        if sum.gate { "on" } else { "off" }
    )?;
    processes(out, &s.processes)?;
    list(out, &head("Warnings"), sum.warnings.iter().cloned())
}

/// The largest first.
fn processes(out: &mut String, all: &[Process]) -> fmt::Result {
    let more = " ".repeat(12);
    let mut largest: Vec<&Process> = all.iter().collect();
    largest.sort_by_key(|process| std::cmp::Reverse(process.resident_pages + process.evicted_pages));
    writeln!(out, "{more}{:>8} {:>10} {:>10}  NAME", "PID", "RESIDENT", "EVICTED")?;
    for process in largest.iter().take(LISTED) {
        let note = match (process.paged, process.state) {
            (false, _) => " (not paged)",
            (true, 'T' | 't') => " (stopped)",
            _ => "",
        };
        writeln!(
            out,
            "{more}{:>8} {:>10} {:>10}  {}{note}",
            process.pid,
            human(process.resident_pages * PAGE),
            human(process.evicted_pages * PAGE),
            printable(&process.name)
        )?;
    }
    match all.len().saturating_sub(LISTED) {
        0 => Ok(()),
        rest => writeln!(out, "{more}and {rest} more (--json names them all)"),
    }
}
