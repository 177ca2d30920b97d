//! The connections that a worker keeps to each endpoint.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify};

use super::client_hold::ClientHold;
use super::connect::{ConnectStage, IdleConnections};
use super::connection::Connection;
use super::connection_limit::{ConnectionGrant, ConnectionLimit};
use super::http2::SharedSender;
use super::name_lookup::NameLookup;
use super::request_head::RequestHeadSize;
use super::required_protocol::RequiredProtocol;
use super::{ConnectionSettings, EndpointAddr, EndpointProtocol};
use crate::error::Error;
use crate::net::deadline::Clock;
use crate::protocol::proxy_protocol::ConnectionAddresses;
use crate::system::descriptor_shares::{self, DescriptorUse, WorkerDescriptors};
use crate::system::holder_counts::Holder;
use further_connection::FurtherConnection;
use idle_offers::IdleOffers;
use shared_connections::SharedConnections;

mod further_connection;
mod idle_offers;
mod open;
pub mod pending_connection;
mod shared_connections;

/// All connections of one worker. They outlive generations, so that a reload keeps them.
pub struct Pools {
    pools: RefCell<HashMap<EndpointAddr, Rc<Pool>>>,
    /// The descriptors that the worker's exchanges use.
    descriptors: WorkerDescriptors,
}

/// The connections of one worker to one endpoint.
pub struct Pool {
    address: EndpointAddr,
    /// The idle connections that serve one exchange at a time, the last used on top.
    idle: RefCell<Vec<(Box<Connection>, Instant)>>,
    /// The HTTP/2 connections that requests share.
    shared: RefCell<SharedConnections>,
    /// Held while a connection is made to an endpoint that may speak HTTP/2, until its settings are read: the other requests
    /// wait for it, as it may have room for them.
    first: Arc<Mutex<()>>,
    /// The number of HTTP/2 connections that serve one exchange at a time.
    own: Rc<Cell<usize>>,
    /// The HTTP/2 connection that is opened beside those that requests share.
    further: FurtherConnection,
    /// The endpoint has chosen HTTP/1, so no request needs to wait for a shared connection.
    exclusive: Cell<bool>,
    /// Notified when a connection becomes shared, so that requests that wait for a permit can use it.
    returned: Notify,
    /// The requests that wait for a permit, to which connections that become idle are offered.
    offers: IdleOffers,
    /// The time for which a request waits for a permit before it shares a connection that was given up for others.
    patience: Cell<Duration>,
    /// The number of connections that were returned while a request waited for one on any worker.
    contended: Cell<u32>,
    /// The time at which one of them was last closed for requests of other workers.
    others_at: Cell<Option<Instant>>,
    /// The time until which the endpoint is taken for one that refuses further requests of a shared connection.
    calm_until: Cell<Option<Instant>>,
    /// The address that was connected to last, where the endpoint's name has several.
    last: Cell<Option<SocketAddr>>,
    /// The lookups of the endpoint's name.
    lookup: Rc<NameLookup>,
    /// The number of connections that are still being opened although no request waits for them, because the endpoint
    /// doesn't answer.
    stuck: Cell<u32>,
    /// The descriptors that the worker's exchanges use.
    descriptors: WorkerDescriptors,
    /// All pools of the worker, including this pool.
    all: Weak<Pools>,
}

/// The result of waiting for a permit to connect.
pub enum Acquired {
    /// The request has a permit to open a connection.
    Connect(ConnectionGrant),
    /// The request uses a connection that has become free in the meantime.
    Use(Box<Connection>),
}

/// A request's demands on the connection that is opened for it.
pub struct ConnectionRequest {
    /// The limit that the connection's permit is of.
    pub limit: ConnectionLimit,
    pub wanted: RequiredProtocol,
    /// The client whose parts the connection counts for.
    pub client: Holder,
    /// The client's address and the address that it connected to, for the PROXY header; `None` if the client has no
    /// address.
    pub addresses: Option<ConnectionAddresses>,
    pub settings: Rc<ConnectionSettings>,
    /// The progress of the connection.
    pub stage: Rc<Cell<ConnectStage>>,
}

/// The longest field or target on a shared connection, in bytes: nginx ends the connection for a longer one.
const MAX_SHARED_FIELD: usize = 4 << 10;

/// The longest head on a shared connection, in bytes: endpoints accept at least that by default.
const MAX_SHARED_HEAD: usize = 16 << 10;

/// The maximum number of fields on a shared connection: HAProxy ends the connection for twice as many.
const MAX_SHARED_FIELDS: usize = 100;

