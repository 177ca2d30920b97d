//! The stock plugin `balance`: which endpoint gets the next request.

mod policy;

use plugway_sdk::{Balancer, ConfigError, Endpoint, Endpoints, Plugin, Setup, Values, export};
use schemars::JsonSchema;
use serde::Deserialize;

use policy::{Policy, Pool};

/// How to choose.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The policy.
    pub policy: PolicyName,
}

/// The known policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// One after the other, spread evenly by weight.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight for its weight.
    LeastConnections,
    /// The better of two drawn at random.
    RandomTwoChoices,
}

/// The configured plugin.
pub struct Balance {
    policy: Policy,
    pool: Pool,
}

impl Plugin for Balance {
    type Config = Config;

    fn new(config: Config, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Balance { policy: Policy::new(config.policy), pool: Pool::default() })
    }
}

impl Balancer for Balance {
    fn endpoints_changed(&mut self, endpoints: Vec<Endpoint>) {
        self.pool = Pool::new(&endpoints);
        self.policy.pool_changed(&self.pool);
    }

    fn pick(&mut self, _: &Values, tried: &[u32], endpoints: &Endpoints) -> Option<u32> {
        self.policy.pick(&self.pool, tried, endpoints)
    }
}

export!(Balance: Balancer);
