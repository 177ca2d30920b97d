//! The stock plugin `ip-filter`, which allows or denies clients by their addresses, as the host knows them.

mod config;
mod list;
mod networks;
mod policy;

use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Setup, ValueName, Values, Verdict, export, log};

use config::{Config, Decision};
use policy::Policy;

/// The configured plugin.
pub struct IpFilter {
    policy: Policy,
    client: Input,
}

impl Plugin for IpFilter {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let policy = Policy::new(&config, setup)?;
        Ok(IpFilter { policy, client: setup.request.value(ValueName::ClientAddress) })
    }
}

impl RequestFilter for IpFilter {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let client = request.text(self.client);
        if self.policy.decide(client) == Decision::Allow {
            return Verdict::proceed();
        }
        if self.policy.is_logged {
            log::warn(&format!("client denied: {}", client.unwrap_or("no address")));
        }
        self.policy.denial().into()
    }
}

export!(IpFilter: RequestFilter);

#[cfg(test)]
mod tests;
