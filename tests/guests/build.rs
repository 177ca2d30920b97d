//! Builds the plugins that the whole-program tests run.

use std::path::Path;

const GUESTS: &[&str] = &[
    "example-api-key",
    "example-quota",
    "example-request-signing",
    "example-split",
    "example-retitle",
    "example-html-links",
    "example-tenant",
    "example-shop-cache",
    "example-waf",
    "test-bodies",
    "example-forward-auth",
    "test-caller",
    "test-counted",
    "test-greedy",
    "test-hooks",
    "test-key-value",
    "test-late",
    "test-loading",
    "test-misbehave",
    "test-noisy",
    "test-overrides",
    "test-policy",
    "test-waiting",
    "test-values",
    "test-shared",
];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for watched in ["tests/guests", "examples", "sdk/src", "sdk/Cargo.toml", "wit", "host/wit", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    let target_dir = root.join("target/guests");
    match plugway_build::components(&root.join("Cargo.toml"), GUESTS, &["--profile", "guest"], &target_dir) {
        Ok(folder) => {
            for name in GUESTS {
                let variable = name.to_uppercase().replace('-', "_");
                let file = folder.join(format!("guest/{}.wasm", name.replace('-', "_")));
                println!("cargo::rustc-env=GUEST_{variable}={}", file.display());
            }
        }
        Err(error) => error.lines().for_each(|line| println!("cargo::error={line}")),
    }
}
