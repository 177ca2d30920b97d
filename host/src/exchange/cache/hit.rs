//! Responses from the store: complete, partial, or 304 if the client has the response already (RFC 9110 §13, §14).

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, request, response};
use smallvec::SmallVec;

use crate::context::ExchangeContext;
use crate::exchange::response_body::ResponseBody;
use crate::store::stored_body::StoredBody;
use crate::store::stored_response::{Content, StoredResponse};

/// The maximum number of ranges in a response. A request for more ranges gets the complete content (RFC 9110 §14.2).
const MAX_RANGES: usize = 16;

/// The request fields for conditions and ranges that the cache evaluates itself.
static CONDITIONS: [HeaderName; 4] =
    [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::RANGE, header::IF_RANGE];

/// Removes conditions and ranges from a request, so that it asks for the complete response.
pub fn ask_for_all(fields: &mut HeaderMap) {
    CONDITIONS.iter().for_each(|name| drop(fields.remove(name)));
}

/// Returns whether a request has conditions or ranges.
pub fn is_conditional(fields: &HeaderMap) -> bool {
    CONDITIONS.iter().any(|name| fields.contains_key(name))
}

/// Returns the response to a request from a stored one; `None` if the beginning of its content is gone.
pub fn hit_response(object: &StoredResponse, request: &request::Parts, now_ms: u64) -> Option<Response<ResponseBody>> {
    let mut head = object.head();
    if let Ok(age) = HeaderValue::from_str(&(object.age_ms(now_ms) / 1000).to_string()) {
        head.headers.insert(header::AGE, age);
    }
    if !head.headers.contains_key(header::CONTENT_LENGTH)
        && let Content::Whole(content) = &object.content
        && object.status != StatusCode::NO_CONTENT
    {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.len()));
    }
    // Without `Last-Modified`, the `Date` is used for `If-Modified-Since` (RFC 9111 §4.3.2).
    let modified = head.headers.get(header::LAST_MODIFIED).or_else(|| head.headers.get(header::DATE));
    if client_has_it(&head, modified, &request.headers) {
        return Some(not_modified(head));
    }
    if object.status == StatusCode::OK && request.method == Method::GET {
        match requested_range(object, &head, &request.headers) {
            RangeRequest::All => {}
            RangeRequest::Nothing(length) => return Some(unsatisfiable(head, length)),
            RangeRequest::Parts(parts, length) => return partial(object, head, &parts, length),
        }
    }
    let body = match request.method {
        Method::HEAD => ResponseBody::Full(Bytes::new()),
        _ => ResponseBody::Stored(StoredBody::all(&object.content)?),
    };
    Some(Response::from_parts(head, body))
}

/// Returns whether the client already has the response with this head, last modified at `modified` (RFC 9110 §13.2.2).
/// `If-Match` and `If-Unmodified-Since` are evaluated by the origin (RFC 9111 §4.3.2).
pub fn client_has_it(head: &response::Parts, modified: Option<&HeaderValue>, request: &HeaderMap) -> bool {
    if !head.status.is_success() {
        return false;
    }
    if request.contains_key(header::IF_NONE_MATCH) {
        let lines = request.get_all(header::IF_NONE_MATCH).into_iter();
        let mut tags = lines.flat_map(|line| entity_tags(line.as_bytes()));
        let own = head.headers.get(header::ETAG).map(|tag| weak_tag(tag.as_bytes()));
        return tags.any(|tag| tag == b"*" || Some(weak_tag(tag)) == own);
    }
    let Some(since) = request.get(header::IF_MODIFIED_SINCE) else { return false };
    match (date(since), modified.and_then(date)) {
        (Some(since), Some(modified)) => modified <= since,
        _ => false,
    }
}

/// Returns a 304 with the fields of `head` (RFC 9110 §15.4.5).
pub fn not_modified(mut head: response::Parts) -> Response<ResponseBody> {
    head.status = StatusCode::NOT_MODIFIED;
    let speaks_of_content = [
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_LANGUAGE,
        header::CONTENT_RANGE,
    ];
    speaks_of_content.iter().for_each(|name| drop(head.headers.remove(name)));
    Response::from_parts(head, ResponseBody::Full(Bytes::new()))
}

