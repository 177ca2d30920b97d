//! The policies, apart from how they are called.

use plugway_sdk::{Endpoint, EndpointState, Endpoints};

use crate::PolicyName;

/// The endpoints that may be chosen.
#[derive(Debug, Default)]
pub struct Pool {
    members: Vec<Member>,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    index: u32,
    weight: u32,
}

/// A policy with what it remembers.
#[derive(Debug)]
pub enum Policy {
    /// A position in a sequence that is laid out when the pool changes.
    RoundRobin { sequence: Vec<u32>, next: usize },
    /// Where the search for the least loaded begins, so that equals take turns.
    LeastConnections { start: usize },
    /// The state of the generator.
    RandomTwoChoices { seed: u64 },
}

/// A sequence longer than this is cut, at the cost of the finest differences of weight.
const LONGEST_SEQUENCE: u64 = 1 << 16;

impl Pool {
    /// Those that are up, or, if none is, all that are not draining: a guess beats a certain failure.
    pub fn new(endpoints: &[Endpoint]) -> Self {
        let members = |state| {
            let all = endpoints.iter().zip(0..).filter(move |(endpoint, _)| endpoint.state == state);
            all.map(|(endpoint, index)| Member { index, weight: endpoint.weight.max(1) }).collect::<Vec<_>>()
        };
        let up = members(EndpointState::Up);
        Pool { members: if up.is_empty() { members(EndpointState::Down) } else { up } }
    }
}

impl Policy {
    /// A policy before it knows any endpoint.
    pub fn new(name: PolicyName) -> Self {
        match name {
            PolicyName::RoundRobin => Policy::RoundRobin { sequence: Vec::new(), next: 0 },
            PolicyName::LeastConnections => Policy::LeastConnections { start: 0 },
            PolicyName::RandomTwoChoices => Policy::RandomTwoChoices { seed: seed() },
        }
    }

    /// Prepares what a pick looks up.
    pub fn pool_changed(&mut self, pool: &Pool) {
        if let Policy::RoundRobin { sequence, next } = self {
            *sequence = smooth_sequence(&pool.members);
            // Workers start apart from each other, else the first endpoint gets every worker's first request.
            *next = if sequence.is_empty() { 0 } else { seed() as usize % sequence.len() };
        }
    }

    /// Chooses a member that has not been tried, or any if all have.
    pub fn pick(&mut self, pool: &Pool, tried: &[u32], endpoints: &Endpoints) -> Option<u32> {
        let fresh = |index: &u32| !tried.contains(index);
        match self {
            Policy::RoundRobin { sequence, next } => {
                let mut candidates = (0..sequence.len()).map(|step| (*next + step) % sequence.len());
                let at = candidates.find(|at| fresh(&sequence[*at])).unwrap_or(*next);
                *next = (at + 1) % sequence.len().max(1);
                sequence.get(at).copied()
            }
            Policy::LeastConnections { start } => {
                let (count, loads) = (pool.members.len(), Loads::of(pool, endpoints));
                *start = (*start + 1) % count.max(1);
                let in_turn = (0..count).map(|step| pool.members[(*start + step) % count]);
                let untried = in_turn.clone().filter(|member| fresh(&member.index));
                let least = untried.min_by_key(|member| loads.share(*member));
                least.or_else(|| in_turn.min_by_key(|member| loads.share(*member))).map(|member| member.index)
            }
            Policy::RandomTwoChoices { seed } => {
                let mut members: Vec<Member> = Vec::new();
                let untried = pool.members.iter().filter(|member| fresh(&member.index)).count();
                if !tried.is_empty() && untried > 0 {
                    members.extend(pool.members.iter().filter(|member| fresh(&member.index)));
                }
                let members = if members.is_empty() { &pool.members } else { &members };
                let first = *members.get(random(seed) as usize % members.len().max(1))?;
                if members.len() == 1 {
                    return Some(first.index);
                }
                let place = members.iter().position(|member| member.index == first.index)?;
                let second = members[(place + 1 + random(seed) as usize % (members.len() - 1)) % members.len()];
                let share = |member: Member| {
                    u64::from(endpoints.in_flight(member.index) + 1) * SCALE / u64::from(member.weight)
                };
                Some(if share(second) < share(first) { second.index } else { first.index })
            }
        }
    }
}

/// Requests in flight, fetched one by one for a few endpoints and at once for many.
enum Loads<'a> {
    Each(&'a Endpoints),
    All(Vec<u32>),
}

const SCALE: u64 = 1 << 16;

impl<'a> Loads<'a> {
    fn of(pool: &Pool, endpoints: &'a Endpoints) -> Self {
        // One flat call costs about a quarter of the call that brings a list.
        if pool.members.len() <= 4 { Loads::Each(endpoints) } else { Loads::All(endpoints.loads()) }
    }

    fn share(&self, member: Member) -> u64 {
        let in_flight = match self {
            Loads::Each(endpoints) => endpoints.in_flight(member.index),
            Loads::All(loads) => loads.get(member.index as usize).copied().unwrap_or(0),
        };
        u64::from(in_flight + 1) * SCALE / u64::from(member.weight)
    }
}

