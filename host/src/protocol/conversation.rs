//! Media types that say how content is transferred (RFC 9110 §8.3).

use http::{HeaderMap, HeaderValue, header};

/// Whether the content of a message is a conversation, whose peer has to learn that the other side is slow: events as they
/// happen, or the messages of gRPC.
pub fn is_conversation(fields: &HeaderMap) -> bool {
    is_grpc(fields) || media_begins_with(fields, b"text/event-stream")
}

/// Whether a message is one of gRPC, in any of its forms: its errors are in its trailers.
pub fn is_grpc(fields: &HeaderMap) -> bool {
    media_begins_with(fields, b"application/grpc")
}

fn media_begins_with(fields: &HeaderMap, name: &[u8]) -> bool {
    let media = fields.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    media.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_are_told_by_their_media_type() {
        let is_conversation = |media: &'static str| {
            is_conversation(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(media))]))
        };
        for media in
            ["text/event-stream", "Text/Event-Stream; charset=utf-8", "application/grpc+proto", "application/grpc-web"]
        {
            assert!(is_conversation(media), "{media}");
        }
        for media in ["", "text/plain", "application/json", "text/event"] {
            assert!(!is_conversation(media), "{media}");
        }
    }
}
