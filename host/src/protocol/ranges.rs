//! Range requests (RFC 9110 §14): the parts of a response that a client asks for, and the head and framing of a partial
//! response.

use std::fmt::Write as _;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, response};
use smallvec::SmallVec;

use super::conditions::is_same;
use crate::system::random;

/// The maximum number of ranges in a response. A request for more ranges gets the complete content (RFC 9110 §14.2).
const MAX_RANGES: usize = 16;

/// The part of a response that a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// The whole response.
    All,
    /// The ranges are not satisfiable; the content has this number of bytes.
    Nothing(u64),
    /// The ranges are satisfiable; the content has this number of bytes.
    Parts(SmallVec<[ByteRange; 1]>, u64),
}

/// The range of a part of the content, from its first byte to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub first: u64,
    pub last: u64,
}

/// The orders in which parts can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartOrder {
    Any,
    /// Each part begins behind the previous one.
    Ascending,
}

/// The texts of a `multipart/byteranges` body (RFC 9110 §14.6): before each part, and behind the last one. Both are empty
/// for a single part.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PartTexts {
    pub before: Vec<String>,
    pub end: String,
}

impl ByteRange {
    /// Returns the number of bytes.
    pub fn length(self) -> u64 {
        self.last - self.first + 1
    }
}

/// Returns the part that a request asks for of a response with `length` bytes. `order` says how its parts can be sent.
pub fn requested(request: &HeaderMap, head: &response::Parts, length: u64, order: PartOrder) -> RangeRequest {
    let Some(range) = request.get(header::RANGE) else { return RangeRequest::All };
    if let Some(condition) = request.get(header::IF_RANGE)
        && !is_same(condition, head)
    {
        return RangeRequest::All;
    }
    let unit_and_specs = range.to_str().ok().and_then(|range| range.split_once('='));
    let Some((_, specs)) = unit_and_specs.filter(|(unit, _)| unit.eq_ignore_ascii_case("bytes")) else {
        return RangeRequest::All;
    };
    // Some clients ask for `bytes=0-` always, and know what to do with an empty content.
    if length == 0 {
        return RangeRequest::All;
    }
    let (mut parts, mut is_empty) = (SmallVec::new(), true);
    for (index, spec) in specs.split(',').map(str::trim).filter(|spec| !spec.is_empty()).enumerate() {
        if index == MAX_RANGES {
            return RangeRequest::All;
        }
        is_empty = false;
        match parse_range(spec, length) {
            RangeSpec::Within(part) => parts.push(part),
            RangeSpec::Outside => {}
            RangeSpec::Malformed => return RangeRequest::All,
        }
    }
    let total: u64 = parts.iter().map(|part: &ByteRange| part.length()).sum();
    match parts.len() {
        // A field without a range is invalid, and ignored (RFC 9110 §14.2).
        _ if is_empty => RangeRequest::All,
        0 => RangeRequest::Nothing(length),
        // Overlapping ranges don't help any client (RFC 9110 §17.15).
        _ if total > length => RangeRequest::All,
        _ if order == PartOrder::Ascending && !is_ascending(&parts) => RangeRequest::All,
        _ => RangeRequest::Parts(parts, length),
    }
}

fn is_ascending(parts: &[ByteRange]) -> bool {
    parts.windows(2).all(|pair| pair[0].last < pair[1].first)
}

/// A member of `Range`, for content of a known length.
#[derive(Debug, PartialEq, Eq)]
enum RangeSpec {
    Malformed,
    /// The range is outside the content.
    Outside,
    Within(ByteRange),
}

/// Parses a member of `Range`, for content of `length` bytes.
fn parse_range(spec: &str, length: u64) -> RangeSpec {
    let Some((first, last)) = spec.split_once('-') else { return RangeSpec::Malformed };
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (first, last) {
        ("", last) => match number(last).map(|suffix: u64| suffix.min(length)) {
            None => RangeSpec::Malformed,
            Some(0) => RangeSpec::Outside,
            Some(suffix) => RangeSpec::Within(ByteRange { first: length - suffix, last: length - 1 }),
        },
        (first, last) => match (number(first), if last.is_empty() { Some(u64::MAX) } else { number(last) }) {
            (Some(first), Some(last)) if last < first => RangeSpec::Malformed,
            (Some(first), Some(_)) if first >= length => RangeSpec::Outside,
            (Some(first), Some(last)) => RangeSpec::Within(ByteRange { first, last: last.min(length - 1) }),
            _ => RangeSpec::Malformed,
        },
    }
}

/// Turns a head into that of a 416 (RFC 9110 §15.5.17).
pub fn to_unsatisfiable(head: &mut response::Parts, length: u64) {
    head.status = StatusCode::RANGE_NOT_SATISFIABLE;
    [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING, header::ETAG, header::LAST_MODIFIED]
        .iter()
        .for_each(|name| drop(head.headers.remove(name)));
    set(head, header::CONTENT_RANGE, format!("bytes */{length}"));
}

/// Turns the head of a whole response into that of a 206 with these parts of it (RFC 9110 §15.3.7), and returns the texts
/// around them.
pub fn to_partial_content(head: &mut response::Parts, parts: &[ByteRange], length: u64) -> PartTexts {
    head.status = StatusCode::PARTIAL_CONTENT;
    let content_range = |ByteRange { first, last }: &ByteRange| format!("bytes {first}-{last}/{length}");
    let mut sent: u64 = parts.iter().map(|part| part.length()).sum();
    let mut texts = PartTexts::default();
    if let [part] = parts {
        set(head, header::CONTENT_RANGE, content_range(part));
    } else {
        let boundary = boundary();
        let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.map_or(String::new(), |kind| format!("content-type: {kind}\r\n"));
        let before = |part| format!("\r\n--{boundary}\r\n{kind}content-range: {}\r\n\r\n", content_range(part));
        texts = PartTexts { before: parts.iter().map(before).collect(), end: format!("\r\n--{boundary}--\r\n") };
        sent += texts.before.iter().chain([&texts.end]).map(|text| text.len() as u64).sum::<u64>();
        set(head, header::CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}"));
    }
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(sent));
    texts
}

/// Sets a field to a text that is made of digits, of a boundary and of other field values.
fn set(head: &mut response::Parts, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        head.headers.insert(name, value);
    }
}

/// Returns a boundary between parts. The chance that the content contains it is 2 to the power of -128.
fn boundary() -> String {
    // If the system has no random numbers, the content is still unlikely to contain the boundary.
    random::id().iter().fold(String::from("plugway-"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_what_rfc_9110_section_14_says() {
        let within = |first, last| RangeSpec::Within(ByteRange { first, last });
        let cases = [
            ("0-0", within(0, 0)),
            ("0-", within(0, 99)),
            ("-5", within(95, 99)),
            ("-500", within(0, 99)),
            ("-0", RangeSpec::Outside),
            ("90-500", within(90, 99)),
            ("100-", RangeSpec::Outside),
            ("99999999999999999999999-", RangeSpec::Outside),
            ("5-4", RangeSpec::Malformed),
            ("a-4", RangeSpec::Malformed),
            ("5", RangeSpec::Malformed),
            ("+5-6", RangeSpec::Malformed),
        ];
        for (spec, wanted) in cases {
            assert_eq!(parse_range(spec, 100), wanted, "{spec}");
        }
        assert_eq!(parse_range("0-", 0), RangeSpec::Outside, "empty content has no bytes");
    }
}
