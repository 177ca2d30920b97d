//! Opens connections to endpoints: a socket, the PROXY header, TLS, and the version of HTTP.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use smallvec::smallvec;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::connection::Connection;
use super::connection_limit::ConnectionPermit;
use super::http2::SharedSender;
use super::name_lookup::{Addresses, NameLookup};
use super::required_protocol::RequiredProtocol;
use super::response_head_limits::ResponseHeadLimits;
use super::socket::{EndpointSocket, EndpointTransport, ReadNow};
use super::{EndpointAddr, EndpointProtocol, SocketName};
use crate::error::{Error, FailureKind};
use crate::net::happy_eyeballs;
use crate::net::tcp::Tcp;
use crate::protocol::proxy_protocol::{self, ConnectionAddresses};
use crate::system::descriptors::{is_of_this_machine, lacks_descriptor};
use crate::tls::handshake_error::{self, TlsErrorClass, TlsPeer};

/// The settings of TLS to an endpoint.
#[derive(Clone)]
pub struct TlsDialer {
    /// The TLS configuration that offers all versions of HTTP that the manifest allows.
    any: Arc<ClientConfig>,
    /// Offers HTTP/1.1 alone, for what HTTP/2 can't carry.
    http1: Arc<ClientConfig>,
    name: ServerName<'static>,
    /// The digest of everything in the configuration: the same digest means the same rules, over reloads.
    digest: blake3::Hash,
}

/// The progress of a connection that is being made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectStage {
    /// The request waits for the connection of another request, which may serve both.
    #[default]
    Waiting,
    /// The name of the endpoint is being looked up.
    Resolving,
    /// The endpoint's machine has not answered yet.
    Connecting,
    /// The endpoint's machine has answered, and its program has to prepare the connection: TLS, HTTP/2.
    Reached,
}

/// The probes by which the kernel notices within half a minute that an endpoint has vanished without closing an idle
/// connection. They aren't seen by the endpoint's server.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3);

/// Connections that no exchange uses.
pub trait IdleConnections {
    /// Closes the connection that has been idle for the longest time, to whichever endpoint. Returns `false` if there is none.
    fn close_one(&self) -> Pin<Box<dyn Future<Output = bool> + '_>>;
}

/// The terms of a new connection.
pub struct ConnectTerms<'a> {
    pub wanted: RequiredProtocol,
    /// The client's address and the address that it connected to, for the PROXY protocol; `None` if there is no client,
    /// or it has no address.
    pub addresses: Option<ConnectionAddresses>,
    pub proxy_protocol: Option<proxy_protocol::ProxyVersion>,
    /// The limits of a response's head.
    pub head: ResponseHeadLimits,
    /// The time that the caller allows.
    pub within: Duration,
    /// The address, of those that the endpoint's name has, that was last connected to.
    pub last: Option<&'a Cell<Option<SocketAddr>>>,
    /// The lookups of the endpoint's name that requests share; `None` for one that is not shared.
    pub lookup: Option<&'a Rc<NameLookup>>,
    /// The progress of the connection, which is updated.
    pub stage: Option<&'a Cell<ConnectStage>>,
    /// The worker's idle connections, which are closed if descriptors are used up.
    pub idle: Option<&'a dyn IdleConnections>,
}

impl ConnectTerms<'_> {
    fn note(&self, stage: ConnectStage) {
        if let Some(progress) = self.stage {
            progress.set(stage);
        }
    }

    /// Runs `open`, and once more after an idle connection was closed, if a descriptor is missing.
    async fn open<T, F: Future<Output = io::Result<T>>>(&self, open: impl Fn() -> F) -> io::Result<T> {
        match (open().await, self.idle) {
            (Err(error), Some(idle)) if lacks_descriptor(&error) && idle.close_one().await => open().await,
            (opened, _) => opened,
        }
    }
}

/// Opens a connection. A future that is dropped half-way leaves nothing open.
pub async fn connect(
    address: &EndpointAddr,
    terms: &ConnectTerms<'_>,
    permit: ConnectionPermit,
) -> Result<Connection, Error> {
    let now = ReadNow::default();
    match &address.address {
        SocketName::Tcp(host_and_port) => {
            terms.note(ConnectStage::Resolving);
            let resolved = terms.open(|| resolve(host_and_port, terms.lookup)).await.map_err(unknown)?;
            terms.note(ConnectStage::Connecting);
            let order = happy_eyeballs::ordered(&resolved, terms.last.and_then(Cell::get));
            let stream = terms.open(|| happy_eyeballs::connect(&order, terms.within)).await.map_err(refused)?;
            stream.set_nodelay(true).map_err(refused)?;
            SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE).map_err(refused)?;
            terms.note(ConnectStage::Reached);
            if let Some(last) = terms.last.filter(|_| order.len() > 1) {
                last.set(stream.peer_addr().ok());
            }
            negotiate(EndpointSocket::new(Tcp(stream), now.clone()), address, terms, now, permit).await
        }
        SocketName::Unix(path) => {
            terms.note(ConnectStage::Connecting);
            let stream = terms.open(|| UnixStream::connect(&**path)).await.map_err(refused)?;
            terms.note(ConnectStage::Reached);
            negotiate(EndpointSocket::new(stream, now.clone()), address, terms, now, permit).await
        }
    }
}

