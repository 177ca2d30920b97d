//! The fields of messages whose body a plugin transforms (RFC 9110 §7.7): facts about the received body must not
//! describe the body that is sent.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, response};

use crate::protocol::coded_content::{self, Coded, UnknownCoding};
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
    /// The handling of content with a coding.
    pub coded: CodedContent,
}

/// The handling of content with a coding before a plugin receives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CodedContent {
    /// The plugin can't take the content.
    #[default]
    Reject,
    /// The plugin takes the content once it is decoded.
    Decode,
    /// The plugin takes the content as it is.
    AsIs,
}

/// Makes a request ask for a body that can be transformed: complete, and without a content coding, or with one that can be
/// decoded.
pub fn ask(fields: &mut HeaderMap, rules: ContentRules) {
    if !rules.skips_parts {
        fields.remove(header::RANGE);
        fields.remove(header::IF_RANGE);
    }
    match rules.coded {
        // In place of all lines: a list may come in several (RFC 9110 §5.3). Without any, each coding is acceptable (§12.5.3).
        CodedContent::Reject => drop(fields.insert(header::ACCEPT_ENCODING, IDENTITY)),
        CodedContent::Decode => coded_content::ask_for_known(fields),
        CodedContent::AsIs => {}
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
pub fn request_obstacle(fields: &HeaderMap, rules: ContentRules, coded: &Coded) -> Option<Obstacle> {
    if fields.contains_key(header::CONTENT_RANGE) {
        // RFC 9110 §14.5.
        let cause = "the content is a part (Content-Range), and plugins transform whole content".into();
        return Some(Obstacle { cause, status: StatusCode::BAD_REQUEST });
    }
    let cause = coding_obstacle(fields, rules, coded, "plugins transform uncoded content")?;
    Some(Obstacle { cause, status: StatusCode::UNSUPPORTED_MEDIA_TYPE })
}

/// Returns the reason why a plugin can't take the body of a response; `None` if it can.
pub fn response_obstacle(response: &response::Parts, rules: ContentRules, coded: &Coded) -> Option<Obstacle> {
    let status = StatusCode::BAD_GATEWAY;
    if response.status == StatusCode::PARTIAL_CONTENT {
        let cause = "the content is a part (206), and plugins transform whole content".into();
        return Some(Obstacle { cause, status });
    }
    let cause = coding_obstacle(&response.headers, rules, coded, "uncoded content was asked for")?;
    Some(Obstacle { cause, status })
}

/// Returns the reason why a plugin can't take content because of its codings; `None` if it can.
fn coding_obstacle(fields: &HeaderMap, rules: ContentRules, coded: &Coded, wanted: &str) -> Option<String> {
    match (rules.coded, coded) {
        (CodedContent::AsIs, _) | (_, Coded::Uncoded) | (CodedContent::Decode, Coded::Known(_)) => None,
        (CodedContent::Decode, Coded::Unknown(UnknownCoding::Number)) => {
            let most = coded_content::MAX_CODINGS;
            Some(format!("the content has more codings one over the other than the {most} that are decoded"))
        }
        (CodedContent::Decode, Coded::Unknown(UnknownCoding::Name)) => {
            let (codings, known) = (codings(fields), coded_content::KNOWN);
            Some(format!("the content is coded with `{codings}`, and {known} are decoded"))
        }
        (CodedContent::Reject, Coded::Known(_) | Coded::Unknown(_)) => {
            Some(format!("the content is coded with `{}`, and {wanted}", codings(fields)))
        }
    }
}

/// Returns the codings of a body as a text for the log.
fn codings(fields: &HeaderMap) -> String {
    let codings = hop_by_hop::members(fields, header::CONTENT_ENCODING);
    let codings: Vec<&[u8]> = codings.filter(|coding| !coding.eq_ignore_ascii_case(b"identity")).collect();
    String::from_utf8_lossy(&codings.join(&b", "[..])).chars().take(MAX_CODING_CHARS).collect()
}

/// The maximum length of the codings in the log, in characters.
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

/// Removes the promise of ranges from a response to a request that [`ask`] has taken the range from: each request for the
/// resource loses its range in this way (RFC 9110 §14.3).
pub fn withdraw_ranges(fields: &mut HeaderMap) {
    fields.remove(header::ACCEPT_RANGES);
}

/// Removes the fields of a response without content that its body would make untrue if a plugin replaced it, where the
/// response need not have them: validators stay, which HEAD and 304 have in common with GET (RFC 9110 §9.3.2, §15.4.5).
pub fn undecided_response(fields: &mut HeaderMap) {
    fields.remove(header::CONTENT_LENGTH);
    remove_digests(fields);
}

/// Makes the fields of a message say that its content has no coding. The tag of the content and the like are a matter of
/// [`request`] and [`response`].
pub fn decoded(fields: &mut HeaderMap) {
    fields.remove(header::CONTENT_ENCODING);
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
