//! The stock plugin `auth-key`, which requires a known key and tells the upstream the name of its owner.

mod config;
mod keys;
mod places;
mod policy;

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Setup, Values, Verdict, export};

use config::Config;
use policy::Policy;

/// The configured plugin.
pub struct AuthKey(Policy);

impl Plugin for AuthKey {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Policy::new(&config, setup).map(AuthKey)
    }
}

impl RequestFilter for AuthKey {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.0.decide(request)
    }
}

export!(AuthKey: RequestFilter);

#[cfg(test)]
mod tests;
