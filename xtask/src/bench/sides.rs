//! The four ways to run a program: without a limit, on zram, on zswap before a swap file, and under vswap.
//!
//! Processor time is that of the whole group: the program, its children and the pager. Memory is sampled from outside:
//! the group's anonymous memory, and what no group is charged for (zram's and zswap's pools, the pager's shared memory).

use super::work::Work;
use crate::cgroup::Group;
use crate::command::{Run, tail};
use crate::programs::PREFIX;
use crate::sample::{self, Sampled};
use crate::summary::Summary;
use crate::zram::Zram;
use crate::zswap::Zswap;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// A run that takes longer does not end.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// One way to run a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// No limit.
    Plain,
    /// A memory control group over zram with lz4.
    Zram,
    /// A memory control group over zswap with lz4 and a swap file.
    Zswap,
    /// `vswap run`.
    Vswap,
}

impl Side {
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::Zram, Self::Zswap, Self::Vswap];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Zram => "zram",
            Self::Zswap => "zswap",
            Self::Vswap => "vswap",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|side| side.name() == name)
    }
}

/// One run.
pub(crate) struct Measured {
    /// Seconds.
    pub(crate) wall: f64,
    pub(crate) seen: Sampled,
    /// Pages that came back, by the side's own names for the kinds.
    pub(crate) faults: Value,
    /// What the program says of itself in its last line of JSON on standard error.
    pub(crate) own: Value,
    /// vswap's figures.
    pub(crate) summary: Value,
}

impl Measured {
    /// Seconds of user and system time.
    pub(crate) fn cpu(&self) -> f64 {
        self.seen.cpu.user + self.seen.cpu.system
    }

    /// Seconds of the part that the program calls its access phase.
    pub(crate) fn access(&self) -> Option<f64> {
        self.own["access_s"].as_f64()
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "wall_s": self.wall, "user_s": self.seen.cpu.user, "system_s": self.seen.cpu.system,
            "peak_bytes": self.seen.peak, "over_limit_bytes": self.seen.over,
            "over_limit_s": self.seen.over_time.as_secs_f64(),
            "faults": self.faults, "program": self.own, "summary": self.summary,
        })
    }
}

/// Where runs take place.
pub(crate) struct Place {
    pub(crate) vswap: PathBuf,
    /// More options for `vswap run`.
    pub(crate) vswap_args: Vec<String>,
    pub(crate) scratch: PathBuf,
}

impl Place {
    /// Runs the program once; `memory` bounds the group, or is vswap's `--memory`. Its output has to be `expected`,
    /// if that is known.
    pub(crate) fn run(
        &self,
        work: &Work,
        side: Side,
        memory: u64,
        expected: &mut Option<Vec<u8>>,
    ) -> Result<Measured, String> {
        let group = Group::new()?;
        // The device is not used by anything but this run.
        let swap = memory.max(work.mib << 20) * 2;
        match side {
            Side::Plain => self.measured(work, &group, vec![], 0, &|| 0, expected),
            Side::Zram => {
                group.limit(memory)?;
                let device = Zram::new(swap)?;
                self.on_the_kernel(work, &group, &|| device.used(), expected)
            }
            Side::Zswap => {
                group.limit(memory)?;
                let _device = Zswap::new(&self.scratch, swap)?;
                self.on_the_kernel(work, &group, &Zswap::used, expected)
            }
            Side::Vswap => self.under_vswap(work, &group, memory, expected),
        }
    }

    fn on_the_kernel(
        &self,
        work: &Work,
        group: &Group,
        pool: &(dyn Fn() -> u64 + Sync),
        expected: &mut Option<Vec<u8>>,
    ) -> Result<Measured, String> {
        let before = swapped();
        let mut measured = self.measured(work, group, vec![], 0, pool, expected)?;
        let after = swapped();
        measured.faults = json!({
            "major": group.major_faults(), "swapped_in": after.0 - before.0, "swapped_out": after.1 - before.1,
        });
        Ok(measured)
    }

    fn under_vswap(
        &self,
        work: &Work,
        group: &Group,
        memory: u64,
        expected: &mut Option<Vec<u8>>,
    ) -> Result<Measured, String> {
        let json = self.scratch.join("bench-vswap.json");
        let mut prefix = vec![self.vswap.to_string_lossy().into_owned()];
        prefix
            .extend(["run", "-m", &memory.to_string(), "--json", &json.to_string_lossy()].map(str::to_owned));
        prefix.extend_from_slice(&self.vswap_args);
        prefix.push("--".to_owned());
        let mut measured = self.measured(work, group, prefix, memory, &|| 0, expected)?;
        let summary = Summary::read(&json)?;
        let counts = ["soft", "pool", "file", "zero"].map(|kind| summary.faults(kind));
        let [soft, pool, file, zero] = counts;
        measured.faults = json!({
            "soft": soft?, "pool": pool?, "file": file?, "zero": zero?, "evictions": summary.number("evictions")?,
        });
        measured.summary = summary.into_value();
        Ok(measured)
    }

    fn measured(
        &self,
        work: &Work,
        group: &Group,
        prefix: Vec<String>,
        limit: u64,
        uncharged: &(dyn Fn() -> u64 + Sync),
        expected: &mut Option<Vec<u8>>,
    ) -> Result<Measured, String> {
        let at = work.words.iter().position(|w| w == PREFIX).expect("a program has a place for the prefix");
        let mut words = work.words.clone();
        words.splice(at..=at, [group.prefix(), prefix].concat());
        let run = Run {
            words,
            env: vec![("VSWAP_TEST_DIR".to_owned(), self.scratch.to_string_lossy().into_owned())],
            stdout: self.scratch.join("bench.out"),
            stderr: self.scratch.join("bench.err"),
            timeout: TIMEOUT,
        };
        let (outcome, seen) = sample::watch(&run, group, limit, uncharged)?;
        if outcome.timed_out {
            return Err(format!("does not end within {} s", TIMEOUT.as_secs()));
        }
        if outcome.status != 0 {
            return Err(format!("status {}\n{}", outcome.status, tail(&run.stderr, 12)));
        }
        let output = std::fs::read(&run.stdout).unwrap_or_default();
        if expected.get_or_insert_with(|| output.clone()) != &output {
            return Err("the output differs from that of the first run".to_owned());
        }
        let said = std::fs::read(&run.stderr).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let own =
            said.lines().rev().find_map(|line| serde_json::from_str(line).ok().filter(Value::is_object));
        let own = own.unwrap_or(Value::Null);
        let wall = outcome.wall.as_secs_f64();
        Ok(Measured { wall, seen, faults: Value::Null, own, summary: Value::Null })
    }
}

/// Pages that the whole system has read from swap and written to it so far, those of compressed caches included.
fn swapped() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let number = |name: &str| -> u64 {
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0)
    };
    (number("pswpin") + number("zswpin"), number("pswpout") + number("zswpout"))
}
