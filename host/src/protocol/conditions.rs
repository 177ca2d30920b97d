//! Conditional requests (RFC 9110 §13): whether a request is carried out, whether a client has a response already, and
//! whether its ranges are of the same response.

use std::time::SystemTime;

use http::header::{self, HeaderMap, HeaderValue};
use http::{StatusCode, response};

use super::http_date;

/// The outcome of the conditions of a GET or HEAD request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The response is sent.
    Met,
    /// The client has the response already: 304.
    NotModified,
    /// The response is not the one that the client expects: 412.
    Failed,
}

/// Evaluates the conditions of a GET or HEAD request for the response with this head, in the order of RFC 9110 §13.2.2.
pub fn precondition(head: &response::Parts, request: &HeaderMap) -> Precondition {
    let modified = head.headers.get(header::LAST_MODIFIED);
    let is_expected = if request.contains_key(header::IF_MATCH) {
        let lines = request.get_all(header::IF_MATCH).into_iter();
        let own = head.headers.get(header::ETAG).map(HeaderValue::as_bytes).filter(|tag| !tag.starts_with(b"W/"));
        lines.flat_map(|line| entity_tags(line.as_bytes())).any(|tag| tag == b"*" || Some(tag) == own)
    } else {
        let limit = request.get(header::IF_UNMODIFIED_SINCE).and_then(date);
        limit.zip(modified.and_then(date)).is_none_or(|(limit, modified)| modified <= limit)
    };
    if !is_expected {
        return Precondition::Failed;
    }
    if client_has_it(head, modified, request) { Precondition::NotModified } else { Precondition::Met }
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

/// Turns a head into that of a 304 (RFC 9110 §15.4.5).
pub fn to_not_modified(head: &mut response::Parts) {
    head.status = StatusCode::NOT_MODIFIED;
    let speaks_of_content = [
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_LANGUAGE,
        header::CONTENT_RANGE,
    ];
    speaks_of_content.iter().for_each(|name| drop(head.headers.remove(name)));
}

/// Returns whether `If-Range` matches the response, by strong comparison (RFC 9110 §13.1.5).
pub fn is_same(condition: &HeaderValue, head: &response::Parts) -> bool {
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

fn date(value: &HeaderValue) -> Option<SystemTime> {
    http_date::parse(value.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

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
        let wrong_day = "Sun, 01 Jan 2020 00:00:00 GMT";
        assert!(known(&[("last-modified", OLD)], &[("if-modified-since", wrong_day)]));
    }

    #[test]
    fn conditions_are_evaluated_in_their_order() {
        use Precondition::{Failed, Met, NotModified};

        const OLD: &str = "Wed, 01 Jan 2020 00:00:00 GMT";
        const OWN: &str = "Thu, 02 Jan 2020 00:00:00 GMT";
        let cases: [(&[(&'static str, &'static str)], Precondition); 18] = [
            (&[], Met),
            (&[("if-match", "\"a\"")], Met),
            (&[("if-match", "\"b\", \"a\"")], Met),
            (&[("if-match", "*")], Met),
            (&[("if-match", "\"b\"")], Failed),
            (&[("if-match", "W/\"a\"")], Failed),
            (&[("if-match", "")], Failed),
            (&[("if-match", "\"a\""), ("if-unmodified-since", OLD)], Met),
            (&[("if-unmodified-since", OWN)], Met),
            (&[("if-unmodified-since", OLD)], Failed),
            (&[("if-unmodified-since", "yesterday")], Met),
            (&[("if-match", "\"b\""), ("if-none-match", "\"a\"")], Failed),
            (&[("if-match", "\"a\""), ("if-none-match", "\"a\"")], NotModified),
            (&[("if-unmodified-since", OLD), ("if-none-match", "\"a\"")], Failed),
            (&[("if-none-match", "W/\"a\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-modified-since", OWN)], NotModified),
            (&[("if-none-match", "\"b\""), ("if-modified-since", OWN)], Met),
        ];
        let (mut head, ()) = Response::new(()).into_parts();
        head.headers.insert(header::ETAG, HeaderValue::from_static("\"a\""));
        head.headers.insert(header::LAST_MODIFIED, HeaderValue::from_static(OWN));
        for (fields, wanted) in cases {
            let mut request = HeaderMap::new();
            for (name, value) in fields {
                request.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(precondition(&head, &request), wanted, "{fields:?}");
        }
    }
}
