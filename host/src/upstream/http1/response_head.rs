//! The head of a response of an HTTP/1 endpoint (RFC 9112): parsed once, into the fields that go to the client. What the
//! RFC lets a proxy accept is normalised; what has two meanings is an error.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use httparse::{Header, ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use super::body_length::BodyLength;
use super::head_search::HeadSearch;
use crate::protocol::content_length::ContentLengthLines;
use crate::protocol::hop_by_hop;
use crate::upstream::response_head_limits::ResponseHeadLimits;

/// The head of a response, with its consequences for the connection.
#[derive(Debug)]
pub struct ResponseHead {
    pub response: Response<()>,
    pub length: BodyLength,
    /// Whether the endpoint keeps the connection open after this response (RFC 9112 §9.3).
    pub is_persistent: bool,
}

/// The reason why a head is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error(
        "the bytes are no HTTP/1.1; an endpoint that speaks TLS needs `https://` before its address, one that speaks HTTP/2 \
         alone needs `h2c://`"
    )]
    NotHttp,
    #[error("the response's framing is ambiguous")]
    Ambiguous,
    #[error("the response's Content-Length is not one number")]
    Length,
    /// The head has more bytes or fields than the limits allow.
    #[error("the response's head is larger than its limits")]
    TooLarge,
}

/// The fields for which the parser has room without an allocation.
const USUAL_FIELDS: usize = 64;
/// The fields that a response usually gets on its way to the client.
const FURTHER_FIELDS: usize = 2;

/// Removes a head from the bytes that were read; returns `None` if its end has not arrived. `method` is the request's.
pub fn take(
    bytes: &mut BytesMut,
    search: &mut HeadSearch,
    limits: ResponseHeadLimits,
    method: &Method,
) -> Result<Option<ResponseHead>, HeadError> {
    if !may_be_http(bytes) {
        return Err(HeadError::NotHttp);
    }
    let Some(length) = search.length(bytes) else {
        return if bytes.len() > limits.bytes { Err(HeadError::TooLarge) } else { Ok(None) };
    };
    *search = HeadSearch::default();
    if length > limits.bytes {
        return Err(HeadError::TooLarge);
    }
    let mut head = bytes.split_to(length);
    // A later minor version is read as the highest that is known (RFC 9110 §6.2).
    if head.starts_with(b"HTTP/1.") && matches!(head.get(7), Some(b'2'..=b'9')) {
        head[7] = b'1';
    }
    parse(&head.freeze(), limits, method).map(Some)
}

/// Whether bytes may be the beginning of a head. Bytes of another protocol may never have an end of line.
fn may_be_http(bytes: &[u8]) -> bool {
    const VERSION: &[u8] = b"HTTP/";
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    bytes[start..].iter().zip(VERSION).all(|(byte, wanted)| byte == wanted)
}

fn parse(head: &Bytes, limits: ResponseHeadLimits, method: &Method) -> Result<ResponseHead, HeadError> {
    let mut room = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    let usual = limits.fields.min(USUAL_FIELDS);
    match parse_into(head, &mut room[..usual], method) {
        Err(HeadError::TooLarge) if limits.fields > USUAL_FIELDS => {
            let mut room = vec![MaybeUninit::uninit(); limits.fields];
            parse_into(head, &mut room, method)
        }
        parsed => parsed,
    }
}

fn parse_into<'b>(
    head: &'b Bytes,
    room: &mut [MaybeUninit<Header<'b>>],
    method: &Method,
) -> Result<ResponseHead, HeadError> {
    let mut parsed = httparse::Response::new(&mut []);
    let mut config = ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true);
    match config.parse_response_with_uninit_headers(&mut parsed, head, room) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(HeadError::Malformed("an empty line within the head")),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(httparse::Error::Version) => return Err(HeadError::NotHttp),
        Err(error) => return Err(HeadError::Malformed(reason(error, head))),
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(HeadError::Malformed("the status code is malformed"))?;
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut framing =
        Framing { version, length: ContentLengthLines::default(), codings: 0, is_chunked: false, persistence: None };
    let mut fields = HeaderMap::with_capacity(parsed.headers.len() + FURTHER_FIELDS);
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let name = name.map_err(|_| HeadError::Malformed("a field of the head is malformed: its name is no token"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value));
        let value =
            value.map_err(|_| HeadError::Malformed("a field of the head is malformed: it has a control character"))?;
        framing.note(&name, &value)?;
        fields.append(name, value);
    }
    let (length, is_persistent) = framing.settle(status, method, &mut fields)?;
    let mut response = Response::new(());
    (*response.status_mut(), *response.version_mut()) = (status, version);
    let reason = reason_phrase(head);
    if Some(reason) != status.canonical_reason().map(str::as_bytes)
        && let Ok(reason) = ReasonPhrase::try_from(head.slice_ref(reason))
    {
        response.extensions_mut().insert(reason);
    }
    *response.headers_mut() = fields;
    Ok(ResponseHead { response, length, is_persistent })
}

