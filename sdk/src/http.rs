//! Requests of a plugin to other services, through the host. A plugin that uses this module waits for the response, and its
//! worker serves other requests meanwhile. Such a plugin may have every hook but `Balancer` and `CachePolicy`.
//!
//! The manifest grants the destinations, in `[plugin.NAME.grants]`: `http = [{ upstream = "auth" }]` allows requests to
//! `http://auth/…`, which go through that upstream; `http = ["https://auth.example"]` those to this server.
//!
//! ```
//! use std::time::Duration;
//!
//! use plugway_sdk::{Response, Verdict, http};
//!
//! fn decide(cookie: &str) -> Verdict {
//!     let asked = http::get("http://auth/verify").header("cookie", cookie).timeout(Duration::from_millis(500)).send();
//!     match asked {
//!         Ok(answer) if answer.status == 200 => {
//!             Verdict::proceed().set_field("x-user", answer.text("x-user").unwrap_or_default())
//!         }
//!         Ok(_) => Response::new(401).into(),
//!         Err(error) => Verdict::Fail(error.to_string()),
//!     }
//! }
//!
//! // In a native test, the test answers.
//! use plugway_sdk::testing::http::answer;
//!
//! answer(|request| {
//!     assert_eq!((request.method.as_str(), request.url.as_str()), ("GET", "http://auth/verify"));
//!     Ok(Response::new(200).field("x-user", "alice"))
//! });
//! assert_eq!(decide("session=1"), Verdict::proceed().set_field("x-user", "alice"));
//! ```

use std::fmt;
use std::time::Duration;

use crate::Response;

/// A request to another service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method, such as `GET`.
    pub method: String,
    /// The URL: `http://` or `https://`, a host with an optional port, a path and a query. The path is sent in its normal
    /// form: single slashes, escapes in upper case, and letters, digits and `-._~` unescaped. An escaped slash stays.
    pub url: String,
    /// The fields; the host sets `host` and `content-length`.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The content, of at most 256 KiB; empty for none.
    pub body: Vec<u8>,
    /// The longest time until the response has begun, and again until it is complete; 10 seconds each if `None`.
    pub timeout: Option<Duration>,
}

/// The reason why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The manifest doesn't grant the destination: see `[plugin.NAME.grants]`.
    NotGranted,
    /// The request is malformed: its method, URL or fields, or its content is too long. So is a URL whose path has `.` or
    /// `..` for a segment, however they and the slashes around them are escaped, since text of a client in the path could lead
    /// elsewhere; and one with a backslash or a NUL, which may not be escaped either. A dot, slash, backslash, semicolon,
    /// percent sign or NUL may not be escaped twice, as in `%252F`. See [`PathBuilder`](crate::path::PathBuilder).
    Invalid,
    /// The destination has no endpoint that is up, or its name can't be resolved.
    Unavailable,
    /// The destination refused the connection.
    Refused,
    /// There was no connection, or no response, in time.
    Timeout,
    /// The connection ended before the response was complete.
    Terminated,
    /// Too many requests are under way: of this call, or at the destination.
    Busy,
    /// The response is too long: it has more than 1 MiB of content, or a head beyond the limits of the upstream.
    TooLarge,
    /// The TLS handshake failed, or what the destination sent is no HTTP.
    Protocol,
    /// The request is not among those that the first instance of the plugin has made while it was configured. Only in
    /// [`Plugin::new`](crate::Plugin::new).
    NotAvailable,
}

/// Returns a GET request.
pub fn get(url: impl Into<String>) -> Request {
    request("GET", url)
}

/// Returns a POST request.
pub fn post(url: impl Into<String>) -> Request {
    request("POST", url)
}

/// Returns a request.
pub fn request(method: &str, url: impl Into<String>) -> Request {
    Request { method: method.into(), url: url.into(), fields: Vec::new(), body: Vec::new(), timeout: None }
}

impl Request {
    /// Adds a field line.
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Sets the content and its media type.
    pub fn body(self, media_type: &str, content: impl Into<Vec<u8>>) -> Self {
        Request { body: content.into(), ..self.header("content-type", media_type) }
    }

    /// Limits the time until the response has begun, and each time after that until more of it arrives. All of the call is
    /// limited by `limits.call-time`.
    pub fn timeout(self, time: Duration) -> Self {
        Request { timeout: Some(time), ..self }
    }

    /// Sends the request, and waits for the response. In [`Plugin::new`](crate::Plugin::new), the request is sent once for
    /// each start or reload, and all instances of the plugin get the same response.
    pub fn send(self) -> Result<Response, Error> {
        #[cfg(target_family = "wasm")]
        return wasi::send(self);
        #[cfg(not(target_family = "wasm"))]
        return crate::testing::http::send(self);
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::NotGranted => "the manifest does not grant the destination of a request",
            Error::Invalid => "a request to another service is malformed",
            Error::Unavailable => "another service is unavailable",
            Error::Refused => "another service refused the connection",
            Error::Timeout => "another service did not respond in time",
            Error::Terminated => "the connection to another service ended",
            Error::Busy => "too many requests to other services are under way",
            Error::TooLarge => "the response of another service is too long",
            Error::Protocol => "another service does not speak HTTP or TLS as expected",
            Error::NotAvailable => "a request was not made when the plugin was first configured",
        })
    }
}

