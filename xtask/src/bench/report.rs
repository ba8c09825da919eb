//! What came of the runs: a table for people, JSON for machines.

use super::sides::{Measured, Side};
use crate::size::mib;
use crate::stats::{Spread, geometric_mean, spread};
use crate::table::Table;
use serde_json::{Value, json};

/// All runs of one program; a round has one run of each side.
pub(crate) struct Results {
    pub(crate) name: String,
    /// What the kernel's group got, in bytes.
    pub(crate) limit: u64,
    pub(crate) rounds: Vec<Vec<(Side, Result<Measured, String>)>>,
}

impl Results {
    /// The runs of one side that came to an end.
    pub(crate) fn of(&self, side: Side) -> Vec<&Measured> {
        let all = self.rounds.iter().flatten();
        all.filter(|(s, _)| *s == side).filter_map(|(_, run)| run.as_ref().ok()).collect()
    }

    /// vswap's value divided by another side's, round by round.
    pub(crate) fn ratio(&self, other: Side, value: impl Fn(&Measured) -> f64) -> Option<Spread> {
        let of = |round: &[(Side, Result<Measured, String>)], side| {
            round.iter().find(|(s, _)| *s == side).and_then(|(_, run)| run.as_ref().ok()).map(&value)
        };
        let ratios: Vec<f64> =
            self.rounds.iter().filter_map(|r| Some(of(r, Side::Vswap)? / of(r, other)?)).collect();
        (!ratios.is_empty()).then(|| spread(&ratios))
    }

    /// What failed, a line each.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        let all = self.rounds.iter().flatten();
        all.filter_map(|(side, run)| {
            Some(format!("{} on {}: {}", self.name, side.name(), run.as_ref().err()?))
        })
    }

    pub(crate) fn json(&self) -> Value {
        let round = |round: &Vec<(Side, Result<Measured, String>)>| -> Value {
            let sides = round.iter().map(|(side, run)| {
                let value = run.as_ref().map_or_else(|problem| json!({"failed": problem}), Measured::json);
                (side.name().to_owned(), value)
            });
            Value::Object(sides.collect())
        };
        let ratio = |value: fn(&Measured) -> f64| self.ratio(Side::Zram, value).map(|s| s.median);
        json!({
            "name": self.name, "cgroup_limit_bytes": self.limit,
            "rounds": self.rounds.iter().map(round).collect::<Vec<_>>(),
            "wall_ratio_to_zram": ratio(|m| m.wall), "cpu_ratio_to_zram": ratio(Measured::cpu),
        })
    }
}

/// Seconds of the whole program, or of its access phase if it has one.
pub(crate) fn seconds(run: &Measured) -> f64 {
    run.access().unwrap_or(run.wall)
}

fn over(runs: &[&Measured], value: impl Fn(&Measured) -> f64) -> Option<Spread> {
    (!runs.is_empty()).then(|| spread(&runs.iter().map(|run| value(run)).collect::<Vec<_>>()))
}

fn show(value: Option<Spread>) -> String {
    value.map_or_else(|| "-".to_owned(), |s| s.to_string())
}

/// One program: its four sides.
pub(crate) fn sides(results: &Results) -> Table {
    let mut table =
        Table::new(&["side", "wall s", "access s", "user+sys s", "memory", "over", "p99 µs", "pages back"]);
    for side in Side::ALL {
        let runs = results.of(side);
        let Some(last) = runs.last() else { continue };
        let p99 = last.own["p99_ns"].as_f64().map_or_else(|| "-".to_owned(), |ns| format!("{:.1}", ns / 1e3));
        let peak = over(&runs, |m| m.seen.peak as f64).map_or(0, |s| s.median as u64);
        let most = runs.iter().map(|m| m.seen.over).max().unwrap_or(0);
        table.row(vec![
            side.name().to_owned(),
            show(over(&runs, |m| m.wall)),
            if last.access().is_some() { show(over(&runs, seconds)) } else { "-".to_owned() },
            show(over(&runs, Measured::cpu)),
            mib(peak),
            mib(most),
            p99,
            faults(last),
        ]);
    }
    table
}

/// Faults by kind, as the side counts them.
fn faults(run: &Measured) -> String {
    let Some(counts) = run.faults.as_object() else { return String::new() };
    counts.iter().map(|(kind, n)| format!("{kind} {n}")).collect::<Vec<_>>().join(" ")
}

/// All programs: vswap against the kernel.
pub(crate) fn ratios(all: &[Results]) -> Table {
    let mut table =
        Table::new(&["vswap / zram", "wall", "access", "user+sys", "/ zswap: wall", "/ plain: wall"]);
    for results in all {
        table.row(vec![
            results.name.clone(),
            show(results.ratio(Side::Zram, |m| m.wall)),
            show(results.ratio(Side::Zram, seconds)),
            show(results.ratio(Side::Zram, Measured::cpu)),
            show(results.ratio(Side::Zswap, |m| m.wall)),
            show(results.ratio(Side::Plain, |m| m.wall)),
        ]);
    }
    let mean = |generators: bool, value: fn(&Measured) -> f64| {
        let chosen = all.iter().filter(|r| r.name.starts_with("access/") == generators);
        let medians: Vec<f64> = chosen.filter_map(|r| Some(r.ratio(Side::Zram, value)?.median)).collect();
        geometric_mean(&medians).map_or_else(|| "-".to_owned(), |mean| format!("{mean:.2}"))
    };
    for (name, generators) in [("geometric mean, generators", true), ("geometric mean, programs", false)] {
        let cells = [|m: &Measured| m.wall, seconds, Measured::cpu].map(|value| mean(generators, value));
        table.row([vec![name.to_owned()], cells.to_vec()].concat());
    }
    table
}
