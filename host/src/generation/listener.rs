//! The rules of a listener for its clients. A connection keeps the limits that it began with, and ends soon after a reload
//! that changes the rules.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;

use crate::generation::connection_counts::ConnectionCounts;
use crate::generation::listener_rules::ListenerRules;
use crate::protocol::client_address;
use crate::protocol::framing;
use crate::protocol::trusted_peers::TrustedPeers;
use crate::upstream::response_head_limits::ResponseHeadLimits;

/// The rules of a listener in a generation.
pub struct Listener {
    /// The address as the manifest writes it, which routes name.
    pub address: Arc<str>,
    /// The TLS configuration; `None` for plain HTTP.
    pub tls: Option<TlsAcceptor>,
    /// Load balancers that have to name the client with the PROXY protocol.
    pub proxies: TrustedPeers,
    /// Whose word about the client is taken.
    pub client: Arc<client_address::ClientAddressRules>,
    /// The port that every request is sent to with `https`.
    pub redirect: Option<u16>,
    pub limits: ClientLimits,
    /// The connection counts, which outlive generations.
    pub census: Arc<ConnectionCounts>,
    /// These rules, as the connections that begin with them compare them with later ones.
    pub rules: Arc<ListenerRules>,
}

impl Listener {
    /// Puts these rules into force for all connections of the listener. Returns whether there may be connections whose clients
    /// were not verified as they have to be from now on.
    pub fn take_into_service(&self) -> bool {
        self.census.rules.replace(Some(&self.rules))
    }

    /// Makes the next request of each connection the last one, as the generation in service doesn't have the listener.
    pub fn take_out_of_service(&self) {
        self.census.rules.replace(None);
    }

    /// Whether the generation in service has other rules for this listener, or doesn't have it.
    pub fn is_superseded(&self) -> bool {
        self.rules.is_superseded()
    }
}

/// The limits of a client's requests.
#[derive(Clone, Copy, Debug, Hash)]
pub struct ClientLimits {
    pub framing: framing::HeadLimits,
    /// The maximum time to receive a head, and for the TLS handshake.
    pub head_timeout: Duration,
    /// The maximum time between two requests.
    pub keep_alive: Duration,
    pub requests: usize,
    pub connections: usize,
    pub connections_per_client: Option<usize>,
    /// Whether the manifest names the number of connections.
    pub has_own_connections: bool,
    /// Requests at a time on a connection with HTTP/2.
    pub streams: u32,
    /// The maximum pause between two pieces of a request's content.
    pub body_timeout: Duration,
    /// Bytes that a request's content has to make per second.
    pub body_rate: u64,
    pub send: SendLimits,
    /// The bytes that wait on an HTTP/2 connection for its client, and as many for endpoints.
    pub buffer: usize,
    /// The limits of heads and trailers over HTTP/2, for clients that don't say how much they accept.
    pub response_head: ResponseHeadLimits,
    /// The maximum time for which a tunnel may be idle.
    pub tunnel_timeout: Duration,
}

/// The minimum pace at which a client has to read its responses.
#[derive(Clone, Copy, Debug, Hash)]
pub struct SendLimits {
    /// The maximum time for which a client may accept no bytes.
    pub timeout: Duration,
    /// Bytes per second, over each of two windows of time in which the client is waited for.
    pub rate: u64,
}

impl SendLimits {
    /// The time that the rate is looked at over: a pause now and then is no fault.
    pub fn window(&self) -> Duration {
        self.timeout / 2
    }

    /// Whether a client that read `bytes` bytes in a window is too slow: in two windows, of which `slow` counts the
    /// first. A window in which it reads nothing doesn't count: a film may be paused, and there is a timeout.
    pub fn is_too_slow(&self, bytes: u64, slow: &Cell<u8>) -> bool {
        if bytes == 0 {
            return false;
        }
        let wanted = u128::from(self.rate) * self.window().as_millis() / 1000;
        slow.set(if u128::from(bytes) < wanted { slow.get().saturating_add(1) } else { 0 });
        slow.get() > 1
    }
}
