//! The stock plugin `auth-basic`, which requires a name and a password (HTTP Basic, RFC 7617) and tells the upstream the
//! name. Passwords are verified by the host, for which the hook waits.

mod config;
mod credentials;
mod hashes;
mod policy;
mod users;

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Setup, Values, Verdict, export};

use config::Config;
use policy::Policy;

/// The configured plugin.
pub struct AuthBasic(Policy);

impl Plugin for AuthBasic {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Policy::new(&config, setup).map(AuthBasic)
    }
}

impl RequestFilter for AuthBasic {
    fn on_request(&mut self, request: &Values) -> Verdict {
        self.0.decide(request)
    }
}

export!(AuthBasic: RequestFilter);

#[cfg(test)]
mod tests;
