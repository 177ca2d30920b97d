//! The rules of a listener for its clients.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio_rustls::TlsAcceptor;

use crate::census::Census;
use crate::framing;

/// The rules of a listener in a generation; a connection keeps those that it began with.
pub struct Listener {
    /// None where HTTP is spoken in clear.
    pub tls: Option<TlsAcceptor>,
    /// Who has to say with the PROXY protocol for whom it speaks.
    pub proxies: Vec<IpNet>,
    /// The port that every request is sent to with `https`.
    pub redirect: Option<u16>,
    pub limits: Limits,
    /// Outlives generations.
    pub census: Arc<Census>,
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub framing: framing::Limits,
    /// For a head, and for the handshake of TLS.
    pub head_timeout: Duration,
    /// Between two requests.
    pub keep_alive: Duration,
    pub requests: usize,
    pub connections: usize,
    pub connections_per_client: Option<usize>,
    /// Requests at a time on a connection with HTTP/2.
    pub streams: u32,
    /// Between two pieces of a request's content.
    pub body_timeout: Duration,
    /// Bytes that a request's content has to make per second.
    pub body_rate: u64,
    /// For a client that takes nothing.
    pub send_timeout: Duration,
    /// For an upgraded connection on which nothing passes.
    pub tunnel_timeout: Duration,
}

impl Listener {
    /// Whether who connects from here speaks for others.
    pub fn is_proxy(&self, client: Option<IpAddr>) -> bool {
        client.is_some_and(|client| self.proxies.iter().any(|net| net.contains(&client)))
    }
}
