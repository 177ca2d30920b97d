//! The sockets of the admin listener: bound at the start and at reloads, retried while an address is in use, and closed
//! on shutdown, so that the next process can bind them.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::geteuid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use super::access::AdminTransport;
use super::connection::{AdminConnectionState, Connections, WatchedAdminSocket};
use super::requests::RequestHandler;
use super::socket::{self, AdminSocket};
use super::{Admin, DEFAULT_ADDRESS, text};
use crate::assemble::admin::{AdminAddress, AdminSettings};
use crate::system::bind_error::BindFailure;
use crate::system::supervise::{Task, spawn_turns, supervised};

/// The time between two attempts to bind an address in use, and between two checks whether a socket was removed.
const RETRY: Duration = Duration::from_secs(10);

/// The time between two checks for connections that exceed their time limits.
const SWEEP: Duration = Duration::from_secs(1);

/// The pause after a failed accept, which is caused by missing descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The maximum length of a request head, in bytes; hyper's minimum is 8 KiB. Purged URIs and the fields of browsers may
/// be long.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// The maximum number of fields; browsers send some twenty.
const MAX_FIELDS: usize = 64;

/// The admin listeners of the process. Dropping closes them; current responses are finished.
pub struct AdminListeners {
    answers: Rc<RequestHandler>,
    open: Vec<OpenPlace>,
}

/// Other settings of the admin listeners, whose new addresses are bound.
pub struct AdminChange {
    settings: AdminSettings,
    opened: Vec<OpenPlace>,
}

/// An address or path at which the admin listener is configured.
#[derive(Clone, PartialEq, Eq)]
enum AdminPlace {
    Tcp(SocketAddr),
    Socket(PathBuf),
    /// The default socket, found by the manifest's path; its file name.
    DefaultSocket(String),
}

/// Whether a failure to bind is an error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AdminNeed {
    /// The manifest names the address: a failure to bind it is an error.
    Required,
    /// The address is a default: a failure is logged, and binding is retried.
    Optional,
}

/// An address that is bound, or that is being retried.
struct OpenPlace {
    place: AdminPlace,
    is_bound: Rc<Cell<bool>>,
    /// The stop signal: when dropped, the task that serves the address ends.
    _stop: watch::Sender<()>,
}

enum Bound {
    Tcp(TcpListener),
    Socket(AdminSocket),
}

trait AdminStream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> AdminStream for T {}

struct Accepted {
    stream: Box<dyn AdminStream>,
    transport: AdminTransport,
}

/// A reason why an address is no longer served.
enum ServeEnd {
    Stopped,
    /// The file of the unix socket was removed.
    Removed,
}

impl AdminListeners {
    /// Listens at the addresses of the settings.
    pub async fn start(wanted: &AdminSettings, admin: Arc<Admin>) -> anyhow::Result<Self> {
        let answers = Rc::new(RequestHandler::new(admin, wanted.clone()));
        let mut listeners = AdminListeners { answers, open: Vec::new() };
        let change = listeners.prepare(wanted).await?;
        listeners.apply(change);
        Ok(listeners)
    }

    /// Listens at the addresses of other settings that are new. The settings are obeyed once they are applied; until then
    /// the change can be dropped, which closes the new addresses.
    pub async fn prepare(&self, wanted: &AdminSettings) -> anyhow::Result<AdminChange> {
        let mut opened = Vec::new();
        for (place, need) in &places(wanted) {
            if !self.is_bound(place) {
                opened.push(OpenPlace::start(place, *need, &self.answers).await?);
            }
        }
        Ok(AdminChange { settings: wanted.clone(), opened })
    }

    /// Applies other settings, and closes the addresses that they don't have.
    pub fn apply(&mut self, change: AdminChange) {
        let AdminChange { settings, mut opened } = change;
        let places = places(&settings);
        self.open.retain(|open| open.is_bound.get() && places.iter().any(|(place, _)| *place == open.place));
        opened.retain(|opened| !self.is_bound(&opened.place));
        self.open.append(&mut opened);
        self.answers.obey(settings);
    }

