//! The admission of client connections, over all listeners and workers.
//!
//! An idle connection may be evicted if there is no room for a new one: first the longest idle one of the client with
//! the most connections. Connections with a request are never evicted; if all have one, the new connection is closed,
//! or waits for a descriptor.
#![expect(clippy::disallowed_methods, reason = "read once: the origin of times that all workers share")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use crate::generation::Generation;
use crate::generation::connection_counts::{CloseReason, ConnectionCounts, EvictionSearch};
use crate::generation::listener::Listener;
use crate::protocol::client_net::ClientNet;
use crate::system::descriptor_shares::DescriptorShares;
use crate::system::descriptors::{ConnectionDemand, Descriptors};

/// The client connections of the process.
pub struct Admission {
    began: Instant,
    /// The connections of each worker. Locked when a connection begins, ends or is evicted; never for a request.
    workers: Vec<Mutex<HashMap<usize, Arc<AdmissionEntry>>>>,
    /// The descriptors of the process, among which the connections count.
    descriptors: Arc<DescriptorShares>,
    /// The maximum number of connections to endpoints.
    endpoints: AtomicUsize,
    shortage: Mutex<Option<DescriptorShortage>>,
    search: EvictionSearch,
    /// The time until which idle endpoint connections are closed too, in milliseconds of the process.
    starved_until: AtomicU64,
    /// The number of descriptors that endpoint connections have missed, as far as it is known here.
    missed: AtomicUsize,
    /// How often all connections were to be woken.
    wakes: AtomicU64,
}

/// An admitted connection, counted until dropped.
pub struct Admitted {
    admission: Arc<Admission>,
    entry: Arc<AdmissionEntry>,
    worker: usize,
}

/// Records whether a connection waits for a request; held by the task that serves the connection.
#[derive(Clone)]
pub struct Presence(Arc<AdmissionEntry>);

/// A listener that a client has connected to.
#[derive(Clone)]
pub struct Entrance {
    pub listener: Arc<Listener>,
    /// The address of the listener, as it is written in the log.
    pub address: Arc<str>,
}

struct AdmissionEntry {
    began: Instant,
    census: Arc<ConnectionCounts>,
    /// [`SERVED`], [`GONE`], or [`WAITING`] plus the time from which the connection can be evicted, in milliseconds of
    /// the process.
    state: AtomicU64,
    /// The [`ClientNet`] while the connection is counted for its client, otherwise [`UNCOUNTED`].
    client: AtomicU64,
    /// The [`ClientNet`] of the socket's peer, for which the connection stands before it is counted.
    peer: u64,
    task: OnceLock<AbortHandle>,
}

/// A period in which descriptors for clients are short.
struct DescriptorShortage {
    since: Instant,
    /// The time when a descriptor was last missing.
    last: Instant,
}

/// The connections of a client, some of which wait for a request.
struct Crowd {
    held: usize,
    /// The waiting connections, ordered by their waiting time, the longest last.
    waiting: Vec<(u64, Arc<AdmissionEntry>)>,
}

/// A limit, with its key in the manifest or its name.
struct ConnectionCeiling {
    key: &'static str,
    max: usize,
}

/// The kind of a shortage of room for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shortage {
    /// The process has as many clients as there are descriptors for.
    Limit,
    /// Nearly all descriptors are in use.
    Descriptors,
}

/// A connection that was ended by a limit of its listener, for the log.
struct LimitedConnection<'a> {
    entrance: &'a Entrance,
    reason: CloseReason,
    limit: ConnectionCeiling,
    /// The client whose connection was closed; `None` if others were closed in its favour, or it has no address.
    client: Option<IpAddr>,
}

const SERVED: u64 = 0;
const GONE: u64 = 1;
const WAITING: u64 = 2;

/// The value of an uncounted connection: no client network has these bits.
const UNCOUNTED: u64 = u64::MAX - 1;

/// The fraction of connections that is evicted at a time: one in `BATCH`. Each eviction has to scan all connections.
const BATCH: usize = 64;

/// The minimum time between a response and an eviction, so that the response reaches the client.
const GRACE: Duration = Duration::from_secs(1);

/// The time for the first request of a new connection before it can be evicted, in milliseconds. If a listener is full
/// of newer connections, it can be evicted at once.
const HEAD_START: u64 = 100;

