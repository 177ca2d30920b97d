//! The `Cache-Status` field of a response (RFC 9211).

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::plugin::settings::CacheInputs;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The reason why a request was forwarded to the next hop (RFC 9211 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardReason {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    /// The stored response is fresh, but the request doesn't accept it.
    Request,
    Stale,
}

/// The entry of one cache in `Cache-Status`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheStatus<'a> {
    hit: bool,
    forward: Option<ForwardReason>,
    status: Option<StatusCode>,
    /// The remaining freshness lifetime in seconds; negative for a stale response, `None` if not reported.
    ttl: Option<i64>,
    stored: bool,
    collapsed: bool,
    detail: Option<&'a str>,
}

impl<'a> CacheStatus<'a> {
    /// Returns the entry of a response from the store.
    pub fn hit() -> Self {
        CacheStatus { hit: true, ..CacheStatus::default() }
    }

    /// Returns the entry of a response to a forwarded request.
    pub fn forwarded(why: ForwardReason) -> Self {
        CacheStatus { forward: Some(why), ..CacheStatus::default() }
    }

    /// Returns the entry of a response that is neither a hit nor forwarded.
    pub fn missed() -> Self {
        CacheStatus::default()
    }

    /// Whether the response was fetched or validated for the request of this entry.
    pub fn is_fetched(&self) -> bool {
        self.forward.is_some() && !self.collapsed
    }

    /// Adds the status code of the next hop's response.
    pub fn status(self, status: StatusCode) -> Self {
        CacheStatus { status: Some(status), ..self }
    }

    /// Adds the remaining freshness lifetime.
    pub fn ttl(self, seconds: i64) -> Self {
        CacheStatus { ttl: Some(seconds), ..self }
    }

    /// Adds that the response is stored.
    pub fn stored(self) -> Self {
        CacheStatus { stored: true, ..self }
    }

    /// Adds that the request was collapsed with another one.
    pub fn collapsed(self) -> Self {
        CacheStatus { collapsed: true, ..self }
    }

    /// Adds a detail, if there is one.
    pub fn detail(self, detail: Option<&'a str>) -> Self {
        CacheStatus { detail, ..self }
    }

    /// Appends the entry to `Cache-Status`, after the entries of other caches.
    pub fn append_to(&self, needs: &CacheInputs, key: Option<&[u8]>, fields: &mut HeaderMap) {
        let Some(name) = &needs.name else { return };
        let mut text = String::with_capacity(64);
        text.push_str(name);
        if self.hit {
            text.push_str("; hit");
        }
        if let Some(why) = self.forward {
            text.push_str("; fwd=");
            text.push_str(why.token());
        }
        if let Some(status) = self.status {
            text.push_str("; fwd-status=");
            text.push_str(status.as_str());
        }
        if let Some(ttl) = self.ttl {
            let _ = write!(text, "; ttl={ttl}");
        }
        if self.stored {
            text.push_str("; stored");
        }
        if self.collapsed {
            text.push_str("; collapsed");
        }
        if let Some(key) = key.filter(|_| needs.tells_key) {
            text.push_str("; key=");
            quote(needs.policy_key(key), &mut text);
        }
        match self.detail {
            Some(detail) if is_token(detail) => {
                text.push_str("; detail=");
                text.push_str(detail);
            }
            Some(detail) => {
                text.push_str("; detail=");
                quote(detail.as_bytes(), &mut text);
            }
            None => {}
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(text)) {
            fields.append(CACHE_STATUS, value);
        }
    }
}

impl ForwardReason {
    fn token(self) -> &'static str {
        match self {
            ForwardReason::Bypass => "bypass",
            ForwardReason::Method => "method",
            ForwardReason::UriMiss => "uri-miss",
            ForwardReason::VaryMiss => "vary-miss",
            ForwardReason::Request => "request",
            ForwardReason::Stale => "stale",
        }
    }
}

/// Returns whether a text is a token of a structured field (RFC 9651 §3.3.4).
fn is_token(text: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte);
    text.bytes().next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'*') && text.bytes().all(rest)
}

/// Appends a string of a structured field (RFC 9651 §3.3.3). Characters that are not allowed there are left out.
fn quote(text: &[u8], into: &mut String) {
    into.push('"');
    for byte in text.iter().filter(|byte| (0x20..0x7f).contains(*byte)) {
        if *byte == b'"' || *byte == b'\\' {
            into.push('\\');
        }
        into.push(char::from(*byte));
    }
    into.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(report: CacheStatus, tells_key: bool) -> String {
        let name = Some("edge".into());
        let owner = CacheInputs::owner_of("edge");
        let needs = CacheInputs { request: Vec::new(), response: Vec::new(), plan: None, name, tells_key, owner };
        let mut fields = HeaderMap::new();
        report.append_to(&needs, Some(b"http://a/\"b\xff\nplugin:edge"), &mut fields);
        fields[CACHE_STATUS].to_str().unwrap().into()
    }

    #[test]
    fn it_reads_as_rfc_9211_writes_it() {
        assert_eq!(written(CacheStatus::hit().ttl(376), false), "edge; hit; ttl=376");
        let fetched = CacheStatus::forwarded(ForwardReason::Stale).status(StatusCode::NOT_MODIFIED).ttl(60).stored();
        assert_eq!(written(fetched, false), "edge; fwd=stale; fwd-status=304; ttl=60; stored");
        assert_eq!(
            written(CacheStatus::forwarded(ForwardReason::UriMiss).collapsed(), false),
            "edge; fwd=uri-miss; collapsed"
        );
        assert_eq!(written(CacheStatus::hit(), true), r#"edge; hit; key="http://a/\"b""#);
        assert_eq!(written(CacheStatus::missed().detail(Some("only-if-cached")), false), "edge; detail=only-if-cached");
        assert_eq!(written(CacheStatus::missed().detail(Some("no way")), false), r#"edge; detail="no way""#);
    }
}
