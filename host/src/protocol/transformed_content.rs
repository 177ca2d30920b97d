//! The fields of messages whose body a plugin transforms (RFC 9110 §7.7): facts about the received body must not
//! describe the body that is sent.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, response};

use crate::protocol::hop_by_hop;

/// The fields with digests of the body or of the representation, current (RFC 9530) and obsolete ones.
static DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// The departures of a plugin from the rules for content that it transforms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentRules {
    /// Whether the plugin takes responses with `no-transform` as others.
    pub ignores_no_transform: bool,
    /// Whether partial content passes without the plugin.
    pub skips_parts: bool,
    /// Whether the plugin takes content with a coding as it is.
    pub takes_coded: bool,
}

/// Makes a request ask for a body that can be transformed: complete, and without a content coding.
pub fn ask(fields: &mut HeaderMap, rules: ContentRules) {
    if !rules.skips_parts {
        fields.remove(header::RANGE);
        fields.remove(header::IF_RANGE);
    }
    if !rules.takes_coded {
        // In place of all lines: a list may come in several (RFC 9110 §5.3). Without any, each coding is acceptable (§12.5.3).
        fields.insert(header::ACCEPT_ENCODING, IDENTITY);
    }
}

/// Whether the body of a request passes without the plugin.
pub fn request_passes(fields: &HeaderMap, rules: ContentRules) -> bool {
    rules.skips_parts && fields.contains_key(header::CONTENT_RANGE)
}

/// Whether the body of a response passes without the plugin: its origin forbids transforming it, or it is partial.
pub fn response_passes(response: &response::Parts, rules: ContentRules) -> bool {
    let is_forbidden = || hop_by_hop::has_token(&response.headers, header::CACHE_CONTROL, "no-transform");
    let is_part = response.status == StatusCode::PARTIAL_CONTENT;
    (!rules.ignores_no_transform && is_forbidden()) || (rules.skips_parts && is_part)
}

/// A reason why a plugin can't take the body of a message.
pub struct Obstacle {
    pub cause: String,
    /// The status for the client of a request, which can send the body otherwise.
    pub status: StatusCode,
}

/// Returns the reason why a plugin can't take the body of a request; `None` if it can.
pub fn request_obstacle(fields: &HeaderMap, rules: ContentRules) -> Option<Obstacle> {
    if fields.contains_key(header::CONTENT_RANGE) {
        // RFC 9110 §14.5.
        let cause = "the content is a part (Content-Range), and plugins transform whole content".into();
        return Some(Obstacle { cause, status: StatusCode::BAD_REQUEST });
    }
    let coding = coding(fields).filter(|_| !rules.takes_coded)?;
    let cause = format!("the content is coded with `{coding}`, and plugins transform uncoded content");
    Some(Obstacle { cause, status: StatusCode::UNSUPPORTED_MEDIA_TYPE })
}

/// Returns the reason why a plugin can't take the body of a response; `None` if it can.
pub fn response_obstacle(response: &response::Parts, rules: ContentRules) -> Option<Obstacle> {
    let status = StatusCode::BAD_GATEWAY;
    if response.status == StatusCode::PARTIAL_CONTENT {
        let cause = "the content is a part (206), and plugins transform whole content".into();
        return Some(Obstacle { cause, status });
    }
    let coding = coding(&response.headers).filter(|_| !rules.takes_coded)?;
    let cause = format!("the content is coded with `{coding}`, although uncoded content was asked for");
    Some(Obstacle { cause, status })
}

/// Returns the first coding of a body as a text for the log; `None` if the body is uncoded.
fn coding(fields: &HeaderMap) -> Option<String> {
    let mut codings = hop_by_hop::members(fields, header::CONTENT_ENCODING);
    let coding = codings.find(|coding| !coding.eq_ignore_ascii_case(b"identity"))?;
    Some(String::from_utf8_lossy(coding).chars().take(MAX_CODING_CHARS).collect())
}

/// The maximum length of a coding in the log, in characters.
const MAX_CODING_CHARS: usize = 64;

/// Removes the fields of a request that its transformed body makes untrue.
pub fn request(fields: &mut HeaderMap) {
    fields.remove(header::CONTENT_LENGTH);
    remove_digests(fields);
    trim_announcement(fields);
}

/// Removes the fields of a response that its transformed body makes untrue. The length under HEAD and 304 describes a
/// body that plugins would have changed too (RFC 9110 §8.6).
pub fn response(fields: &mut HeaderMap) {
    fields.remove(header::CONTENT_LENGTH);
    fields.remove(header::ACCEPT_RANGES);
    remove_digests(fields);
    weaken_tag(fields);
    trim_announcement(fields);
}

/// Makes the entity tag weak. Other bytes need another strong validator (RFC 9110 §8.8.1); only a weak one can say that
/// the meaning is the same. Several tags name no one version, and are removed.
fn weaken_tag(fields: &mut HeaderMap) {
    let mut tags = fields.get_all(header::ETAG).iter();
    let (Some(tag), second) = (tags.next(), tags.next()) else { return };
    let weak = if tag.as_bytes().starts_with(b"W/") {
        Ok(tag.clone())
    } else {
        HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    };
    match weak {
        Ok(weak) if second.is_none() => fields.insert(header::ETAG, weak),
        _ => fields.remove(header::ETAG),
    };
}

/// Removes the names of trailers that are not sent from `Trailer`.
fn trim_announcement(fields: &mut HeaderMap) {
    let is_untrue = |member: &[u8]| HeaderName::from_bytes(member).is_ok_and(|name| is_untrue_trailer(&name));
    if !hop_by_hop::members(fields, header::TRAILER).any(is_untrue) {
        return;
    }
    let kept: Vec<&[u8]> = hop_by_hop::members(fields, header::TRAILER).filter(|member| !is_untrue(member)).collect();
    match HeaderValue::from_bytes(&kept.join(&b", "[..])) {
        Ok(names) if !names.is_empty() => fields.insert(header::TRAILER, names),
        _ => fields.remove(header::TRAILER),
    };
}

/// Returns trailers without those that describe only the body before it was transformed.
pub fn trailers(mut fields: HeaderMap) -> HeaderMap {
    DIGESTS.iter().chain([&header::ETAG]).for_each(|name| drop(fields.remove(name)));
    fields
}

/// Whether a trailer describes only the body before it was transformed: a digest, or a validator of its bytes.
pub fn is_untrue_trailer(name: &HeaderName) -> bool {
    DIGESTS.contains(name) || *name == header::ETAG
}

fn remove_digests(fields: &mut HeaderMap) {
    DIGESTS.iter().for_each(|name| drop(fields.remove(name)));
}
