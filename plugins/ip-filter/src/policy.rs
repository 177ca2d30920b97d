//! The decision about a client, and the response to a denied one.

use std::net::IpAddr;

use plugway_sdk::{ConfigError, Response, Setup};

use crate::config::{Config, Decision};
use crate::list;
use crate::networks::Networks;

/// The rules of a configuration.
pub struct Policy {
    allow: Networks,
    deny: Networks,
    default: Decision,
    without_address: Decision,
    status: u16,
    /// Whether denied requests are logged.
    pub is_logged: bool,
}

impl Policy {
    /// Parses the lists, and checks that the configuration says something.
    pub fn new(config: &Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if config.allow.is_none() && config.deny.is_none() {
            return Err(ConfigError::at(
                "",
                "no list: expected `allow`, `deny` or both, such as `deny = [\"192.0.2.1\"]`",
            ));
        }
        let status = config.status.unwrap_or(403);
        if ![403, 404].contains(&status) {
            return Err(ConfigError::at("/status", format!("invalid status: {status}; expected 403 or 404")));
        }
        let allow = config.allow.as_ref().map(|list| list::parse(list, "allow", setup));
        let deny = config.deny.as_ref().map(|list| list::parse(list, "deny", setup));
        if config.default.is_none() && allow.as_ref().is_some_and(Networks::is_empty) {
            setup.report(list::nobody());
        }
        let usual = if allow.is_some() { Decision::Deny } else { Decision::Allow };
        let default = config.default.unwrap_or(usual);
        Ok(Policy {
            allow: allow.unwrap_or_default(),
            deny: deny.unwrap_or_default(),
            default,
            without_address: config.without_address.unwrap_or(default),
            status,
            is_logged: config.log,
        })
    }

    /// Returns the decision about a client; the address is `None` if the host knows none.
    pub fn decide(&self, address: Option<&str>) -> Decision {
        let Some(address) = address else { return self.without_address };
        // The host passes nothing else; if it did, the client would be unknown.
        let Ok(address) = address.parse::<IpAddr>() else { return Decision::Deny };
        if self.deny.contains(address) {
            return Decision::Deny;
        }
        if self.allow.contains(address) { Decision::Allow } else { self.default }
    }

    /// Returns the response to a denied client, which no cache may store for others. The host adds the error page.
    pub fn denial(&self) -> Response {
        Response::new(self.status).field("cache-control", "no-store")
    }
}
