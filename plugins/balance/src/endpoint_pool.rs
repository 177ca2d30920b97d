//! The pool of endpoints that can be chosen: levels, each with a policy of its own.
//!
//! The plugin calls this module, which doesn't deal with cookies.

use plugway_sdk::{Endpoint, Endpoints};

use crate::config::{Config, Overflow, PolicyName};
use crate::policy::{Attempt, Policy, Weights};
use crate::random::Random;
use crate::tiers::{Level, Member, levels};

/// The data that a pick uses.
pub struct EndpointPool {
    policy: PolicyName,
    bounded_load: Option<u32>,
    overflow: Overflow,
    zone: Option<String>,
    random: Random,
    /// The levels that get requests, in order of preference.
    open: Vec<Open>,
    /// The levels that get no requests at present, in order of preference.
    spare: Vec<Level>,
}

/// A level that gets requests.
struct Open {
    level: Level,
    /// The end of the level's share of the requests, between 0 and [`ALL`].
    until: u64,
    policy: Policy,
}

/// The end of the range of shares: half of the bits of a random number or a hash.
const ALL: u64 = 1 << 32;

impl EndpointPool {
    /// Creates a pool without endpoints.
    pub fn new(config: &Config, random: Random) -> Self {
        let Config { policy, bounded_load, overflow, ref zone, .. } = *config;
        EndpointPool { policy, bounded_load, overflow, zone: zone.clone(), random, open: Vec::new(), spare: Vec::new() }
    }

    /// Prepares all data that depends on the endpoints.
    pub fn endpoints_changed(&mut self, endpoints: &[Endpoint]) {
        let levels = levels(endpoints, self.zone.as_deref(), self.overflow);
        let (open, spare): (Vec<_>, Vec<_>) = levels.into_iter().partition(|level| level.share * ALL as f64 >= 1.0);
        (self.open, self.spare) = (Vec::new(), spare);
        let mut taken = 0.0;
        for level in open {
            taken += level.share;
            let policy = Policy::new(self.policy, &level, self.bounded_load, &mut self.random);
            self.open.push(Open { level, until: (taken * ALL as f64).round() as u64, policy });
        }
    }

    /// Returns whether a tier gets requests that have not been tried.
    pub fn gets_requests(&self, tier: u32) -> bool {
        self.open.iter().any(|open| open.level.tier == tier)
    }

    /// Chooses an endpoint by the key, or at random if the policy needs a key and there is none. A tried endpoint is
    /// chosen only if no other one is left in any level.
    pub fn pick(&mut self, key: Option<u64>, tried: &[u32], endpoints: &Endpoints) -> Option<u32> {
        let key = self.policy.hashes().then(|| key.unwrap_or_else(|| self.random.number()));
        let at = self.level(key);
        let Open { level, policy, .. } = self.open.get_mut(at)?;
        let attempt = Attempt { key, tried, endpoints };
        if tried.is_empty() || level.members.iter().any(|member| attempt.may_go_to(member.index)) {
            return policy.pick(&attempt, &mut self.random);
        }
        self.untried(&attempt)
            .or_else(|| self.open[at].policy.pick(&Attempt { tried: &[], ..attempt }, &mut self.random))
    }

    /// Returns the index of the level that gets a request. A key keeps its level, as far as the shares allow.
    fn level(&mut self, key: Option<u64>) -> usize {
        match self.open.first() {
            Some(first) if first.until < ALL => {
                let point = key.unwrap_or_else(|| self.random.number()) >> 32;
                self.open.partition_point(|level| level.until <= point).min(self.open.len() - 1)
            }
            _ => 0,
        }
    }

    /// Returns a random untried endpoint, by weight, of the most preferred level that has one. This is needed so seldom
    /// that no policy is prepared for it.
    fn untried(&mut self, attempt: &Attempt<'_>) -> Option<u32> {
        let levels = self.open.iter().map(|open| &open.level).chain(&self.spare);
        let untried = levels.map(|level| -> Vec<Member> {
            level.members.iter().filter(|member| attempt.may_go_to(member.index)).copied().collect()
        });
        let members = untried.into_iter().find(|members| !members.is_empty())?;
        Some(members[Weights::new(&members).draw(&mut self.random)].index)
    }
}

#[cfg(test)]
mod tests;
