//! Builds the stock plugins to components, for `src/lib.rs` to embed.

use std::path::Path;

const PLUGINS: &[&str] = &[
    "headers",
    "balance",
    "cache",
    "rewrite",
    "ip-filter",
    "auth-basic",
    "auth-key",
    "request-id",
    "body-limit",
    "cors",
    "log-fields",
    "security-headers",
];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for watched in ["plugins", "sdk/src", "sdk/Cargo.toml", "wit", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    let packages: Vec<String> = PLUGINS.iter().map(|name| format!("plugway-{name}")).collect();
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    let target_dir = root.join("target/guests");
    match plugway_build::components(&root.join("Cargo.toml"), &packages, &["--profile", "guest"], &target_dir) {
        Ok(folder) => {
            for name in PLUGINS {
                let name = name.replace('-', "_");
                let file = folder.join(format!("guest/plugway_{name}.wasm"));
                println!("cargo::rustc-env=PLUGIN_{}={}", name.to_uppercase(), file.display());
            }
        }
        Err(error) => error.lines().for_each(|line| println!("cargo::error={line}")),
    }
}
