//! The scheme by which a client reached the proxies before this one.

use http::header::{self, HeaderMap, HeaderName};

use super::chain;

/// A scheme of HTTP (RFC 9110 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Returns the client's scheme in the fields of a trusted proxy; `None` if they name none. In a list, each proxy has added
/// its own, so that the first one is that of the client. Elements of `Forwarded` left of the client's are removed before.
pub(super) fn named(fields: &HeaderMap) -> Option<Scheme> {
    let first = |value: &[u8]| value.split(|byte| *byte == b',').next().and_then(|word| Scheme::new(word.trim_ascii()));
    if let Some(value) = fields.get(X_FORWARDED_PROTO) {
        return first(value.as_bytes());
    }
    let element = chain::first_forwarded(fields.get(header::FORWARDED)?.as_bytes())?;
    Scheme::new(chain::parameter(element, "proto")?.as_bytes())
}

impl Scheme {
    /// Returns the scheme of a word; `None` for any other word. Schemes have no case (RFC 9110 §4.2.3). Some proxies say `ws`
    /// and `wss` for the handshakes of WebSocket, which are requests of HTTP (RFC 6455 §3).
    fn new(word: &[u8]) -> Option<Self> {
        [(&b"http"[..], Scheme::Http), (b"https", Scheme::Https), (b"ws", Scheme::Http), (b"wss", Scheme::Https)]
            .into_iter()
            .find_map(|(known, scheme)| word.eq_ignore_ascii_case(known).then_some(scheme))
    }
}
