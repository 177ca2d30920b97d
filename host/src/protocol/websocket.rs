//! The WebSocket handshake over HTTP/1.1 (RFC 6455 §4) with this proxy as its client, for clients with HTTP/2: their
//! extended CONNECT (RFC 8441) has no such handshake.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::prelude::{BASE64_STANDARD, Engine};
use http::header::{self, HeaderMap, HeaderValue};

use crate::system::random;

/// The name of the protocol in `Upgrade` and in `:protocol`.
pub const PROTOCOL: &str = "websocket";

/// The text that a server appends to a key before hashing it (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether a protocol is WebSocket. Names of protocols are compared without case (RFC 9110 §16.7).
pub fn is_websocket(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes())
}

/// Returns a new key: 16 random bytes in Base64.
pub fn key() -> HeaderValue {
    // The key is no secret: it proves that the endpoint has read this handshake.
    HeaderValue::try_from(BASE64_STANDARD.encode(random::id())).unwrap_or(HeaderValue::from_static(""))
}

/// Whether a response accepts the handshake of a request: it switches to WebSocket, and has the value that only a
/// WebSocket server derives from the key (RFC 6455 §4.1).
pub fn is_accepted(request: &HeaderMap, response: &HeaderMap) -> bool {
    let mut protocols = response.get_all(header::UPGRADE).iter();
    let mut proofs = response.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
    let (Some(key), Some(proof), None) = (request.get(header::SEC_WEBSOCKET_KEY), proofs.next(), proofs.next()) else {
        return false;
    };
    protocols.next().is_some_and(is_websocket)
        && protocols.next().is_none()
        && proof.as_bytes() == accept(key).as_bytes()
}

fn accept(key: &HeaderValue) -> String {
    BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            fields.append(*name, HeaderValue::from_static(value));
        }
        fields
    }

    #[test]
    fn rfc_6455_section_4_1_what_a_client_checks() {
        let request = fields(&[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]);
        let proof = ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let upgrade = ("upgrade", "WebSocket");
        assert!(is_accepted(&request, &fields(&[upgrade, proof])));
        let other = ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOp=");
        for lines in
            [&[upgrade][..], &[proof], &[upgrade, other], &[upgrade, proof, other], &[("upgrade", "echo"), proof]]
        {
            assert!(!is_accepted(&request, &fields(lines)), "{lines:?}");
        }
        assert!(!is_accepted(&HeaderMap::new(), &fields(&[upgrade, proof])));
        assert_ne!(key(), key());
    }
}
