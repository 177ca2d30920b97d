//! The connection to the server: made, watched and made again on a thread of its own.
#![expect(clippy::disallowed_methods, reason = "the thread has no clock of a worker")]

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, RedisResult, ServerErrorKind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixStream, lookup_host};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::received_bytes::{ReceivedBytes, TOO_LONG};
use super::settings::{FleetAddress, FleetFallback, FleetSettings};
use super::{Breakage, LateCommand, MAX_MESSAGE_BYTES};
use crate::net::counted_transport::CountedTransport;
use crate::net::happy_eyeballs;
use crate::system::printable::one_line;
use crate::system::supervise::{Task, guard};

/// The connection, as the workers see it.
#[derive(Clone)]
pub(super) enum Link {
    /// The first attempt to connect, or the first one after a connection was lost: calls wait for its end.
    Connecting,
    /// The server has answered a ping over this connection.
    Up { connection: MultiplexedConnection, number: u64 },
    /// The last attempt has failed with this error: calls fail at once.
    Down(Arc<str>),
}

/// The status of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkStatus {
    Connecting,
    Up,
    /// The error of the last attempt to connect.
    Down(Arc<str>),
}

/// The end of the connection that its thread has.
pub(super) struct LinkEnd {
    pub link: watch::Sender<Link>,
    /// The commands whose calls have ended before the answer was there.
    pub late: mpsc::Receiver<LateCommand>,
    pub received: Arc<ReceivedBytes>,
}

/// The thread's view of the connection.
struct Supervisor {
    settings: Arc<FleetSettings>,
    link: watch::Sender<Link>,
    late: mpsc::Receiver<LateCommand>,
    breakage: Arc<Breakage>,
    received: Arc<ReceivedBytes>,
    /// The number of the last connection.
    number: u64,
    /// Attempts that failed in a row.
    failures: u32,
    /// The last logged absence of the server; `None` while the server is available.
    logged: Option<LoggedAbsence>,
    /// The address, of those that the server's name has, that last answered.
    last: Option<SocketAddr>,
}

/// The last line of the log about an absence of the server.
struct LoggedAbsence {
    error: Arc<str>,
    at: Instant,
}

/// A stream of bytes to the server.
trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// A connection, and the future that carries its bytes.
struct Connected {
    connection: MultiplexedConnection,
    driver: Pin<Box<dyn Future<Output = ()>>>,
    /// The address of the server; `None` if it is a path.
    address: Option<SocketAddr>,
}

/// A stream to the server, before it has answered.
struct Opened {
    transport: Box<dyn Transport>,
    address: Option<SocketAddr>,
}

/// The longest time of an attempt to connect, if the calls' own timeout is not longer.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// The pause after a first failed attempt; it doubles up to [`MAX_BACKOFF`].
const BACKOFF: Duration = Duration::from_millis(50);

/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// The pause before the thread begins anew after a panic.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// A connection that was of use for less than this time counts as a failed attempt, so that a server that accepts and
/// then rejects is not connected to over and over. The time that it takes to find out comes on top.
const MIN_LIFE: Duration = Duration::from_secs(1);

/// The time after which an absence is logged again.
const LOGGED_AGAIN: Duration = Duration::from_secs(600);

/// The shortest time between two lines about an absence whose error changes.
const LOGGED_AT_MOST: Duration = Duration::from_secs(5);

/// Starts the thread, which ends when no receiver of its `link` is left.
pub(super) fn start(settings: Arc<FleetSettings>, end: LinkEnd, breakage: Arc<Breakage>) {
    let LinkEnd { link, late, received } = end;
    let supervisor =
        Supervisor { settings, link, late, breakage, received, number: 0, failures: 0, logged: None, last: None };
    let started = std::thread::Builder::new().name("shared-redis".into()).spawn(move || supervisor.run_on_thread());
    if let Err(error) = started {
        tracing::error!(%error, "the thread of the connection to Redis doesn't start");
    }
}

/// Whether an error shows that the server is none to write to, or doesn't know us any more.
pub(super) fn is_unfit(error: &RedisError) -> bool {
    let is_unfit = matches!(
        error.kind(),
        ErrorKind::AuthenticationFailed
            | ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading)
    );
    is_unfit || error.code() == Some("NOAUTH")
}

impl Link {
    pub(super) fn status(&self) -> LinkStatus {
        match self {
            Link::Connecting => LinkStatus::Connecting,
            Link::Up { .. } => LinkStatus::Up,
            Link::Down(error) => LinkStatus::Down(error.clone()),
        }
    }
}

