//! Counts by holder, such as the bytes or descriptors of each client, in a table of fixed size and without a lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// The holder of a share of something scarce, such as a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder(u64);

/// The counts of all holders. Holders whose numbers fall into the same place of the table are counted together, so that a
/// count is never too low. The places are secret: no client can choose an address that is counted with another one.
#[derive(Debug)]
pub struct HolderCounts {
    secret: u64,
    places: Box<[AtomicU64]>,
}

/// The binary logarithm of the number of places.
const PLACES_LOG2: u32 = 11;

impl Holder {
    /// The clients without an address, as behind a unix socket.
    pub const UNKNOWN: Holder = Holder(0);
    /// The bodies that wait in files for slow peers.
    pub const BUFFERS: Holder = Holder(1);

    /// The plugins themselves, where they are called for no client, such as by their timers.
    pub const PLUGIN: Holder = Holder(2);

    /// Whether the holder is no client with an address.
    pub fn is_nameless(self) -> bool {
        [Holder::UNKNOWN, Holder::BUFFERS, Holder::PLUGIN].contains(&self)
    }

    /// Returns the holder with a number.
    pub fn numbered(number: u64) -> Self {
        Holder(number)
    }

    /// Returns the number of the holder.
    pub fn number(self) -> u64 {
        self.0
    }

    /// Returns the holder within a group: the same client is another holder in each route.
    pub fn within(self, group: u64) -> Self {
        // A multiplication by an odd number loses nothing.
        Holder(self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(group))
    }
}

impl Default for HolderCounts {
    fn default() -> Self {
        let places = (0..1 << PLACES_LOG2).map(|_| AtomicU64::new(0)).collect();
        HolderCounts { secret: RandomState::new().hash_one(0) | 1, places }
    }
}

impl HolderCounts {
    /// Adds to the count of a holder, and returns the new count.
    pub fn add(&self, holder: Holder, number: u64) -> u64 {
        self.place(holder).fetch_add(number, Ordering::Relaxed) + number
    }

    /// Subtracts from the count of a holder what was added before.
    pub fn remove(&self, holder: Holder, number: u64) {
        self.place(holder).fetch_sub(number, Ordering::Relaxed);
    }

    /// Returns the count of a holder.
    pub fn of(&self, holder: Holder) -> u64 {
        self.place(holder).load(Ordering::Relaxed)
    }

    fn place(&self, holder: Holder) -> &AtomicU64 {
        // The upper bits of a product depend on all bits of the factors.
        let mixed = (holder.0 ^ (holder.0 >> 32)).wrapping_mul(self.secret);
        &self.places[(mixed >> (u64::BITS - PLACES_LOG2)) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holder_has_a_count() {
        let counts = HolderCounts::default();
        let holder = Holder::numbered(7);
        assert_eq!((counts.add(holder, 3), counts.add(holder, 4), counts.of(holder)), (3, 7, 7));
        counts.remove(holder, 5);
        assert_eq!(counts.of(holder), 2);
    }

    #[test]
    fn neighbours_are_seldom_counted_together() {
        let counts = HolderCounts::default();
        let holders = |group: u64| (0..200).map(move |number| Holder::numbered(number << 8).within(group));
        for holder in holders(0) {
            counts.add(holder, 1);
        }
        let together = holders(0).filter(|holder| counts.of(*holder) > 1).count();
        let of_other_group = holders(1).filter(|holder| counts.of(*holder) > 0).count();
        assert!(together < 100 && of_other_group < 100, "{together}, {of_other_group}");
    }
}
