//! The count of client connections at a listener: all of them, those of each client, and those that were closed early.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::generation::listener_rules::KnownRules;
use crate::protocol::client_address::FieldRemoval;
use crate::protocol::client_net::ClientNet;
use crate::telemetry::failure_log::{self, Topic};

/// The connections at a listener, over all workers; kept over generations.
#[derive(Debug, Default)]
pub struct ConnectionCounts {
    all: AtomicUsize,
    /// The number of clients that have a connection.
    clients: AtomicUsize,
    // Locked when a connection begins and ends. For a request only if it comes from a trusted proxy and the number of
    // connections per client is limited. Shards are hardly contended: clients are spread over them, and each is held
    // for some instructions.
    shards: [Mutex<HashMap<ClientNet, usize>>; SHARDS],
    closed: [AtomicU64; CloseReason::ALL.len()],
    /// The connections and streams that were cut off, in the order of [`SendLimit::ALL`].
    cut_off: [AtomicU64; SendLimit::ALL.len()],
    /// The fields that were removed from requests, in the order of [`FieldRemoval::ALL`].
    removed: [AtomicU64; FieldRemoval::ALL.len()],
    /// The minute of the process in which each reason was last logged, plus one.
    logged: [AtomicU64; CloseReason::ALL.len()],
    /// The hour of the process in which a removed field of an untrusted peer was last logged, plus one.
    untrusted_logged: AtomicU64,
    /// The rules that connections began with.
    pub rules: KnownRules,
    /// The search for connections of the whole listener that can be evicted.
    pub search: EvictionSearch,
    /// The search for connections of one client that can be evicted.
    pub client_search: EvictionSearch,
}

/// A search for connections to evict, with a pause after a search without result: each scans all connections.
#[derive(Debug, Default)]
pub struct EvictionSearch(AtomicU64);

/// The number of connections of one client, and its fair share while connections are scarce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientShare {
    pub held: usize,
    pub fair: usize,
}

/// A request from a trusted proxy, counted as a connection of its client until dropped.
#[derive(Debug)]
pub struct CountedRequest {
    census: Arc<ConnectionCounts>,
    client: ClientNet,
}

/// A reason why a connection was closed early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The listener reached `limits.connections`, and no other connection could be evicted.
    Connections,
    /// The client reached `limits.connections-per-client`.
    ConnectionsPerClient,
    /// The listener was nearly full, and the client had more than its share.
    FairShare,
    /// The connection waited without a request, and others needed its place.
    Evicted,
    /// The client sent far more HTTP/2 frames than its requests explain.
    Flood,
}

/// The limit that a slow client has met: the client accepts too little of what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendLimit {
    Timeout,
    Rate,
}

/// The length of a pause, in milliseconds: connections with requests seldom all end sooner.
const PAUSE: u64 = 100;

/// The number of shards. Few connections begin at the same instant.
const SHARDS: usize = 16;

/// The number of connections that a client may always have: browsers make six per host, and a few of them share an
/// address.
const FAIR: usize = 16;

impl SendLimit {
    pub const ALL: [SendLimit; 2] = [SendLimit::Timeout, SendLimit::Rate];

    /// Returns the key in the manifest, with its table.
    pub fn limit(self) -> &'static str {
        match self {
            SendLimit::Timeout => "limits.send-timeout",
            SendLimit::Rate => "limits.send-rate",
        }
    }

    /// Returns the key in the manifest.
    pub fn key(self) -> &'static str {
        match self {
            SendLimit::Timeout => "send-timeout",
            SendLimit::Rate => "send-rate",
        }
    }
}

