//! One HTML page that needs nothing else: the ratios and, for each program, time and memory of the sides as bars.

use super::report::{self, Results};
use super::sides::{Measured, Side};
use crate::stats::{Spread, spread};
use serde_json::Value;
use std::fmt::Write as _;

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
h1{font-size:1.4em}h2{font-size:1em;margin:1.6em 0 .3em}pre{overflow-x:auto;font-size:12px}svg{display:block;max-width:100%}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}svg text{fill:#ddd}}";

/// Width of the longest bar, and where bars begin.
const WIDTH: f64 = 420.0;
const LEFT: f64 = 60.0;
const ROW: f64 = 20.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn color(side: Side) -> &'static str {
    match side {
        Side::Plain => "#999",
        Side::Zram => "#c77",
        Side::Zswap => "#c9a24a",
        Side::Vswap => "#4a86c9",
    }
}

/// One bar for each side: its median, a line from the smallest to the largest, and the figure.
fn bars(
    results: &Results,
    title: &str,
    value: impl Fn(&Measured) -> f64,
    figure: impl Fn(f64) -> String,
) -> String {
    let rows: Vec<(Side, Spread)> = Side::ALL
        .into_iter()
        .filter_map(|side| {
            let values: Vec<f64> = results.of(side).into_iter().map(&value).collect();
            (!values.is_empty()).then(|| (side, spread(&values)))
        })
        .collect();
    let most = rows.iter().map(|(_, s)| s.max).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + value / most * WIDTH;
    let height = ROW * rows.len() as f64 + 4.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 600 {height}\" width=\"600\" height=\"{height}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    );
    for (index, (side, s)) in rows.iter().enumerate() {
        let y = ROW * index as f64;
        let middle = y + ROW / 2.0;
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{:.0}\" font-size=\"12\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{:.0}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{}\"/>\
             <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"#000\"/><text x=\"{:.1}\" y=\"{:.0}\" font-size=\"12\">{}</text>",
            middle + 4.0,
            side.name(),
            y + 3.0,
            x(s.median) - LEFT,
            ROW - 6.0,
            color(*side),
            x(s.min),
            x(s.max),
            x(s.max) + 6.0,
            middle + 4.0,
            escape(&figure(s.median)),
        );
    }
    format!("<p>{}</p>{svg}</svg>", escape(title))
}

/// The whole page.
pub(crate) fn page(machine: &Value, all: &[Results]) -> String {
    let mut html = format!(
        "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\"><title>vswap benchmark</title><style>{STYLE}</style>\
         <h1>vswap against the kernel's swap, at equal total memory</h1><p>{} CPUs, {}, Linux {}; zram with lz4, zswap with {}. Bars are medians, lines \
         reach from the smallest to the largest run.</p><pre>{}</pre>",
        machine["cpus"],
        escape(machine["cpu"].as_str().unwrap_or_default()),
        escape(machine["kernel"].as_str().unwrap_or_default()),
        escape(machine["zswap_compressor"].as_str().unwrap_or("nothing, as it was not asked for")),
        escape(&report::ratios(all).to_string()),
    );
    for results in all {
        let _ = write!(html, "<h2>{}</h2>", escape(&results.name));
        let what =
            if results.name.starts_with("access/") { "access phase, seconds" } else { "wall time, seconds" };
        html += &bars(results, what, report::seconds, |s| format!("{s:.2} s"));
        html += &bars(results, "processor time", Measured::cpu, |s| format!("{s:.2} s"));
        html += &bars(
            results,
            "highest memory in all",
            |m| m.seen.peak as f64,
            |b| format!("{:.0} MiB", b / 1048576.0),
        );
        let _ = write!(html, "<pre>{}</pre>", escape(&report::sides(results).to_string()));
    }
    html + "</html>\n"
}
