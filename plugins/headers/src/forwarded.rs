//! Tells the upstream of the client when other proxies may stand in front of this one.

use std::net::IpAddr;

use ipnet::IpNet;
use plugway_sdk::{ConfigError, Need, Setup, ValueName, Values, Verdict};

use crate::config::{Forwarded, ForwardedFields};

/// What to send, and whom to believe.
pub struct Forwarding {
    trusted: Vec<IpNet>,
    fields: ForwardedFields,
    client: Need,
    scheme: Need,
    authority: Need,
    received: Received,
}

/// What the request says about its way.
struct Received {
    chain: Need,
    proto: Need,
    host: Need,
    forwarded: Need,
}

impl Forwarding {
    /// Parses the networks and declares the values.
    pub fn new(config: Forwarded, setup: &mut Setup) -> Result<Self, ConfigError> {
        let network = |(at, text): (usize, &String)| {
            let parsed = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            parsed.map_err(|_| {
                let why = format!("`{text}` is no network; write one like `10.0.0.0/8` or an address");
                ConfigError::at(format!("/forwarded/trusted-proxies/{at}"), why)
            })
        };
        let needs = &mut setup.request;
        Ok(Forwarding {
            trusted: config.trusted_proxies.iter().enumerate().map(network).collect::<Result<_, _>>()?,
            fields: config.fields,
            client: needs.value(ValueName::ClientAddress),
            scheme: needs.value(ValueName::Scheme),
            authority: needs.value(ValueName::Authority),
            received: Received {
                chain: needs.field("x-forwarded-for"),
                proto: needs.field("x-forwarded-proto"),
                host: needs.field("x-forwarded-host"),
                forwarded: needs.field("forwarded"),
            },
        })
    }

    /// The edits for a request; the address that is believed to be the client's also becomes the note `client`.
    pub fn apply(&self, request: &Values) -> Verdict {
        let peer = request.text(self.client).unwrap_or("unknown");
        let believed = self.trusts(peer);
        let told = |need| request.text(need).filter(|_| believed);
        let client = self.origin(peer, told(self.received.chain));
        let mut verdict = Verdict::proceed().set_note("client", client);
        if self.fields != ForwardedFields::Rfc7239 {
            let own = |need| request.text(need).unwrap_or_default();
            verdict = verdict
                .set_field("x-forwarded-for", appended(told(self.received.chain), peer))
                .set_field("x-forwarded-proto", told(self.received.proto).unwrap_or(own(self.scheme)))
                .set_field("x-forwarded-host", told(self.received.host).unwrap_or(own(self.authority)))
                .set_field("x-real-ip", client);
        }
        if self.fields != ForwardedFields::XForwarded {
            let hop = self.element(peer, request);
            verdict = verdict.set_field("forwarded", appended(told(self.received.forwarded), &hop));
        }
        verdict
    }

    /// The last address of the way that no trusted proxy stands behind.
    fn origin<'a>(&self, peer: &'a str, chain: Option<&'a str>) -> &'a str {
        let mut client = peer;
        for hop in chain.unwrap_or_default().rsplit(',') {
            // A hop that names no address ends the search: who stands behind it can't be told from a forgery.
            let Some(hop) = node(hop.trim()).filter(|_| self.trusts(client)) else { break };
            client = hop;
        }
        client
    }

    fn trusts(&self, address: &str) -> bool {
        let address = address.parse::<IpAddr>().map(|address| address.to_canonical());
        address.is_ok_and(|address| self.trusted.iter().any(|network| network.contains(&address)))
    }

    /// One hop in the form of RFC 7239 §4; an IPv6 address is bracketed and quoted (§6.1).
    fn element(&self, peer: &str, request: &Values) -> String {
        let node = if peer.contains(':') { format!("\"[{peer}]\"") } else { peer.into() };
        let mut element = format!("for={node}");
        for (parameter, need) in [("host", self.authority), ("proto", self.scheme)] {
            let Some(value) = request.text(need) else { continue };
            let quoted = format!("\"{}\"", value.replace(['"', '\\'], ""));
            let is_token = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
            element += &format!(";{parameter}={}", if is_token { value } else { &quoted });
        }
        element
    }
}

/// The address of a hop, which may stand alone, bracketed, or with a port.
fn node(hop: &str) -> Option<&str> {
    let is_address = |text: &&str| text.parse::<IpAddr>().is_ok();
    let bracketed = hop.strip_prefix('[').and_then(|rest| Some(rest.split_once(']')?.0));
    let with_port = || hop.rsplit_once(':').map(|(address, _)| address);
    Some(hop).filter(is_address).or(bracketed.filter(is_address)).or_else(|| with_port().filter(is_address))
}

fn appended(list: Option<&str>, hop: &str) -> String {
    list.map_or_else(|| hop.into(), |list| format!("{list}, {hop}"))
}
