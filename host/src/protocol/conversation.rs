//! Media types that say how content is transferred (RFC 9110 §8.3).

/// Whether content of a media type is a conversation: events as they happen, or the messages of gRPC.
pub fn is_conversation(media: &[u8]) -> bool {
    is_grpc(media) || begins_with(media, b"text/event-stream")
}

/// Whether content of a media type is a call of gRPC, in any of its forms.
pub fn is_grpc(media: &[u8]) -> bool {
    begins_with(media, b"application/grpc")
}

fn begins_with(media: &[u8], name: &[u8]) -> bool {
    media.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_are_told_by_their_media_type() {
        for media in
            ["text/event-stream", "Text/Event-Stream; charset=utf-8", "application/grpc+proto", "application/grpc-web"]
        {
            assert!(is_conversation(media.as_bytes()), "{media}");
        }
        for media in ["", "text/plain", "application/json", "text/event"] {
            assert!(!is_conversation(media.as_bytes()), "{media}");
        }
    }
}
