//! A generator that is good enough to spread load, and nothing else.

use std::hash::{BuildHasher, RandomState};

/// SplitMix64.
#[derive(Debug)]
pub struct Random(u64);

impl Default for Random {
    /// The standard library seeds its hash maps from the system's random numbers.
    fn default() -> Self {
        Random::seeded(RandomState::new().hash_one(()))
    }
}

impl Random {
    /// Always the same numbers from the same seed.
    pub fn seeded(seed: u64) -> Self {
        Random(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below a bound, or 0 if the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product is cheaper than a remainder, and as even.
        ((u128::from(self.number()) * u128::from(bound)) >> 64) as u64
    }

    /// A place in a list of this length.
    pub fn place(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// Brings a list into a random order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        (1..list.len()).rev().for_each(|last| list.swap(last, self.place(last + 1)));
    }
}

/// Makes every bit of the result depend on every bit of the number: SplitMix64's finaliser.
pub fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
