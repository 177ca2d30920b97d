//! The configured endpoints of an upstream: addresses that are listed, and names that resolve to several.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::dns::{LookupError, Resolver};
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
    pub lifetime: Duration,
}

impl DnsName {
    /// Looks the name up.
    pub async fn look_up(&self, resolver: &Resolver) -> Result<Resolved, LookupError> {
        match &self.kind {
            NameKind::Host(host, port) => {
                let answer = resolver.addresses(host).await?;
                let member = |address: &IpAddr| self.member(*address, *port, self.weight, self.tier);
                Ok(Resolved { members: answer.records.iter().map(member).collect(), lifetime: answer.lifetime })
            }
            NameKind::Service(name) => {
                let answer = resolver.services(name).await?;
                let mut priorities: Vec<u16> = answer.records.iter().map(|service| service.priority).collect();
                priorities.sort_unstable();
                priorities.dedup();
                let members = answer.records.iter().map(|service| {
                    let tier = priorities.iter().position(|priority| *priority == service.priority).unwrap_or(0);
                    // A weight of 0 asks for the least there is (RFC 2782).
                    let weight = u32::from(service.weight).max(1);
                    self.member(service.address, service.port, weight, self.tier + tier as u32)
                });
                Ok(Resolved { members: members.collect(), lifetime: answer.lifetime })
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
