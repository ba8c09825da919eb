//! The micro-benchmarks: examples of the crates, each a program that prints its own table.
//!
//! They are found, not listed: every file in an `examples` folder of a crate whose name is here. Lines that are
//! JSON objects go into the result as they are, the others as text.

use crate::workspace;
use serde_json::{Value, json};
use std::process::Stdio;

/// Folder and package of the crates that bring some.
const CRATES: [(&str, &str); 3] =
    [("core", "vswap-core"), ("tiers", "vswap-tiers"), ("pager", "vswap-pager")];

/// Runs them all, one after the other.
pub(crate) fn run_all() -> Result<Value, String> {
    let mut results = serde_json::Map::new();
    for (folder, package) in CRATES {
        let dir = workspace::root().join("crates").join(folder).join("examples");
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "rs"))
            .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
            .collect();
        names.sort();
        for name in names {
            println!("{package}, {name}:");
            results.insert(format!("{package}/{name}"), run(package, &name)?);
        }
    }
    Ok(Value::Object(results))
}

fn run(package: &str, name: &str) -> Result<Value, String> {
    let output = workspace::cargo()
        .args(["run", "--release", "--quiet", "--package", package, "--example", name])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("cargo: {e}"))?;
    if !output.status.success() {
        return Err(format!("the example {name} of {package} failed"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).ok().filter(Value::is_object).unwrap_or_else(|| json!(l)))
        .collect();
    Ok(Value::Array(lines))
}
