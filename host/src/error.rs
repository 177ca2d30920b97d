//! The errors of an exchange: a kind named after IANA's HTTP proxy error types (RFC 9209 §2.3), and a cause for the
//! log.

use std::error::Error as StdError;
use std::fmt;
use std::num::NonZero;

use crate::system::descriptor_shares;
use crate::system::printable::one_line;

/// The kind of an error. It determines the status; its token names the kind in the response, the log and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// No route matches the request.
    NoRoute,
    /// The request can't be forwarded.
    RequestError,
    /// The upstream has no available endpoint.
    DestinationUnavailable,
    /// The upstream has reached its limit of requests or connections.
    LimitReached,
    /// This machine lacks resources for another connection: file descriptors, ports or memory.
    InternalError,
    /// The endpoint can't switch to another protocol.
    UpgradeFailed,
    /// The name of the endpoint can't be resolved.
    DnsError,
    /// The name of the endpoint was not resolved in time.
    DnsTimeout,
    /// The endpoint refused the connection.
    ConnectionRefused,
    /// The endpoint didn't accept the connection in time.
    ConnectionTimeout,
    /// The endpoint closed the connection before it responded.
    ConnectionTerminated,
    /// The TLS handshake with the endpoint failed.
    TlsError,
    /// The certificate of the endpoint isn't trusted, has expired or is for another name.
    TlsCertificate,
    /// The endpoint ended TLS with an alert, such as for a client certificate that it misses.
    TlsAlert,
    /// The endpoint didn't respond in time.
    ResponseTimeout,
    /// The endpoint sent bytes that are no HTTP response.
    ProtocolError,
    /// The request didn't arrive in time.
    RequestTimeout,
    /// The request body is longer than the route or a plugin accepts.
    RequestBodySize,
    /// The response body is longer than a plugin accepts.
    ResponseBodySize,
    /// The response has content that can't be decoded.
    ContentCoding,
    /// The response head is longer, or has more fields, than the upstream's limits allow.
    ResponseHeadSize,
    /// A plugin trapped, exceeded its time or memory, or returned an invalid result.
    PluginError,
    /// The request has passed this proxy, or others like it, so often that it must be in a loop.
    LoopDetected,
}

/// Returns an error with all its sources in one line. A text that repeats an earlier one is left out, and phrases of
/// libraries that are of no use to an operator are replaced or left out.
pub fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let said = error.to_string();
        next = error.source();
        // The texts of rustls end in the address of its manual.
        let phrase = said.split(": https://docs.rs").next().unwrap_or(&said);
        let more = match LIBRARY_PHRASES.iter().find(|(known, _)| *known == phrase) {
            Some((_, plain)) if !plain.is_empty() => *plain,
            // The error behind it says what is wrong.
            Some(_) if next.is_some() => continue,
            _ => &said,
        };
        if !text.contains(more) {
            let colon = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{colon}{more}");
        }
    }
    one_line(&text, MAX_CAUSE_BYTES).into_owned()
}

/// The phrases of hyper that name its own parts, or the side of the connection only as hyper sees it. Each has its
/// replacement for operators; empty if the source of the error is enough.
const LIBRARY_PHRASES: [(&str, &str); 13] = [
    ("error from user's Body stream", ""),
    ("error from user's Service", ""),
    ("http2 error", ""),
    ("operation was canceled", "the connection ended before the request was sent"),
    ("channel closed", "the connection ended before the request was sent"),
    ("dispatch task is gone", "the connection ended before the request was sent"),
    ("runtime dropped the dispatch task", "the connection ended before the request was sent"),
    ("connection closed before message completed", "the connection was closed before the message was complete"),
    ("error reading a body from connection", "the rest of the body could not be read"),
    ("error writing a body to connection", "the rest of the body could not be sent"),
    ("received unexpected message from connection", "there are bytes that belong to no message"),
    ("invalid HTTP header parsed", "a field of the head is malformed"),
    (
        "peer closed connection without sending TLS close_notify",
        "the connection was closed without the end of TLS (close_notify)",
    ),
];

/// The maximum length of a cause in the log, in bytes.
const MAX_CAUSE_BYTES: usize = 1 << 10;

/// The error of a failed exchange.
#[derive(Debug)]
pub struct Error {
    /// The kind, which the client learns.
    pub kind: FailureKind,
    /// The cause, which is only logged.
    pub cause: Box<dyn StdError + Send + Sync>,
    /// The manifest key of the limit that was met; `None` if the failure is not about a limit.
    pub limit: Option<&'static str>,
    /// The status for the client; `None` if it is that of the kind.
    pub status: Option<http::StatusCode>,
    /// Whether the failure is logged already.
    pub is_logged: bool,
    /// The seconds after which the client may ask again; `None` if that is not known.
    pub retry_after: Option<NonZero<u32>>,
}