/// The time without a missing descriptor after which a shortage is over.
const RELIEF: Duration = Duration::from_secs(2);

/// The time for which idle endpoint connections are closed after a descriptor was missing, in milliseconds.
const STARVED: u64 = 1000;

/// The advice to get more descriptors, for the log.
const REMEDY: &str = "raise LimitNOFILE= of the systemd unit or `ulimit -n`, or lower limits.connections";

impl Admission {
    /// Creates the admission of a process with this number of workers.
    pub fn new(workers: usize, descriptors: Arc<DescriptorShares>) -> Arc<Self> {
        Arc::new(Admission {
            began: Instant::now(),
            workers: (0..workers).map(|_| Mutex::default()).collect(),
            descriptors,
            endpoints: AtomicUsize::new(usize::MAX),
            shortage: Mutex::default(),
            search: EvictionSearch::default(),
            starved_until: AtomicU64::new(0),
            missed: AtomicUsize::new(0),
            wakes: AtomicU64::new(0),
        })
    }

    /// Returns the descriptors of the process, among which the connections count.
    pub fn descriptors(&self) -> &Arc<DescriptorShares> {
        &self.descriptors
    }

    /// Records how many connections to endpoints a generation allows.
    pub fn serve(&self, generation: &Generation) {
        self.endpoints.store(demand(generation).endpoints, Ordering::Relaxed);
    }

