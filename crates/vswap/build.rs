//! Builds the agent, the library that `vswap run` preloads into its targets.
//!
//! It cannot be a cargo dependency: it is a `no_std` cdylib with a panic handler of its own and without a
//! libc, and cargo would build it with the flags of whatever profile and sanitizer the program itself is built with. So
//! rustc is called directly, for `vswap-wire` and then for the agent, always optimised and always with the same flags.
//! Only the target and the linker are taken from cargo; RUSTFLAGS are deliberately not passed on.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let wire = Path::new("../wire/src");
    let agent = Path::new("../agent/src");
    for path in [Path::new("build.rs"), wire, agent] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let system = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if (architecture.as_str(), system.as_str()) != ("x86_64", "linux") {
        println!("cargo::error=vswap runs on Linux on x86-64, not on {system} on {architecture}");
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));

    let mut rustc = compiler(&out);
    rustc.args(["--crate-name", "vswap_wire", "--crate-type", "rlib"]);
    rustc.arg(wire.join("lib.rs"));
    run(rustc);

    let mut rustc = compiler(&out);
    rustc.args(["--crate-name", "vswap_agent", "--crate-type", "cdylib"]);
    rustc.arg("--extern").arg(joined("vswap_wire=", &out.join("libvswap_wire.rlib")));
    rustc.args(["-C", "strip=symbols"]);
    // No start files and no libraries. `initfirst`: before the constructors of the program's libraries, so that our
    // fork hook is also the first to run. Everything is bound at load time, and nothing may be left to bind
    // except the one weak symbol. The entry is where the pager sends a thread that it has made by ptrace.
    for argument in
        ["-nostartfiles", "-nostdlib", "-Wl,-z,now,-z,relro,-z,initfirst,--no-undefined,-e,vswap_enter"]
    {
        rustc.arg("-C").arg(format!("link-arg={argument}"));
    }
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|environment| environment == "musl") {
        // Or rustc refuses to make a shared library.
        rustc.args(["-C", "target-feature=-crt-static"]);
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg(joined("linker=", Path::new(&linker)));
    }
    rustc.arg(agent.join("lib.rs"));
    run(rustc);
}

fn compiler(out: &Path) -> Command {
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"));
    rustc.args(["--edition", "2024", "-C", "opt-level=2", "-C", "panic=abort", "-C", "codegen-units=1"]);
    rustc.args(["-C", "force-unwind-tables=no", "--cap-lints", "warn"]);
    rustc.arg("--target").arg(env::var_os("TARGET").expect("cargo sets TARGET"));
    rustc.arg("--out-dir").arg(out);
    rustc
}

fn joined(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(prefix);
    argument.push(path);
    argument
}

fn run(mut command: Command) {
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building the agent failed ({status}): {command:?}"),
        Err(error) => panic!("cannot run the compiler: {error}: {command:?}"),
    }
}