    fn is_bound(&self, place: &AdminPlace) -> bool {
        self.open.iter().any(|open| open.place == *place && open.is_bound.get())
    }
}

/// Returns the addresses that settings ask for.
fn places(wanted: &AdminSettings) -> Vec<(AdminPlace, AdminNeed)> {
    let named = match &wanted.address {
        AdminAddress::Off => return Vec::new(),
        AdminAddress::Default => (AdminPlace::Tcp(DEFAULT_ADDRESS), AdminNeed::Optional),
        AdminAddress::At(address) => (AdminPlace::Tcp(*address), AdminNeed::Required),
        AdminAddress::Unix(path) => (AdminPlace::Socket(path.clone()), AdminNeed::Required),
    };
    let default = AdminPlace::DefaultSocket(socket::name_of(wanted.manifest.as_deref()));
    vec![named, (default, AdminNeed::Optional)]
}

impl AdminPlace {
    async fn bind(&self) -> anyhow::Result<Bound> {
        let bound = match self {
            AdminPlace::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                Bound::Tcp(listener.map_err(|error| BindFailure::tcp(*address, error))?)
            }
            AdminPlace::Socket(path) => {
                Bound::Socket(socket::bind(path).map_err(|error| BindFailure::unix(path, error))?)
            }
            AdminPlace::DefaultSocket(name) => Bound::Socket(socket::bind_default(name).await?),
        };
        match &bound {
            Bound::Tcp(listener) => info!("admin at http://{}", listener.local_addr()?),
            Bound::Socket(socket) => info!("admin socket at {}", socket.path.display()),
        }
        Ok(bound)
    }
}

impl fmt::Display for AdminPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminPlace::Tcp(address) => address.fmt(f),
            AdminPlace::Socket(path) => write!(f, "unix:{}", path.display()),
            AdminPlace::DefaultSocket(name) => f.write_str(name),
        }
    }
}

impl OpenPlace {
    /// Binds an address and serves it; an optional one is retried later if that fails.
    async fn start(place: &AdminPlace, need: AdminNeed, answers: &Rc<RequestHandler>) -> anyhow::Result<Self> {
        let bound = match place.bind().await {
            Ok(bound) => Some(bound),
            Err(error) if need == AdminNeed::Required => {
                let remedy = "or set `address` in [admin] to another one, or to \"off\"";
                return Err(anyhow::anyhow!("cannot listen at {place} for the admin listener: {error}; {remedy}"));
            }
            Err(error) => {
                warn!(address = %place, error = format!("{error:#}"), remedy = place.remedy(), "no admin listener");
                None
            }
        };
        let (stop, stopping) = watch::channel(());
        let is_bound = Rc::new(Cell::new(bound.is_some()));
        spawn_turns(Task::Admin, keep(place.clone(), bound, is_bound.clone(), answers.clone(), stopping));
        Ok(OpenPlace { place: place.clone(), is_bound, _stop: stop })
    }
}

impl AdminPlace {
    fn remedy(&self) -> &'static str {
        match self {
            AdminPlace::Tcp(_) => "free the port, or set `address` in [admin] to another one, or to \"off\"",
            _ => "reload by SIGHUP, or over TCP with `token-file` in [admin]",
        }
    }
}

/// Serves an address until stopped; retries binding while the address is in use.
async fn keep(
    place: AdminPlace,
    mut bound: Option<Bound>,
    is_bound: Rc<Cell<bool>>,
    answers: Rc<RequestHandler>,
    mut stopping: watch::Receiver<()>,
) {
    loop {
        if let Some(bound) = bound.take() {
            is_bound.set(true);
            match serve(bound, &answers, &mut stopping).await {
                ServeEnd::Stopped => return,
                ServeEnd::Removed => warn!("the admin socket was removed; it is made again"),
            }
        } else {
            tokio::select! {
                _ = stopping.changed() => return,
                () = sleep(RETRY) => {}
            }
        }
        is_bound.set(false);
        bound = place.bind().await.ok();
    }
}

