//! The head of a request to an HTTP/1 endpoint, as bytes (RFC 9112 §3, §5).

use bytes::BytesMut;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, header};

use crate::protocol::content_length::ContentLengthLines;
use crate::upstream::request_head::RequestHead;

/// The way in which a request marks the end of its content.
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
pub fn write(bytes: &mut BytesMut, head: &RequestHead<'_>) -> RequestFraming {
    bytes.reserve(USUAL_HEAD);
    bytes.extend_from_slice(head.method.as_str().as_bytes());
    bytes.extend_from_slice(b" ");
    let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    bytes.extend_from_slice(target.as_bytes());
    bytes.extend_from_slice(b" HTTP/1.1\r\n");
    let (mut length, mut is_chunked) = (ContentLengthLines::default(), false);
    for (name, value) in head.fields.iter().chain(head.further.iter().map(|(name, value)| (name, value))) {
        if *name == header::CONTENT_LENGTH {
            length.add(value.as_bytes());
        } else if *name == header::TRANSFER_ENCODING {
            is_chunked = true;
        }
        write_field(bytes, name, value);
    }
    bytes.extend_from_slice(b"\r\n");
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
    use http::{HeaderMap, Method, Uri};

    use smallvec::SmallVec;

    use super::*;

    #[test]
    fn a_head_has_its_fields_in_their_order() {
        let mut fields = HeaderMap::new();
        for (name, value) in [("host", "a.example"), ("x-a", "1"), ("x-b", ""), ("x-a", "2")] {
            fields.append(name, HeaderValue::from_static(value));
        }
        let mut bytes = BytesMut::new();
        let mut head = RequestHead {
            method: &Method::POST,
            uri: Uri::from_static("/a?b"),
            fields: &fields,
            further: SmallVec::new(),
        };
        assert_eq!(write(&mut bytes, &head), RequestFraming::None);
        assert_eq!(bytes, "POST /a?b HTTP/1.1\r\nhost: a.example\r\nx-a: 1\r\nx-a: 2\r\nx-b: \r\n\r\n");
        head.further.push((header::CONTENT_LENGTH, HeaderValue::from_static("7")));
        assert_eq!(write(&mut bytes, &head), RequestFraming::Length(7));
        assert!(bytes.ends_with(b"x-b: \r\ncontent-length: 7\r\n\r\n"));
        head.further.push((header::TRANSFER_ENCODING, HeaderValue::from_static("chunked")));
        assert_eq!(write(&mut bytes, &head), RequestFraming::Chunked);
    }
}
