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

/// Makes a request ask for a body that can be transformed: complete, and without a content coding.
pub fn ask(fields: &mut HeaderMap) {
    fields.remove(header::RANGE);
    fields.remove(header::IF_RANGE);
    // In place of all lines: a list may come in several (RFC 9110 §5.3). Without any, each coding is acceptable (§12.5.3).
    fields.insert(header::ACCEPT_ENCODING, IDENTITY);
}

/// Whether the origin forbids transforming the body of a response.
pub fn is_forbidden(response: &response::Parts) -> bool {
    hop_by_hop::has_token(&response.headers, header::CACHE_CONTROL, "no-transform")
}

/// A reason why the body of a request can't be transformed.
pub struct RequestObstacle {
    pub cause: String,
    /// The status for the client, which can send the body otherwise.
    pub status: StatusCode,
}

/// Returns the reason why the body of a request can't be transformed; `None` if it can.
pub fn request_obstacle(fields: &HeaderMap) -> Option<RequestObstacle> {
    if fields.contains_key(header::CONTENT_RANGE) {
        // RFC 9110 §14.5.
        let cause = "the content is a part (Content-Range), and plugins transform whole content".into();
        return Some(RequestObstacle { cause, status: StatusCode::BAD_REQUEST });
    }
    let cause = format!("the content is coded with `{}`, and plugins transform uncoded content", coding(fields)?);
    Some(RequestObstacle { cause, status: StatusCode::UNSUPPORTED_MEDIA_TYPE })
}

/// Returns the reason why the body of a response can't be transformed; `None` if it can.
pub fn obstacle(response: &response::Parts) -> Option<String> {
    if response.status == StatusCode::PARTIAL_CONTENT {
        return Some("the content is a part (206), and plugins transform whole content".into());
    }
    let coding = coding(&response.headers)?;
    Some(format!("the content is coded with `{coding}`, although uncoded content was asked for"))
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

/// Whether a trailer describes only the body before it was transformed: a digest, or a validator of its bytes.
pub fn is_untrue_trailer(name: &HeaderName) -> bool {
    DIGESTS.contains(name) || *name == header::ETAG
}

fn remove_digests(fields: &mut HeaderMap) {
    DIGESTS.iter().for_each(|name| drop(fields.remove(name)));
}
