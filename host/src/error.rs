//! Why an exchange failed: a kind named after IANA's HTTP proxy error types (RFC 9209 §2.3), and its cause for the log.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use crate::printable::one_line;

/// The kind decides the status; its token names it in the response, the log and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No route matches the request.
    NoRoute,
    /// The request is not one that can be forwarded.
    RequestError,
    /// The upstream has no endpoint to offer.
    DestinationUnavailable,
    /// The upstream has as many requests or connections as it may have.
    LimitReached,
    /// This machine has no means for another connection: no file descriptors, no ports, no memory.
    InternalError,
    /// The endpoint can't switch to another protocol.
    UpgradeFailed,
    /// The name of the endpoint can't be looked up.
    DnsError,
    /// The endpoint refused the connection.
    ConnectionRefused,
    /// The endpoint didn't accept the connection in time.
    ConnectionTimeout,
    /// The endpoint closed the connection before it answered.
    ConnectionTerminated,
    /// The endpoint's TLS can't be spoken, or its certificate not be trusted.
    TlsError,
    /// The endpoint didn't answer in time.
    ResponseTimeout,
    /// What the endpoint sent is no HTTP response.
    ProtocolError,
    /// The request didn't come in time.
    RequestTimeout,
    /// The request's content is longer than the route or a plugin takes.
    RequestBodySize,
    /// The response's content is longer than a plugin takes.
    ResponseBodySize,
    /// The response's head is longer, or has more fields, than the upstream's limits allow.
    ResponseHeadSize,
    /// A plugin trapped, ran out of time or memory, or returned what can't be done.
    PluginError,
}

/// Whether this machine has no means for something, be that a connection or a file: no descriptors, no memory.
pub fn is_of_this_machine(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
        || error.kind() == io::ErrorKind::OutOfMemory
}

/// Whether all file descriptors are in use, of the process or of the machine.
pub fn lacks_descriptor(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// An error with all that is behind it, in one line. What a text says already isn't said again.
pub fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    one_line(&text, LONGEST).into_owned()
}

/// Bytes of a cause in the log.
const LONGEST: usize = 1 << 10;

/// A failed exchange.
#[derive(Debug)]
pub struct Error {
    /// What the client is told.
    pub kind: Kind,
    /// What the log is told.
    pub cause: Box<dyn StdError + Send + Sync>,
    /// The key of the limit that was met, if the failure is one of a limit.
    pub limit: Option<&'static str>,
    /// The status that the client gets, where it isn't that of the kind.
    pub status: Option<http::StatusCode>,
    /// Whether the log has a line of it already.
    pub is_logged: bool,
}

impl Kind {
    /// All of them, in the order of their declaration.
    pub const ALL: [Kind; 18] = [
        Kind::NoRoute,
        Kind::RequestError,
        Kind::DestinationUnavailable,
        Kind::LimitReached,
        Kind::InternalError,
        Kind::UpgradeFailed,
        Kind::DnsError,
        Kind::ConnectionRefused,
        Kind::ConnectionTimeout,
        Kind::ConnectionTerminated,
        Kind::TlsError,
        Kind::ResponseTimeout,
        Kind::ProtocolError,
        Kind::RequestTimeout,
        Kind::RequestBodySize,
        Kind::ResponseBodySize,
        Kind::ResponseHeadSize,
        Kind::PluginError,
    ];

    /// The name, as in `Proxy-Status`.
    pub fn token(self) -> &'static str {
        match self {
            Kind::NoRoute => "no_route",
            Kind::RequestError => "http_request_error",
            Kind::DestinationUnavailable => "destination_unavailable",
            Kind::LimitReached => "connection_limit_reached",
            Kind::InternalError => "proxy_internal_error",
            Kind::UpgradeFailed => "http_upgrade_failed",
            Kind::DnsError => "dns_error",
            Kind::ConnectionRefused => "connection_refused",
            Kind::ConnectionTimeout => "connection_timeout",
            Kind::ConnectionTerminated => "connection_terminated",
            Kind::TlsError => "tls_protocol_error",
            Kind::ResponseTimeout => "http_response_timeout",
            Kind::ProtocolError => "http_protocol_error",
            Kind::RequestTimeout => "http_request_timeout",
            Kind::RequestBodySize => "http_request_body_size",
            Kind::ResponseBodySize => "http_response_body_size",
            Kind::ResponseHeadSize => "http_response_header_section_size",
            Kind::PluginError => "plugin_error",
        }
    }

    /// The status code that the client gets.
    pub fn status(self) -> http::StatusCode {
        match self {
            Kind::NoRoute => http::StatusCode::NOT_FOUND,
            Kind::RequestError => http::StatusCode::BAD_REQUEST,
            Kind::DestinationUnavailable | Kind::LimitReached => http::StatusCode::SERVICE_UNAVAILABLE,
            Kind::ConnectionTimeout | Kind::ResponseTimeout => http::StatusCode::GATEWAY_TIMEOUT,
            Kind::RequestTimeout => http::StatusCode::REQUEST_TIMEOUT,
            Kind::RequestBodySize => http::StatusCode::PAYLOAD_TOO_LARGE,
            Kind::InternalError => http::StatusCode::INTERNAL_SERVER_ERROR,
            Kind::UpgradeFailed
            | Kind::DnsError
            | Kind::ConnectionRefused
            | Kind::ConnectionTerminated
            | Kind::TlsError
            | Kind::ProtocolError
            | Kind::ResponseBodySize
            | Kind::ResponseHeadSize
            | Kind::PluginError => http::StatusCode::BAD_GATEWAY,
        }
    }

    /// Whether it speaks against the endpoint that was asked.
    pub fn blames_endpoint(self) -> bool {
        matches!(
            self,
            Kind::DnsError
                | Kind::ConnectionRefused
                | Kind::ConnectionTimeout
                | Kind::ConnectionTerminated
                | Kind::TlsError
                | Kind::ResponseTimeout
                | Kind::ProtocolError
        )
    }
}

impl Error {
    /// An error of a kind with its cause.
    pub fn new(kind: Kind, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Error { kind, cause: cause.into(), limit: None, status: None, is_logged: false }
    }

    /// Names the limit that was met, by its key in the manifest.
    pub fn met(mut self, limit: &'static str) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Notes that the log has a line of the failure.
    pub fn logged(mut self) -> Self {
        self.is_logged = true;
        self
    }

    /// The cause with all that is behind it, in one line.
    pub fn causes(&self) -> String {
        causes(&*self.cause)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.token(), self.cause)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.cause)
    }
}
