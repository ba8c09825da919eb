//! Where things are: the repository, the target directory, the binary under test, the C programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let manifest =
            std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&manifest).parent().expect("xtask lies in the repository").to_owned()
    })
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A directory for what these commands leave: natural sizes, outputs, built C programs.
pub(crate) fn scratch() -> Result<PathBuf, String> {
    let dir = target().join("xtask");
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    Ok(dir)
}

/// A source file of a test program.
pub(crate) fn program(name: &str) -> PathBuf {
    root().join("tests/programs").join(name)
}

/// `cargo`, with the toolchain that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The vswap binary: the one given, or the release build, made now.
pub(crate) fn vswap(given: Option<String>) -> Result<PathBuf, String> {
    if let Some(path) = given {
        return std::fs::canonicalize(&path).map_err(|e| format!("--vswap {path}: {e}"));
    }
    let built = cargo().args(["build", "--release", "--quiet", "--package", "vswap"]).status();
    match built {
        Ok(status) if status.success() => Ok(target().join("release/vswap")),
        Ok(_) => Err("vswap does not build".to_owned()),
        Err(e) => Err(format!("cargo: {e}")),
    }
}

/// The first file of this name in $PATH.
pub(crate) fn find(binary: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(binary)).find(|file| file.is_file())
}

/// The first file of this name, or an error that says what to install.
pub(crate) fn need(binary: &str, package: &str) -> Result<PathBuf, String> {
    find(binary).ok_or_else(|| format!("{binary} is not installed: apt-get install {package}"))
}

/// The Python interpreter itself: what is first in $PATH may be a script that chooses one.
pub(crate) fn python() -> Result<PathBuf, String> {
    need("python3", "python3")?;
    let output = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .map_err(|e| format!("python3: {e}"))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Builds a C program from its sources (unless the result is newer than all of `inputs`) and returns it.
fn compile(name: &str, sources: &[PathBuf], inputs: &[PathBuf], link: &[&str]) -> Result<PathBuf, String> {
    // Two programs that run at once may be made of the same sources.
    static COMPILER: Mutex<()> = Mutex::new(());
    let _one = COMPILER.lock().unwrap_or_else(PoisonError::into_inner);
    let output = scratch()?.join(name);
    let modified = |p: &PathBuf| std::fs::metadata(p).and_then(|m| m.modified()).ok();
    if modified(&output)
        .is_some_and(|built| inputs.iter().all(|input| modified(input).is_some_and(|m| m < built)))
    {
        return Ok(output);
    }
    let compiler = need("cc", "gcc")?;
    let status = Command::new(compiler)
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"])
        .args(link)
        .arg("-o")
        .arg(&output)
        .args(sources)
        .arg("-lm")
        .status()
        .map_err(|e| format!("cc: {e}"))?;
    if status.success() { Ok(output) } else { Err(format!("{name} does not compile")) }
}

/// The torture program, built.
pub(crate) fn torture() -> Result<PathBuf, String> {
    let dir = program("torture");
    let entries = std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut inputs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    inputs.sort();
    let sources: Vec<PathBuf> =
        inputs.iter().filter(|p| p.extension().is_some_and(|e| e == "c")).cloned().collect();
    compile("torture", &sources, &inputs, &[])
}

/// A test program of one file, built.
pub(crate) fn one_file(name: &str) -> Result<PathBuf, String> {
    let source = [program(&format!("{name}.c"))];
    compile(name, &source, &source, &[])
}

/// The same without a loader.
pub(crate) fn one_static_file(name: &str) -> Result<PathBuf, String> {
    let source = [program(&format!("{name}.c"))];
    compile(&format!("{name}-static"), &source, &source, &["-static"])
}
