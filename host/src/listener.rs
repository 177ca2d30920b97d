//! What a listener demands of its clients, and how many of them there are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// For a client that takes nothing.
    pub send_timeout: Duration,
    /// For an upgraded connection on which nothing passes.
    pub tunnel_timeout: Duration,
}

/// The connections at a listener, over all workers.
#[derive(Debug, Default)]
pub struct Census {
    all: AtomicUsize,
    // Locked when a connection begins and ends, and only where the manifest limits clients; never for a request.
    clients: Mutex<HashMap<IpAddr, usize>>,
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
