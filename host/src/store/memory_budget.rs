//! The reservation of memory or disk space for responses that are still arriving.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes reserved for the arriving responses of one route, or of all.
#[derive(Clone, Debug, Default)]
pub struct ArrivingBytes(Arc<AtomicU64>);

/// The bytes reserved for one arriving response. The reservation is released on drop.
#[derive(Debug)]
pub struct MemoryReservation {
    all: ArrivingBytes,
    route: ArrivingBytes,
    bytes: u64,
}

/// The divisor of the budget: a quarter of it is for arriving responses.
const PART: u64 = 4;

/// The part that a route may take of what the other routes leave: three quarters. However slowly the responses of some
/// routes arrive, others find room.
const ROUTE_PART: (u64, u64) = (3, 4);

impl ArrivingBytes {
    fn add(&self, bytes: u64) -> u64 {
        self.0.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    fn subtract(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl MemoryReservation {
    /// Creates an empty reservation for a response of a route.
    pub fn new(all: &ArrivingBytes, route: &ArrivingBytes) -> Self {
        MemoryReservation { all: all.clone(), route: route.clone(), bytes: 0 }
    }

    /// Reserves more bytes. Returns whether the route is still within its part of the budget for arriving responses.
    pub fn take(&mut self, bytes: u64, budget: u64) -> bool {
        self.bytes += bytes;
        let (all, route) = (self.all.add(bytes), self.route.add(bytes));
        let left = (budget / PART).saturating_sub(all.saturating_sub(route));
        route <= left / ROUTE_PART.1 * ROUTE_PART.0
    }

    /// Releases all but `bytes` of the reservation.
    pub fn shrink(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.all.subtract(less);
        self.route.subtract(less);
    }

    /// Releases the reservation.
    pub fn leave(&mut self) {
        self.shrink(0);
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reserves pieces of 1 KiB for responses of a route until there is no room; returns how many there were.
    fn fill(all: &ArrivingBytes, route: &ArrivingBytes, held: &mut Vec<MemoryReservation>) -> usize {
        let before = held.len();
        loop {
            let mut room = MemoryReservation::new(all, route);
            if !room.take(1 << 10, 1 << 20) {
                return held.len() - before;
            }
            held.push(room);
        }
    }

    #[test]
    fn each_route_leaves_room_to_others() {
        let (all, mut held) = (ArrivingBytes::default(), Vec::new());
        let routes: [ArrivingBytes; 3] = Default::default();
        let numbers = routes.each_ref().map(|route| fill(&all, route, &mut held));
        assert_eq!(numbers, [192, 48, 12]);
        assert_eq!(fill(&all, &routes[0], &mut held), 0, "the others have taken a part of the rest");
        held.clear();
        assert_eq!(fill(&all, &routes[1], &mut held), 192);
    }
}
