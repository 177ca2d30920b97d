//! Endpoints: their addresses, and the settings of the connections to them. [`endpoint_set`] has the set that all workers
//! share, [`endpoint_view`] a worker's view of it, [`health`] and [`retry`] the rules, [`pool`] the connections.

use std::sync::Arc;
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Uri};

use crate::protocol::proxy_protocol;

pub mod client_hold;
pub mod connect;
pub mod connection;
pub mod connection_limit;
pub mod discovery;
pub mod dns;
pub mod endpoint;
pub mod endpoint_set;
pub mod endpoint_view;
pub mod failure_notice;
pub mod health;
pub mod health_check;
pub mod http1;
pub mod http2;
mod name_lookup;
pub mod pool;
pub mod request_head;
pub mod required_protocol;
pub mod response_head_limits;
pub mod retry;
mod socket;
pub mod status_codes;

use connect::TlsDialer;
use response_head_limits::ResponseHeadLimits;

/// The address of an endpoint, and its protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointAddr {
    /// The text of the manifest.
    pub text: Arc<str>,
    pub address: SocketName,
    pub protocol: EndpointProtocol,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SocketName {
    /// A host and a port. A host name is looked up at each connect.
    Tcp(Arc<str>),
    /// The path of a unix socket.
    Unix(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointProtocol {
    Http1,
    /// HTTP/2 in clear, known beforehand.
    Http2,
    /// TLS. The endpoint chooses the HTTP version in the handshake.
    Tls(TlsDialer),
}

/// The settings of the connections to an upstream's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionSettings {
    pub connect_timeout: Duration,
    /// The maximum time to wait for the head of a response.
    pub response_timeout: Duration,
    /// The maximum pause between two pieces of a response.
    pub read_timeout: Duration,
    /// The longest pause of the endpoint while the request's content is unfinished too.
    pub stream_timeout: Duration,
    pub head: ResponseHeadLimits,
    pub idle_timeout: Duration,
    /// Idle connections per worker and endpoint.
    pub idle_connections: usize,
    /// The version of the PROXY header that names the client, on a connection for each request; `None` for no header.
    pub proxy_protocol: Option<proxy_protocol::ProxyVersion>,
}

impl SocketName {
    /// Returns the `Host` of the endpoint, for a request whose client sent none.
    pub fn authority(&self) -> &str {
        match self {
            SocketName::Tcp(address) => address,
            SocketName::Unix(_) => "localhost",
        }
    }
}

impl ConnectionSettings {
    /// Returns the time for which a request waits for the connection that suits it best, before it takes another one.
    pub fn patience(&self) -> Duration {
        self.connect_timeout / 2
    }
}

impl EndpointAddr {
    /// Returns the URI of a request over HTTP/2, whose authority replaces `Host` (RFC 9113 §8.3.1): the client's host, or
    /// the endpoint's address if there is none. `Host` may be empty, `:authority` may not.
    pub fn uri(&self, host: Option<&HeaderValue>, target: PathAndQuery) -> Result<Uri, http::Error> {
        let host = host.filter(|host| !host.is_empty());
        let authority = host.map_or(self.address.authority().as_bytes(), HeaderValue::as_bytes);
        let scheme = if self.protocol == EndpointProtocol::Http2 { Scheme::HTTP } else { Scheme::HTTPS };
        Uri::builder().scheme(scheme).authority(authority).path_and_query(target).build()
    }
}