    /// Has each worker wake its connections: those whose clients were not verified as they have to be now end while they are
    /// idle.
    pub fn end_unverified(&self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often all connections were to be woken.
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Relaxed)
    }

    /// Returns the number of client connections for which there are descriptors.
    fn ceiling(&self) -> usize {
        let endpoints = self.endpoints.load(Ordering::Relaxed);
        self.descriptors.descriptors().map_or(usize::MAX, |descriptors| descriptors.clients(endpoints))
    }

    /// Returns the limit that the connections of a listener reach first.
    fn limit_of(&self, listener: &Listener) -> ConnectionCeiling {
        let (connections, ceiling) = (listener.limits.connections, self.ceiling());
        if ceiling < connections {
            return ConnectionCeiling { key: "descriptors", max: ceiling };
        }
        ConnectionCeiling { key: "limits.connections", max: connections }
    }

    /// Whether there is a descriptor for a client that was accepted at `descriptor`, if necessary after evicting other
    /// connections.
    pub fn has_room(&self, descriptor: usize, now: Instant) -> bool {
        let is_scarce =
            self.descriptors.descriptors().is_some_and(|descriptors| descriptors.is_nearly_last(descriptor));
        let is_full = || self.descriptors.clients() >= self.ceiling();
        if !is_scarce && !is_full() {
            return true;
        }
        let shortage = if is_scarce { Shortage::Descriptors } else { Shortage::Limit };
        self.record_shortage(&"limit reached", shortage, now);
        self.relieve(now) || !is_full()
    }

    /// Evicts connections after the system has refused an accept.
    pub fn record_refusal(&self, error: &dyn Display, now: Instant) {
        self.record_shortage(error, Shortage::Descriptors, now);
        self.relieve(now);
    }

    /// Whether idle endpoint connections are to be closed, because descriptors are missing.
    pub fn is_starved(&self, now: Instant) -> bool {
        let missed = self.descriptors.shortages();
        if self.missed.swap(missed, Ordering::Relaxed) != missed {
            self.starved_until.store(self.millis(now) + STARVED, Ordering::Relaxed);
        }
        self.millis(now) < self.starved_until.load(Ordering::Relaxed)
    }

    /// Counts a connection at a worker; `None` if there are too many.
    pub fn admit(
        self: &Arc<Self>,
        entrance: &Entrance,
        client: Option<IpAddr>,
        worker: usize,
        now: Instant,
    ) -> Option<Admitted> {
        let (census, limits) = (&entrance.listener.census, &entrance.listener.limits);
        if census.enter() >= limits.connections && !self.make_room(entrance, client, now) {
            census.leave();
            return None;
        }
        self.descriptors.enter_client();
        let entry = Arc::new(AdmissionEntry {
            began: self.began,
            census: census.clone(),
            state: AtomicU64::new(WAITING + self.millis(now) + HEAD_START),
            client: AtomicU64::new(UNCOUNTED),
            peer: ClientNet::new(client).map_or(UNCOUNTED, ClientNet::to_bits),
            task: OnceLock::new(),
        });
        self.entries(worker).insert(key(&entry), entry.clone());
        Some(Admitted { admission: self.clone(), entry, worker })
    }

    /// Evicts connections of any listener; `false` if all of them have a request.
    fn relieve(&self, now: Instant) -> bool {
        let now = self.millis(now);
        self.search.find(now, || self.evict(now, self.ceiling(), |_| true))
    }

    /// Evicts connections of a full listener; `false` if all of them have a request.
    fn make_room(&self, entrance: &Entrance, client: Option<IpAddr>, now: Instant) -> bool {
        let (census, max) = (&entrance.listener.census, entrance.listener.limits.connections);
        let is_here = |entry: &AdmissionEntry| Arc::ptr_eq(&entry.census, census);
        let now = self.millis(now);
        let has_room = census.search.find(now, || match self.evict(now, max, is_here) {
            0 => self.evict(now + HEAD_START, max, is_here),
            evicted => evicted,
        });
        if !has_room {
            census.count(CloseReason::Connections);
        }
        let reason = if has_room { CloseReason::Evicted } else { CloseReason::Connections };
        let limit = ConnectionCeiling { key: "limits.connections", max };
        self.log(LimitedConnection { entrance, reason, limit, client: client.filter(|_| !has_room) });
        has_room
    }

    /// Evicts waiting connections that `fits` accepts, one in [`BATCH`] of `of`. Returns the number of evicted
    /// connections.
    fn evict(&self, now: u64, of: usize, fits: impl Fn(&AdmissionEntry) -> bool) -> usize {
        let mut crowds = self.crowds(now, fits);
        let mut largest: BinaryHeap<_> = crowds.iter().filter_map(|(client, crowd)| crowd.rank(*client)).collect();
        let (wanted, mut evicted) = (of.min(self.descriptors.clients()).div_ceil(BATCH).max(1), 0);
        while evicted < wanted
            && let Some((_, _, client)) = largest.pop()
            && let Some(crowd) = crowds.get_mut(&client)
        {
            if crowd.waiting.pop().is_some_and(|(since, entry)| self.evict_one(&entry, since)) {
                crowd.held -= 1;
                evicted += 1;
            }
            largest.extend(crowd.rank(client));
        }
        evicted
    }

    /// Returns the connections that `fits` accepts by client, with those that have waited long enough to be evicted.
    fn crowds(&self, now: u64, fits: impl Fn(&AdmissionEntry) -> bool) -> HashMap<u64, Crowd> {
        let mut crowds: HashMap<u64, Crowd> = HashMap::new();
        for worker in 0..self.workers.len() {
            for entry in self.entries(worker).values().filter(|entry| fits(entry)) {
                let crowd = crowds.entry(entry.holder()).or_insert(Crowd { held: 0, waiting: Vec::new() });
                crowd.held += 1;
                let since = entry.waits_since().filter(|since| *since <= now && entry.task.get().is_some());
                crowd.waiting.extend(since.map(|since| (since, entry.clone())));
            }
        }
        for crowd in crowds.values_mut() {
            crowd.waiting.sort_unstable_by_key(|(since, _)| Reverse(*since));
        }
        crowds
    }

    /// Evicts a connection, unless a request has begun on it in the meantime.
    fn evict_one(&self, entry: &AdmissionEntry, since: u64) -> bool {
        let waits = WAITING + since;
        if entry.state.compare_exchange(waits, GONE, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return false;
        }
        // Uncounted at once, as its worker may take a while to drop it.
        self.count_out(entry);
        entry.census.count(CloseReason::Evicted);
        if let Some(task) = entry.task.get() {
            task.abort();
        }
        true
    }

    /// Ends all connections, whatever their state.
    pub fn cut_off(&self) {
        for worker in 0..self.workers.len() {
            self.entries(worker).values().filter_map(|entry| entry.task.get()).for_each(AbortHandle::abort);
        }
    }

    fn count_out(&self, entry: &AdmissionEntry) {
        self.descriptors.leave_client();
        entry.census.leave();
        entry.count_client_out();
    }

    fn entries(&self, worker: usize) -> MutexGuard<'_, HashMap<usize, Arc<AdmissionEntry>>> {
        self.workers[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millis(&self, now: Instant) -> u64 {
        millis_of(self.began, now)
    }
}

