//! The reservation of memory or disk space for responses that are still arriving.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes reserved for one arriving response. The reservation is released on drop.
#[derive(Debug)]
pub struct MemoryReservation {
    /// The bytes reserved for all arriving responses.
    coming: Arc<AtomicU64>,
    bytes: u64,
}

/// The divisor of the budget: a quarter of it is for arriving responses.
const PART: u64 = 4;

impl MemoryReservation {
    /// Creates an empty reservation; `coming` is the total over all arriving responses.
    pub fn new(coming: &Arc<AtomicU64>) -> Self {
        MemoryReservation { coming: coming.clone(), bytes: 0 }
    }

    /// Reserves more bytes. Returns whether the total is still within the part of the budget for arriving responses.
    pub fn take(&mut self, bytes: u64, budget: u64) -> bool {
        self.bytes += bytes;
        self.coming.fetch_add(bytes, Ordering::Relaxed) + bytes <= budget / PART
    }

    /// Releases the reservation.
    pub fn leave(&mut self) {
        self.coming.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.leave();
    }
}
