//! Whether and how to emphasise on standard error or output.

use std::io::IsTerminal;

/// Escape sequences, or empty strings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Style {
    pub(crate) bold: &'static str,
    pub(crate) green: &'static str,
    pub(crate) yellow: &'static str,
    pub(crate) red: &'static str,
    pub(crate) plain: &'static str,
}

const PLAIN: Style = Style { bold: "", green: "", yellow: "", red: "", plain: "" };
const COLOURED: Style =
    Style { bold: "\x1b[1m", green: "\x1b[32m", yellow: "\x1b[33m", red: "\x1b[31m", plain: "\x1b[0m" };

/// For this stream: plain unless it is a terminal that can do it and nobody objects (<https://no-color.org>).
pub(crate) fn style(stream: &impl IsTerminal) -> Style {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let wanted = set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb");
    if wanted && stream.is_terminal() { COLOURED } else { PLAIN }
}
