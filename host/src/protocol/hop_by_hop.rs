//! The rules of HTTP for every intermediary, independent of the manifest: hop-by-hop fields are removed, and `Via` is
//! added.

use std::cmp::Ordering;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::response::Parts;
use http::{Method, StatusCode, Version};
use http_body::Frame;
use smallvec::SmallVec;

use crate::protocol::client_address::ClientAddressRules;
use crate::protocol::content_length;
use crate::protocol::field_alias::are_alike;
use crate::protocol::framing;

/// The options of a request that concern one hop, and that are requested again from the endpoint.
#[derive(Debug, Default)]
pub struct HopOptions {
    /// The protocol to switch to (RFC 9110 §7.8); `None` if there is none.
    pub upgrade: Option<HeaderValue>,
    /// The number of proxies named `plugway` that the request has passed, this one included. Plugins may remove `Via`.
    pub passages: u8,
    /// Whether trailers are accepted (RFC 9110 §6.5.1); gRPC endpoints require the announcement.
    pub trailers: bool,
}

/// Prepares the fields of a request, received in a version of HTTP, for forwarding (RFC 9110 §7.6).
pub fn request(version: Version, fields: &mut HeaderMap) -> HopOptions {
    let present = Present::among(fields);
    let upgrade = if present.has(UPGRADE) { upgrade(version, fields) } else { None };
    let trailers = present.has(TE) && has_token(fields, header::TE, "trailers");
    let passages = u8::try_from(passages(fields) + 1).unwrap_or(u8::MAX);
    let hop = HopOptions { upgrade, passages, trailers };
    remove_hop_by_hop(present, fields);
    if version == Version::HTTP_2 {
        join_cookies(fields);
    }
    // This proxy sends 100 itself, when the body is first requested (RFC 9110 §10.1.1).
    if present.has(EXPECT) {
        fields.remove(header::EXPECT);
    }
    fields.append(header::VIA, HeaderValue::from_static(via(version)));
    hop
}

/// Removes the fields that concern one hop from a request that begins here.
pub fn own_request(fields: &mut HeaderMap) {
    remove_hop_by_hop(Present::among(fields), fields);
    fields.remove(header::EXPECT);
}

/// Adds `Via` with a number of proxies named `plugway` to a request of a plugin: the number that the causing request has
/// passed.
pub fn put_passages(passages: u8, fields: &mut HeaderMap) {
    let line = vec![via(Version::HTTP_11); passages.into()].join(", ");
    if let Some(line) = HeaderValue::try_from(line).ok().filter(|line| !line.is_empty()) {
        fields.append(header::VIA, line);
    }
}

/// Counts a forward of a request with `Max-Forwards` (RFC 9110 §7.6.2); returns `false` if there may be none. The field
/// has a meaning for OPTIONS and TRACE alone; what is no number has none.
pub fn count_forward(method: &Method, fields: &mut HeaderMap) -> bool {
    if !matches!(*method, Method::OPTIONS | Method::TRACE) {
        return true;
    }
    let left = fields.get(header::MAX_FORWARDS).and_then(|left| content_length::number(left.as_bytes()));
    match left.map(|left| left.checked_sub(1)) {
        Some(None) => false,
        Some(Some(left)) => {
            fields.insert(header::MAX_FORWARDS, left.into());
            true
        }
        None => true,
    }
}

/// Whether a request has passed [`MAX_PASSAGES`] proxies named `plugway`, so that it must be in a loop (RFC 9110
/// §7.6.3). All these proxies have one name, so that one passage does not distinguish a chain of them from a loop.
pub fn is_looping(fields: &HeaderMap) -> bool {
    passages(fields) >= MAX_PASSAGES
}

/// Returns the number of proxies named `plugway` that a request has passed.
fn passages(fields: &HeaderMap) -> usize {
    members(fields, header::VIA).filter(|passage| passage.ends_with(b" plugway")).count()
}

/// The number of passages that means a loop: more than any chain of proxies has, and few enough that a loop costs little.
const MAX_PASSAGES: usize = 16;

/// Returns the fields by which an outgoing request asks for the options of a hop.
pub fn ask(hop: &HopOptions, version: Version) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
    let trailers =
        (hop.trailers && version == Version::HTTP_2).then_some((header::TE, HeaderValue::from_static("trailers")));
    trailers.into_iter().chain(hop.upgrade.as_ref().map(switch).into_iter().flatten())
}

