//! The start of a client connection, from the accepted socket to HTTP: counts the connection, reads the PROXY header,
//! makes the TLS handshake, and detects the version of HTTP.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderValue;
use pin_project_lite::pin_project;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::context::{ClientCertificate, ClientInfo, ClientTls};
use crate::downstream::admission::{Admission, Admitted, Entrance};
use crate::downstream::{self, ClientConnection, Transport};
use crate::error::causes;
use crate::exchange::ConnectionInfo;
use crate::generation::worker_state::WorkerState;
use crate::net::boxed::boxed;
use crate::net::deadline::Clock;
use crate::net::turn::{ComputationKind, TurnOwner, in_turns};
use crate::net::waiting_bytes::WaitingBytes;
use crate::protocol::client_net::ClientNet;
use crate::protocol::http2_frames::PREFACE;
use crate::protocol::proxy_protocol::{self, ConnectionAddresses, Malformed, Parsed};
use crate::system::holder_counts::Holder;
use crate::telemetry::failure_log::{self, Topic};
use crate::tls::handshake_error::{self, TlsPeer};
use crate::tls::handshake_info::{self, HandshakeInfo};
use crate::tls::server;

/// The state that a client connection shares with the others of its worker.
#[derive(Clone)]
pub struct WorkerShared {
    pub current: Rc<RefCell<Rc<WorkerState>>>,
    pub clock: Rc<Clock>,
    /// The count of client connections, over all workers.
    pub admission: Arc<Admission>,
    /// The number of the worker.
    pub worker: usize,
}

/// Serves a socket that a listener has accepted. `addresses` is `None` for a unix socket.
pub fn serve(
    worker_shared: WorkerShared,
    stream: impl Transport,
    entrance: Entrance,
    admitted: Admitted,
    addresses: Option<ConnectionAddresses>,
) -> impl Future<Output = ()> {
    let (address, clock) = (entrance.address.clone(), worker_shared.clock.clone());
    // What comes before HTTP is over soon, and the connection may live long.
    let arriving = boxed(|| arrive(clock, stream, entrance, admitted, addresses));
    async move {
        match arriving.await {
            Ok(arrived) => {
                let (serving, admitted) = arrived.serve(worker_shared);
                serving.await;
                drop(admitted);
            }
            Err(error) => log(&address, client(addresses), &error),
        }
    }
}

/// Logs why a connection did not reach HTTP, unless its client has merely disconnected, or the limit that was met is
/// logged already.
fn log(listener: &str, client: Option<IpAddr>, error: &io::Error) {
    let is_tls = error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>());
    let is_proxy = error.get_ref().is_some_and(|cause| cause.is::<Malformed>());
    let is_late = error.kind() == io::ErrorKind::TimedOut;
    let cause = handshake_error::in_words(error, TlsPeer::Client).unwrap_or_else(|| causes(error));
    let client = client.map(|client| client.to_string());
    if is_proxy && failure_log::admits(Topic::ProxyProtocol, listener) {
        tracing::warn!(listener, client, cause, "connection without the PROXY protocol refused");
    } else if (is_tls || is_late) && failure_log::admits(Topic::Handshake, listener) {
        let limit = is_late.then_some("limits.head-timeout");
        tracing::warn!(listener, client, cause, limit, "handshake failed");
    } else {
        tracing::debug!(listener, client, cause, "connection closed before the first request");
    }
}

/// A connection on which HTTP begins.
struct NegotiatedConnection<T: Transport> {
    stream: MaybeTls<T>,
    /// The bytes that were read already.
    ahead: Bytes,
    is_http2: bool,
    arrival: ConnectionInfo,
    admitted: Admitted,
}

enum MaybeTls<T: Transport> {
    Clear(T),
    Tls(Box<TlsStream<T>>),
    /// Plain HTTP at a listener with TLS.
    Misplaced(T),
}

