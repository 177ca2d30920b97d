//! The client of a request and its scheme, as the proxies before this one name them, for the access log, limits, hashing, plugins and
//! templates. Fields about a request's way that no trusted proxy vouches for are removed before anything reads them.
//!
//! A chain (`X-Forwarded-For`, `Forwarded`) is read from its right end, which the nearest proxy wrote: over trusted
//! addresses, to the first untrusted one. That address is the client; elements left of it are the client's own claims.
//! A hop that names no address (`unknown`, an obfuscated identifier, anything malformed) ends the search, since
//! elements left of it can't be distinguished from forgeries: the client is then the last known hop.

mod chain;
mod scheme;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::protocol::client_address::chain::Grammar;
use crate::protocol::field_alias::{are_alike, is_ambiguous, is_plain};
use crate::protocol::trusted_peers::TrustedPeers;

pub use scheme::Scheme;

/// The rules of a listener: which peers may name a client, and how ambiguous fields are treated.
#[derive(Clone, Debug, Default, Hash)]
pub struct ClientAddressRules {
    pub trusted: TrustedPeers,
    pub source: AddressSource,
    pub aliases: AliasPolicy,
}

/// The field in which trusted proxies name the client.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub enum AddressSource {
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    /// A field with an address, or with a list of addresses as in `X-Forwarded-For`.
    Field(HeaderName),
}

/// The treatment of fields whose names origins may confuse with others.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub enum AliasPolicy {
    #[default]
    Remove,
    /// The request is rejected.
    Reject,
    Pass,
}

/// A client other than the peer, as trusted proxies name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// The client's address; the port is 0 if unknown.
    pub socket: SocketAddr,
    /// The address without port.
    pub address: HeaderValue,
    /// The port, in decimal; `None` if unknown.
    pub port: Option<HeaderValue>,
}

/// The facts about a request's way, after untrusted fields are removed.
#[derive(Debug, Default)]
pub struct Settled {
    /// The client; `None` if the client is the peer.
    pub client: Option<Box<ClientAddress>>,
    /// The scheme by which the client reached the trusted proxies; `None` if they name none.
    pub scheme: Option<Scheme>,
    /// Whether fields are left that an origin may confuse with others.
    pub has_aliases: bool,
    /// Whether the request is rejected because of a field that an origin may confuse with others.
    pub is_rejected: bool,
}

/// The reason why a field of a request is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldRemoval {
    /// An origin may take the field for another one.
    Alias,
    /// The field describes the request's way, and the peer is no trusted proxy.
    Untrusted,
}

pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Finds the client, and removes the fields about the request's way that no trusted proxy vouches for. `peer` is the
/// address that connected, `None` at a unix socket. `report` is called for each name that is removed.
pub fn settle(
    fields: &mut HeaderMap,
    peer: Option<IpAddr>,
    is_trusted: bool,
    rules: &ClientAddressRules,
    report: impl Fn(&HeaderName, FieldRemoval),
) -> Settled {
    let mut settled = Settled::default();
    let mut unwanted = SmallVec::<[HeaderName; 4]>::new();
    let mut said = SmallVec::<[HeaderName; 4]>::new();
    for name in fields.keys() {
        let text = name.as_str();
        if is_ambiguous(text) {
            match rules.aliases {
                AliasPolicy::Remove => unwanted.push(name.clone()),
                AliasPolicy::Reject => settled.is_rejected = true,
                // No trustworthy proxy spells these names like this.
                AliasPolicy::Pass if tells_way(text) || rules.source.is_alike(text) => unwanted.push(name.clone()),
                AliasPolicy::Pass => settled.has_aliases |= !is_plain(text),
            }
        } else if tells(text) || rules.source.is_alike(text) {
            if is_trusted { said.push(name.clone()) } else { unwanted.push(name.clone()) }
        }
    }
    for name in &unwanted {
        report(name, if is_ambiguous(name.as_str()) { FieldRemoval::Alias } else { FieldRemoval::Untrusted });
        fields.remove(name);
    }
    if is_trusted {
        settled.client = named(fields, &said, peer, rules);
        // After untrusted elements are removed.
        settled.scheme = if said.is_empty() { None } else { scheme::named(fields) };
    }
    settled
}

