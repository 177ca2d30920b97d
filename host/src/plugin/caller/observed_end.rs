//! The part of an exchange that an observer receives, and how much of that may wait for the observer.

use super::super::instance::Summary;

/// The part of an exchange that an observer receives once the exchange has ended.
pub struct ObservedEnd {
    /// The values that the observer has declared.
    pub values: Vec<Option<Vec<u8>>>,
    pub summary: Summary,
}

/// The maximum number of bytes that wait for an observer on a worker.
pub const MAX_WAITING_BYTES: usize = 4 << 20;

/// The bytes that an exchange takes besides its values, roughly.
const OWN_BYTES: usize = 1 << 10;

impl ObservedEnd {
    /// Returns the size of the exchange in memory, roughly.
    pub fn bytes(&self) -> usize {
        OWN_BYTES + self.values.iter().flatten().map(Vec::len).sum::<usize>()
    }
}
