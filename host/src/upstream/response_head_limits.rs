//! The limits of the heads of responses.

use http::HeaderMap;

/// The limits of a response's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResponseHeadLimits {
    pub bytes: usize,
    pub fields: usize,
}

impl Default for ResponseHeadLimits {
    /// Returns the limits of the manifest reference: the bytes of a request's head, and more fields than origins are known to
    /// send.
    fn default() -> Self {
        ResponseHeadLimits { bytes: 32 << 10, fields: 500 }
    }
}

impl ResponseHeadLimits {
    /// Whether the fields of a response are within the limits, each counted as HTTP/1 writes it.
    pub fn allow(self, fields: &HeaderMap) -> bool {
        let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        fields.len() <= self.fields && bytes <= self.bytes
    }
}
