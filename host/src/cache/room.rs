//! The part of a budget that responses on their way take, besides what is stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one response on its way takes; given back when this is dropped.
#[derive(Debug)]
pub struct Room {
    /// What all of them take, in bytes.
    coming: Arc<AtomicU64>,
    bytes: u64,
}

/// Such a part of the budget is for them.
const PART: u64 = 4;

impl Room {
    /// None yet, of what all take.
    pub fn new(coming: &Arc<AtomicU64>) -> Self {
        Room { coming: coming.clone(), bytes: 0 }
    }

    /// Takes more; says whether there is as much in a budget.
    pub fn take(&mut self, bytes: u64, budget: u64) -> bool {
        self.bytes += bytes;
        self.coming.fetch_add(bytes, Ordering::Relaxed) + bytes <= budget / PART
    }

    /// Gives back what it has.
    pub fn leave(&mut self) {
        self.coming.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.leave();
    }
}
