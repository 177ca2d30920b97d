//! The errors of a component that can't be loaded.

use super::function_names;

/// A component that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("not WebAssembly: the file doesn't begin with `\\0asm`; expected a component, built for wasm32-wasip2")]
    NotWebAssembly,
    #[error(
        "not a component: found a core module; build it for wasm32-wasip2, or make a component of it by `wasm-tools \
         component new`"
    )]
    CoreModule,
    #[error("not a component: {}; build it for wasm32-wasip2", one_line(.0))]
    NotAComponent(wasmtime::Error),
    #[error(
        "a function's name is too long: found {0} bytes; at most {longest} are allowed, so build the component without \
         names, such as by `strip = true`", longest = function_names::MAX_NAME_BYTES
    )]
    FunctionName(usize),
    #[error("unknown import: {0:#}; expected those of WIT package `plugway:plugin@0.1.0` and of WASI 0.2 alone")]
    Imports(wasmtime::Error),
    #[error(
        "built for another version of the interface: found `{0}`; expected version 0.1.0, so build it with the SDK of this \
         version of plugway"
    )]
    OtherVersion(String),
    #[error(
        "not a plugin: it has no export `plugway:plugin/lifecycle@0.1.0`; build it with `plugway-sdk`, and `export!` a plugin"
    )]
    NotAPlugin,
    #[error("wrong export `plugway:plugin/lifecycle@0.1.0`: {0:#}; build it with the SDK of this version of plugway")]
    Lifecycle(wasmtime::Error),
    #[error(
        "import and export that can't go together: the component imports something that waits, and exports `{0}`, whose \
         answer the host can't wait for; make two components of it"
    )]
    WaitingHook(&'static str),
    #[error(
        "import and export that can't go together: `[shared] redis` makes calls of the shared state wait, and the component \
         exports `{0}`, whose answer the host can't wait for; make two components of it, or remove `redis`"
    )]
    SharedHook(&'static str),
    #[error("wrong export `{0}`: {1:#}; build it with the SDK of this version of plugway")]
    Hook(&'static str, wasmtime::Error),
}

/// Returns the first line of a cause; the rest of a parser's text does not help.
fn one_line(error: &wasmtime::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().trim_end_matches(" - expected=[").into()
}
