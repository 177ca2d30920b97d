//! The parts of a test: an origin, the proxy as a process, a client.

pub mod client;
pub mod name_server;
pub mod origin;
pub mod proxy;
pub mod redis;

use std::time::{Duration, Instant};

pub use client::{Message, read_message, vanish};
pub use origin::{echo, ok, origin, raw_origin, refusing, sized};
pub use proxy::{
    Proxy, RUNTIME, limited, manifest, outcome, output, plugway, plugway_after, plugway_with_short_files, run,
};

/// The maximum time until a condition holds, after which the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
