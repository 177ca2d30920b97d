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
    /// Returns the error about a head beyond the limits, with their keys.
    pub fn exceeded(self) -> String {
        let ResponseHeadLimits { bytes, fields } = self;
        let limits = format!("`limits.response-head` ({bytes} bytes) or `limits.response-fields` ({fields})");
        format!("the response's head is larger than {limits} of the upstream")
    }

    /// Whether the fields of a response are within the limits, each counted as HTTP/1 writes it.
    pub fn allow(self, fields: &HeaderMap) -> bool {
        let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        fields.len() <= self.fields && bytes <= self.bytes
    }
}
