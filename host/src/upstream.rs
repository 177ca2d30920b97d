//! Endpoints, and the connections that a worker keeps to each.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::body::RequestBody;
use crate::error::{Error, Kind};

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
    idle: RefCell<Vec<(SendRequest<RequestBody>, Instant)>>,
}

/// A connection, and whether it has served before.
pub struct Connection {
    pub sender: SendRequest<RequestBody>,
    pub reused: bool,
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
            pool.idle.borrow_mut().retain(|(sender, since)| !sender.is_closed() && now - *since < longest);
            Rc::strong_count(pool) > 1 || !pool.idle.borrow().is_empty()
        });
    }
}

impl Pool {
    /// An idle connection, or a fresh one.
    pub async fn connection(&self, rules: KeepRules) -> Result<Connection, Error> {
        loop {
            let Some((mut sender, since)) = self.idle.borrow_mut().pop() else { break };
            let alive = !sender.is_closed() && since.elapsed() < rules.idle_timeout;
            if alive && (sender.is_ready() || sender.ready().await.is_ok()) {
                return Ok(Connection { sender, reused: true });
            }
        }
        self.fresh(rules).await
    }

    /// A fresh connection.
    pub async fn fresh(&self, rules: KeepRules) -> Result<Connection, Error> {
        let late = |_| Error::new(Kind::ConnectionTimeout, format!("no connection after {:?}", rules.connect_timeout));
        let sender = timeout(rules.connect_timeout, self.connect()).await.map_err(late)??;
        Ok(Connection { sender, reused: false })
    }

    /// Takes a connection back once its exchange is over.
    pub fn put_back(&self, sender: SendRequest<RequestBody>, rules: KeepRules) {
        let mut idle = self.idle.borrow_mut();
        if !sender.is_closed() && idle.len() < rules.idle_connections {
            idle.push((sender, Instant::now()));
        }
    }

    async fn connect(&self) -> Result<SendRequest<RequestBody>, Error> {
        let refused = |error: std::io::Error| Error::new(Kind::ConnectionRefused, error);
        match &self.address {
            EndpointAddr::Tcp(address) => {
                let stream = TcpStream::connect(&**address).await.map_err(refused)?;
                stream.set_nodelay(true).map_err(refused)?;
                handshake(stream).await
            }
            EndpointAddr::Unix(address) => {
                let path = address.trim_start_matches("unix:");
                handshake(UnixStream::connect(path).await.map_err(refused)?).await
            }
        }
    }
}

/// The task that drives the connection ends with it: when the sender is dropped, or when the endpoint closes.
async fn handshake<S>(stream: S) -> Result<SendRequest<RequestBody>, Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let failed = |error| Error::new(Kind::ConnectionTerminated, error);
    let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream connection");
        }
    });
    Ok(sender)
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
