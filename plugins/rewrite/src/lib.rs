//! The stock plugin `rewrite`, which changes paths, queries and hosts, and redirects by a map and regular expressions.

mod canonical;
mod config;
mod location;
mod map;
mod mismatch;
mod policy;
mod query;
mod rewriter;
mod rules;
mod target;

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Setup, Values, Verdict, export};

use config::Config;
use policy::Policy;

/// The configured plugin.
pub struct Rewrite(Policy);

impl Plugin for Rewrite {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Policy::new(&config, setup).map(Rewrite)
    }
}

impl RequestFilter for Rewrite {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.0.decide(request)
    }
}

export!(Rewrite: RequestFilter);

#[cfg(test)]
mod tests;
