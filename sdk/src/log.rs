//! The host's log: up to 100 lines and 64 KiB a second over all instances of a plugin. In native tests the lines go to
//! standard error.

use crate::bindings::log as host;

/// Something needs a person.
pub fn error(message: &str) {
    write(host::Level::Error, message);
}

/// Something was lost or refused unusually.
pub fn warn(message: &str) {
    write(host::Level::Warn, message);
}

/// Something worth knowing; not for every request.
pub fn info(message: &str) {
    write(host::Level::Info, message);
}

/// For finding faults.
pub fn debug(message: &str) {
    write(host::Level::Debug, message);
}

fn write(level: host::Level, message: &str) {
    #[cfg(target_family = "wasm")]
    host::write(level, message);
    #[cfg(not(target_family = "wasm"))]
    eprintln!("[{level:?}] {message}");
}