/// The part of a response that a client asks for.
enum RangeRequest {
    All,
    /// The ranges are not satisfiable; the content has this number of bytes.
    Nothing(u64),
    /// The ranges are satisfiable: first and last byte of each, and the length of the content in bytes.
    Parts(SmallVec<[(u64, u64); 1]>, u64),
}

fn requested_range(object: &StoredResponse, head: &response::Parts, request: &HeaderMap) -> RangeRequest {
    let (Some(range), Some(length)) = (request.get(header::RANGE), object.content.length()) else {
        return RangeRequest::All;
    };
    if let Some(condition) = request.get(header::IF_RANGE)
        && !is_same(condition, head)
    {
        return RangeRequest::All;
    }
    let Some(specs) = range.to_str().ok().and_then(|range| range.strip_prefix("bytes=")) else {
        return RangeRequest::All;
    };
    let mut parts = SmallVec::new();
    for (index, spec) in specs.split(',').map(str::trim).filter(|spec| !spec.is_empty()).enumerate() {
        if index == MAX_RANGES {
            return RangeRequest::All;
        }
        match parse_range(spec, length) {
            Some(Some(part)) => parts.push(part),
            Some(None) => {}
            None => return RangeRequest::All,
        }
    }
    let total: u64 = parts.iter().map(|(first, last)| last - first + 1).sum();
    match parts.len() {
        0 => RangeRequest::Nothing(length),
        // Overlapping ranges don't help any client (RFC 9110 §17.15).
        _ if total > length => RangeRequest::All,
        // Content that isn't stored waits for its slowest reader, and the ranges are read one after the other.
        _ if matches!(object.content, Content::Filling(_)) && !is_ascending(&parts) => RangeRequest::All,
        _ => RangeRequest::Parts(parts, length),
    }
}

fn is_ascending(parts: &[(u64, u64)]) -> bool {
    parts.windows(2).all(|pair| pair[0].1 < pair[1].0)
}

/// Returns whether the client asks for ranges of a response, and the upstream doesn't say that it has no support for
/// them.
pub fn asks_for_part(context: &ExchangeContext) -> bool {
    let response = context.response.as_ref().filter(|response| response.status == StatusCode::OK);
    let has_none = |fields: &HeaderMap| fields.get(header::ACCEPT_RANGES).is_some_and(|unit| unit == "none");
    context.request.headers.contains_key(header::RANGE) && response.is_some_and(|response| !has_none(&response.headers))
}

/// Returns the first and last byte of a range. `Some(None)` if the range is outside the content, `None` if it is
/// malformed.
fn parse_range(spec: &str, length: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = spec.split_once('-')?;
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let suffix = number(last)?.min(length);
        return Some((suffix > 0).then(|| (length - suffix, length - 1)));
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    Some((first < length).then(|| (first, last.min(length - 1))))
}

/// Returns whether `If-Range` matches the response, by strong comparison (RFC 9110 §13.1.5).
fn is_same(condition: &HeaderValue, head: &response::Parts) -> bool {
    let condition_bytes = condition.as_bytes();
    if condition_bytes.starts_with(b"\"") || condition_bytes.starts_with(b"W/") {
        let own = head.headers.get(header::ETAG).map(HeaderValue::as_bytes);
        return own == Some(condition_bytes) && !condition_bytes.starts_with(b"W/");
    }
    // A date is a strong validator only if it is at least a second before `Date` (RFC 9110 §8.8.2.2).
    let (modified, sent) = (head.headers.get(header::LAST_MODIFIED), head.headers.get(header::DATE));
    let (Some(modified), Some(sent)) = (modified.and_then(date), sent.and_then(date)) else { return false };
    let is_strong = sent.duration_since(modified).is_ok_and(|passed| passed.as_secs() >= 1);
    is_strong && date(condition) == Some(modified)
}

