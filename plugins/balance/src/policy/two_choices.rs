//! The better of two members drawn at random, by load or by latency.

use plugway_sdk::Endpoints;

use crate::policy::Attempt;
use crate::random::Random;
use crate::tiers::Member;

/// The members to draw from, and the cost that is compared.
pub struct TwoChoices {
    members: Vec<Member>,
    weights: Weights,
    cost: Cost,
}

/// A random choice of positions, with probabilities by weight.
pub struct Weights {
    /// The sums of the weights up to and including each position.
    sums: Vec<u64>,
}

/// The cost that makes a member worse.
#[derive(Clone, Copy, Debug)]
pub enum Cost {
    /// The number of requests in flight.
    InFlight,
    /// The number of requests in flight times the latency until a response begins.
    Latency,
}

// === TwoChoices ===

impl TwoChoices {
    /// Prepares the random choice.
    pub fn new(members: &[Member], cost: Cost) -> Self {
        TwoChoices { members: members.to_vec(), weights: Weights::new(members), cost }
    }

    /// Returns the better of two random members that haven't been tried.
    pub fn pick(&self, attempt: &Attempt<'_>, random: &mut Random) -> Option<u32> {
        if attempt.tried.is_empty() {
            return self.better(&self.members, &self.weights, attempt.endpoints, random);
        }
        let untried = self.members.iter().filter(|member| attempt.may_go_to(member.index));
        let untried: Vec<Member> = untried.copied().collect();
        self.better(&untried, &Weights::new(&untried), attempt.endpoints, random)
    }

    fn better(&self, of: &[Member], weights: &Weights, endpoints: &Endpoints, random: &mut Random) -> Option<u32> {
        if of.len() <= 1 {
            return Some(of.first()?.index);
        }
        let first = weights.draw(random);
        let (first, second) = (of[first], of[weights.draw_other(first, random)]);
        let is_worse = self.cost.of(first, endpoints) > self.cost.of(second, endpoints);
        Some(if is_worse { second.index } else { first.index })
    }
}

// === Weights ===

impl Weights {
    /// Computes the sums of the weights.
    pub fn new(members: &[Member]) -> Self {
        let mut sum = 0;
        let add = |member: &Member| {
            sum += u64::from(member.weight);
            sum
        };
        Weights { sums: members.iter().map(add).collect() }
    }

    /// Returns a random position.
    pub fn draw(&self, random: &mut Random) -> usize {
        let point = random.below(self.sum(self.sums.len()));
        self.sums.partition_point(|sum| *sum <= point)
    }

    /// Returns a random position other than `place`; there are at least two.
    fn draw_other(&self, place: usize, random: &mut Random) -> usize {
        let (start, end) = (self.sum(place), self.sum(place + 1));
        let point = random.below(self.sum(self.sums.len()) - (end - start));
        let point = if point < start { point } else { point + (end - start) };
        self.sums.partition_point(|sum| *sum <= point)
    }

    /// Returns the sum of the first `count` weights.
    fn sum(&self, count: usize) -> u64 {
        count.checked_sub(1).map_or(0, |last| self.sums[last])
    }
}

// === Cost ===

/// The latency, in microseconds, that is assumed for a member that has requests in flight but has never answered. The
/// member may be slow, so it gets one request at first, and not many.
const UNPROVEN_US: f64 = 1e6;

impl Cost {
    fn of(self, member: Member, endpoints: &Endpoints) -> f64 {
        let in_flight = f64::from(endpoints.in_flight(member.index));
        let each = match self {
            Cost::InFlight => 1.0,
            Cost::Latency => match endpoints.latency_us(member.index) {
                0 if in_flight > 0.0 => UNPROVEN_US,
                known => f64::from(known),
            },
        };
        each * (in_flight + 1.0) / f64::from(member.weight)
    }
}
