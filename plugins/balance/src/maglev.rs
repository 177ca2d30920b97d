//! Google's Maglev hashing (Eisenbud and others, NSDI 2016, §3.4): a table with entries for each member by weight,
//! which keeps nearly all entries unchanged when a member is added or removed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::random::mix;
use crate::tiers::Member;

/// The hash table, whose entries are positions of members.
pub struct Maglev {
    entries: Vec<u32>,
}

/// The small table size of the paper, a prime. A table needs a quarter of a megabyte, and the entries of a thousand
/// members differ by 1.5 %.
const SIZE: usize = 65_537;

const FREE: u32 = u32::MAX;

impl Maglev {
    /// Builds the table: members take turns to claim the first free entry in an order of their own, heavier ones more
    /// often.
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

    /// Iterates over the positions, from the entry of a key once around the table.
    pub fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let (before, from) = self.entries.split_at((key % SIZE as u64) as usize);
        from.iter().chain(before).map(|place| *place as usize)
    }
}

/// The state of a member while the table is built.
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

    /// Returns the first free entry. There always is one, because there are only as many turns as entries.
    fn first_free(&mut self, entries: &[u32]) -> usize {
        while entries[self.entry] != FREE {
            self.entry = (self.entry + self.skip) % SIZE;
        }
        self.entry
    }

    /// Returns the time of the next turn: a member with twice the weight waits half as long. The shift keeps fractions;
    /// turns have 17 bits.
    fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        (self.turns << 40) / self.weight
    }
}

#[cfg(test)]
mod tests;
