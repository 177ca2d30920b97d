//! The fields of messages whose content a plugin transforms (RFC 9110 §7.7): what was true of the content as it came must
//! not be said of the content that is sent.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, response};

use crate::forwarding;

/// Digests of the content or of the representation, current (RFC 9530) and obsolete ones.
static DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// Has a request ask for content that can be transformed: the whole, and uncoded.
pub fn ask(fields: &mut HeaderMap) {
    fields.remove(header::RANGE);
    fields.remove(header::IF_RANGE);
    if let Some(codings) = fields.get_mut(header::ACCEPT_ENCODING) {
        *codings = IDENTITY;
    }
}

/// Whether the origin forbids to transform the content of a response.
pub fn is_forbidden(response: &response::Parts) -> bool {
    forwarding::has_token(&response.headers, header::CACHE_CONTROL, "no-transform")
}

/// Why the content of a response can't be transformed; `None` if it can.
pub fn obstacle(response: &response::Parts) -> Option<String> {
    if response.status == StatusCode::PARTIAL_CONTENT {
        return Some("the content is a part (206), and plugins transform whole content".into());
    }
    let coding = forwarding::members(&response.headers, header::CONTENT_ENCODING)
        .find(|coding| !coding.eq_ignore_ascii_case("identity"))?;
    let coding: String = coding.chars().take(LONGEST_CODING).collect();
    Some(format!("the content is coded with `{coding}`, although uncoded content was asked for"))
}

/// Characters of a coding in the log.
const LONGEST_CODING: usize = 64;

/// Takes out of a request what is not true of its transformed content.
pub fn request(fields: &mut HeaderMap) {
    fields.remove(header::CONTENT_LENGTH);
    remove_digests(fields);
}

/// Takes out of a response what is not true of its transformed content. The length under HEAD and 304 is that of content
/// which plugins would have changed too (RFC 9110 §8.6).
pub fn response(fields: &mut HeaderMap) {
    fields.remove(header::CONTENT_LENGTH);
    fields.remove(header::ACCEPT_RANGES);
    remove_digests(fields);
    if let Some(tag) = fields.get_mut(header::ETAG)
        && !tag.as_bytes().starts_with(b"W/")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    {
        // Other bytes need another strong validator (RFC 9110 §8.8.1); that it means the same, only a weak one can say.
        *tag = weak;
    }
}

/// Whether a trailer is true of the content before it was transformed, and of no other.
pub fn is_digest(name: &HeaderName) -> bool {
    DIGESTS.contains(name)
}

fn remove_digests(fields: &mut HeaderMap) {
    DIGESTS.iter().for_each(|name| drop(fields.remove(name)));
}