/// Returns the client that trusted proxies name; `None` if the client is the peer. Removes contradicting and untrusted
/// values from the fields of those names.
fn named(
    fields: &mut HeaderMap,
    said: &[HeaderName],
    peer: Option<IpAddr>,
    rules: &ClientAddressRules,
) -> Option<Box<ClientAddress>> {
    let source = rules.source.name();
    let found_client = rules.source.grammar().search(fields, &source, peer, &rules.trusted);
    match found_client.is_empty() {
        true => drop(fields.remove(&source)),
        false => found_client.keep(fields, &source),
    }
    for name in said.iter().filter(|name| **name != source) {
        let Some(grammar) = grammar(name) else { continue };
        let other = grammar.search(fields, name, peer, &rules.trusted);
        if other.client.ip() == found_client.client.ip() && !other.is_empty() {
            other.keep(fields, name);
        } else {
            fields.remove(name);
        }
    }
    let chain::ChainNode::Address(address, port) = found_client.client else { return None };
    (Some(address) != peer || port.is_some()).then(|| Box::new(ClientAddress::new(address, port)))
}

/// Returns how a field names a client; `None` if the field has other facts of the way.
fn grammar(name: &HeaderName) -> Option<Grammar> {
    match name.as_str() {
        "forwarded" => Some(Grammar::Forwarded),
        "x-forwarded-for" | "x-forward-for" | "x-original-forwarded-for" | "x-vercel-forwarded-for" => {
            Some(Grammar::List)
        }
        name => names_client(name).then_some(Grammar::List),
    }
}

impl ClientAddressRules {
    /// Whether a trailer of a request is removed, since some origins merge trailers into the head: what heads of untrusted
    /// clients lose, and more, as no proxy vouches for a trailer.
    pub fn is_unwanted_trailer(&self, name: &str) -> bool {
        let is_alias = is_ambiguous(name) && (self.aliases != AliasPolicy::Pass || is_plain(name));
        is_alias || tells_way(name) || self.source.is_alike(name)
    }
}

impl FieldRemoval {
    pub const ALL: [FieldRemoval; 2] = [FieldRemoval::Alias, FieldRemoval::Untrusted];

    /// Returns the word for the reason.
    pub fn word(self) -> &'static str {
        match self {
            FieldRemoval::Alias => "alias",
            FieldRemoval::Untrusted => "untrusted",
        }
    }

    /// Returns the key of the listener that decides about such fields.
    pub fn key(self) -> &'static str {
        match self {
            FieldRemoval::Alias => "field-aliases",
            FieldRemoval::Untrusted => "trusted-proxies",
        }
    }
}

impl ClientAddress {
    fn new(address: IpAddr, port: Option<u16>) -> Self {
        let field = |text: String| HeaderValue::try_from(text).ok();
        ClientAddress {
            socket: SocketAddr::new(address, port.unwrap_or(0)),
            // The text of an address is always a valid field value.
            address: field(address.to_string()).unwrap_or(HeaderValue::from_static("unknown")),
            port: port.and_then(|port| field(port.to_string())),
        }
    }
}

impl AddressSource {
    fn name(&self) -> HeaderName {
        match self {
            AddressSource::XForwardedFor => X_FORWARDED_FOR,
            AddressSource::Forwarded => header::FORWARDED,
            AddressSource::Field(name) => name.clone(),
        }
    }

    fn grammar(&self) -> Grammar {
        if *self == AddressSource::Forwarded { Grammar::Forwarded } else { Grammar::List }
    }

    /// Whether an origin may read a name as the manifest's own field, or the name is that field's.
    fn is_alike(&self, name: &str) -> bool {
        matches!(self, AddressSource::Field(own) if are_alike(own.as_str(), name))
    }
}

/// Whether a field describes a request's way, given its name in lower case or an alias of it. Proxies and CDNs name the
/// client in such fields, or say how it reached them. Others have its TLS and certificates (RFC 9440), or its original
/// request.
pub fn tells_way(name: &str) -> bool {
    if is_plain(name) {
        return tells(name);
    }
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    tells(&name.chars().map(plain).collect::<String>())
}