/// The connections of one worker to an endpoint that requests have for themselves without need.
const MAX_SPARED: usize = 64;

/// The patience of a pool in which no request has waited yet.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(2);

/// The time for which requests don't share a connection after the endpoint has asked for calm: long, as the first request after
/// it may be refused again.
const CALM: Duration = Duration::from_secs(300);

/// The interval for fairness between workers: while requests wait, one in `FAIRNESS` returned connections is closed, so
/// that its permit goes to the client whose turn it is on any worker. The others serve a request of their own worker at once.
const FAIRNESS: u32 = 8;

/// The time after which the next returned connection is closed too: exchanges that take longer would make other workers wait
/// for several of them, and a new connection costs little beside one.
const FAIRNESS_TIME: Duration = Duration::from_millis(100);

impl Pools {
    pub fn new(descriptors: WorkerDescriptors) -> Rc<Self> {
        Rc::new(Pools { pools: RefCell::default(), descriptors })
    }

    /// Returns pools for a worker without clients, whose descriptors are not limited.
    pub fn unlimited() -> Rc<Self> {
        Pools::new(WorkerDescriptors::unlimited())
    }

    /// Returns the descriptors that the worker's exchanges use.
    pub fn descriptors(&self) -> &WorkerDescriptors {
        &self.descriptors
    }

    /// The pool for an address.
    pub fn pool(self: &Rc<Self>, address: &EndpointAddr) -> Rc<Pool> {
        let made = || Rc::new(Pool::new(address.clone(), self));
        self.pools.borrow_mut().entry(address.clone()).or_insert_with(made).clone()
    }

    /// Gives up connections that requests of other workers or endpoints wait for, one per endpoint.
    pub fn yield_to_waiters(&self, now: Instant) {
        self.pools.borrow().values().for_each(|pool| pool.yield_to_waiters(now));
    }

    /// Closes all idle connections that serve one exchange at a time, as descriptors are missing.
    pub fn close_idle(&self) {
        self.pools.borrow().values().for_each(|pool| pool.idle.borrow_mut().clear());
    }

    /// Closes connections that were idle for the longest idle time, and drops the pools of endpoints that are gone.
    pub fn sweep(&self, now: Instant, longest: Duration) {
        self.pools.borrow_mut().retain(|_, pool| {
            pool.shared.borrow_mut().sweep(now, longest);
            pool.idle.borrow_mut().retain_mut(|(connection, since)| now - *since < longest && connection.is_reusable());
            Rc::strong_count(pool) > 1 || !pool.idle.borrow().is_empty() || !pool.shared.borrow().is_empty()
        });
    }
}

impl IdleConnections for Pools {
    fn close_one(&self) -> Pin<Box<dyn Future<Output = bool> + '_>> {
        let oldest = |pools: &HashMap<EndpointAddr, Rc<Pool>>| {
            let idle = pools.values().filter_map(|pool| Some((pool.idle_since()?, pool.clone())));
            idle.min_by_key(|(since, _)| *since).map(|(_, pool)| pool)
        };
        let oldest = oldest(&self.pools.borrow());
        Box::pin(async {
            let Some(pool) = oldest else {
                // Other workers may have idle connections.
                self.descriptors.record_shortage();
                return false;
            };
            pool.close_oldest().await;
            true
        })
    }
}

impl Pool {
    fn new(address: EndpointAddr, all: &Rc<Pools>) -> Self {
        Pool {
            exclusive: Cell::new(address.protocol == EndpointProtocol::Http1),
            address,
            idle: RefCell::default(),
            shared: RefCell::default(),
            first: Arc::default(),
            own: Rc::default(),
            further: FurtherConnection::default(),
            returned: Notify::new(),
            offers: IdleOffers::default(),
            patience: Cell::new(DEFAULT_PATIENCE),
            contended: Cell::new(0),
            others_at: Cell::new(None),
            calm_until: Cell::new(None),
            last: Cell::new(None),
            lookup: Rc::default(),
            stuck: Cell::new(0),
            descriptors: all.descriptors.clone(),
            all: Rc::downgrade(all),
        }
    }

