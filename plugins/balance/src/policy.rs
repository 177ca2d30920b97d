//! The policies, which choose the member of a level for each request.
//!
//! [`EndpointPool`](crate::endpoint_pool::EndpointPool) calls this module. Each policy prepares data from the members. A pick asks the host for
//! live values, and allocates only if the host returns a list or the request has failed before.

mod hashing;
mod least_connections;
mod round_robin;
mod two_choices;

use plugway_sdk::Endpoints;

use crate::config::PolicyName;
use crate::random::Random;
use crate::tiers::Level;

use hashing::Hashing;
use least_connections::LeastConnections;
use round_robin::RoundRobin;
use two_choices::{Cost, TwoChoices};

pub use two_choices::Weights;

/// A policy with its prepared data and its state.
pub enum Policy {
    /// Members take turns.
    RoundRobin(RoundRobin),
    /// The least loaded member is chosen.
    LeastConnections(LeastConnections),
    /// The better of two random members is chosen, by load or latency.
    TwoChoices(TwoChoices),
    /// The hash of a value chooses the member.
    Hashing(Hashing),
}

/// The input for a pick.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    /// The hash of the value that chooses the member, for policies that hash.
    pub key: Option<u64>,
    /// The indices of the endpoints that the request has failed on.
    pub tried: &'a [u32],
    /// The live values of the endpoints.
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

    /// Chooses a member that hasn't been tried; `None` if all have been.
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
    /// Returns whether the request hasn't failed on this endpoint.
    pub fn may_go_to(&self, index: u32) -> bool {
        !self.tried.contains(&index)
    }
}