async fn arrive<T: Transport>(
    clock: Rc<Clock>,
    mut stream: T,
    entrance: Entrance,
    admitted: Admitted,
    mut addresses: Option<ConnectionAddresses>,
) -> io::Result<NegotiatedConnection<T>> {
    let listener = entrance.listener.clone();
    let [limit] = clock.deadlines();
    let timeout = listener.limits.head_timeout;
    let late = |step| move |_| io::Error::new(io::ErrorKind::TimedOut, format!("{step} took too long"));
    // Browsers connect in advance: a client that has sent nothing has not failed.
    let silent = |_| io::Error::from(io::ErrorKind::UnexpectedEof);
    if listener.proxies.has(client(addresses)) {
        let named = limit.limit(timeout, read_proxy_header(&mut stream)).await.map_err(late("PROXY protocol"))??;
        addresses = named.or(addresses);
    }
    // A trusted proxy has the connections of many clients, whose requests are counted individually.
    let is_trusted = listener.client.trusted.has(client(addresses));
    let counted = client(addresses).filter(|_| !is_trusted);
    if !admitted.is_client_admitted(&entrance, counted, clock.now()) {
        return Err(io::Error::other("its client has too many connections"));
    }
    let mut peer = addresses.map_or_else(|| ClientInfo::unix(&entrance.address), ClientInfo::tcp);
    peer.waiting = Arc::new(WaitingBytes::new(listener.limits.buffer as u64));
    let (stream, ahead, is_http2) = match &listener.tls {
        Some(_) if limit.limit(timeout, speaks_http(&stream)).await.map_err(silent)?? => {
            (MaybeTls::Misplaced(stream), Bytes::new(), false)
        }
        Some(acceptor) => {
            let securing = secure(acceptor, stream, ClientNet::holder(client(addresses)));
            let mut stream = limit.limit(timeout, securing).await.map_err(late("TLS handshake"))??;
            stream.get_mut().1.set_buffer_limit(Some(server::SEND_BUFFER));
            let facts = handshake_info::facts(stream.get_ref().1);
            let is_http2 = facts.alpn_h2;
            peer.secure(fields(facts));
            (MaybeTls::Tls(Box::new(stream)), Bytes::new(), is_http2)
        }
        None => {
            let sensing = clock.unless_stopping(detect_http2(&mut stream));
            let stopping = || Err(io::Error::other("the proxy is stopping"));
            let (ahead, is_http2) = limit.limit(timeout, sensing).await.map_err(silent)?.unwrap_or_else(stopping)?;
            (MaybeTls::Clear(stream), ahead, is_http2)
        }
    };
    Ok(NegotiatedConnection {
        stream,
        ahead,
        is_http2,
        arrival: ConnectionInfo {
            peer: Arc::new(peer),
            listener,
            is_trusted,
            informational: (!is_http2).then(Arc::default),
        },
        admitted,
    })
}

impl<T: Transport> NegotiatedConnection<T> {
    /// Serves HTTP on the connection, which is counted until the second is dropped.
    fn serve(self, worker_shared: WorkerShared) -> (impl Future<Output = ()>, Admitted) {
        let NegotiatedConnection { stream, ahead, is_http2, arrival, admitted } = self;
        let presence = admitted.presence();
        let client = ClientConnection { current: worker_shared.current, clock: worker_shared.clock, arrival, presence };
        let serving = match (stream, is_http2) {
            (MaybeTls::Clear(stream), false) => {
                Serving::Clear { served: downstream::http1::serve(stream, ahead, client) }
            }
            (MaybeTls::Tls(stream), false) => Serving::Tls { served: downstream::http1::serve(stream, ahead, client) },
            (MaybeTls::Misplaced(stream), _) => {
                Serving::Apart { served: boxed(|| downstream::http1::misplaced(stream, client)) }
            }
            (MaybeTls::Clear(stream), true) => {
                Serving::Apart { served: boxed(|| downstream::http2::serve(stream, ahead, client)) }
            }
            (MaybeTls::Tls(stream), true) => {
                Serving::Apart { served: boxed(|| downstream::http2::serve(stream, ahead, client)) }
            }
        };
        (serving, admitted)
    }
}

