//! Chains of proxies in fields, parsed from the right.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::protocol::trusted_peers::{TrustedPeers, UNIX};

/// The syntax of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grammar {
    /// Addresses between commas, as in `X-Forwarded-For`.
    List,
    /// Elements with parameters, as in RFC 7239 §4.
    Forwarded,
}

/// The hop that an element of a chain names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChainNode {
    /// An address, and a port if one is given.
    Address(IpAddr, Option<u16>),
    /// A unix socket, as nginx writes it.
    Unix,
    /// An element without an address: `unknown`, an obfuscated identifier, or a malformed element.
    Hidden,
}

/// The result of a search.
#[derive(Debug)]
pub(super) struct FoundClient {
    pub client: ChainNode,
    /// The elements from the right end to the client's, or to the one that ended the search, in the order of the chain.
    believed: SmallVec<[Vec<u8>; 4]>,
    /// Whether the chain has more elements than `believed`.
    has_more: bool,
}

impl ChainNode {
    /// Returns the address; `None` if the element has none.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            ChainNode::Address(address, _) => Some(address),
            ChainNode::Unix | ChainNode::Hidden => None,
        }
    }
}

impl Grammar {
    /// Searches the chain in a field for the client, beginning at the trusted peer.
    pub fn search(
        self,
        fields: &HeaderMap,
        name: &HeaderName,
        peer: Option<IpAddr>,
        trusted: &TrustedPeers,
    ) -> FoundClient {
        let client = peer.map_or(ChainNode::Unix, |address| ChainNode::Address(address, None));
        let mut found_client = FoundClient { client, believed: SmallVec::new(), has_more: false };
        let lines: SmallVec<[&HeaderValue; 2]> = fields.get_all(name).iter().collect();
        let mut elements = lines.iter().rev().flat_map(|line| FromRight { left: Some(line.as_bytes()), grammar: self });
        let mut is_over = false;
        for element in elements.by_ref() {
            if is_over {
                found_client.has_more = true;
                break;
            }
            let node = self.node(element);
            found_client.believed.push(element.to_vec());
            match node {
                ChainNode::Address(..) => found_client.client = node,
                ChainNode::Unix | ChainNode::Hidden => {}
            }
            is_over = match node {
                ChainNode::Address(address, _) => !trusted.has(Some(address)),
                ChainNode::Unix => !trusted.has(None),
                ChainNode::Hidden => true,
            };
        }
        found_client.believed.reverse();
        found_client
    }

    fn node(self, element: &[u8]) -> ChainNode {
        match self {
            Grammar::List => list_node(element),
            Grammar::Forwarded => forwarded_node(element),
        }
    }
}

impl FoundClient {
    /// Whether the field has no element.
    pub fn is_empty(&self) -> bool {
        self.believed.is_empty()
    }

    /// Keeps only the believed elements in the field.
    pub fn keep(&self, fields: &mut HeaderMap, name: &HeaderName) {
        if !self.has_more {
            return;
        }
        match HeaderValue::from_bytes(&self.believed.join(&b", "[..])) {
            Ok(value) => drop(fields.insert(name, value)),
            Err(_) => drop(fields.remove(name)),
        }
    }
}

/// The elements of a line from right to left, without empty ones (RFC 9110 §5.6.1.2).
///
/// Quotes are matched from the right too: an element that a trusted proxy has appended is parsed correctly even if a
/// quote left of it is never closed.
struct FromRight<'a> {
    /// The unread part of the line; `None` if nothing is left.
    left: Option<&'a [u8]>,
    grammar: Grammar,
}

impl<'a> Iterator for FromRight<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let left = self.left.take()?;
            let comma = match self.grammar {
                Grammar::List => memchr::memrchr(b',', left),
                Grammar::Forwarded => last_comma(left),
            };
            self.left = comma.map(|at| &left[..at]);
            let element = left[comma.map_or(0, |at| at + 1)..].trim_ascii();
            if !element.is_empty() {
                return Some(element);
            }
        }
    }
}

/// Returns the index of the last comma outside of quotes.
fn last_comma(text: &[u8]) -> Option<usize> {
    let mut at = text.len();
    let mut is_quoted = false;
    while let Some(position) = memchr::memrchr2(b',', b'"', &text[..at]) {
        at = position;
        match text[position] {
            b',' if !is_quoted => return Some(position),
            b'"' => {
                let backslashes = text[..position].iter().rev().take_while(|byte| **byte == b'\\').count();
                // Within a quoted string, a quote behind a backslash belongs to the string (RFC 9110 §5.6.4).
                is_quoted = !is_quoted || !backslashes.is_multiple_of(2);
            }
            _ => {}
        }
    }
    None
}