    /// Returns a connection that seems alive: a shared one, or an idle one if the client may use one more.
    pub fn idle(
        &self,
        wanted: RequiredProtocol,
        rules: &ConnectionSettings,
        connection_limit: &ConnectionLimit,
        client: Holder,
        now: Instant,
    ) -> Option<Box<Connection>> {
        if rules.proxy_protocol.is_some() {
            return None;
        }
        if wanted == RequiredProtocol::Any
            && let Some(connection) = self.shared_connection(rules, connection_limit, now)
        {
            return Some(connection);
        }
        if !connection_limit.leave_one(client) {
            return None;
        }
        let mut idle = self.idle.borrow_mut();
        // Upstreams with other limits may have the same endpoint, and connections of their own.
        let suits = |connection: &Connection| {
            (wanted != RequiredProtocol::Http1 || connection.version() == http::Version::HTTP_11)
                && connection_limit.have(connection.limit_handle())
                && connection.head_limits() == rules.head
        };
        loop {
            let index = idle.iter().rposition(|(connection, _)| suits(connection))?;
            let (connection, since) = idle.remove(index);
            let is_fresh = now.saturating_duration_since(since) < rules.idle_timeout;
            if is_fresh && !connection.is_closed() && connection.has_window() {
                let shared = if wanted == RequiredProtocol::Any { connection.shared_sender() } else { None };
                return Some(shared.map_or(connection, |sender| self.share(sender, now)));
            }
        }
    }

    /// Shares a connection with later requests; returns a handle of it.
    fn share(&self, sender: SharedSender, now: Instant) -> Box<Connection> {
        sender.tell_when_freed(&self.further.changed);
        self.shared.borrow_mut().add(sender.clone(), now);
        self.returned.notify_waiters();
        self.further.changed.notify_waiters();
        Box::new(Connection::http2(sender))
    }

    /// Shares a connection that a request has to itself, if the limit has no room for another one: requests that can share
    /// it must not wait for the end of its response. The endpoint has accepted the request, of which nothing is left to send.
    pub fn share_if_full(&self, connection: &mut Connection, connection_limit: &ConnectionLimit, now: Instant) {
        if !connection_limit.has_room()
            && let Some(sender) = connection.unshared_sender()
        {
            *connection = *self.share(sender, now);
        }
    }

    /// Whether requests with these settings should wait for a shared connection before they wait for one of their own.
    pub fn may_serve(&self, connection_limit: &ConnectionLimit, rules: &ConnectionSettings, now: Instant) -> bool {
        let shared = self.shared.borrow();
        let is_last_choice = !connection_limit.has_room() && !shared.is_empty();
        rules.proxy_protocol.is_none() && (is_last_choice || shared.serve(connection_limit, rules.head, now))
    }

    /// Gives up a connection that requests of other workers or endpoints wait for: an idle one, and a shared one as soon as
    /// its exchanges have ended.
    fn yield_to_waiters(&self, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if let Some(index) = idle.iter().position(|(connection, _)| connection.limit_handle().is_wanted()) {
            idle.remove(index);
        }
        if self.shared.borrow_mut().yield_to_waiters(now, self.patience.get()) {
            self.returned.notify_waiters();
        }
    }

    /// Leave to connect, at once or in turn, unless a connection becomes free before. May be dropped at any time.
    pub async fn acquire(&self, request: &ConnectionRequest, clock: &Clock) -> Result<Acquired, Error> {
        let ConnectionRequest { limit, wanted, client, settings, .. } = request;
        // A request whose shared connection was given up for others gets it back without a permit.
        let is_served = self.shared.borrow().has_yielded();
        let taking = limit.take(if is_served { RequiredProtocol::Unshared } else { *wanted }, *client);
        self.patience.set(settings.patience());
        if limit.most().is_none() {
            return taking.await.map(Acquired::Connect);
        }
        let mut grant = pin!(taking);
        let mut waiting = self.offers.wait(limit, *client);
        loop {
            if let Some(connection) = self.idle(*wanted, settings, limit, *client, clock.now()) {
                return Ok(Acquired::Use(connection));
            }
            tokio::select! {
                biased;
                grant = &mut grant => return grant.map(Acquired::Connect),
                () = waiting.offered() => {}
                () = self.returned.notified() => {}
            }
        }
    }

    /// Whether a request may go over a shared connection. It may not if the endpoint may end the connection for the head of
    /// the request, and with it the exchanges of others.
    pub fn may_share(&self, head: RequestHeadSize) -> bool {
        let max = self.shared.borrow().max_request_head().unwrap_or(u32::MAX);
        head.longest <= MAX_SHARED_FIELD
            && head.total <= MAX_SHARED_HEAD.min(max as usize)
            && head.fields <= MAX_SHARED_FIELDS
    }

    /// Whether a request may have a connection of its own that it could do without: there are few of them, and the limit has
    /// plenty. Clients that stall their uploads would take all descriptors otherwise.
    pub fn may_spare_one(&self, connection_limit: &ConnectionLimit) -> bool {
        self.own.get() < MAX_SPARED && connection_limit.has_plenty() && self.descriptors.has_plenty()
    }