pin_project! {
    /// HTTP on a connection. Not an `async` block: that would have room for each of them, twice.
    #[project = ServingProjection]
    enum Serving<C, T> {
        Clear { #[pin] served: C },
        Tls { #[pin] served: T },
        Apart { served: Pin<Box<dyn Future<Output = ()>>> },
    }
}

impl<C: Future<Output = ()>, T: Future<Output = ()>> Future for Serving<C, T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.project() {
            ServingProjection::Clear { served } => served.poll(cx),
            ServingProjection::Tls { served } => served.poll(cx),
            ServingProjection::Apart { served } => served.as_mut().poll(cx),
        }
    }
}

fn client(addresses: Option<ConnectionAddresses>) -> Option<IpAddr> {
    addresses.map(|addresses| addresses.client.ip().to_canonical())
}

/// Reads the PROXY header of a load balancer; `None` if it names no client.
async fn read_proxy_header(stream: &mut impl Transport) -> io::Result<Option<ConnectionAddresses>> {
    let malformed = |error: Malformed| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut header = Vec::new();
    loop {
        match proxy_protocol::parse(&header).map_err(malformed)? {
            Parsed::Done(addresses) => return Ok(addresses),
            // Reads no byte beyond the header: TLS or HTTP follows. The header is short, and read once.
            Parsed::Incomplete => header.push(stream.read_u8().await?),
        }
    }
}

/// Whether the first byte is that of an HTTP method instead of a TLS record, which begins with a number below 32. The
/// byte stays unread.
async fn speaks_http(stream: &impl Transport) -> io::Result<bool> {
    let first = poll_fn(|cx| stream.poll_peek(cx)).await?;
    Ok(first.ok_or(io::ErrorKind::UnexpectedEof)?.is_ascii_uppercase())
}

/// Makes a TLS handshake in the turns of a client: one takes the worker as long as dozens of requests.
async fn secure<T: Transport>(acceptor: &TlsAcceptor, stream: T, client: Holder) -> io::Result<TlsStream<T>> {
    let mut accepting = acceptor.accept(stream);
    let step = poll_fn(|cx| {
        // A client can't finish a handshake without sending something after the answer to its ClientHello.
        let has_left = |stream: &T| stream.bytes_sent() == 0 && stream.has_ended();
        if accepting.get_ref().is_some_and(has_left) {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Pin::new(&mut accepting).poll(cx)
    });
    in_turns(TurnOwner { kind: ComputationKind::Handshakes, client }, step).await
}

/// Reads the first bytes, until they distinguish the HTTP versions.
async fn detect_http2(stream: &mut impl Transport) -> io::Result<(Bytes, bool)> {
    let mut first = Vec::with_capacity(1 << 10);
    loop {
        if stream.read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = first.len().min(PREFACE.len());
        if first[..length] != PREFACE[..length] {
            return Ok((first.into(), false));
        }
        if length == PREFACE.len() {
            return Ok((first.into(), true));
        }
    }
}

fn fields(facts: HandshakeInfo) -> ClientTls {
    let field = |text: String| HeaderValue::try_from(text).ok();
    let certificate = facts.client.map(|client| ClientCertificate {
        subject: field(client.subject),
        issuer: field(client.issuer),
        serial: field(client.serial),
        names: field(client.names),
        fingerprint: field(client.fingerprint),
    });
    ClientTls {
        version: HeaderValue::from_static(facts.version),
        cipher: field(facts.cipher),
        server_name: facts.server_name.and_then(field),
        certificate,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::net::boxed::size_of_future;
    use crate::net::byte_counter::ByteCounter;

    /// The task of a client connection is small, because each connection has one for as long as it lives, mostly idle.
    #[test]
    fn client_connection_has_a_small_task() {
        struct Arguments {
            worker: WorkerShared,
            stream: ByteCounter<UnixStream>,
            entrance: Entrance,
            admitted: Admitted,
        }
        let size = size_of_future(|arguments: Arguments| {
            serve(arguments.worker, arguments.stream, arguments.entrance, arguments.admitted, None)
        });
        assert!(size <= 384, "{size} bytes");
    }
}