/// Smooth weighted round robin laid out for one whole round: each step raises every credit by the weight, takes the
/// highest and lowers it by the sum.
fn smooth_sequence(members: &[Member]) -> Vec<u32> {
    let divisor = members.iter().fold(0, |divisor, member| greatest_common_divisor(divisor, member.weight.into()));
    let mut weights: Vec<u64> = members.iter().map(|member| u64::from(member.weight) / divisor.max(1)).collect();
    let total: u64 = weights.iter().sum();
    if total > LONGEST_SEQUENCE {
        weights.iter_mut().for_each(|weight| *weight = (*weight * LONGEST_SEQUENCE / total).max(1));
    }
    if weights.iter().all(|weight| *weight == 1) {
        return members.iter().map(|member| member.index).collect();
    }
    let total: u64 = weights.iter().sum();
    let mut credits = vec![0i64; members.len()];
    let mut step = |_| {
        credits.iter_mut().zip(&weights).for_each(|(credit, weight)| *credit += *weight as i64);
        let (best, _) = credits.iter().enumerate().rev().max_by_key(|(_, credit)| **credit)?;
        credits[best] -= total as i64;
        Some(members[best].index)
    };
    (0..total).filter_map(&mut step).collect()
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// SplitMix64: enough to spread load, no more.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The standard library seeds its hash maps from the system's random numbers.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(weight: u32, state: EndpointState) -> Endpoint {
        Endpoint { address: String::new(), weight, state, tier: 0, zone: String::new() }
    }

    fn up(weights: &[u32]) -> Pool {
        Pool::new(&weights.iter().map(|weight| endpoint(*weight, EndpointState::Up)).collect::<Vec<_>>())
    }

    fn counts(name: PolicyName, pool: &Pool, loads: &[u32], picks: usize) -> Vec<usize> {
        let mut policy = Policy::new(name);
        policy.pool_changed(pool);
        let mut counts = vec![0; loads.len()];
        let endpoints = Endpoints::made_up(loads.to_vec());
        (0..picks).for_each(|_| counts[policy.pick(pool, &[], &endpoints).unwrap() as usize] += 1);
        counts
    }

    #[test]
    fn round_robin_is_exact_and_smooth() {
        assert_eq!(counts(PolicyName::RoundRobin, &up(&[1, 1, 1]), &[0; 3], 300), [100, 100, 100]);
        assert_eq!(counts(PolicyName::RoundRobin, &up(&[5, 1, 1]), &[0; 3], 700), [500, 100, 100]);
        assert_eq!(smooth_sequence(&up(&[5, 1, 1]).members), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(smooth_sequence(&up(&[200, 100]).members), [0, 1, 0]);
    }

    #[test]
    fn the_least_loaded_for_its_weight_is_chosen_and_equals_take_turns() {
        assert_eq!(counts(PolicyName::LeastConnections, &up(&[1, 1, 1]), &[3, 1, 2], 9), [0, 9, 0]);
        assert_eq!(counts(PolicyName::LeastConnections, &up(&[4, 1]), &[2, 1], 9), [9, 0]);
        assert_eq!(counts(PolicyName::LeastConnections, &up(&[1; 6]), &[0; 6], 60), [10; 6]);
    }

    #[test]
    fn of_two_choices_the_worst_is_never_taken() {
        let counts = counts(PolicyName::RandomTwoChoices, &up(&[1, 1, 1]), &[0, 5, 9], 3000);
        assert_eq!(counts[2], 0);
        assert!(counts[0] > counts[1] && counts[1] > 500, "{counts:?}");
    }

    #[test]
    fn what_was_tried_is_avoided_while_another_is_left() {
        let (pool, endpoints) = (up(&[1, 1]), Endpoints::made_up(vec![0, 9]));
        for name in [PolicyName::RoundRobin, PolicyName::LeastConnections, PolicyName::RandomTwoChoices] {
            let mut policy = Policy::new(name);
            policy.pool_changed(&pool);
            for _ in 0..20 {
                assert_eq!(policy.pick(&pool, &[0], &endpoints), Some(1));
                assert!(policy.pick(&pool, &[0, 1], &endpoints).is_some());
            }
        }
    }

    #[test]
    fn the_down_are_a_last_resort_and_the_draining_are_not() {
        let states = [EndpointState::Down, EndpointState::Draining];
        let pool = Pool::new(&states.map(|state| endpoint(1, state)));
        assert_eq!(counts(PolicyName::RoundRobin, &pool, &[0, 0], 5), [5, 0]);
        for name in [PolicyName::RoundRobin, PolicyName::LeastConnections, PolicyName::RandomTwoChoices] {
            let mut policy = Policy::new(name);
            let empty = Pool::new(&[endpoint(1, EndpointState::Draining)]);
            policy.pool_changed(&empty);
            assert_eq!(policy.pick(&empty, &[], &Endpoints::made_up(vec![])), None);
        }
    }
}
