//! Endpoints, and the connections that a worker keeps to each.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::head::Peer;
use crate::proxy_protocol;

pub mod connect;
pub mod connection;

use connect::{Dialer, Wanted};
use connection::{Connection, SharedSender};

/// Where an endpoint listens, and what it speaks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointAddr {
    /// As the manifest writes it.
    pub text: Arc<str>,
    pub place: Place,
    pub speaks: Speaks,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Host and port; a host name is looked up at each connect.
    Tcp(Arc<str>),
    /// The path of a unix socket.
    Unix(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Speaks {
    Http1,
    /// HTTP/2 in clear, known beforehand.
    Http2,
    /// TLS, and in it what the endpoint chooses.
    Tls(Dialer),
}

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    pub connect_timeout: Duration,
    /// For a response to begin.
    pub response_timeout: Duration,
    /// Between two pieces of a response.
    pub read_timeout: Duration,
    pub idle_timeout: Duration,
    /// Idle connections per worker and endpoint.
    pub idle_connections: usize,
    /// Tells the endpoint of the client, on a connection for each request.
    pub proxy_protocol: Option<proxy_protocol::Version>,
}

/// All connections of one worker; outlives generations, so that a reload keeps them.
#[derive(Default)]
pub struct Pools(RefCell<HashMap<EndpointAddr, Rc<Pool>>>);

/// The connections of one worker to one endpoint.
pub struct Pool {
    address: EndpointAddr,
    /// Those of HTTP/1 that are idle, the last used on top.
    idle: RefCell<Vec<(Connection, Instant)>>,
    /// That of HTTP/2, for all requests, and when it was last used.
    shared: RefCell<Option<(SharedSender, Instant)>>,
    /// Held while the first connection is made to an endpoint that may speak HTTP/2: the others wait for it.
    first: tokio::sync::Mutex<()>,
    /// The endpoint has chosen HTTP/1: nobody needs to wait.
    exclusive: Cell<bool>,
}

/// Requests in flight at an endpoint, over all workers; outlives generations.
#[derive(Debug, Default)]
pub struct InFlight(AtomicU32);

/// One request in flight, until dropped.
pub struct Flight(Arc<InFlight>);

impl Place {
    /// What stands for the endpoint in `Host` where the client named none.
    pub fn authority(&self) -> &str {
        match self {
            Place::Tcp(address) => address,
            Place::Unix(_) => "localhost",
        }
    }
}

impl Pools {
    /// The pool for an address.
    pub fn pool(&self, address: &EndpointAddr) -> Rc<Pool> {
        let new = || {
            let (idle, shared) = (RefCell::default(), RefCell::default());
            let exclusive = Cell::new(address.speaks == Speaks::Http1);
            Rc::new(Pool { address: address.clone(), idle, shared, first: tokio::sync::Mutex::new(()), exclusive })
        };
        self.0.borrow_mut().entry(address.clone()).or_insert_with(new).clone()
    }

    /// Closes what nobody used for the longest idle time, and forgets pools of endpoints that are gone.
    pub fn sweep(&self, now: Instant, longest: Duration) {
        self.0.borrow_mut().retain(|_, pool| {
            pool.shared.borrow_mut().take_if(|(_, used)| now - *used >= longest);
            pool.idle.borrow_mut().retain_mut(|(connection, since)| now - *since < longest && connection.rest());
            Rc::strong_count(pool) > 1 || !pool.idle.borrow().is_empty() || pool.shared.borrow().is_some()
        });
    }
}

impl Pool {
    /// A connection that seems alive, idle or shared.
    pub fn idle(&self, wanted: Wanted, rules: Rules, now: Instant) -> Option<Connection> {
        if rules.proxy_protocol.is_some() {
            return None;
        }
        if wanted == Wanted::Any
            && let Some(connection) = self.shared(now)
        {
            return Some(connection);
        }
        let mut idle = self.idle.borrow_mut();
        loop {
            let (connection, since) = idle.pop()?;
            if !connection.is_closed() && now.saturating_duration_since(since) < rules.idle_timeout {
                return Some(connection);
            }
        }
    }

    /// A fresh connection, or a shared one that somebody else has just made.
    pub async fn fresh(&self, wanted: Wanted, peer: &Peer, rules: Rules, now: Instant) -> Result<Connection, Error> {
        if self.exclusive.get() || wanted == Wanted::Http1 || rules.proxy_protocol.is_some() {
            return connect::connect(&self.address, Wanted::Http1, peer, rules.proxy_protocol).await;
        }
        let first = self.first.lock().await;
        if let Some(connection) = self.shared(now) {
            return Ok(connection);
        }
        if self.exclusive.get() {
            // Whoever was first has found out: nobody has to wait for another.
            drop(first);
            return connect::connect(&self.address, Wanted::Http1, peer, None).await;
        }
        let connection = connect::connect(&self.address, wanted, peer, None).await?;
        match connection.shared() {
            Some(sender) => *self.shared.borrow_mut() = Some((sender, now)),
            None => self.exclusive.set(true),
        }
        Ok(connection)
    }

    /// Takes a connection back once its exchange is over.
    pub fn put_back(&self, mut connection: Connection, rules: Rules, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if rules.proxy_protocol.is_none() && idle.len() < rules.idle_connections && connection.rest() {
            idle.push((connection, now));
        }
    }

    /// Has the next request make a connection of its own: the endpoint doesn't answer on the shared one.
    pub fn give_up_shared(&self) {
        *self.shared.borrow_mut() = None;
    }

    fn shared(&self, now: Instant) -> Option<Connection> {
        let mut shared = self.shared.borrow_mut();
        shared.take_if(|(sender, _)| sender.is_closed());
        let (sender, used) = shared.as_mut()?;
        *used = now;
        Some(Connection::of_shared(sender.clone()))
    }
}

impl InFlight {
    /// How many.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, until the flight is dropped.
    pub fn begin(self: &Arc<Self>) -> Flight {
        self.0.fetch_add(1, Ordering::Relaxed);
        Flight(self.clone())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
