//! Endpoints, and the connections that a worker keeps to each.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, UnixStream};

use crate::error::{Error, Kind};

pub mod connection;

use connection::Connection;

/// Where an endpoint listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddr {
    /// Host and port; a host name is looked up at each connect.
    Tcp(Arc<str>),
    /// A unix socket.
    Unix(Arc<str>),
}

/// How connections to an upstream are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeepRules {
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    pub idle_timeout: Duration,
    /// Idle connections per worker and endpoint.
    pub idle_connections: usize,
}

/// All connections of one worker; outlives generations, so that a reload keeps them.
#[derive(Default)]
pub struct Pools(RefCell<HashMap<EndpointAddr, Rc<Pool>>>);

/// The idle connections of one worker to one endpoint, the last used on top.
pub struct Pool {
    address: EndpointAddr,
    idle: RefCell<Vec<(Connection, Instant)>>,
}

/// Requests in flight at an endpoint, over all workers; outlives generations.
#[derive(Debug, Default)]
pub struct InFlight(AtomicU32);

/// One request in flight, until dropped.
pub struct Flight(Arc<InFlight>);

impl EndpointAddr {
    /// As the manifest writes it.
    pub fn text(&self) -> Arc<str> {
        match self {
            EndpointAddr::Tcp(address) | EndpointAddr::Unix(address) => address.clone(),
        }
    }
}

impl Pools {
    /// The pool for an address.
    pub fn pool(&self, address: &EndpointAddr) -> Rc<Pool> {
        let new = || Rc::new(Pool { address: address.clone(), idle: RefCell::default() });
        self.0.borrow_mut().entry(address.clone()).or_insert_with(new).clone()
    }

    /// Closes what nobody used for the longest idle time, and forgets pools of endpoints that are gone.
    pub fn sweep(&self, now: Instant, longest: Duration) {
        self.0.borrow_mut().retain(|_, pool| {
            pool.idle.borrow_mut().retain_mut(|(connection, since)| now - *since < longest && connection.rest());
            Rc::strong_count(pool) > 1 || !pool.idle.borrow().is_empty()
        });
    }
}

impl Pool {
    /// An idle connection that seems alive.
    pub fn idle(&self, rules: KeepRules, now: Instant) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let (connection, since) = idle.pop()?;
            if !connection.sender.is_closed() && now.saturating_duration_since(since) < rules.idle_timeout {
                return Some(connection);
            }
        }
    }

    /// A fresh connection.
    pub async fn fresh(&self) -> Result<Connection, Error> {
        let refused = |error: std::io::Error| Error::new(Kind::ConnectionRefused, error);
        match &self.address {
            EndpointAddr::Tcp(address) => {
                let stream = TcpStream::connect(&**address).await.map_err(refused)?;
                stream.set_nodelay(true).map_err(refused)?;
                Connection::new(stream).await
            }
            EndpointAddr::Unix(address) => {
                let path = address.trim_start_matches("unix:");
                Connection::new(UnixStream::connect(path).await.map_err(refused)?).await
            }
        }
    }

    /// Takes a connection back once its exchange is over.
    pub fn put_back(&self, mut connection: Connection, rules: KeepRules, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < rules.idle_connections && connection.rest() {
            idle.push((connection, now));
        }
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
