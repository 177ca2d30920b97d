//! The head of a request to an endpoint. Its fields stay with the exchange, for another try: HTTP/1 writes them from where
//! they are.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};
use smallvec::SmallVec;

use super::EndpointAddr;

/// A head for one connection.
pub struct RequestHead<'a> {
    pub method: &'a Method,
    /// The target in origin-form over HTTP/1 (RFC 9112 §3.2.1), and with the authority over HTTP/2 (RFC 9113 §8.3.1).
    pub uri: Uri,
    pub fields: &'a HeaderMap,
    /// Fields that `fields` doesn't have, sent behind them.
    pub further: FurtherFields,
}

/// The fields of a request that concern its connection: few or none.
pub type FurtherFields = SmallVec<[(HeaderName, HeaderValue); 2]>;

impl<'a> RequestHead<'a> {
    /// Addresses a head to an endpoint, in a version of HTTP. `Host` is the endpoint's address if `fields` has none.
    pub fn new(
        method: &'a Method,
        target: PathAndQuery,
        fields: &'a HeaderMap,
        endpoint: &EndpointAddr,
        version: Version,
    ) -> Result<Self, http::Error> {
        let (host, mut further) = (fields.get(header::HOST), FurtherFields::new());
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
