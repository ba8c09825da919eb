//! `vswap reclaim`: has a run give memory back now, whatever its limit: `memory.reclaim` of cgroup v2, for one tree.

use std::io::{self, IsTerminal, Write};

use vswap_pager::{Reclaimed, Reply, Request};
use vswap_sys::system;

use crate::cli;
use crate::run::complain;
use crate::runs;
use crate::size::human;
use crate::status;

/// Less than was asked for, or nobody to ask.
const SHORT: u8 = 1;

/// Does it, says what came of it, and returns the exit status.
pub(crate) fn run(options: &cli::Reclaim) -> u8 {
    let bytes = match system::mem_total() {
        Ok(machine) => options.size.bytes(machine),
        Err(error) => {
            complain(&format!("/proc/meminfo: {error}"));
            return crate::run::OWN_FAILURE;
        }
    };
    let (runs, deaf) = runs::find(options.pid);
    let run = match &runs[..] {
        [run] => run,
        [] => {
            complain(&runs::none(options.pid, &deaf));
            return SHORT;
        }
        several => {
            let all: Vec<_> = several.iter().map(|run| &run.status).collect();
            let mut text = String::from("several programs run; choose one with --pid:\n");
            // Writing to a String cannot fail.
            let _ = status::table(&mut text, &all, ("", ""));
            complain(text.trim_end());
            return SHORT;
        }
    };
    let terminal = io::stderr().is_terminal();
    let answer = run.ask(&Request::Reclaim { bytes }, &mut |reply| {
        if let (Reply::Reclaiming(evicted), true) = (reply, terminal) {
            let _ = write!(io::stderr(), "\r{} of {} ", human(*evicted), human(bytes));
        } else if terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    });
    match answer {
        Ok(Reply::Reclaimed(result)) => {
            let _ = writeln!(io::stdout(), "{}", text(&result));
            if result.evicted >= bytes { 0 } else { SHORT }
        }
        Ok(_) => {
            complain("the pager gave another answer than was asked for");
            SHORT
        }
        Err(why) => {
            complain(&format!("pager {}: {why}", run.status.pager));
            SHORT
        }
    }
}

fn text(result: &Reclaimed) -> String {
    let mut text = format!("reclaimed {}", human(result.evicted));
    if result.evicted < result.wanted {
        text += &format!(" of {}", human(result.wanted));
    }
    if result.came_back > 0 {
        text += &format!(", {} of it is in use again", human(result.came_back));
    }
    text += &format!("; memory in all was {}, is {}", human(result.total_before), human(result.total_after));
    if let Some(why) = &result.short {
        text += &format!("\nnot more: {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_much_and_why_not_more() {
        let mib = |n: u64| n << 20;
        let whole = Reclaimed {
            wanted: mib(8),
            evicted: mib(8),
            came_back: 0,
            total_before: mib(90),
            total_after: mib(84),
            short: None,
        };
        assert_eq!(text(&whole), "reclaimed 8.00 MiB; memory in all was 90.0 MiB, is 84.0 MiB");
        let less = Reclaimed { evicted: mib(2), came_back: mib(1), short: Some("locked".into()), ..whole };
        assert!(
            text(&less).starts_with("reclaimed 2.00 MiB of 8.00 MiB, 1.00 MiB of it is in use again;"),
            "{}",
            text(&less)
        );
        assert!(text(&less).ends_with("\nnot more: locked"));
    }
}