// === Log lines ===

impl Admission {
    /// Logs that a listener has reached a limit, once a minute and reason.
    fn log(&self, connection: LimitedConnection<'_>) {
        let LimitedConnection { entrance, reason, limit: ConnectionCeiling { key, max }, client } = connection;
        let census = &entrance.listener.census;
        if !census.may_log(reason, self.began.elapsed().as_secs() / 60) {
            return;
        }
        let (listener, so_far, reason) = (&*entrance.address, census.closed_count(reason), reason.name());
        let client = client.map(|client| client.to_canonical().to_string());
        tracing::warn!(listener, client, limit = key, most = max, reason, so_far, "client connection limit reached");
    }

    /// Records that descriptors for clients are short, and logs when a shortage begins.
    fn record_shortage(&self, cause: &dyn Display, kind: Shortage, now: Instant) {
        if kind == Shortage::Descriptors {
            self.starved_until.store(self.millis(now) + STARVED, Ordering::Relaxed);
        }
        let mut shortage = self.shortage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &mut *shortage {
            known.last = now;
            return;
        }
        *shortage = Some(DescriptorShortage { since: now, last: now });
        drop(shortage);
        let limit = self.descriptors.descriptors().map_or(0, |descriptors| descriptors.limit);
        let connections = self.descriptors.clients();
        tracing::warn!(%cause, connections, limit, remedy = REMEDY, "descriptors for clients are used up");
    }

    /// Logs the end of a shortage.
    pub fn tick(&self, now: Instant) {
        // If another worker holds the lock, there is no need to wait.
        let Ok(mut shortage) = self.shortage.try_lock() else { return };
        let Some(over) = shortage.take_if(|known| now.saturating_duration_since(known.last) >= RELIEF) else { return };
        drop(shortage);
        let seconds = over.last.saturating_duration_since(over.since).as_secs_f64();
        tracing::info!(seconds, "descriptors for clients are free again");
    }
}

/// Warns if a generation allows more connections than there are descriptors. If no listener names a number of connections,
/// the default is more than can be had, which is no error of anyone.
pub fn warn_of_limits(generation: &Generation, descriptors: Descriptors) {
    let demand = demand(generation);
    let ConnectionDemand { clients: connections, endpoints } = demand;
    let (needed, limit, served) = (descriptors.needed(demand), descriptors.limit, descriptors.clients(endpoints));
    if needed <= limit {
        return;
    }
    let endpoint_connections = endpoints;
    if generation.listeners.values().any(|listener| listener.limits.has_own_connections) {
        tracing::warn!(
            connections,
            endpoint_connections,
            needed,
            limit,
            served,
            remedy = REMEDY,
            "too few descriptors for limits.connections"
        );
    } else {
        tracing::info!(
            connections,
            endpoint_connections,
            needed,
            limit,
            served,
            remedy = REMEDY,
            "too few descriptors for the default of limits.connections"
        );
    }
}

/// Returns the maximum numbers of connections that a generation allows. A client connection needs one to an endpoint,
/// unless its listener redirects every request, and as far as the upstreams' own limits allow that.
fn demand(generation: &Generation) -> ConnectionDemand {
    let sum = |numbers: &mut dyn Iterator<Item = usize>| numbers.fold(0, usize::saturating_add);
    let listeners = || generation.listeners.values();
    let clients = sum(&mut listeners().map(|listener| listener.limits.connections));
    let forwarding = listeners().filter(|listener| listener.redirect.is_none());
    let forwarding = sum(&mut forwarding.map(|listener| listener.limits.connections));
    let limits = generation.upstreams.iter().map(|upstream| upstream.connection_limit.most());
    let allowed = sum(&mut limits.map(|max| max.map_or(usize::MAX, |max| max as usize)));
    ConnectionDemand { clients, endpoints: forwarding.min(allowed) }
}

// === Admitted ===

