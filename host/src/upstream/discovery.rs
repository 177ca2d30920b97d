//! The configured endpoints of an upstream: addresses that are listed, and names that resolve to several.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::dns::{LookupError, Resolver, Service};
use super::endpoint_set::EndpointSpec;
use super::health_check::HealthCheck;
use super::{EndpointAddr, EndpointProtocol, SocketName, health};

/// The endpoints and names that the monitor works by.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamSpec {
    /// The endpoints that the manifest names one by one.
    pub members: Vec<EndpointSpec>,
    /// The names to look up.
    pub names: Vec<DnsName>,
    pub health: health::HealthRules,
    /// The health check; `None` if endpoints are not checked.
    pub check: Option<HealthCheck>,
}

/// A name that stands for endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsName {
    pub kind: NameKind,
    /// The prefix of an address in the text of an endpoint, such as `https://`; may be empty.
    pub scheme: &'static str,
    pub protocol: EndpointProtocol,
    pub weight: u32,
    pub tier: u32,
    pub zone: Arc<str>,
    pub draining: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// The addresses of a host (A and AAAA), all with this port.
    Host(String, u16),
    /// The targets of a service (SRV, RFC 2782), each with a port and a weight, and tiers by priority.
    Service(String),
}

/// The endpoints that a name resolves to, with their lifetime.
pub struct Resolved {
    pub members: Vec<EndpointSpec>,
    /// The errors of the targets of a service that could not be looked up.
    pub missing: Vec<String>,
    /// The number of endpoints beyond the maximum, which are left out.
    pub left_out: usize,
    pub lifetime: Duration,
}

impl DnsName {
    /// Looks the name up.
    pub async fn look_up(&self, resolver: &Resolver) -> Result<Resolved, LookupError> {
        match &self.kind {
            NameKind::Host(host, port) => {
                let answer = resolver.addresses(host).await?;
                let member = |address: &IpAddr| self.member(*address, *port, self.weight, self.tier);
                let members = answer.records.iter().map(member).collect();
                Ok(Resolved { members, missing: Vec::new(), left_out: answer.left_out, lifetime: answer.lifetime })
            }
            NameKind::Service(name) => {
                let answer = resolver.services(name).await?;
                let mut priorities: Vec<u16> = answer.records.iter().map(|service| service.priority).collect();
                priorities.sort_unstable();
                priorities.dedup();
                let weights = weights(&answer.records);
                let members = answer.records.iter().zip(weights).map(|(service, weight)| {
                    let tier = priorities.iter().position(|priority| *priority == service.priority).unwrap_or(0);
                    self.member(service.address, service.port, weight, self.tier + tier as u32)
                });
                let (members, left_out) = (members.collect(), answer.left_out);
                Ok(Resolved { members, missing: answer.missing, left_out, lifetime: answer.lifetime })
            }
        }
    }

    /// Returns the name as messages show it.
    pub fn text(&self) -> &str {
        match &self.kind {
            NameKind::Host(host, _) => host,
            NameKind::Service(name) => name,
        }
    }

    fn member(&self, address: IpAddr, port: u16, weight: u32, tier: u32) -> EndpointSpec {
        let host_and_port = std::net::SocketAddr::new(address, port).to_string();
        let text = format!("{}{host_and_port}", self.scheme).into();
        let address =
            EndpointAddr { text, address: SocketName::Tcp(host_and_port.into()), protocol: self.protocol.clone() };
        EndpointSpec { address, weight, tier, zone: self.zone.clone(), draining: self.draining }
    }
}

/// Returns the weights of endpoints that are targets of a service. RFC 2782 has the weight per target, so that the
/// addresses of a target share it.
fn weights(services: &[Service]) -> Vec<u32> {
    let scale = services.iter().map(|service| service.addresses as u64).fold(1, least_common_multiple);
    // A weight of 0 asks for the least there is (RFC 2782).
    let share = |service: &Service| u64::from(service.weight).max(1) * scale / service.addresses.max(1) as u64;
    let mut weights: Vec<u64> = services.iter().map(|service| share(service).max(1)).collect();
    // As near as possible to the weights of the records, beside which other endpoints of the upstream have theirs.
    let divisor = weights.iter().copied().fold(scale, greatest_common_divisor);
    weights.iter_mut().for_each(|weight| *weight /= divisor);
    let heaviest = weights.iter().copied().max().unwrap_or(1).max(MAX_WEIGHT);
    weights.iter().map(|weight| (weight * MAX_WEIGHT / heaviest).max(1) as u32).collect()
}

fn greatest_common_divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { greatest_common_divisor(other, one % other) }
}

/// Returns the least common multiple, or [`MAX_SCALE`] if that is less: weights are then rounded.
fn least_common_multiple(one: u64, other: u64) -> u64 {
    let other = other.max(1);
    (one / greatest_common_divisor(one, other) * other).min(MAX_SCALE)
}

/// The heaviest weight of an endpoint, as in the manifest.
const MAX_WEIGHT: u64 = 65_535;

/// The largest factor of weights that are divided: larger than the least common multiple of all numbers to 16.
const MAX_SCALE: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn service(weight: u16, addresses: usize) -> Service {
        Service { priority: 0, weight, port: 80, address: IpAddr::from([10, 0, 0, 1]), addresses }
    }

    #[test]
    fn the_addresses_of_a_target_share_its_weight() {
        for (services, expected) in [
            (vec![service(3, 1), service(1, 1)], vec![3, 1]),
            (vec![service(50, 3), service(50, 3), service(50, 3), service(50, 1)], vec![50, 50, 50, 150]),
            (vec![service(6, 2), service(6, 2), service(4, 1)], vec![3, 3, 4]),
            (vec![service(1, 2), service(1, 3), service(0, 1)], vec![3, 2, 6]),
            (vec![service(65_535, 1), service(65_535, 2)], vec![65_535, 32_767]),
            (vec![service(1, 1), service(65_535, 1)], vec![1, 65_535]),
            (vec![], vec![]),
        ] {
            assert_eq!(weights(&services), expected, "{services:?}");
        }
        let many: Vec<Service> = (1..1000).map(|addresses| service(u16::MAX, addresses)).collect();
        assert!(weights(&many).iter().all(|weight| (1..=65_535).contains(weight)));
    }
}
