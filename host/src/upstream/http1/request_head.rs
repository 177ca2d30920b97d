//! The head of a request to an HTTP/1 endpoint, as bytes (RFC 9112 §3, §5).

use bytes::BytesMut;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::protocol::content_length::ContentLengthLines;

/// The way in which the end of a request's content is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestFraming {
    #[default]
    None,
    /// Content of a known length, with the number of bytes that are left.
    Length(u64),
    Chunked,
}

/// The room that most heads of requests need, in bytes.
const USUAL_HEAD: usize = 512;

/// Writes a head in origin-form, and returns how its fields frame the content.
pub fn write(head: &mut BytesMut, method: &Method, target: &PathAndQuery, fields: &HeaderMap) -> RequestFraming {
    head.reserve(USUAL_HEAD);
    head.extend_from_slice(method.as_str().as_bytes());
    head.extend_from_slice(b" ");
    head.extend_from_slice(target.as_str().as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    let (mut length, mut is_chunked) = (ContentLengthLines::default(), false);
    for (name, value) in fields {
        if *name == header::CONTENT_LENGTH {
            length.add(value.as_bytes());
        } else if *name == header::TRANSFER_ENCODING {
            is_chunked = true;
        }
        write_field(head, name, value);
    }
    head.extend_from_slice(b"\r\n");
    match length.value() {
        _ if is_chunked => RequestFraming::Chunked,
        Some(length) if length > 0 => RequestFraming::Length(length),
        _ => RequestFraming::None,
    }
}

/// Writes a line of a head or of trailers.
pub fn write_field(bytes: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    bytes.extend_from_slice(name.as_str().as_bytes());
    bytes.extend_from_slice(b": ");
    bytes.extend_from_slice(value.as_bytes());
    bytes.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_its_fields_in_their_order() {
        let mut fields = HeaderMap::new();
        for (name, value) in [("host", "a.example"), ("x-a", "1"), ("x-b", ""), ("x-a", "2")] {
            fields.append(name, HeaderValue::from_static(value));
        }
        let mut head = BytesMut::new();
        let target = PathAndQuery::from_static("/a?b");
        assert_eq!(write(&mut head, &Method::GET, &target, &fields), RequestFraming::None);
        assert_eq!(head, "GET /a?b HTTP/1.1\r\nhost: a.example\r\nx-a: 1\r\nx-a: 2\r\nx-b: \r\n\r\n");
        fields.insert("content-length", HeaderValue::from_static("7"));
        assert_eq!(write(&mut head, &Method::POST, &target, &fields), RequestFraming::Length(7));
        fields.insert("transfer-encoding", HeaderValue::from_static("chunked"));
        assert_eq!(write(&mut head, &Method::POST, &target, &fields), RequestFraming::Chunked);
    }
}