impl Admitted {
    /// Counts the connection for its client; `false` if the client has too many.
    pub fn is_client_admitted(&self, entrance: &Entrance, client: Option<IpAddr>, now: Instant) -> bool {
        let (census, limits) = (&entrance.listener.census, &entrance.listener.limits);
        let Some(net) = ClientNet::new(client) else { return true };
        let ConnectionCeiling { key, max } = self.admission.limit_of(&entrance.listener);
        let share = census.enter_client(net, max);
        self.entry.client.store(net.to_bits(), Ordering::SeqCst);
        if self.entry.state.load(Ordering::SeqCst) == GONE {
            // The connection was evicted in the meantime, and its client may still be counted.
            self.entry.count_client_out();
        }
        if let Some(max) = limits.connections_per_client.filter(|max| share.held > *max) {
            let limit = ConnectionCeiling { key: "limits.connections-per-client", max };
            let reason = CloseReason::ConnectionsPerClient;
            return self.refuse(LimitedConnection { entrance, reason, limit, client });
        }
        // The last fifth is reserved for clients that have less than their share.
        let has_room = share.held <= share.fair || census.all() <= max - max / 5 || self.take_own(share.held, now);
        let (reason, limit) = (CloseReason::FairShare, ConnectionCeiling { key, max });
        has_room || self.refuse(LimitedConnection { entrance, reason, limit, client })
    }

    /// Evicts other connections of a client that holds `held`; `false` if all of them have a request.
    fn take_own(&self, held: usize, now: Instant) -> bool {
        let client = self.entry.client.load(Ordering::Relaxed);
        let is_own = |entry: &AdmissionEntry| {
            entry.client.load(Ordering::Relaxed) == client
                && Arc::ptr_eq(&entry.census, &self.entry.census)
                && !std::ptr::eq(entry, &*self.entry)
        };
        let now = self.admission.millis(now);
        self.entry.census.client_search.find(now, || self.admission.evict(now, held, is_own))
    }

    fn refuse(&self, connection: LimitedConnection<'_>) -> bool {
        self.entry.census.count(connection.reason);
        self.admission.log(connection);
        false
    }

    pub fn presence(&self) -> Presence {
        Presence(self.entry.clone())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.entries(self.worker).remove(&key(&self.entry));
        if self.entry.state.swap(GONE, Ordering::SeqCst) != GONE {
            self.admission.count_out(&self.entry);
        }
    }
}

// === Presence ===

impl Presence {
    /// Sets the task to abort when the connection is evicted.
    pub fn ends_with(&self, task: AbortHandle) {
        let _ = self.0.task.set(task);
    }

    /// Records that a request has begun.
    pub fn serve(&self) {
        self.note(SERVED);
    }

    /// Records that the connection waits for a request from now on.
    pub fn wait(&self, now: Instant) {
        self.note(WAITING + millis_of(self.0.began, now + GRACE));
    }

    fn note(&self, state: u64) {
        let next = |known: u64| (known != GONE).then_some(state);
        let _ = self.0.state.fetch_update(Ordering::SeqCst, Ordering::Relaxed, next);
    }
}

// === Entry, Crowd ===

impl AdmissionEntry {
    /// Returns the time from which the connection can be evicted; `None` if it has a request, or is about to end.
    fn waits_since(&self) -> Option<u64> {
        self.state.load(Ordering::Relaxed).checked_sub(WAITING)
    }

    /// Returns the [`ClientNet`] that the connection stands for, [`UNCOUNTED`] if it has none. New connections of many
    /// clients may be accepted before one of them is counted.
    fn holder(&self) -> u64 {
        match self.client.load(Ordering::Relaxed) {
            UNCOUNTED => self.peer,
            client => client,
        }
    }

    fn count_client_out(&self) {
        let client = self.client.swap(UNCOUNTED, Ordering::SeqCst);
        if client != UNCOUNTED {
            self.census.leave_client(ClientNet::from_bits(client));
        }
    }
}

impl Crowd {
    /// Returns the order of eviction: the client with the most connections first, then the longest wait.
    fn rank(&self, client: u64) -> Option<(usize, Reverse<u64>, u64)> {
        let (since, _) = self.waiting.last()?;
        Some((self.held, Reverse(*since), client))
    }
}

fn key(entry: &Arc<AdmissionEntry>) -> usize {
    Arc::as_ptr(entry) as usize
}

fn millis_of(began: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(began).as_millis() as u64
}