/// Prepares a frame of a body for forwarding: trailers lose the fields that must not be sent.
pub fn frame(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(fields) = frame.trailers_mut() {
        trailers(fields);
    }
    frame
}

/// Prepares a frame of a request for forwarding, as [`frame`] does. Trailers that heads lose by the rules of the listener
/// are removed too, and so are those of the fields of the head that plugins have edited.
pub fn request_frame(mut frame: Frame<Bytes>, rules: &ClientAddressRules, edited: &[HeaderName]) -> Frame<Bytes> {
    if let Some(fields) = frame.trailers_mut() {
        let is_edited = |name: &str| edited.iter().any(|edited| are_alike(edited.as_str(), name));
        let is_unwanted = |name: &&HeaderName| rules.is_unwanted_trailer(name.as_str()) || is_edited(name.as_str());
        let names: SmallVec<[HeaderName; 4]> = fields.keys().filter(is_unwanted).cloned().collect();
        names.iter().for_each(|name| drop(fields.remove(name)));
    }
    self::frame(frame)
}

/// Removes trailers that would change the meaning of a message whose head was acted on long ago (RFC 9110 §6.5.1), and
/// hop-by-hop fields.
fn trailers(fields: &mut HeaderMap) {
    let names: SmallVec<[HeaderName; 4]> =
        fields.keys().filter(|name| framing::is_forbidden_trailer(name.as_str().as_bytes())).cloned().collect();
    names.iter().for_each(|name| drop(fields.remove(name)));
    remove_hop_by_hop(Present::among(fields), fields);
}

/// Returns the fields that announce or confirm a protocol switch.
pub fn switch(protocol: &HeaderValue) -> [(HeaderName, HeaderValue); 2] {
    [(header::UPGRADE, protocol.clone()), (header::CONNECTION, HeaderValue::from_static("upgrade"))]
}

/// Whether the fields of a 101 name a protocol, and only protocols that the client has asked for (RFC 9110 §7.8).
pub fn is_switch_to(asked: &HeaderValue, fields: &HeaderMap) -> bool {
    let mut named = members(fields, header::UPGRADE).peekable();
    named.peek().is_some()
        && named.all(|name| members_of_line(asked).any(|protocol| protocol.eq_ignore_ascii_case(name)))
}

/// Returns the protocols that a client wants to switch to; `None` if there are none.
fn upgrade(version: Version, fields: &HeaderMap) -> Option<HeaderValue> {
    let is_asked = version != Version::HTTP_10 && has_token(fields, header::CONNECTION, "upgrade");
    is_asked.then(|| protocols(fields)).flatten()
}

/// Returns the protocols of `Upgrade` in one line; `None` if there are none. HTTP/2 in clear isn't forwarded: it would
/// carry requests that this proxy does not see.
fn protocols(fields: &HeaderMap) -> Option<HeaderValue> {
    let is_http2 = |name: &[u8]| name.to_ascii_lowercase().windows(3).any(|word| word == b"h2c");
    let names: SmallVec<[&[u8]; 2]> = members(fields, header::UPGRADE).filter(|name| !is_http2(name)).collect();
    HeaderValue::from_bytes(&names.join(&b", "[..])).ok().filter(|names| !names.is_empty())
}