/// Returns the addresses of a name, or an address.
async fn resolve(host_and_port: &Arc<str>, shared: Option<&Rc<NameLookup>>) -> io::Result<Addresses> {
    if let Ok(address) = host_and_port.parse() {
        return Ok(smallvec![address]);
    }
    let name = host_and_port.clone();
    let lookup = || async move { Ok(lookup_host(&*name).await?.collect::<Addresses>()) };
    match shared {
        Some(shared) => shared.shared(lookup).await,
        None => lookup().await,
    }
}

/// A name that the system can't look up.
fn unknown(error: io::Error) -> Error {
    let is_own = is_of_this_machine(&error);
    not_opened(error, is_own, FailureKind::DnsError)
}

fn refused(error: io::Error) -> Error {
    let is_own = happy_eyeballs::is_own(&error);
    not_opened(error, is_own, FailureKind::ConnectionRefused)
}

/// Returns the error of a connection that was not opened. What this machine lacks is not the endpoint's fault.
fn not_opened(error: io::Error, is_own: bool, otherwise: FailureKind) -> Error {
    match is_own {
        true if lacks_descriptor(&error) => Error::no_descriptor(error),
        true => Error::new(FailureKind::InternalError, error),
        false => Error::new(otherwise, error),
    }
}

async fn negotiate(
    mut stream: impl EndpointTransport,
    address: &EndpointAddr,
    terms: &ConnectTerms<'_>,
    now: ReadNow,
    permit: ConnectionPermit,
) -> Result<Connection, Error> {
    if let Some(version) = terms.proxy_protocol {
        let written = stream.write_all(&proxy_protocol::encode(version, terms.addresses)).await;
        written.map_err(|error| Error::new(FailureKind::ConnectionTerminated, error))?;
    }
    match &address.protocol {
        EndpointProtocol::Http1 => Ok(Connection::http1(stream, now, terms.head, permit)),
        EndpointProtocol::Http2 => SharedSender::connect(stream, now, terms.head, permit).await.map(Connection::http2),
        EndpointProtocol::Tls(dialer) => {
            let config = if terms.wanted == RequiredProtocol::Http1 { &dialer.http1 } else { &dialer.any };
            let connecting = TlsConnector::from(config.clone()).connect(dialer.name.clone(), stream).await;
            let stream = connecting.map_err(untrusted)?;
            match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => SharedSender::connect(stream, now, terms.head, permit).await.map(Connection::http2),
                _ => Ok(Connection::http1(stream, now, terms.head, permit)),
            }
        }
    }
}

fn untrusted(error: io::Error) -> Error {
    let kind = match handshake_error::class(&error) {
        Some(TlsErrorClass::Certificate) => FailureKind::TlsCertificate,
        Some(TlsErrorClass::Alert) => FailureKind::TlsAlert,
        Some(TlsErrorClass::Protocol) => FailureKind::TlsError,
        None => FailureKind::ConnectionTerminated,
    };
    match handshake_error::in_words(&error, TlsPeer::Endpoint) {
        Some(words) => Error::new(kind, words),
        None => Error::new(kind, error),
    }
}

// === Dialer ===

impl TlsDialer {
    /// TLS to an endpoint that bears a name.
    pub fn new(config: Arc<ClientConfig>, name: ServerName<'static>, digest: blake3::Hash) -> Self {
        let mut http1 = ClientConfig::clone(&config);
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsDialer { any: config, http1: Arc::new(http1), name, digest }
    }
}

impl PartialEq for TlsDialer {
    fn eq(&self, other: &Self) -> bool {
        (self.digest, &self.name) == (other.digest, &other.name)
    }
}

impl Eq for TlsDialer {}

impl Hash for TlsDialer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.digest.as_bytes(), &self.name).hash(state);
    }
}

impl std::fmt::Debug for TlsDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TLS to {:?}", self.name)
    }
}