impl Supervisor {
    fn run_on_thread(mut self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "the connection to Redis has no runtime"),
        };
        while guard(Task::Other, || runtime.block_on(self.run())).is_err() {
            self.link.send_replace(Link::Down("a panic of the connection's thread".into()));
            std::thread::sleep(PANIC_PAUSE);
        }
    }

    /// Keeps a connection until the client is dropped.
    async fn run(&mut self) {
        let closed = self.link.clone();
        let mut closed = pin!(closed.closed());
        loop {
            tokio::select! {
                () = &mut closed => return,
                pause = self.connect_once() => {
                    tokio::select! { () = &mut closed => return, () = sleep(pause) => {} }
                }
            }
        }
    }

    /// Connects, and keeps the connection as long as it is of use. Returns the pause before the next attempt.
    async fn connect_once(&mut self) -> Duration {
        let within = CONNECT_TIME.max(self.settings.timeout);
        self.received.restart();
        let attempt = timeout(within, connect(&self.settings, &self.received, within, self.last)).await;
        let Connected { connection, mut driver, address } = match attempt {
            Ok(Ok(connected)) => connected,
            _ if self.received.is_exceeded() => return self.failed(TOO_LONG),
            Ok(Err(error)) => return self.failed(&error),
            Err(_) => return self.failed(&format!("no answer within {within:?}")),
        };
        let began = Instant::now();
        self.last = address;
        self.number += 1;
        self.note_up();
        self.link.send_replace(Link::Up { connection: connection.clone(), number: self.number });
        let limit = self.settings.timeout;
        let why = tokio::select! {
            () = &mut driver => "the server closed the connection",
            () = self.breakage.of(self.number) => "the server doesn't answer as it should",
            () = answer_late(&mut self.late, connection, &self.received, self.number, limit) => "the server doesn't answer a ping",
        };
        if self.received.is_exceeded() {
            return self.failed(TOO_LONG);
        }
        // A late command and a ping take as long.
        if began.elapsed() < MIN_LIFE + 2 * limit {
            return self.failed(why);
        }
        tracing::debug!(server = %self.settings.name, why, "connection to Redis lost");
        self.failures = 0;
        self.link.send_replace(Link::Connecting);
        Duration::ZERO
    }

    /// Logs that the server is back, if the log says that it is away.
    fn note_up(&mut self) {
        if self.logged.take().is_some() {
            tracing::info!(server = %self.settings.name, "shared state: Redis is available again");
        }
    }

    /// Notes a failed attempt, and returns the pause before the next one.
    fn failed(&mut self, error: &str) -> Duration {
        let error = one_line(error, MAX_MESSAGE_BYTES);
        if self.logged.as_ref().is_none_or(|logged| logged.is_outdated(&error)) {
            self.logged = Some(LoggedAbsence { error: error.as_ref().into(), at: Instant::now() });
            let effect = match self.settings.fallback {
                FleetFallback::Error => "calls of plugins fail",
                FleetFallback::Local => "the state of this process answers",
            };
            tracing::warn!(server = %self.settings.name, %error, effect, "shared state: Redis is not available");
        }
        self.link.send_replace(Link::Down(error.as_ref().into()));
        let pause = (BACKOFF * (1 << self.failures.min(16))).min(MAX_BACKOFF);
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

/// Pings the server for late commands: answers come in the order of commands, so that a ping is answered after them, and
/// their places are free then. Returns when a ping is not answered in time.
async fn answer_late(
    late: &mut mpsc::Receiver<LateCommand>,
    mut connection: MultiplexedConnection,
    received: &ReceivedBytes,
    number: u64,
    limit: Duration,
) {
    loop {
        let mut commands = Vec::new();
        if late.recv_many(&mut commands, usize::MAX).await == 0 {
            // The client is gone, which ends the thread.
            return pending().await;
        }
        // Those of an earlier connection are not answered any more.
        commands.retain(|command| command.connection == number);
        if !commands.is_empty() && !timeout(limit, is_answering(&mut connection)).await.unwrap_or(false) {
            return;
        }
        received.settle();
    }
}

/// Whether the server answers a ping.
async fn is_answering(connection: &mut MultiplexedConnection) -> bool {
    redis::cmd("PING").query_async::<String>(connection).await.is_ok()
}

impl LoggedAbsence {
    /// Whether another line is due, for the error that the server is away for now.
    fn is_outdated(&self, error: &str) -> bool {
        self.at.elapsed() >= if *self.error == *error { LOGGED_AGAIN } else { LOGGED_AT_MOST }
    }
}

/// Opens a connection, and asks the server whether it is ready. `last` is the address that is tried first.
async fn connect(
    settings: &FleetSettings,
    received: &Arc<ReceivedBytes>,
    within: Duration,
    last: Option<SocketAddr>,
) -> Result<Connected, String> {
    let opened = open(settings, within, last).await.map_err(|error| error.to_string())?;
    let Opened { transport, address } = opened;
    let stream = CountedTransport::new(transport, received.clone());
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    // Besides the commands that have places, there are pings.
    let most = settings.commands + 1;
    let config = config.set_concurrency_limit(most).set_pipeline_buffer_size(most);
    let connected = MultiplexedConnection::new_with_config(&settings.account, stream, config).await;
    let (mut connection, driver) = connected.map_err(|error| error.to_string())?;
    let mut driver: Pin<Box<dyn Future<Output = ()>>> = Box::pin(driver);
    let ping = redis::cmd("PING");
    let answer: RedisResult<String> = tokio::select! {
        () = &mut driver => return Err("the server closed the connection".into()),
        answer = ping.query_async(&mut connection) => answer,
    };
    answer.map_err(|error| error.to_string())?;
    received.settle();
    Ok(Connected { connection, driver, address })
}

async fn open(settings: &FleetSettings, within: Duration, last: Option<SocketAddr>) -> io::Result<Opened> {
    let stream = match &settings.address {
        FleetAddress::Unix(path) => {
            return Ok(Opened { transport: Box::new(UnixStream::connect(path).await?), address: None });
        }
        FleetAddress::Tcp { host, port } => {
            let resolved: Vec<SocketAddr> = lookup_host((host.as_str(), *port)).await?.collect();
            happy_eyeballs::connect(&happy_eyeballs::ordered(&resolved, last), within).await?
        }
    };
    stream.set_nodelay(true)?;
    let address = stream.peer_addr().ok();
    let transport: Box<dyn Transport> = match &settings.tls {
        None => Box::new(stream),
        Some(tls) => Box::new(TlsConnector::from(tls.config.clone()).connect(tls.name.clone(), stream).await?),
    };
    Ok(Opened { transport, address })
}