impl std::error::Error for Error {}

/// The request by the interfaces of WASI.
#[cfg(target_family = "wasm")]
mod wasi {
    use wasip2::http::outgoing_handler::handle;
    use wasip2::http::types::{
        ErrorCode, Fields, IncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions, Scheme,
    };
    use wasip2::io::streams::StreamError;

    use super::{Error, Request};
    use crate::Response;

    /// The bytes that one write passes to the host.
    const PIECE: usize = 4096;

    /// The bytes that one read asks of the host.
    const READ: u64 = 64 << 10;

    pub fn send(request: Request) -> Result<Response, Error> {
        let Request { method, url, fields, body, timeout } = request;
        let (scheme, rest) = url.split_once("://").ok_or(Error::Invalid)?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(Error::Invalid),
        };
        let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(at);
        let target = target.split('#').next().unwrap_or_default();
        let target = if target.starts_with('/') { target.to_string() } else { format!("/{target}") };
        let mut fields = fields;
        if !body.is_empty() {
            fields.push(("content-length".into(), body.len().to_string().into_bytes()));
        }
        let fields = Fields::from_list(&fields).map_err(|_| Error::Invalid)?;
        let outgoing = OutgoingRequest::new(fields);
        let invalid = |()| Error::Invalid;
        outgoing.set_method(&wasi_method(&method)).map_err(invalid)?;
        outgoing.set_scheme(Some(&scheme)).map_err(invalid)?;
        outgoing.set_authority(Some(authority)).map_err(invalid)?;
        outgoing.set_path_with_query(Some(&target)).map_err(invalid)?;
        let options = RequestOptions::new();
        if let Some(timeout) = timeout {
            let time = Some(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
            options.set_first_byte_timeout(time).map_err(invalid)?;
            options.set_between_bytes_timeout(time).map_err(invalid)?;
        }
        let content = if body.is_empty() { None } else { Some(outgoing.body().map_err(invalid)?) };
        let response = handle(outgoing, Some(options)).map_err(|error| named(&error))?;
        if let Some(content) = content {
            write(content, &body)?;
        }
        response.subscribe().block();
        match response.get() {
            Some(Ok(Ok(response))) => read(&response),
            Some(Ok(Err(error))) => Err(named(&error)),
            Some(Err(())) | None => Err(Error::Terminated),
        }
    }

    fn write(content: OutgoingBody, bytes: &[u8]) -> Result<(), Error> {
        let stream = content.write().map_err(|()| Error::Invalid)?;
        for piece in bytes.chunks(PIECE) {
            // The response says why the host reads no further.
            if stream.blocking_write_and_flush(piece).is_err() {
                return Ok(());
            }
        }
        drop(stream);
        OutgoingBody::finish(content, None).map_err(|error| named(&error))
    }

    fn read(response: &IncomingResponse) -> Result<Response, Error> {
        let (status, fields) = (response.status(), response.headers().entries());
        let content = response.consume().map_err(|()| Error::Terminated)?;
        let stream = content.stream().map_err(|()| Error::Terminated)?;
        let mut body = Vec::new();
        loop {
            match stream.blocking_read(READ) {
                Ok(piece) => body.extend_from_slice(&piece),
                Err(StreamError::Closed) => return Ok(Response { status, fields, body }),
                Err(StreamError::LastOperationFailed(_)) => return Err(Error::Terminated),
            }
        }
    }

    fn wasi_method(method: &str) -> Method {
        match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            "PATCH" => Method::Patch,
            other => Method::Other(other.into()),
        }
    }

    fn named(error: &ErrorCode) -> Error {
        match error {
            ErrorCode::HttpRequestDenied => Error::NotGranted,
            ErrorCode::DnsTimeout
            | ErrorCode::DnsError(_)
            | ErrorCode::DestinationNotFound
            | ErrorCode::DestinationUnavailable
            | ErrorCode::DestinationIpProhibited
            | ErrorCode::DestinationIpUnroutable => Error::Unavailable,
            ErrorCode::ConnectionRefused => Error::Refused,
            ErrorCode::ConnectionTimeout
            | ErrorCode::ConnectionReadTimeout
            | ErrorCode::ConnectionWriteTimeout
            | ErrorCode::HttpResponseTimeout => Error::Timeout,
            ErrorCode::ConnectionLimitReached => Error::Busy,
            ErrorCode::ConfigurationError => Error::NotAvailable,
            ErrorCode::ConnectionTerminated | ErrorCode::HttpResponseIncomplete => Error::Terminated,
            ErrorCode::HttpResponseBodySize(_)
            | ErrorCode::HttpResponseHeaderSectionSize(_)
            | ErrorCode::HttpResponseHeaderSize(_) => Error::TooLarge,
            ErrorCode::HttpRequestLengthRequired
            | ErrorCode::HttpRequestBodySize(_)
            | ErrorCode::HttpRequestMethodInvalid
            | ErrorCode::HttpRequestUriInvalid
            | ErrorCode::HttpRequestUriTooLong
            | ErrorCode::HttpRequestHeaderSectionSize(_)
            | ErrorCode::HttpRequestHeaderSize(_) => Error::Invalid,
            _ => Error::Protocol,
        }
    }
}
