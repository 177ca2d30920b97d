//! The stock plugin `balance`, which chooses the endpoint of each request.
//!
//! All precomputation happens when the endpoints change: the levels and their shares, the turns, the hash tables, the
//! tokens of the cookie. A pick only looks values up.

mod config;
mod endpoint_pool;
mod hash;
mod maglev;
mod policy;
mod random;
mod sticky;
mod tiers;

use plugway_sdk::{Balancer, Choice, ConfigError, Endpoint, Endpoints, Plugin, ResponseEdits, Setup, Values, export};

use config::Config;
use endpoint_pool::EndpointPool;
use random::Random;
use sticky::Sticky;

/// The configured plugin.
pub struct Balance {
    pool: EndpointPool,
    sticky: Option<Sticky>,
}

impl Plugin for Balance {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        config.check().into_iter().for_each(|error| setup.report(error));
        setup.balancer_key = config.hashed_value()?;
        Ok(Balance {
            pool: EndpointPool::new(&config, Random::default()),
            sticky: config.sticky.map(|sticky| Sticky::new(&sticky, &mut setup.balancer)),
        })
    }
}

impl Balancer for Balance {
    fn endpoints_changed(&mut self, endpoints: Vec<Endpoint>, plans: &mut ResponseEdits) {
        self.pool.endpoints_changed(&endpoints);
        if let Some(sticky) = &mut self.sticky {
            sticky.endpoints_changed(&endpoints, |tier| self.pool.gets_requests(tier), plans);
        }
    }

    fn pick(&mut self, request: &Values, tried: &[u32], endpoints: &Endpoints) -> Option<Choice> {
        if let Some(index) = self.sticky.as_ref().and_then(|sticky| sticky.remembered(request, tried)) {
            return Some(index.into());
        }
        let index = self.pool.pick(request.key(), tried, endpoints)?;
        Some(self.sticky.as_ref().map_or_else(|| index.into(), |sticky| sticky.choice(index)))
    }
}

export!(Balance: Balancer);

#[cfg(test)]
mod tests;
