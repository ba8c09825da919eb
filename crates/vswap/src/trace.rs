//! `VSWAP_LOG`: what the pager does, line by line, for who looks for a fault in it. Off unless asked for; a site then costs
//! one load of a static (the `log` facade's level).
//!
//! The words are those of `env_logger`: `debug`, or `info,window=trace`; the targets are named after what they tell of. Lines go
//! to standard error or to `VSWAP_LOG_FILE`, each by one write.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record};

/// Every target there is.
const TARGETS: [&str; 10] =
    ["agent", "evict", "fault", "fork", "gate", "governor", "register", "spill", "stop", "window"];

/// What is asked for, and where it goes.
#[derive(Debug)]
pub(crate) struct Trace {
    rules: Vec<(Option<&'static str>, LevelFilter)>,
    /// Standard error if there is none.
    file: Option<File>,
}

impl Trace {
    /// As the environment says; `None` if it asks for nothing.
    ///
    /// # Errors
    ///
    /// What of it cannot be, in words.
    pub(crate) fn new() -> Result<Option<Self>, String> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let Some(text) = set("VSWAP_LOG") else { return Ok(None) };
        let rules = rules(&text.to_string_lossy()).map_err(|why| format!("VSWAP_LOG: {why}"))?;
        let open = |path| OpenOptions::new().append(true).create(true).open(path);
        let file = set("VSWAP_LOG_FILE").map(open).transpose();
        Ok(Some(Self { rules, file: file.map_err(|error| format!("VSWAP_LOG_FILE: {error}"))? }))
    }

    /// The file's descriptor, to be kept open.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Begins, in the pager's process.
    ///
    /// # Errors
    ///
    /// Those of duplicating the file's descriptor.
    pub(crate) fn begin(&self) -> io::Result<()> {
        let file = self.file.as_ref().map(File::try_clone).transpose()?;
        let most = self.rules.iter().map(|(_, level)| *level).max().unwrap_or(LevelFilter::Off);
        let lines = Lines { rules: self.rules.clone(), file, begun: Instant::now() };
        if log::set_boxed_logger(Box::new(lines)).is_ok() {
            log::set_max_level(most);
        }
        Ok(())
    }
}

fn rules(text: &str) -> Result<Vec<(Option<&'static str>, LevelFilter)>, String> {
    text.split(',').map(str::trim).filter(|rule| !rule.is_empty()).map(rule).collect()
}

fn rule(text: &str) -> Result<(Option<&'static str>, LevelFilter), String> {
    let (target, level) = text.split_once('=').map_or((None, text), |(target, level)| (Some(target), level));
    let level = level.parse().map_err(|_| {
        format!("'{level}' is no level: use error, warn, info, debug or trace, or TARGET=LEVEL")
    })?;
    let Some(target) = target else { return Ok((None, level)) };
    match TARGETS.into_iter().find(|known| *known == target) {
        Some(target) => Ok((Some(target), level)),
        None => Err(format!("'{target}' is no target: there are {}", TARGETS.join(", "))),
    }
}

/// Writes lines.
struct Lines {
    rules: Vec<(Option<&'static str>, LevelFilter)>,
    file: Option<File>,
    begun: Instant,
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let own = self.rules.iter().rev().find(|(target, _)| *target == Some(metadata.target()));
        let level = own.or_else(|| self.rules.iter().rev().find(|(target, _)| target.is_none()));
        level.is_some_and(|(_, level)| metadata.level() <= *level)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let time = self.begun.elapsed().as_secs_f64();
        let line = format!("vswap {time:.6} {} {}: {}\n", record.level(), record.target(), record.args());
        // Who cannot be told is not told.
        let _ = match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    fn enabled(text: &str, target: &str, level: Level) -> bool {
        let lines = Lines { rules: rules(text).unwrap(), file: None, begun: Instant::now() };
        lines.enabled(&Metadata::builder().target(target).level(level).build())
    }

    #[test]
    fn rules_are_those_of_env_logger() {
        assert!(enabled("debug", "window", Level::Debug) && !enabled("debug", "window", Level::Trace));
        assert!(enabled("info,window=trace", "window", Level::Trace));
        assert!(
            !enabled("info,window=trace", "gate", Level::Debug)
                && enabled("info,window=trace", "gate", Level::Info)
        );
        assert!(!enabled("window=debug", "gate", Level::Error), "what is not named is off");
        assert!(!enabled("debug,gate=off", "gate", Level::Error));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(rules("loud").unwrap_err().contains("'loud'"));
        let text = rules("windows=debug").unwrap_err();
        assert!(text.contains("'windows'") && text.contains("governor"), "{text}");
    }
}
