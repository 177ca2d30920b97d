//! Smooth weighted round robin, precomputed for one whole round.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::policy::Attempt;
use crate::random::Random;
use crate::tiers::Member;

/// A position in a sequence of indices.
pub struct RoundRobin {
    sequence: Vec<u32>,
    next: usize,
}

/// The maximum length of the sequence: a quarter of a megabyte. Weights are rounded to keep it.
const MAX_SEQUENCE_LENGTH: u64 = 1 << 16;

/// The fractions of a step, which order turns that have to be in the same step.
const FRACTIONS: u64 = 1 << 12;

impl RoundRobin {
    /// Computes the sequence of turns.
    pub fn new(members: &[Member], random: &mut Random) -> Self {
        let sequence = smooth_sequence(members);
        // Workers start at different positions, because otherwise the first endpoint would get the first request of
        // every worker.
        RoundRobin { next: random.place(sequence.len()), sequence }
    }

    /// Returns the next member that hasn't been tried; `None` if all have been.
    pub fn pick(&mut self, attempt: &Attempt<'_>) -> Option<u32> {
        let (before, from) = self.sequence.split_at(self.next);
        let mut turns = from.iter().chain(before).copied();
        let skipped = turns.clone().position(|index| attempt.may_go_to(index))?;
        self.next = (self.next + skipped + 1) % self.sequence.len();
        turns.nth(skipped)
    }
}

/// Computes a smooth sequence, in which each member's turns are due at even distances over the round. Each step takes
/// the most urgent of the turns that are due. No member is therefore ever a whole turn ahead or behind, and a step
/// costs little for any number of members.
fn smooth_sequence(members: &[Member]) -> Vec<u32> {
    let weights = smallest_weights(members);
    let total: u64 = weights.iter().sum();
    let due = |place: usize, turn: u64| Reverse(((turn * total).div_ceil(weights[place]), place, turn));
    let late = |place: usize, turn: u64| Reverse(((turn + 1) * total * FRACTIONS / weights[place], place, turn));
    let mut waiting: BinaryHeap<_> = (0..members.len()).map(|place| due(place, 0)).collect();
    let mut ready = BinaryHeap::new();
    let step = |step: u64| {
        while let Some(Reverse((_, place, turn))) = waiting.peek().filter(|turn| turn.0.0 <= step).copied() {
            waiting.pop();
            ready.push(late(place, turn));
        }
        let Reverse((_, place, turn)) = ready.pop()?;
        if turn + 1 < weights[place] {
            waiting.push(due(place, turn + 1));
        }
        Some(members[place].index)
    };
    (0..total).map_while(step).collect()
}

/// Returns weights with the same ratios, in the smallest numbers that give a sequence of bounded length.
fn smallest_weights(members: &[Member]) -> Vec<u64> {
    let weights = members.iter().map(|member| u64::from(member.weight));
    let divisor = weights.clone().fold(0, greatest_common_divisor);
    let weights: Vec<u64> = weights.map(|weight| weight / divisor).collect();
    let total: u64 = weights.iter().sum();
    if total <= MAX_SEQUENCE_LENGTH {
        return weights;
    }
    weights.into_iter().map(|weight| (weight * MAX_SEQUENCE_LENGTH / total).max(1)).collect()
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        weights.iter().zip(0..).map(|(weight, index)| Member { index, weight: *weight, address_hash: 0 }).collect()
    }

    #[test]
    fn a_round_is_smooth() {
        let table: [(&[u32], &[u32]); 5] = [
            (&[1, 1, 1], &[0, 1, 2]),
            (&[7, 7], &[0, 1]),
            (&[200, 100], &[0, 1, 0]),
            (&[5, 1, 1], &[0, 1, 0, 0, 2, 0, 0]),
            (&[2, 3, 1], &[1, 0, 1, 0, 1, 2]),
        ];
        for (weights, sequence) in table {
            assert_eq!(smooth_sequence(&members(weights)), sequence, "{weights:?}");
        }
    }

    #[test]
    fn nobody_is_a_whole_turn_ahead_or_behind() {
        for weights in [vec![5, 1, 1], vec![3, 7, 11, 13], (1..=100).collect(), vec![1000, 1, 1, 1, 30]] {
            let total: u32 = weights.iter().sum();
            let mut had = vec![0u32; weights.len()];
            for (step, index) in (1..).zip(smooth_sequence(&members(&weights))) {
                had[index as usize] += 1;
                for (had, weight) in had.iter().zip(&weights) {
                    let fair = f64::from(step * weight) / f64::from(total);
                    assert!((f64::from(*had) - fair).abs() < 1.0, "{weights:?}: {had}, not {fair}, at {step}");
                }
            }
            assert_eq!(had, weights);
        }
    }

    #[test]
    fn a_long_sequence_is_cut() {
        let sequence = smooth_sequence(&members(&[3_000_000_019, 1_500_000_007, 1]));
        let count = |index| sequence.iter().filter(|chosen| **chosen == index).count();
        assert_eq!([count(0), count(1), count(2)], [43690, 21845, 1]);
    }
}