/// The fields of a response that determine where it ends.
struct Framing {
    version: Version,
    length: ContentLengthLines,
    /// The number of lines of `Transfer-Encoding`.
    codings: usize,
    is_chunked: bool,
    /// Whether the connection persists, as `Connection` says; `None` if it says nothing about that.
    persistence: Option<bool>,
}

impl Framing {
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), HeadError> {
        if *name == header::CONTENT_LENGTH {
            return if self.length.add(value.as_bytes()) { Ok(()) } else { Err(HeadError::Length) };
        }
        if *name == header::TRANSFER_ENCODING {
            self.codings += 1;
            self.is_chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
        } else if *name == header::CONNECTION {
            for option in hop_by_hop::members_of_line(value) {
                if option.eq_ignore_ascii_case(b"close") {
                    self.persistence = Some(false);
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    self.persistence.get_or_insert(true);
                }
            }
        }
        Ok(())
    }

    /// Returns the length of the body (RFC 9112 §6.3), and whether the connection persists after it. Other parsers could
    /// take a part of an ambiguous body for another response.
    fn settle(
        self,
        status: StatusCode,
        method: &Method,
        fields: &mut HeaderMap,
    ) -> Result<(BodyLength, bool), HeadError> {
        let Framing { version, length, codings, is_chunked, persistence } = self;
        if codings > 1 || codings == 1 && (!is_chunked || length.value().is_some() || version == Version::HTTP_10) {
            return Err(HeadError::Ambiguous);
        }
        if let Some(number) = length.rewritten() {
            fields.insert(header::CONTENT_LENGTH, number.into());
        }
        let is_persistent = persistence.unwrap_or(version == Version::HTTP_11);
        let has_no_body = *method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        Ok(match length.value() {
            _ if has_no_body => (BodyLength::None, is_persistent),
            Some(0) => (BodyLength::None, is_persistent),
            Some(length) => (BodyLength::Known(length), is_persistent),
            None if is_chunked => (BodyLength::Chunked, is_persistent),
            None => (BodyLength::UntilClose, false),
        })
    }
}

/// Returns the words behind the status code, which may be bytes beyond ASCII (RFC 9112 §4).
fn reason_phrase(head: &[u8]) -> &[u8] {
    /// The version, the status code and two spaces.
    const STATUS: usize = 13;
    let start = head.trim_ascii_start();
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    line.strip_suffix(b"\r").unwrap_or(line).get(STATUS..).unwrap_or_default()
}

/// Whether a line of fields continues the line before it (RFC 9112 §5.2).
fn is_folded(head: &[u8]) -> bool {
    head.windows(2).any(|bytes| matches!(bytes, [b'\n', b' ' | b'\t']))
}

/// Whether a status line has a status code of three digits, whatever follows.
fn has_status_code(head: &[u8]) -> bool {
    let line = head.trim_ascii_start();
    line.get(8) == Some(&b' ') && line.get(9..12).is_some_and(|code| code.iter().all(u8::is_ascii_digit))
}