fn unsatisfiable(mut head: response::Parts, length: u64) -> Response<ResponseBody> {
    head.status = StatusCode::RANGE_NOT_SATISFIABLE;
    [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING, header::ETAG, header::LAST_MODIFIED]
        .iter()
        .for_each(|name| drop(head.headers.remove(name)));
    if let Ok(range) = HeaderValue::from_str(&format!("bytes */{length}")) {
        head.headers.insert(header::CONTENT_RANGE, range);
    }
    Response::from_parts(head, ResponseBody::Full(Bytes::new()))
}

fn partial(
    object: &StoredResponse,
    mut head: response::Parts,
    parts: &[(u64, u64)],
    length: u64,
) -> Option<Response<ResponseBody>> {
    head.status = StatusCode::PARTIAL_CONTENT;
    let (body, sent) = match parts {
        [(first, last)] => {
            let sent = last - first + 1;
            let range = HeaderValue::from_str(&format!("bytes {first}-{last}/{length}")).ok()?;
            head.headers.insert(header::CONTENT_RANGE, range);
            (ResponseBody::Stored(StoredBody::part(&object.content, *first, sent)?), sent)
        }
        parts => {
            let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).map(String::from);
            let boundary = boundary();
            let mut list = Vec::new();
            for (first, last) in parts {
                let mut lines = format!("\r\n--{boundary}\r\n");
                if let Some(kind) = &kind {
                    let _ = write!(lines, "content-type: {kind}\r\n");
                }
                let _ = write!(lines, "content-range: bytes {first}-{last}/{length}\r\n\r\n");
                list.push(StoredBody::text(lines));
                list.push(StoredBody::part(&object.content, *first, last - first + 1)?);
            }
            list.push(StoredBody::text(format!("\r\n--{boundary}--\r\n")));
            let sent = list.iter().filter_map(StoredBody::remaining).sum();
            let kind = HeaderValue::from_str(&format!("multipart/byteranges; boundary={boundary}")).ok()?;
            head.headers.insert(header::CONTENT_TYPE, kind);
            (ResponseBody::Parts(list.into()), sent)
        }
    };
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(sent));
    Some(Response::from_parts(head, body))
}