impl FailureKind {
    /// All kinds of failures, in the order of their declaration.
    pub const ALL: [FailureKind; 23] = [
        FailureKind::NoRoute,
        FailureKind::RequestError,
        FailureKind::DestinationUnavailable,
        FailureKind::LimitReached,
        FailureKind::InternalError,
        FailureKind::UpgradeFailed,
        FailureKind::DnsError,
        FailureKind::DnsTimeout,
        FailureKind::ConnectionRefused,
        FailureKind::ConnectionTimeout,
        FailureKind::ConnectionTerminated,
        FailureKind::TlsError,
        FailureKind::TlsCertificate,
        FailureKind::TlsAlert,
        FailureKind::ResponseTimeout,
        FailureKind::ProtocolError,
        FailureKind::RequestTimeout,
        FailureKind::RequestBodySize,
        FailureKind::ResponseBodySize,
        FailureKind::ContentCoding,
        FailureKind::ResponseHeadSize,
        FailureKind::PluginError,
        FailureKind::LoopDetected,
    ];

    /// Returns the name of the kind, as in `Proxy-Status`.
    pub fn token(self) -> &'static str {
        match self {
            FailureKind::NoRoute => "no_route",
            FailureKind::RequestError => "http_request_error",
            FailureKind::DestinationUnavailable => "destination_unavailable",
            FailureKind::LimitReached => "connection_limit_reached",
            FailureKind::InternalError => "proxy_internal_error",
            FailureKind::UpgradeFailed => "http_upgrade_failed",
            FailureKind::DnsError => "dns_error",
            FailureKind::DnsTimeout => "dns_timeout",
            FailureKind::ConnectionRefused => "connection_refused",
            FailureKind::ConnectionTimeout => "connection_timeout",
            FailureKind::ConnectionTerminated => "connection_terminated",
            FailureKind::TlsError => "tls_protocol_error",
            FailureKind::TlsCertificate => "tls_certificate_error",
            FailureKind::TlsAlert => "tls_alert_received",
            FailureKind::ResponseTimeout => "http_response_timeout",
            FailureKind::ProtocolError => "http_protocol_error",
            FailureKind::RequestTimeout => "http_request_timeout",
            FailureKind::RequestBodySize => "http_request_body_size",
            FailureKind::ResponseBodySize => "http_response_body_size",
            FailureKind::ContentCoding => "http_response_content_coding",
            FailureKind::ResponseHeadSize => "http_response_header_section_size",
            FailureKind::PluginError => "plugin_error",
            FailureKind::LoopDetected => "proxy_loop_detected",
        }
    }

    /// Returns the status code for the client.
    pub fn status(self) -> http::StatusCode {
        match self {
            FailureKind::NoRoute => http::StatusCode::NOT_FOUND,
            FailureKind::RequestError => http::StatusCode::BAD_REQUEST,
            FailureKind::DestinationUnavailable | FailureKind::LimitReached => http::StatusCode::SERVICE_UNAVAILABLE,
            FailureKind::DnsTimeout | FailureKind::ConnectionTimeout | FailureKind::ResponseTimeout => {
                http::StatusCode::GATEWAY_TIMEOUT
            }
            FailureKind::RequestTimeout => http::StatusCode::REQUEST_TIMEOUT,
            FailureKind::RequestBodySize => http::StatusCode::PAYLOAD_TOO_LARGE,
            FailureKind::InternalError => http::StatusCode::INTERNAL_SERVER_ERROR,
            FailureKind::UpgradeFailed
            | FailureKind::DnsError
            | FailureKind::ConnectionRefused
            | FailureKind::ConnectionTerminated
            | FailureKind::TlsError
            | FailureKind::TlsCertificate
            | FailureKind::TlsAlert
            | FailureKind::ProtocolError
            | FailureKind::ResponseBodySize
            | FailureKind::ContentCoding
            | FailureKind::ResponseHeadSize
            | FailureKind::PluginError
            | FailureKind::LoopDetected => http::StatusCode::BAD_GATEWAY,
        }
    }

    /// Whether the error counts as a failure of the endpoint.
    pub fn blames_endpoint(self) -> bool {
        matches!(
            self,
            FailureKind::DnsError
                | FailureKind::DnsTimeout
                | FailureKind::ConnectionRefused
                | FailureKind::ConnectionTimeout
                | FailureKind::ConnectionTerminated
                | FailureKind::TlsError
                | FailureKind::TlsCertificate
                | FailureKind::TlsAlert
                | FailureKind::ResponseTimeout
                | FailureKind::ProtocolError
        )
    }
}

impl Error {
    /// Creates an error of a kind with its cause.
    pub fn new(kind: FailureKind, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Error { kind, cause: cause.into(), limit: None, status: None, is_logged: false, retry_after: None }
    }

    /// Creates the error of an exchange for which there is no file descriptor.
    pub fn no_descriptor(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Error::new(FailureKind::LimitReached, cause).with_limit(descriptor_shares::LIMIT)
    }

    /// Sets the limit that was met, by its key in the manifest.
    pub fn with_limit(mut self, limit: &'static str) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Returns the status code for the client.
    pub fn client_status(&self) -> http::StatusCode {
        self.status.unwrap_or(self.kind.status())
    }

    /// Marks the failure as logged.
    pub fn mark_logged(mut self) -> Self {
        self.is_logged = true;
        self
    }

    /// Returns the cause with its sources in one line.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_kinds_has_each_with_its_status() {
        let page = include_str!("../../docs/metrics.md");
        for kind in FailureKind::ALL {
            let begin = format!("| `{}` |", kind.token());
            let row =
                page.lines().find(|line| line.starts_with(&begin)).unwrap_or_else(|| panic!("no row of {kind:?}"));
            assert!(row.contains(kind.status().as_str()), "{row}");
        }
    }
}
