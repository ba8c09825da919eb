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

/// Makes what the next ones are run on.
const IMAGES: &str = "page_images";
const ON_IMAGES: [&str; 3] = ["compressors", "pool_costs", "fault_path"];

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
        let images = if names.iter().any(|name| name == IMAGES) { page_images(package)? } else { Vec::new() };
        for name in names.iter().filter(|name| *name != IMAGES) {
            println!("{package}, {name}:");
            let pages: &[String] = if ON_IMAGES.contains(&name.as_str()) { &images } else { &[] };
            results.insert(format!("{package}/{name}"), run(package, name, pages)?);
        }
    }
    Ok(Value::Object(results))
}

/// The files of memory images, made now.
pub(crate) fn images() -> Result<Vec<String>, String> {
    page_images("vswap-tiers")
}

/// Memory images of real programs, made afresh: what compressors are compared on.
fn page_images(package: &str) -> Result<Vec<String>, String> {
    let dir = workspace::scratch()?.join("pages");
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    run(package, IMAGES, &[dir.to_string_lossy().into_owned()])?;
    let files = std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut pages: Vec<String> = files
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "pages"))
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    pages.sort();
    Ok(pages)
}

fn run(package: &str, name: &str, args: &[String]) -> Result<Value, String> {
    let output = workspace::cargo()
        .args(["run", "--release", "--quiet", "--package", package, "--example", name, "--"])
        .args(args)
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
