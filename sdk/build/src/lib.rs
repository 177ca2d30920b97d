//! Builds plugin crates to wasm components from a build script.
//!
//! Plugway's own stock plugins and test guests are built this way; a crate that embeds a filter can do the same.
#![expect(clippy::disallowed_methods, reason = "a build script is configured by the environment")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The target that components are built for.
pub const TARGET: &str = "wasm32-wasip2";

/// Builds packages of one workspace in release mode and gives the folder of their `.wasm` files. `extra` goes to
/// cargo as it is, such as `--examples` or `--profile guest`.
///
/// One target folder serves all profiles of the outer build, and the outer build's flags and wrappers are kept away:
/// otherwise test, clippy and release would each build the same components anew.
pub fn components(manifest: &Path, packages: &[&str], extra: &[&str], target_dir: &Path) -> Result<PathBuf, String> {
    ensure_target()?;
    let mut cargo = Command::new(tool("CARGO", "cargo"));
    cargo.arg("build").arg("--manifest-path").arg(manifest).arg("--target").arg(TARGET);
    cargo.arg("--target-dir").arg(target_dir).args(extra);
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let of_outer_build = name.starts_with("CARGO_") && !["CARGO_HOME", "CARGO_NET_OFFLINE"].contains(&name);
        let of_network =
            name.starts_with("CARGO_HTTP_") || name.starts_with("CARGO_NET_") || name.starts_with("CARGO_REGISTRIES_");
        let is_wrapper = ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTC", "RUSTDOC", "CLIPPY_ARGS"]
            .contains(&name);
        if is_wrapper || of_outer_build && !of_network {
            cargo.env_remove(name);
        }
    }
    let output = cargo.stdin(Stdio::null()).output().map_err(|error| format!("cargo does not start: {error}"))?;
    if !output.status.success() {
        return Err(format!("building {packages:?} for {TARGET} failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(target_dir.join(TARGET))
}

/// Adds the wasm target through rustup where it is missing.
fn ensure_target() -> Result<(), String> {
    let libraries =
        Command::new(tool("RUSTC", "rustc")).args(["--print", "target-libdir", "--target", TARGET]).output();
    let present = libraries.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir());
    if present {
        return Ok(());
    }
    let added = Command::new("rustup").args(["target", "add", TARGET]).stdin(Stdio::null()).output();
    match added {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err(format!("the Rust target {TARGET} is missing: run `rustup target add {TARGET}`")),
    }
}

fn tool(variable: &str, name: &str) -> std::ffi::OsString {
    std::env::var_os(variable).unwrap_or_else(|| name.into())
}
