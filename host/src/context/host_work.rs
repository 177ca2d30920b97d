//! The work that the host does for a plugin outside of its calls: to fill plans, and to carry out edits. It is counted
//! rather than measured, because two readings of the clock cost more than most plans.

use std::cell::Cell;
use std::time::Duration;

/// Counted work, in nanoseconds as estimated from what was read and written.
#[derive(Debug, Default)]
pub struct HostWork(Cell<u64>);

/// The time to search a byte for the pair of a name, in nanoseconds.
const SCANNED_BYTE: u64 = 5;

/// The time to parse a pair and to sort it among others, in nanoseconds.
const PARSED_PAIR: u64 = 60;

/// The time to look at the name of a field, in nanoseconds.
const FIELD: u64 = 10;

/// The time to carry out an edit, in nanoseconds.
const EDIT: u64 = 100;

/// The time to invalidate the responses under a cache key, in nanoseconds.
const INVALIDATION: u64 = 1_000;

/// The number of bytes that are copied in a nanosecond, at least.
const COPIED_BYTES: u64 = 4;

impl HostWork {
    /// Counts a search of some bytes.
    pub fn add_scan(&self, bytes: usize) {
        self.add(bytes as u64 * SCANNED_BYTE);
    }

    /// Counts lines that were parsed into pairs.
    pub fn add_parse(&self, bytes: usize, pairs: usize) {
        self.add(bytes as u64 * SCANNED_BYTE + pairs as u64 * PARSED_PAIR);
    }

    /// Counts fields whose names were compared with `name_bytes` in all.
    pub fn add_names(&self, fields: usize, name_bytes: usize) {
        self.add(fields as u64 * FIELD + name_bytes as u64);
    }

    /// Counts edits, and the bytes that they copy.
    pub fn add_edits(&self, edits: usize, bytes: usize) {
        self.add(edits as u64 * EDIT + bytes as u64 / COPIED_BYTES);
    }

    /// Counts bytes that were copied.
    pub fn add_copy(&self, bytes: usize) {
        self.add(bytes as u64 / COPIED_BYTES);
    }

    /// Counts the invalidation of a cache key.
    pub fn add_invalidation(&self, key_bytes: usize) {
        self.add(INVALIDATION + key_bytes as u64);
    }

    /// Returns the time that was counted, and begins anew.
    pub fn take(&self) -> Duration {
        Duration::from_nanos(self.0.take())
    }

    /// Returns the nanoseconds that were counted.
    #[cfg(test)]
    pub fn nanoseconds(&self) -> u64 {
        self.0.get()
    }

    fn add(&self, nanoseconds: u64) {
        self.0.set(self.0.get().saturating_add(nanoseconds));
    }
}
