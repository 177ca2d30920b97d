//! The head of a request to an endpoint. Its fields stay with the exchange, for another try: HTTP/1 writes them from where
//! they are.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};
use smallvec::SmallVec;

use super::EndpointAddr;
use crate::protocol::field_section::FIELD_OVERHEAD;

/// A head for one connection.
pub struct RequestHead<'a> {
    pub method: &'a Method,
    /// The target in origin-form over HTTP/1 (RFC 9112 §3.2.1), and with the authority over HTTP/2 (RFC 9113 §8.3.1).
    pub uri: Uri,
    pub fields: &'a HeaderMap,
    /// Fields that `fields` doesn't have, sent behind them.
    pub further: SmallVec<[(HeaderName, HeaderValue); 2]>,
}

/// The size of a request's head for an endpoint, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHeadSize {
    /// The length of the longest field, or of the target.
    pub longest: usize,
    /// The size of the list of fields (RFC 9113 §6.5.2).
    pub total: usize,
    /// The number of fields.
    pub fields: usize,
}

impl<'a> RequestHead<'a> {
    /// Addresses a head to an endpoint, in a version of HTTP. `Host` is the endpoint's address if `fields` has none.
    pub fn new(
        method: &'a Method,
        target: PathAndQuery,
        fields: &'a HeaderMap,
        endpoint: &EndpointAddr,
        version: Version,
    ) -> Result<Self, http::Error> {
        let (host, mut further) = (fields.get(header::HOST), SmallVec::new());
        if version == Version::HTTP_2 {
            return Ok(RequestHead { method, uri: endpoint.uri(host, target)?, fields, further });
        }
        if host.is_none() {
            further.push((header::HOST, HeaderValue::from_str(endpoint.address.authority())?));
        }
        Ok(RequestHead { method, uri: Uri::from(target), fields, further })
    }

    /// Returns the request over HTTP/2, whose authority stands for `Host`.
    pub fn into_http2<B>(self, content: B) -> Request<B> {
        let mut request = Request::new(content);
        *request.method_mut() = self.method.clone();
        (*request.uri_mut(), *request.version_mut()) = (self.uri, Version::HTTP_2);
        let fields = request.headers_mut();
        *fields = self.fields.clone();
        fields.remove(header::HOST);
        self.further.into_iter().for_each(|(name, value)| drop(fields.insert(name, value)));
        request
    }
}

impl RequestHeadSize {
    /// Returns the size of a head with a target.
    pub fn of(method: &Method, target: &str, fields: &HeaderMap) -> Self {
        // `:method`, `:scheme` and `:path`; `Host` becomes `:authority`.
        let pseudo = method.as_str().len() + target.len() + 25 + 3 * FIELD_OVERHEAD;
        let mut size = RequestHeadSize { longest: target.len(), total: pseudo, fields: fields.len() };
        for (name, value) in fields {
            let length = name.as_str().len() + value.len();
            size.longest = size.longest.max(length);
            size.total += length + FIELD_OVERHEAD;
        }
        size
    }
}