/// Returns a boundary between parts. The chance that the content contains it is 2 to the power of -128.
fn boundary() -> String {
    let mut random = [0; 16];
    // If the system has no random numbers, the content is still unlikely to contain the boundary.
    let _ = getrandom::fill(&mut random);
    random.iter().fold(String::from("plugway-"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the members of a list of entity tags (RFC 9110 §8.8.3). A tag may contain commas.
fn entity_tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = list;
    std::iter::from_fn(move || {
        while let [b' ' | b'\t' | b',', after @ ..] = rest {
            rest = after;
        }
        if rest.is_empty() {
            return None;
        }
        let quoted = rest.iter().position(|byte| *byte == b'"' || *byte == b',').unwrap_or(rest.len());
        let end = match rest.get(quoted) {
            Some(b'"') => {
                let close = rest[quoted + 1..].iter().position(|byte| *byte == b'"');
                close.map_or(rest.len(), |close| quoted + close + 2)
            }
            _ => quoted,
        };
        let (tag, after) = rest.split_at(end);
        rest = after;
        Some(tag.trim_ascii())
    })
}

/// Returns an entity tag without its `W/` prefix, for weak comparison (RFC 9110 §8.8.3.2).
fn weak_tag(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Parses a date in any of the three formats and in any letter case, as RFC 9111 §4.2 asks of caches.
fn date(value: &HeaderValue) -> Option<std::time::SystemTime> {
    let text = value.to_str().ok()?;
    httpdate::parse_http_date(text).or_else(|_| httpdate::parse_http_date(&in_usual_case(text))).ok()
}

/// Returns a date in the usual case: `sun, 06 NOV 1994 08:49:37 gmt` as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn in_usual_case(date: &str) -> String {
    let mut begins = true;
    let usual = date.chars().map(|letter| {
        let usual = if begins { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() };
        begins = !letter.is_ascii_alphabetic();
        usual
    });
    usual.collect::<String>().replace("Gmt", "GMT")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::shared_body::SharedBody;

    #[test]
    fn ranges_are_what_rfc_9110_section_14_says() {
        let cases = [
            ("0-0", Some(Some((0, 0)))),
            ("0-", Some(Some((0, 99)))),
            ("-5", Some(Some((95, 99)))),
            ("-500", Some(Some((0, 99)))),
            ("-0", Some(None)),
            ("90-500", Some(Some((90, 99)))),
            ("100-", Some(None)),
            ("99999999999999999999999-", Some(None)),
            ("5-4", None),
            ("a-4", None),
            ("5", None),
            ("+5-6", None),
        ];
        for (spec, wanted) in cases {
            assert_eq!(parse_range(spec, 100), wanted, "{spec}");
        }
        assert_eq!(parse_range("0-", 0), Some(None), "empty content has no bytes");
    }

    /// Ranges are read one after the other. Content that isn't stored can't wait for the second reader and the first
    /// one.
    #[test]
    fn what_still_comes_in_is_not_sent_in_another_order() {
        let (head, ()) = Response::new(()).into_parts();
        let object = |content| StoredResponse::new(Default::default(), &head, content, Default::default(), 0);
        let comes = object(Content::Filling(SharedBody::new(Some(100))));
        let is_there = object(Content::Whole(Bytes::from(vec![0; 100])));
        let parts = |object: &StoredResponse, range: &'static str| {
            let request = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(range))]);
            matches!(requested_range(object, &head, &request), RangeRequest::Parts(..))
        };
        assert!(parts(&is_there, "bytes=90-99,0-9") && parts(&is_there, "bytes=0-9,5-14"));
        assert!(!parts(&comes, "bytes=90-99,0-9") && !parts(&comes, "bytes=0-9,5-14"));
        assert!(parts(&comes, "bytes=0-9,90-99") && parts(&comes, "bytes=90-99"));
    }

    #[test]
    fn entity_tags_may_have_commas() {
        let tags: Vec<&[u8]> = entity_tags(b"\"a,b\" , W/\"c\",,*, \"open").collect();
        assert_eq!(tags, [&b"\"a,b\""[..], b"W/\"c\"", b"*", b"\"open"]);
    }

    fn known(stored: &[(&'static str, &'static str)], request_fields: &[(&'static str, &'static str)]) -> bool {
        let (mut head, ()) = Response::new(()).into_parts();
        for (name, value) in stored {
            head.headers.insert(*name, HeaderValue::from_static(value));
        }
        let mut request = HeaderMap::new();
        for (name, value) in request_fields {
            request.append(*name, HeaderValue::from_static(value));
        }
        client_has_it(&head, head.headers.get(header::LAST_MODIFIED), &request)
    }

    #[test]
    fn a_client_has_it_by_tag_or_where_it_sends_none_by_date() {
        const OLD: &str = "Wed, 01 Jan 2020 00:00:00 GMT";
        const NEW: &str = "Thu, 02 Jan 2020 00:00:00 GMT";
        assert!(known(&[("etag", "\"a\"")], &[("if-none-match", "W/\"a\"")]), "weak comparison");
        assert!(known(&[("etag", "\"a\"")], &[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")]));
        assert!(known(&[], &[("if-none-match", "*")]));
        assert!(!known(&[("etag", "\"a\"")], &[("if-none-match", "\"b\"")]));
        assert!(known(&[("last-modified", OLD)], &[("if-modified-since", NEW)]));
        assert!(known(&[("last-modified", OLD)], &[("if-modified-since", OLD)]));
        assert!(!known(&[("last-modified", NEW)], &[("if-modified-since", OLD)]));
        let both = [("if-none-match", "\"b\""), ("if-modified-since", NEW)];
        assert!(!known(&[("etag", "\"a\""), ("last-modified", OLD)], &both), "the date is for who knows no tags");
        assert!(!known(&[("last-modified", OLD)], &[("if-modified-since", "yesterday")]));
    }
}