impl ConnectionCounts {
    /// Counts a connection or a stream that is cut off because its client accepts too little.
    pub fn cut_off(&self, met: SendLimit, client: Option<&str>) {
        if failure_log::admits(Topic::SlowClient, client.unwrap_or_default()) {
            tracing::warn!(client, limit = met.limit(), "client took too little of a response");
        }
        self.cut_off[met as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of connections and streams that were cut off for a limit.
    pub fn cut_off_by(&self, limit: SendLimit) -> u64 {
        self.cut_off[limit as usize].load(Ordering::Relaxed)
    }

    /// Counts a field that is removed from a request.
    pub fn remove_field(&self, reason: FieldRemoval) {
        self.removed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of fields that were removed from requests for a reason.
    pub fn removed_for(&self, reason: FieldRemoval) -> u64 {
        self.removed[reason as usize].load(Ordering::Relaxed)
    }

    /// Returns the number of open connections at the listener.
    pub fn all(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// Counts a new connection; returns how many there were before.
    pub fn enter(&self) -> usize {
        self.all.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts a connection for its client. `limit` is the maximum number of connections of the listener.
    pub fn enter_client(&self, client: ClientNet, limit: usize) -> ClientShare {
        let mut shard = self.shard(client);
        let held = shard.entry(client).or_default();
        *held += 1;
        if *held == 1 {
            self.clients.fetch_add(1, Ordering::Relaxed);
        }
        ClientShare { held: *held, fair: (limit / (2 * self.clients.load(Ordering::Relaxed).max(1))).max(FAIR) }
    }

    /// Counts a request of a client behind a trusted proxy as a connection of that client; `None` if the client has
    /// reached the limit.
    pub fn enter_request(self: &Arc<Self>, client: ClientNet, limit: usize) -> Option<CountedRequest> {
        let held = self.enter_client(client, limit).held;
        let counted = CountedRequest { census: self.clone(), client };
        if held > limit {
            self.count(CloseReason::ConnectionsPerClient);
            return None;
        }
        Some(counted)
    }

    /// Uncounts a connection that ends.
    pub fn leave(&self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }

    /// Uncounts a connection of a client.
    pub fn leave_client(&self, client: ClientNet) {
        let mut shard = self.shard(client);
        let Some(held) = shard.get_mut(&client) else { return };
        *held -= 1;
        if *held == 0 {
            shard.remove(&client);
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a connection that was closed early; returns how many there were so far.
    pub fn count(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns the number of connections that were closed for a reason.
    pub fn closed_count(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize].load(Ordering::Relaxed)
    }

    /// Whether a reason may be logged in this minute of the process: once for each minute.
    pub fn may_log(&self, reason: CloseReason, minute: u64) -> bool {
        self.logged[reason as usize].swap(minute + 1, Ordering::Relaxed) != minute + 1
    }

    /// Whether a removed field of an untrusted peer may be logged in this hour of the process: any client can cause the line.
    pub fn may_log_untrusted(&self, hour: u64) -> bool {
        let logged = &self.untrusted_logged;
        logged.load(Ordering::Relaxed) != hour + 1 && logged.swap(hour + 1, Ordering::Relaxed) != hour + 1
    }

    fn shard(&self, client: ClientNet) -> MutexGuard<'_, HashMap<ClientNet, usize>> {
        // IPv4 addresses differ most in the low bits, and IPv6 networks in the middle ones.
        let bits = client.to_bits();
        let shard = (bits ^ (bits >> 16) ^ (bits >> 32)) as usize % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CountedRequest {
    fn drop(&mut self) {
        self.census.leave_client(self.client);
    }
}

impl EvictionSearch {
    /// Searches, unless there is a pause, and returns whether a connection was found. Times are in milliseconds.
    pub fn find(&self, now: u64, search: impl FnOnce() -> usize) -> bool {
        if now < self.0.load(Ordering::Relaxed) {
            return false;
        }
        let has_found = search() > 0;
        if !has_found {
            self.0.store(now + PAUSE, Ordering::Relaxed);
        }
        has_found
    }
}

impl CloseReason {
    pub const ALL: [CloseReason; 5] = [
        CloseReason::Connections,
        CloseReason::ConnectionsPerClient,
        CloseReason::FairShare,
        CloseReason::Evicted,
        CloseReason::Flood,
    ];

    /// Returns the name of the reason in metrics and the log.
    pub fn name(self) -> &'static str {
        match self {
            CloseReason::Connections => "connections",
            CloseReason::ConnectionsPerClient => "connections-per-client",
            CloseReason::FairShare => "fair-share",
            CloseReason::Evicted => "evicted",
            CloseReason::Flood => "flood",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(address: &str) -> ClientNet {
        ClientNet::new(Some(address.parse().unwrap())).unwrap()
    }

    #[test]
    fn a_share_is_half_of_an_equal_part() {
        let census = ConnectionCounts::default();
        let (one, other) = (net("192.0.2.1"), net("192.0.2.2"));
        assert_eq!(census.enter_client(one, 1000), ClientShare { held: 1, fair: 500 });
        assert_eq!(census.enter_client(one, 1000), ClientShare { held: 2, fair: 500 });
        assert_eq!(census.enter_client(other, 1000), ClientShare { held: 1, fair: 250 });
        census.leave_client(one);
        census.leave_client(one);
        assert_eq!(census.enter_client(other, 1000), ClientShare { held: 2, fair: 500 });
        assert_eq!(census.enter_client(other, 10), ClientShare { held: 3, fair: FAIR });
    }

    #[test]
    fn requests_by_trusted_proxies_count_as_connections_of_their_client() {
        let census = Arc::new(ConnectionCounts::default());
        let (one, other) = (net("192.0.2.1"), net("192.0.2.2"));
        let held = [census.enter_request(one, 2).unwrap(), census.enter_request(one, 2).unwrap()];
        assert!(census.enter_request(one, 2).is_none() && census.enter_request(other, 2).is_some());
        assert_eq!(census.closed_count(CloseReason::ConnectionsPerClient), 1);
        drop(held);
        assert_eq!(census.enter_client(one, 1000).held, 1);
    }

    #[test]
    fn a_search_in_vain_is_followed_by_a_pause() {
        let search = EvictionSearch::default();
        assert!(search.find(0, || 1));
        assert!(!search.find(0, || 0));
        assert!(!search.find(PAUSE - 1, || 1));
        assert!(search.find(PAUSE, || 1));
    }

    #[test]
    fn a_reason_is_logged_once_in_a_minute() {
        let census = ConnectionCounts::default();
        assert!(census.may_log(CloseReason::Connections, 0));
        assert!(!census.may_log(CloseReason::Connections, 0));
        assert!(census.may_log(CloseReason::FairShare, 0));
        assert!(census.may_log(CloseReason::Connections, 1));
        let untrusted = [0, 0, 1, 1].map(|hour| census.may_log_untrusted(hour));
        assert_eq!(untrusted, [true, false, true, false]);
    }
}
