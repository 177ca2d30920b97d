//! What a listener demands of its clients, and how many of them there are.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio_rustls::TlsAcceptor;

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
    pub send: SendLimits,
    /// Bytes that wait on a connection with HTTP/2 for its client, and as many for endpoints.
    pub buffer: usize,
    /// For an upgraded connection on which nothing passes.
    pub tunnel_timeout: Duration,
}

/// The pace at which a client has to take its responses.
#[derive(Clone, Copy, Debug)]
pub struct SendLimits {
    /// For a client that takes nothing.
    pub timeout: Duration,
    /// Bytes per second, over each of two windows of time in which the client is waited for.
    pub rate: u64,
}

/// The limit that a client which takes too little has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendLimit {
    Timeout,
    Rate,
}

/// The connections at a listener, over all workers.
#[derive(Debug, Default)]
pub struct Census {
    all: AtomicUsize,
    // Locked when a connection begins and ends, and only where the manifest limits clients; never for a request.
    clients: Mutex<HashMap<IpAddr, usize>>,
    /// The connections and streams that were cut off, in the order of [`SendLimit::ALL`].
    cut_off: [AtomicU64; SendLimit::ALL.len()],
}

/// A connection that is counted, until dropped.
pub struct Counted {
    census: Arc<Census>,
    client: Option<IpAddr>,
}

impl Listener {
    /// Whether who connects from here speaks for others.
    pub fn is_proxy(&self, client: Option<IpAddr>) -> bool {
        client.is_some_and(|client| self.proxies.iter().any(|net| net.contains(&client)))
    }

    /// Counts one more connection, unless there are too many.
    pub fn admit(&self) -> Option<Counted> {
        let before = self.census.all.fetch_add(1, Ordering::Relaxed);
        let counted = Counted { census: self.census.clone(), client: None };
        (before < self.limits.connections).then_some(counted)
    }

    /// Counts a connection as its client's, unless the client has too many.
    pub fn admit_client(&self, counted: &mut Counted, client: Option<IpAddr>) -> bool {
        let (Some(most), Some(client)) = (self.limits.connections_per_client, client) else { return true };
        let mut clients = self.census.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let known = clients.entry(client).or_default();
        *known += 1;
        counted.client = Some(client);
        *known <= most
    }
}

impl Census {
    /// Counts a connection or a stream that is cut off, since its client takes too little.
    pub fn cut_off(&self, met: SendLimit) {
        tracing::debug!(limit = met.key(), "client took too little of a response");
        self.cut_off[met as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The connections and streams that were cut off for a limit.
    pub fn cut_off_by(&self, limit: SendLimit) -> u64 {
        self.cut_off[limit as usize].load(Ordering::Relaxed)
    }
}

impl SendLimits {
    /// The time that the rate is looked at over: a pause now and then is no fault.
    pub fn window(&self) -> Duration {
        self.timeout / 2
    }

    /// Whether a client that took so many bytes in a window takes too little: in two windows, of which `slow` counts the
    /// first. One in which it takes nothing at all doesn't count: a film may be paused, and there is a timeout.
    pub fn is_too_slow(&self, bytes: u64, slow: &Cell<u8>) -> bool {
        if bytes == 0 {
            return false;
        }
        let wanted = u128::from(self.rate) * self.window().as_millis() / 1000;
        slow.set(if u128::from(bytes) < wanted { slow.get().saturating_add(1) } else { 0 });
        slow.get() > 1
    }
}

impl SendLimit {
    pub const ALL: [SendLimit; 2] = [SendLimit::Timeout, SendLimit::Rate];

    /// The key in the manifest.
    pub fn key(self) -> &'static str {
        match self {
            SendLimit::Timeout => "send-timeout",
            SendLimit::Rate => "send-rate",
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.census.all.fetch_sub(1, Ordering::Relaxed);
        let Some(client) = self.client else { return };
        let mut clients = self.census.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get_mut(&client) {
            *known -= 1;
            if *known == 0 {
                clients.remove(&client);
            }
        }
    }
}