fn reason(error: httparse::Error, head: &[u8]) -> &'static str {
    match error {
        httparse::Error::HeaderName | httparse::Error::HeaderValue if is_folded(head) => {
            "a field of the head is folded over several lines (obs-fold)"
        }
        httparse::Error::Status if has_status_code(head) => "a control character in the reason phrase",
        httparse::Error::HeaderName => "a field of the head is malformed: its name is no token",
        httparse::Error::HeaderValue => "a field of the head is malformed: it has a control character",
        httparse::Error::NewLine => "a line of the head ends in CR without LF",
        httparse::Error::Status => "the status code is malformed",
        httparse::Error::Version => "the version of HTTP is malformed",
        httparse::Error::Token => "a control character in the status line",
        httparse::Error::TooManyHeaders => "too many fields",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ResponseHeadLimits = ResponseHeadLimits { bytes: 400, fields: 80 };

    fn parse_all(text: &[u8]) -> Result<Option<ResponseHead>, HeadError> {
        take(&mut text.into(), &mut HeadSearch::default(), LIMITS, &Method::GET)
    }

    fn head(text: &str) -> ResponseHead {
        parse_all(text.as_bytes()).unwrap().expect(text)
    }

    fn fields(head: &ResponseHead) -> Vec<(&str, &str)> {
        let fields = head.response.headers().iter();
        fields.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
    }

    #[test]
    fn tolerable_responses_are_normalised() {
        let space = head("HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(fields(&space), [("x", "a"), ("content-length", "0")]);
        let later = head("HTTP/1.2 200 OK\r\nContent-Length: 3\r\n\r\n");
        assert_eq!((later.response.version(), later.length), (Version::HTTP_11, BodyLength::Known(3)));
        let bare = head("HTTP/1.1 200 OK\nX: a\nContent-Length: 0\n\n");
        assert_eq!(fields(&bare), [("x", "a"), ("content-length", "0")]);
        let list = head("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 05\r\n\r\n");
        assert_eq!(fields(&list), [("content-length", "5")]);
        let own = head("HTTP/1.1 200 Fine by me\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(own.response.extensions().get::<ReasonPhrase>().unwrap().as_bytes(), b"Fine by me");
        for reason in [&b""[..], b"Gr\xe9at\tidea", b"OK OK"] {
            let text = [b"HTTP/1.1 200 ", reason, b"\r\n\r\n"].concat();
            let head = parse_all(&text).unwrap().unwrap();
            assert_eq!(head.response.extensions().get::<ReasonPhrase>().unwrap().as_bytes(), reason);
        }
        assert!(head("HTTP/1.1 200 OK\r\n\r\n").response.extensions().is_empty());
        let many: String = (0..70).map(|n| format!("x{n}:1\r\n")).collect();
        let wide = ResponseHeadLimits { bytes: 1 << 20, fields: 80 };
        let mut text = BytesMut::from(&*format!("HTTP/1.1 200 OK\r\n{many}\r\n"));
        let many = take(&mut text, &mut HeadSearch::default(), wide, &Method::GET);
        assert_eq!(many.unwrap().unwrap().response.headers().len(), 70);
    }

    #[test]
    fn malformed_heads_have_their_own_reasons() {
        for (text, reason) in [
            ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", "folded over several lines"),
            ("HTTP/1.1 200 OK\nX: a\n\tb\n\n", "folded over several lines"),
            ("HTTP/1.1 200 O\x01K\r\n\r\n", "control character in the reason phrase"),
            ("HTTP/1.1 2x0 OK\r\n\r\n", "the status code is malformed"),
            ("HTTP/1.1 200 OK\r\nno field\r\n\r\n", "its name is no token"),
            ("HTTP/1.1 200 OK\r\nX: a\x01\r\n\r\n", "it has a control character"),
        ] {
            let said = parse_all(text.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(reason), "{text:?}: {said}");
        }
    }

    #[test]
    fn ambiguous_or_meaningless_responses_are_rejected() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\n", HeadError::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\n", HeadError::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n", HeadError::Length),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 3, 4\r\n\r\n", HeadError::Length),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", HeadError::Ambiguous),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", HeadError::Ambiguous),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", HeadError::Ambiguous),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", HeadError::Ambiguous),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                HeadError::Ambiguous,
            ),
        ];
        for (text, error) in cases {
            assert_eq!(parse_all(text.as_bytes()).unwrap_err(), error, "{text}");
        }
        let malformed: [&[u8]; 7] = [
            b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n: a\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 200 O\x01K\r\n\r\n",
        ];
        for text in malformed {
            let refused = parse_all(text);
            assert!(matches!(refused, Err(HeadError::Malformed(_))), "{refused:?} {}", text.escape_ascii());
        }
        for text in [&b"HTTP/2.0 200 OK\r\n\r\n"[..], b"hello", b"\x15\x03\x01", b"\r\n\r\nhttp/1.1"] {
            assert_eq!(parse_all(text).unwrap_err(), HeadError::NotHttp, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn limits_hold_for_bytes_and_fields() {
        let many: String = (0..81).map(|n| format!("{n}:\r\n")).collect();
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(400));
        let endless = format!("HTTP/1.1 200 {}", "x".repeat(401));
        for text in [format!("HTTP/1.1 200 OK\r\n{many}\r\n"), long, endless] {
            assert_eq!(parse_all(text.as_bytes()).unwrap_err(), HeadError::TooLarge, "{text}");
        }
    }

    #[test]
    fn the_connection_persists_as_the_version_and_the_endpoint_say() {
        let cases = [
            ("HTTP/1.1", "", true),
            ("HTTP/1.1", "Connection: Close\r\n", false),
            ("HTTP/1.1", "Connection: x, close\r\nConnection: keep-alive\r\n", false),
            ("HTTP/1.0", "", false),
            ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
        ];
        for (version, connection, expected) in cases {
            let text = format!("{version} 200 OK\r\n{connection}Content-Length: 0\r\n\r\n");
            assert_eq!(head(&text).is_persistent, expected, "{text}");
        }
        assert!(!head("HTTP/1.1 200 OK\r\n\r\n").is_persistent, "the close ends the content");
        assert_eq!(head("HTTP/1.1 200 OK\r\n\r\n").length, BodyLength::UntilClose);
        assert_eq!(head("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n").length, BodyLength::None);
    }

    #[test]
    fn a_head_that_arrives_in_two_parts_is_the_same_head() {
        let text = b"HTTP/1.1 200 Fine\r\nX: a\nY:b\r\nContent-Length: 3\r\n\r\nabc";
        let whole = format!("{:?}", parse_all(text));
        for cut in 0..text.len() {
            let mut bytes = BytesMut::from(&text[..cut]);
            let mut search = HeadSearch::default();
            let mut parsed = take(&mut bytes, &mut search, LIMITS, &Method::GET);
            if let Ok(None) = parsed {
                bytes.extend_from_slice(&text[cut..]);
                parsed = take(&mut bytes, &mut search, LIMITS, &Method::GET);
            }
            assert_eq!(format!("{parsed:?}"), whole, "{cut}");
            assert!(cut < text.len() - 3 && bytes[..] == b"abc"[..] || cut >= text.len() - 3, "{cut}");
        }
    }
}
