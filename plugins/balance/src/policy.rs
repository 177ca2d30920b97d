//! The policies: which member of a level gets a request.
//!
//! [`Pool`](crate::pool::Pool) calls this. Each policy prepares what it needs from the members; a pick asks the host
//! for live figures, and allocates only where the host gives a list, or where the request has failed before.

mod hashing;
mod least_connections;
mod round_robin;
mod two_choices;

use plugway_sdk::Endpoints;

use crate::config::PolicyName;
use crate::levels::Level;
use crate::random::Random;

use hashing::Hashing;
use least_connections::LeastConnections;
use round_robin::RoundRobin;
use two_choices::{Cost, TwoChoices};

pub use two_choices::Weights;

/// A policy with what it prepared and what it remembers.
pub enum Policy {
    /// In turn.
    RoundRobin(RoundRobin),
    /// By load.
    LeastConnections(LeastConnections),
    /// By load or latency, at random.
    TwoChoices(TwoChoices),
    /// By the hash of a value.
    Hashing(Hashing),
}

/// What is to be decided.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    /// The hash of the value that decides, for policies that hash.
    pub key: Option<u64>,
    /// Indices of those that the request has failed on.
    pub tried: &'a [u32],
    /// The live figures.
    pub endpoints: &'a Endpoints,
}

impl Policy {
    /// Prepares a policy for the members of a level.
    pub fn new(name: PolicyName, level: &Level, bounded_load: Option<u32>, random: &mut Random) -> Self {
        let members = &level.members;
        match name {
            PolicyName::RoundRobin => Policy::RoundRobin(RoundRobin::new(members, random)),
            PolicyName::LeastConnections => Policy::LeastConnections(LeastConnections::new(members, random)),
            PolicyName::RandomTwoChoices => Policy::TwoChoices(TwoChoices::new(members, Cost::InFlight)),
            PolicyName::PeakEwma => Policy::TwoChoices(TwoChoices::new(members, Cost::Latency)),
            PolicyName::SourceHash | PolicyName::ConsistentHash => Policy::Hashing(Hashing::new(level, bounded_load)),
        }
    }

    /// Chooses a member that hasn't been tried; none if all have.
    pub fn pick(&mut self, attempt: &Attempt<'_>, random: &mut Random) -> Option<u32> {
        match self {
            Policy::RoundRobin(policy) => policy.pick(attempt),
            Policy::LeastConnections(policy) => policy.pick(attempt, random),
            Policy::TwoChoices(policy) => policy.pick(attempt, random),
            Policy::Hashing(policy) => policy.pick(attempt),
        }
    }
}

impl Attempt<'_> {
    /// Whether the request hasn't failed on this endpoint.
    pub fn may_go_to(&self, index: u32) -> bool {
        !self.tried.contains(&index)
    }
}