/// Whether a token is a member of a list.
pub fn has_token(fields: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    members(fields, name).any(|token| token.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// Returns the members of a list that consists of one line or of several (RFC 9110 §5.6.1). A member may have bytes
/// beyond ASCII (`obs-text`), and its neighbours count all the same.
pub fn members(fields: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    fields.get_all(name).into_iter().flat_map(members_of_line)
}

/// Returns the members of one line of a list.
pub fn members_of_line(line: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Joins the cookies of a request: HTTP/2 may send each in a line of its own; other versions require one line (RFC 9113
/// §8.2.3).
fn join_cookies(fields: &mut HeaderMap) {
    let lines: Vec<&[u8]> = fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let are_many = lines.len() > FEW_COOKIES;
    if lines.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        fields.insert(header::COOKIE, joined);
    }
    if are_many {
        // A copy has no room for the lines: the request lasts longer than they do, and they cost more than their bytes.
        *fields = fields.clone();
    }
}

/// The maximum number of cookie lines whose memory is kept for the next request: that of an ordinary head.
const FEW_COOKIES: usize = 32;

fn via(received: Version) -> &'static str {
    match received {
        Version::HTTP_10 => "1.0 plugway",
        Version::HTTP_2 => "2 plugway",
        _ => "1.1 plugway",
    }
}

/// Prepares a received response for forwarding. A 426 keeps the protocols that it demands of its client.
pub fn response(response: &mut Parts) {
    let required = if response.status == StatusCode::UPGRADE_REQUIRED { protocols(&response.headers) } else { None };
    remove_hop_by_hop(Present::among(&response.headers), &mut response.headers);
    if let Some(protocols) = required {
        response.headers.insert(header::UPGRADE, protocols);
    }
}

/// Writes the protocols that a 426 demands for a client's version of HTTP: HTTP/2 has no upgrades (RFC 9113 §8.6).
pub fn demand_upgrade(version: Version, response: &mut Parts) {
    if let Some(protocols) = response.headers.remove(header::UPGRADE)
        && response.status == StatusCode::UPGRADE_REQUIRED
        && version != Version::HTTP_2
    {
        switch(&protocols).into_iter().for_each(|(name, value)| drop(response.headers.insert(name, value)));
    }
}

/// Whether responses with a status never have content (RFC 9110 §15.3.5, §15.3.6, §15.4.5), whatever their endpoint sends.
pub fn has_no_content(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Removes a length that the response doesn't have, because of its status, or because `is_empty` says so of a response to
/// another method than HEAD. Under 304 it is the length of another response (RFC 9110 §8.6).
pub fn settle_length_without_content(response: &mut Parts, is_empty: bool) {
    let is_none = has_no_content(response.status);
    let is_untrue = || response.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if (is_none || is_empty && is_untrue()) && response.status != StatusCode::NOT_MODIFIED {
        response.headers.remove(header::CONTENT_LENGTH);
    }
}

/// Removes the hop-by-hop fields, including those that `Connection` names (RFC 9110 §7.6.1).
fn remove_hop_by_hop(present: Present, fields: &mut HeaderMap) {
    if present.has(CONNECTION) {
        named_by_connection(fields).into_iter().for_each(|name| drop(fields.remove(name)));
    }
    for (name, index) in HOP_BY_HOP.iter().zip(0..) {
        if present.has(index) {
            fields.remove(name);
        }
    }
}

/// The set of hop-by-hop fields that a message has. Most messages have few of them or none: one scan over their names
/// costs less than a lookup of each field.
#[derive(Clone, Copy)]
struct Present(u8);

impl Present {
    fn among(fields: &HeaderMap) -> Self {
        Present(fields.keys().filter_map(index_of).fold(0, |present, index| present | 1 << index))
    }

    fn has(self, index: u8) -> bool {
        self.0 & 1 << index != 0
    }
}

/// Returns the further fields of a message that `Connection` declares to be hop-by-hop.
fn named_by_connection(fields: &HeaderMap) -> SmallVec<[HeaderName; 2]> {
    // The usual members name no further field.
    let usual: [&[u8]; 4] = [b"keep-alive", b"close", b"upgrade", b"te"];
    let is_usual = |name: &&[u8]| usual.iter().any(|usual| name.eq_ignore_ascii_case(usual));
    let mut members = members(fields, header::CONNECTION).filter(|name| !is_usual(name)).peekable();
    let mut named = SmallVec::new();
    if members.peek().is_none() {
        return named;
    }
    // `Connection` can't remove fields that the message requires.
    let may_be_named = |name: &&HeaderName| **name != header::HOST && **name != header::CONTENT_LENGTH;
    let mut left: SmallVec<[&HeaderName; 32]> = fields.keys().filter(may_be_named).collect();
    // A list of thousands of members costs a short search for each: few of them are of the length of a field's name.
    left.sort_unstable_by(|name, other| by_length(name, other.as_str().as_bytes()));
    for member in members {
        if let Ok(index) = left.binary_search_by(|name| by_length(name, member)) {
            named.push(left.remove(index).clone());
        }
    }
    named
}

/// Compares the name of a field with a member of a list, in any case, by their lengths first.
fn by_length(name: &HeaderName, member: &[u8]) -> Ordering {
    let name = name.as_str().as_bytes();
    let in_lower_case = || member.iter().map(u8::to_ascii_lowercase);
    name.len().cmp(&member.len()).then_with(|| name.iter().copied().cmp(in_lower_case()))
}

static HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const CONNECTION: u8 = 0;
const TE: u8 = 4;
const UPGRADE: u8 = 6;
/// The bit of `Expect`, which is no hop-by-hop field, but its answer concerns one hop.
const EXPECT: u8 = 7;

/// Returns the index of a name in [`HOP_BY_HOP`], or the one behind it for `Expect`; `None` for other names.
fn index_of(name: &HeaderName) -> Option<u8> {
    match name.as_str() {
        "connection" => Some(CONNECTION),
        "keep-alive" => Some(1),
        "proxy-authenticate" => Some(2),
        "proxy-connection" => Some(3),
        "te" => Some(TE),
        "transfer-encoding" => Some(5),
        "upgrade" => Some(UPGRADE),
        "expect" => Some(EXPECT),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_place() {
        assert!(HOP_BY_HOP.iter().zip(0..).all(|(name, at)| index_of(name) == Some(at)));
        assert_eq!(HOP_BY_HOP.len(), usize::from(EXPECT));
        assert_eq!(index_of(&header::HOST), None);
    }

    #[test]
    fn fields_of_one_hop_and_those_that_connection_names_go_no_further() {
        let mut fields = HeaderMap::new();
        for (name, value) in [("connection", "close, X-Mine"), ("x-mine", "1"), ("te", "trailers"), ("x-kept", "1")] {
            fields.append(name, HeaderValue::from_static(value));
        }
        request(Version::HTTP_11, &mut fields);
        let left: Vec<&str> = fields.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-kept", "via"]);
    }

    #[test]
    fn each_field_that_connection_names_is_found_once_however_long_the_list_is() {
        let named = |connection: &[&[u8]], names: &[&'static str]| {
            let mut fields = HeaderMap::new();
            for line in connection {
                fields.append(header::CONNECTION, HeaderValue::from_bytes(line).unwrap());
            }
            for name in names {
                fields.append(*name, HeaderValue::from_static("1"));
            }
            let mut named: Vec<String> = named_by_connection(&fields).iter().map(ToString::to_string).collect();
            named.sort();
            named
        };
        let (long, names) = ("a,X-B,".repeat(5000), ["x-b", "host", "content-length", "x-c", "x-b", "a", "x-bb"]);
        assert_eq!(named(&[long.as_bytes()], &names), ["a", "x-b"]);
        assert_eq!(named(&[b"close, Host,x-c ", b",, X_C, content-length,\tX-BB,\"a\""], &names), ["x-bb", "x-c"]);
        assert_eq!(named(&[b"Keep-Alive,CLOSE, Upgrade,te"], &["keep-alive", "upgrade", "te"]), [""; 0]);
        assert_eq!(named(&[b"\xe9, X-Mine, x-mine y"], &["x-mine"]), ["x-mine"]);
        assert_eq!(named(&[b"connection"], &["te"]), ["connection"]);
    }

    #[test]
    fn the_length_goes_by_the_status_that_is_sent() {
        for (status, is_empty, is_kept) in [
            (200, false, true),
            (200, true, false),
            (204, false, false),
            (205, false, false),
            (304, false, true),
            (304, true, true),
        ] {
            let response = http::Response::builder().status(status).header("content-length", "5").body(()).unwrap();
            let mut parts = response.into_parts().0;
            settle_length_without_content(&mut parts, is_empty);
            assert_eq!(parts.headers.contains_key("content-length"), is_kept, "{status} {is_empty}");
        }
    }

    #[test]
    fn lists_are_read_beside_bytes_beyond_ascii() {
        let mut fields = HeaderMap::new();
        fields.append(header::CONNECTION, HeaderValue::from_bytes(b"\xe9, X-Mine").unwrap());
        fields.append(header::CACHE_CONTROL, HeaderValue::from_bytes(b"x=\"\xe9\",\tNo-Transform").unwrap());
        fields.append("x-mine", HeaderValue::from_static("1"));
        assert!(has_token(&fields, header::CACHE_CONTROL, "no-transform"));
        remove_hop_by_hop(Present::among(&fields), &mut fields);
        assert!(!fields.contains_key("x-mine"));
    }
}
