//! A random number generator that is good enough to spread load, and for no other purpose.

use std::hash::{BuildHasher, RandomState};

/// A SplitMix64 generator.
#[derive(Debug)]
pub struct Random(u64);

impl Default for Random {
    /// Seeds the generator from the system, because the standard library seeds its hash maps with the system's random
    /// numbers.
    fn default() -> Self {
        Random::seeded(RandomState::new().hash_one(()))
    }
}

impl Random {
    /// Creates a generator that returns the same numbers for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Random(seed)
    }

    /// Returns a random number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns a random number below a bound; 0 if the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product is cheaper than a remainder, and equally distributed.
        ((u128::from(self.number()) * u128::from(bound)) >> 64) as u64
    }

    /// Returns a random position in a list of this length.
    pub fn place(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// Shuffles a list.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        (1..list.len()).rev().for_each(|last| list.swap(last, self.place(last + 1)));
    }
}

/// Mixes the bits of a number, so that every bit of the result depends on every bit of the input: SplitMix64's
/// finaliser.
pub fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