/// Accepts connections and watches their time limits until the stop signal, and then finishes current requests.
async fn serve(bound: Bound, answers: &Rc<RequestHandler>, stopping: &mut watch::Receiver<()>) -> ServeEnd {
    let (connections, mut tasks) = (Rc::new(Connections::default()), JoinSet::new());
    let (mut sweep, mut look) = (interval(SWEEP), interval(RETRY));
    [&mut sweep, &mut look].into_iter().for_each(|ticks| ticks.set_missed_tick_behavior(MissedTickBehavior::Delay));
    let end = loop {
        tokio::select! {
            _ = stopping.changed() => break ServeEnd::Stopped,
            accepted = bound.accept() => match accepted {
                Ok(accepted) if connections.make_room() => open(&connections, &mut tasks, accepted, answers),
                Ok(_) => {}
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
            _ = sweep.tick() => connections.close_late(Instant::now()),
            _ = look.tick() => if !bound.is_in_place() {
                break ServeEnd::Removed;
            },
            Some(_) = tasks.join_next() => {}
        }
        // A new connection reads the bytes that have arrived before another one may evict it.
        tokio::task::yield_now().await;
    };
    // The address is free from here on.
    drop(bound);
    connections.stop(Instant::now());
    while !tasks.is_empty() {
        tokio::select! {
            _ = sweep.tick() => connections.close_late(Instant::now()),
            Some(_) = tasks.join_next() => {}
        }
    }
    end
}

fn open(connections: &Rc<Connections>, tasks: &mut JoinSet<()>, accepted: Accepted, answers: &Rc<RequestHandler>) {
    connections.add(Instant::now(), |state, id| {
        let place = ConnectionPlace { connections: connections.clone(), id };
        tasks.spawn_local(converse(accepted, place, state, answers.clone()))
    });
}

/// A connection's entry in the list of all, removed when dropped.
struct ConnectionPlace {
    connections: Rc<Connections>,
    id: u64,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.connections.remove(self.id);
    }
}

/// Answers the requests of a connection in sequence.
async fn converse(
    accepted: Accepted,
    place: ConnectionPlace,
    state: Rc<AdminConnectionState>,
    answers: Rc<RequestHandler>,
) {
    let Accepted { stream, transport } = accepted;
    let connections = &place.connections;
    let service = service_fn(|request| {
        let (answers, state) = (&answers, &state);
        async move {
            let answered = supervised(Task::Admin, answers.answer(request, transport, state, connections)).await;
            Ok::<_, Infallible>(answered.unwrap_or_else(|panicked| {
                text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{panicked}\n"))
            }))
        }
    });
    let socket = TokioIo::new(WatchedAdminSocket::new(stream, state.clone()));
    let mut http = http1::Builder::new();
    // The error concerns only the client.
    let _ = http.max_buf_size(MAX_HEAD_BYTES).max_headers(MAX_FIELDS).serve_connection(socket, service).await;
}

impl Bound {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Bound::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let is_loopback = stream.local_addr()?.ip().to_canonical().is_loopback();
                let transport = if is_loopback { AdminTransport::Loopback } else { AdminTransport::Network };
                Ok(Accepted { stream: Box::new(stream), transport })
            }
            Bound::Socket(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                let transport = transport_of(&stream)?;
                Ok(Accepted { stream: Box::new(stream), transport })
            }
        }
    }

    fn is_in_place(&self) -> bool {
        matches!(self, Bound::Tcp(_)) || matches!(self, Bound::Socket(socket) if socket.is_in_place())
    }
}

/// Returns the transport of a unix socket. The owner's processes are those of our own user and of root, which could
/// control us anyway.
fn transport_of(stream: &UnixStream) -> io::Result<AdminTransport> {
    let user = stream.peer_cred()?.uid();
    let is_owner = user == geteuid().as_raw() || user == 0;
    Ok(if is_owner { AdminTransport::Owner } else { AdminTransport::OtherUser })
}
