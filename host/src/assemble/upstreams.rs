//! From an upstream's table to its endpoints, balancer and rules.

use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::Draft;
use crate::config::manifest;
use crate::config::problem::Source;
use crate::generation::{Endpoint, Upstream};
use crate::upstream::{EndpointAddr, KeepRules};

impl Draft<'_> {
    pub(super) fn upstream(
        &mut self,
        source: &Arc<Source>,
        name: &Spanned<String>,
        upstream: &manifest::Upstream,
    ) -> Upstream {
        let mut endpoints = Vec::new();
        for endpoint in &upstream.endpoints {
            let (text, weight) = match endpoint.get_ref() {
                manifest::Endpoint::Address(address) => (address, 1),
                manifest::Endpoint::Weighted(endpoint) => {
                    (&endpoint.address, self.weight(source, endpoint.weight.as_ref()))
                }
            };
            match endpoint_address(text) {
                Some(address) => {
                    let in_flight = self.assembly.in_flight.entry(address.clone()).or_default().clone();
                    endpoints.push(Endpoint { text: address.text(), address, weight, in_flight });
                }
                None => {
                    let message =
                        format!("`{text}` is no endpoint; write `127.0.0.1:8000`, `app.internal:8000` or `unix:/path`");
                    self.problems.at(source, endpoint.span(), message);
                }
            }
        }
        if upstream.endpoints.is_empty() {
            self.problems.at(source, name.span(), "an upstream needs at least one endpoint");
        }
        let balancer = match &upstream.balancer {
            Some(reference) => {
                let place = self.reference(source, reference);
                if place.is_some_and(|place| !self.bindings[place].balances()) {
                    self.problems.at(
                        source,
                        reference.span(),
                        "this plugin is no balancer: it doesn't export that hook",
                    );
                }
                place
            }
            None if endpoints.len() > 1 => self.round_robin(source, name.span()),
            None => None,
        };
        let rules = KeepRules {
            connect_timeout: self.duration(source, upstream.connect_timeout.as_ref(), Duration::from_secs(5)),
            response_timeout: self.duration(source, upstream.response_timeout.as_ref(), Duration::from_secs(60)),
            idle_timeout: self.duration(source, upstream.idle_timeout.as_ref(), Duration::from_secs(60)),
            idle_connections: upstream.idle_connections.unwrap_or(128),
        };
        Upstream { name: name.get_ref().as_str().into(), endpoints, balancer, rules }
    }

    fn weight(&mut self, source: &Arc<Source>, weight: Option<&Spanned<i64>>) -> u32 {
        let Some(weight) = weight else { return 1 };
        match u16::try_from(*weight.get_ref()) {
            Ok(given @ 1..) => given.into(),
            _ => {
                self.problems.at(source, weight.span(), "a weight is a number between 1 and 65535");
                1
            }
        }
    }
}

fn endpoint_address(text: &str) -> Option<EndpointAddr> {
    if text.strip_prefix("unix:").is_some_and(|path| path.starts_with('/')) {
        return Some(EndpointAddr::Unix(text.into()));
    }
    let (host, port) = text.rsplit_once(':')?;
    let is_host = !host.is_empty() && !host.contains(['/', ' ', '@']) && (!host.contains(':') || host.starts_with('['));
    (is_host && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| EndpointAddr::Tcp(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_a_port_or_a_path() {
        for good in ["127.0.0.1:80", "[::1]:80", "app.internal:8000", "unix:/run/app.sock"] {
            assert!(endpoint_address(good).is_some(), "{good}");
        }
        for bad in ["127.0.0.1", "::1:80", ":80", "a:0", "a:99999", "http://a:80", "unix:relative"] {
            assert!(endpoint_address(bad).is_none(), "{bad}");
        }
    }
}