/// Whether a name describes a request's way. The first letter decides first, since each name of each request is
/// checked.
///
/// Vendors make up new names all the time, from a few words: a name that speaks of a client, and of its address, its
/// certificate or its original request, is such a field, whatever stands before.
fn tells(name: &str) -> bool {
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| name.starts_with(beginning));
    match name.as_bytes().first() {
        Some(b'x') => {
            begins(&["x-forward", "x-envoy-", "x-ssl-", "x-tls-", "x-arr-", "x-waws-", "x-amzn-mtls-"])
                || names_client(name)
                || says_forwarded(name)
                || speaks_of_certificate(name)
                || speaks_of_original(name)
                || tells_more(name)
        }
        Some(b'c') => {
            begins(&["cf-", "cl", "cdn-"])
                && (begins(&["cf-ip", "client-cert", "cloudfront-"]) || names_client(name) || tells_more(name))
        }
        Some(b'f') => begins(&["forwarded"]) || names_client(name) || tells_more(name),
        Some(b's') => begins(&["ssl-client-"]) || names_client(name),
        Some(b'h') => name == "https" || names_client(name) || says_forwarded(name),
        Some(b'w') => name == "wl-proxy-ssl" || names_client(name) || says_forwarded(name),
        _ => names_client(name) || says_forwarded(name),
    }
}

/// Whether a field names one client: its last word is an address, and an earlier word says whose.
fn names_client(name: &str) -> bool {
    // Most names of requests end here.
    if !matches!(name.as_bytes().last(), Some(b'p' | b'r' | b's' | b'4' | b'6' | b'm')) {
        return name == "x-original-for";
    }
    let Some((front, last)) = name.rsplit_once('-') else { return false };
    match last {
        "ip" | "ipv4" | "ipv6" | "addr" => front.split('-').any(|word| WHOSE.contains(&word) || word == "user"),
        // People, shops and parcels have addresses too.
        "address" => front.split('-').any(|word| matches!(word, "client" | "external" | "peer" | "remote" | "viewer")),
        "clientip" => true,
        "from" => front == "x-coming",
        _ => false,
    }
}

/// The words for the party whose address a field has.
const WHOSE: [&str; 15] = [
    "client",
    "connecting",
    "external",
    "forwarded",
    "origin",
    "original",
    "originating",
    "peer",
    "proxyuser",
    "real",
    "remote",
    "source",
    "src",
    "true",
    "viewer",
];

/// Whether a vendor's field contains forwarded values, as `x-vercel-forwarded-for` does.
fn says_forwarded(name: &str) -> bool {
    name.contains("-forwarded-")
}

/// Whether a field has a fact of the certificate that a client has shown to another proxy.
fn speaks_of_certificate(name: &str) -> bool {
    let Some((_, fact)) = name.split_once("-client-") else { return false };
    let word = fact.split('-').next().unwrap_or(fact);
    // An application may send a fingerprint or a serial number of its own.
    matches!(word, "cert" | "certificate" | "dn" | "issuer" | "verified" | "verify") || matches!(fact, "s-dn" | "i-dn")
}

/// Whether a field has a part of the request as another proxy received it, or asks to replace it.
fn speaks_of_original(name: &str) -> bool {
    let Some((front, last)) = name.rsplit_once('-') else { return false };
    match last {
        "host" | "method" | "port" | "proto" | "protocol" | "scheme" | "uri" | "url" => {
            front.split('-').any(|word| matches!(word, "backend" | "original" | "real" | "rewrite" | "unencoded"))
        }
        "override" => front.ends_with("-host"),
        _ => false,
    }
}

/// Whether a field describes in another way how the client reached a proxy, or what it requested there.
fn tells_more(name: &str) -> bool {
    matches!(
        name,
        "cf-pseudo-ipv4"
            | "cf-visitor"
            | "fastly-ssl"
            | "front-end-https"
            | "x-appengine-https"
            | "x-azure-socketip"
            | "x-client-port"
            | "x-client-proto"
            | "x-client-scheme"
            | "x-gateway-ip"
            | "x-host"
            | "x-https"
            | "x-proto"
            | "x-protocol"
            | "x-remote-port"
            | "x-scheme"
            | "x-script-name"
            | "x-ssl"
            | "x-url-scheme"
    )
}