/// Parses an address that is bare, in brackets, or followed by a port.
fn list_node(element: &[u8]) -> ChainNode {
    let Ok(text) = std::str::from_utf8(element) else { return ChainNode::Hidden };
    if text == UNIX {
        return ChainNode::Unix;
    }
    match text.parse::<IpAddr>() {
        Ok(address) => ChainNode::Address(address.to_canonical(), None),
        Err(_) => with_port(text),
    }
}

/// Parses an address as in RFC 7239 §6: IPv6 in brackets, either with a port or without.
fn with_port(text: &str) -> ChainNode {
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return ChainNode::Hidden };
            (address.parse().ok().map(IpAddr::V6), port)
        }
        None => {
            let (address, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (address.parse::<Ipv4Addr>().ok().map(IpAddr::V4), port)
        }
    };
    match (address, port_of(port)) {
        (None, _) | (_, NodePort::Malformed) => ChainNode::Hidden,
        (Some(address), NodePort::Unknown) => ChainNode::Address(address.to_canonical(), None),
        (Some(address), NodePort::Port(port)) => ChainNode::Address(address.to_canonical(), Some(port)),
    }
}

/// The text behind an address (RFC 7239 §6).
enum NodePort {
    Malformed,
    /// The text is empty, or has an obfuscated port.
    Unknown,
    Port(u16),
}

/// Parses the text behind an address: a port, an obfuscated port, or nothing.
fn port_of(text: &str) -> NodePort {
    let Some(port) = text.strip_prefix(':') else {
        return if text.is_empty() { NodePort::Unknown } else { NodePort::Malformed };
    };
    if let Some(rest) = port.strip_prefix('_') {
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_obfuscated = !rest.is_empty() && rest.bytes().all(is_fit);
        return if is_obfuscated { NodePort::Unknown } else { NodePort::Malformed };
    }
    let is_number = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = port.parse().ok().filter(|_| is_number);
    parsed.map_or(NodePort::Malformed, NodePort::Port)
}

/// Returns the node of `for` in an element of `Forwarded`.
fn forwarded_node(element: &[u8]) -> ChainNode {
    match parameter(element, "for") {
        Some(node) if node == UNIX => ChainNode::Unix,
        Some(node) => with_port(&node),
        None => ChainNode::Hidden,
    }
}

/// Returns the first element of a line of `Forwarded`; `None` if the line has none.
pub(super) fn first_forwarded(line: &[u8]) -> Option<&[u8]> {
    FromRight { left: Some(line), grammar: Grammar::Forwarded }.last()
}

/// Returns a parameter of an element of `Forwarded`; `None` if it is absent, there twice, or malformed.
pub(super) fn parameter(element: &[u8], wanted: &str) -> Option<String> {
    let pairs = std::str::from_utf8(element).ok().and_then(pairs)?;
    let mut values = pairs.into_iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
    // An element has each name only once (RFC 7239 §4).
    values.next().filter(|_| values.next().is_none()).map(|(_, value)| value)
}

/// Parses the pairs of an element and unquotes their values; `None` if they are malformed.
fn pairs(element: &str) -> Option<SmallVec<[(&str, String); 4]>> {
    let (mut pairs, mut rest) = (SmallVec::new(), element);
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        if rest.is_empty() {
            return Some(pairs);
        }
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value(after)?;
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            return None;
        }
        pairs.push((name, value));
        rest = after.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(';') {
            return None;
        }
    }
}

/// Parses the value at the beginning of a text, and returns it with the rest. Brackets and colons without quotes are
/// accepted too: some proxies write addresses like this.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let is_part =
            |letter: char| u8::try_from(letter).is_ok_and(|byte| is_token_byte(byte) || b"[]:".contains(&byte));
        let end = text.find(|letter| !is_part(letter)).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].into(), &text[end..]));
    };
    let (mut value, mut letters) = (String::new(), quoted.char_indices());
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(letters.next()?.1),
            _ => value.push(letter),
        }
    }
    None
}

/// Whether a byte may be part of a token (RFC 9110 §5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