    /// Whether a long response arrives on a shared connection: some endpoints, such as node, refuse further requests of a
    /// connection whose responses take more than some megabytes.
    pub fn has_long_response(&self, connection_limit: &ConnectionLimit) -> bool {
        self.shared.borrow().have_long_response(connection_limit)
    }

    /// Whether the endpoint has lately refused requests of a shared connection.
    pub fn is_calm_wanted(&self, now: Instant) -> bool {
        self.calm_until.get().is_some_and(|until| now < until)
    }

    /// Notes that the endpoint has asked for calm on a shared connection.
    pub fn note_crowd(&self, now: Instant) {
        self.calm_until.set(Some(now + CALM));
    }

    /// Counts a connection that serves one exchange for a client, unless it was opened for the client and is counted.
    pub fn lend(&self, connection: &mut Connection, client: Holder) {
        connection.hold(|limit| ClientHold {
            descriptor: self.descriptors.count(client),
            connection_use: limit.count_use(client),
        });
    }

    /// Takes a descriptor for a client's connection to the endpoint.
    fn descriptor_for(&self, client: Holder) -> Result<DescriptorUse, Error> {
        self.descriptors.take(client).ok_or_else(|| Error::no_descriptor(descriptor_shares::PART_IN_USE))
    }

    /// Whether the endpoint speaks HTTP/1, as far as is known, so that no exchange shares a connection.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive.get()
    }

    /// Whether the endpoint has left a connection attempt unanswered for longer than usual, and still does.
    pub fn is_stuck(&self) -> bool {
        self.stuck.get() > 0
    }

    /// Takes a connection back once its exchange is over.
    pub fn put_back(&self, mut connection: Box<Connection>, rules: &ConnectionSettings, now: Instant) {
        connection.release();
        let has_room = self.idle.borrow().len() < rules.idle_connections;
        if !has_room || rules.proxy_protocol.is_some() || !connection.is_idle() {
            return;
        }
        let limit = connection.limit_handle();
        if limit.is_limited() {
            let is_wanted = limit.is_wanted();
            if is_wanted && self.is_turn_of_others(now) {
                return;
            }
            // The request that gets the offer looks for the connection later, once it is idle.
            let is_offered = self.offers.offer(|client| limit.leave_one(*client));
            if is_wanted && !is_offered {
                return;
            }
        }
        self.idle.borrow_mut().push((connection, now));
    }

    /// Returns the time since which the longest idle connection has been idle; `None` if none is idle.
    fn idle_since(&self) -> Option<Instant> {
        let exclusive = self.idle.borrow().first().map(|(_, since)| *since);
        exclusive.into_iter().chain(self.shared.borrow().unused_since()).min()
    }

    /// Closes the connection that has been idle for the longest time.
    async fn close_oldest(&self) {
        let oldest = self.idle_since();
        let shared = oldest.and_then(|oldest| self.shared.borrow_mut().take_unused(oldest));
        match shared {
            Some(sender) => sender.close().await,
            None if !self.idle.borrow().is_empty() => drop(self.idle.borrow_mut().remove(0)),
            None => {}
        }
    }

    /// Whether a connection that is returned while requests wait is closed, so that its permit goes to the client whose turn it
    /// is on any worker.
    fn is_turn_of_others(&self, now: Instant) -> bool {
        let returned = self.contended.get().wrapping_add(1);
        let is_due = |last: Instant| now.saturating_duration_since(last) >= FAIRNESS_TIME;
        let is_turn = returned.is_multiple_of(FAIRNESS) || self.others_at.get().is_none_or(is_due);
        self.contended.set(returned);
        if is_turn {
            self.others_at.set(Some(now));
        }
        is_turn
    }

    /// Notes that a request was not answered in time. If the endpoint has sent nothing else meanwhile on a shared
    /// connection, later requests use another one.
    pub fn note_unanswered(&self, connection: &Connection) {
        if let Some(sender) = connection.silent_sender() {
            self.shared.borrow_mut().note_unanswered(sender);
        }
    }

    fn shared_connection(
        &self,
        rules: &ConnectionSettings,
        connection_limit: &ConnectionLimit,
        now: Instant,
    ) -> Option<Box<Connection>> {
        let sender = self.shared.borrow_mut().find(connection_limit, rules.head, now)?;
        Some(Box::new(Connection::http2(sender)))
    }
}
