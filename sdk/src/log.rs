//! The log of the host: up to 100 lines and 64 KiB a second over all instances of a plugin. In native tests the lines
//! are written to standard error.

use crate::bindings::log as host;

/// Logs a problem that needs a person.
pub fn error(message: &str) {
    write(host::Level::Error, message);
}

/// Logs an unusual loss or rejection.
pub fn warn(message: &str) {
    write(host::Level::Warn, message);
}

/// Logs useful information; not for every request.
pub fn info(message: &str) {
    write(host::Level::Info, message);
}

/// Logs details for debugging.
pub fn debug(message: &str) {
    write(host::Level::Debug, message);
}

fn write(level: host::Level, message: &str) {
    #[cfg(target_family = "wasm")]
    host::write(level, message);
    #[cfg(not(target_family = "wasm"))]
    eprintln!("[{level:?}] {message}");
}
