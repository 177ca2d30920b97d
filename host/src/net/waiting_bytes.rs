//! The bytes of responses that wait in memory for the client of one connection, over all its streams.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes that wait for one client, and their limit.
#[derive(Debug)]
pub struct WaitingBytes {
    /// The worker of the connection changes it, and other threads when they drop what has waited.
    bytes: AtomicU64,
    max: u64,
}

impl WaitingBytes {
    /// Returns a count of no bytes.
    pub const fn new(max: u64) -> Self {
        WaitingBytes { bytes: AtomicU64::new(0), max }
    }

    /// Whether this many further bytes may wait.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.bytes.load(Ordering::Relaxed) + bytes <= self.max
    }

    /// Counts bytes that wait from now on.
    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that wait no longer.
    pub fn remove(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
