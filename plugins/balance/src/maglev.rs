//! Google's Maglev hashing (Eisenbud and others, NSDI 2016, §3.4): a table that gives each member entries by its weight
//! and keeps nearly all of them in place when a member comes or goes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::levels::Member;
use crate::random::mix;

/// The table: places of members.
pub struct Maglev {
    entries: Vec<u32>,
}

/// The paper's small size, a prime: a quarter of a megabyte for each table, and entries for each of a thousand members
/// that differ by 1.5 %.
const SIZE: usize = 65_537;

const FREE: u32 = u32::MAX;

impl Maglev {
    /// Builds the table: members in turn take the first free entry of an order of their own, heavier ones more often.
    pub fn new(members: &[Member]) -> Self {
        let mut claims: Vec<Claim> = members.iter().zip(0..).map(|(member, place)| Claim::new(member, place)).collect();
        claims.sort_unstable_by_key(|claim| claim.hash);
        let mut turns: BinaryHeap<_> = (0..claims.len()).map(|rank| Reverse((0, rank))).collect();
        let mut entries = vec![FREE; SIZE];
        for _ in 0..SIZE {
            let Some(mut turn) = turns.peek_mut() else { break };
            let claim = &mut claims[turn.0.1];
            let entry = claim.first_free(&entries);
            entries[entry] = claim.place;
            turn.0.0 = claim.next_turn();
        }
        Maglev { entries }
    }

    /// The places from a key's entry on, around the table once.
    pub fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let (before, from) = self.entries.split_at((key % SIZE as u64) as usize);
        from.iter().chain(before).map(|place| *place as usize)
    }
}

/// A member while the table is built.
struct Claim {
    hash: u64,
    place: u32,
    weight: u64,
    turns: u64,
    entry: usize,
    skip: usize,
}

impl Claim {
    fn new(member: &Member, place: u32) -> Self {
        let Member { weight, address_hash: hash, .. } = *member;
        let entry = (hash % SIZE as u64) as usize;
        let skip = (mix(hash) % (SIZE as u64 - 1)) as usize + 1;
        Claim { hash, place, weight: weight.into(), turns: 0, entry, skip }
    }

    /// There is one, as only so many turns are taken as there are entries.
    fn first_free(&mut self, entries: &[u32]) -> usize {
        while entries[self.entry] != FREE {
            self.entry = (self.entry + self.skip) % SIZE;
        }
        self.entry
    }

    /// When the next turn comes: twice the weight, half the time. The shift keeps fractions; turns have 17 bits.
    fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        (self.turns << 40) / self.weight
    }
}

/// Hashes a key or an address, alike in all processes: FNV-1a, whose weak high bits are mixed at last. A cryptographic
/// hash would cost more than the rest of a pick, and a client may choose its key anyway.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}

#[cfg(test)]
mod tests;
