//! The listening sockets of the process: bound once for each worker, and kept while the manifest has them.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket as RawSocket, Type};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::assemble::addresses::{Address, ListenerAddress};
use crate::server::admin::socket::{FileId, is_live};
use crate::server::worker::{BACKLOG, ListeningSocket, SocketChange};
use crate::system::bind_error::BindFailure;

/// All listening sockets of the process, by their addresses in the manifest.
pub struct ListeningSockets {
    workers: Vec<mpsc::UnboundedSender<SocketChange>>,
    /// The open listeners by their manifest addresses.
    open: BTreeMap<Arc<str>, OpenListener>,
    /// The addresses whose sockets the workers are closing.
    closing: Vec<ClosingAddress>,
}

/// An address whose sockets were ordered to be closed.
struct ClosingAddress {
    bound: SocketAddr,
    ordered_at: Instant,
}

/// The time within which the workers have closed a socket: they accept all clients that are queued at it before.
const CLOSING: Duration = Duration::from_secs(2);

/// A change of the listeners. New sockets are bound already, but no worker accepts at them: dropping closes them.
pub struct SocketChanges {
    new: Vec<NewSocket>,
    gone: Vec<Arc<str>>,
    /// The modes of unix sockets that stay open.
    modes: Vec<SocketMode>,
}

/// The mode that the manifest has for the file of a unix socket.
struct SocketMode {
    address: Arc<str>,
    mode: Option<u32>,
}

struct NewSocket {
    address: Arc<str>,
    open: OpenListener,
    /// The sockets, one for each worker.
    sockets: Vec<ListeningSocket>,
}

/// A listener that is bound.
struct OpenListener {
    /// The bound address for the log, with the port that the system chose.
    shown: String,
    place: BoundPlace,
}

enum BoundPlace {
    Tcp(SocketAddr),
    Unix(SocketFile),
}

/// The file of a unix socket that this process has bound. Dropping it removes the file, unless another process has
/// replaced the file.
struct SocketFile {
    path: PathBuf,
    mode: Option<u32>,
    /// The identity of the file, which no other file gets while the socket is open.
    id: FileId,
    socket: UnixListener,
    /// Whether the log says that the file is lost.
    is_reported: bool,
    /// Whether the log has said that the socket keeps a mode which the manifest no longer has.
    keeps_mode: bool,
}

impl ListeningSockets {
    /// Creates an empty set of listeners for these workers.
    pub fn new(workers: Vec<mpsc::UnboundedSender<SocketChange>>) -> Self {
        ListeningSockets { workers, open: BTreeMap::new(), closing: Vec::new() }
    }

    /// Binds the addresses that are not open yet. Nothing changes before [`ListeningSockets::apply`]. The error is about
    /// all addresses that can't be bound, each with its place in the manifest.
    pub fn bind_new(&self, wanted: &[ListenerAddress]) -> Result<SocketChanges, String> {
        let (known, unknown): (Vec<_>, Vec<_>) = wanted.iter().partition(|one| self.open.contains_key(&one.text));
        // All are checked before the first is bound, because sockets of this process would be found too.
        let checked: Vec<_> = unknown.into_iter().map(|address| (address, self.check_unused(&address.text))).collect();
        let (mut new, mut errors) = (Vec::new(), Vec::new());
        for (address, unused) in checked {
            let bound = unused.map_err(anyhow::Error::from);
            match bound.and_then(|()| NewSocket::bind(address, self.workers.len())) {
                Ok(socket) => new.push(socket),
                Err(error) => {
                    let message = format!("can't listen at {}: {error}", address.text);
                    errors.push(address.place.error(&message));
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors.join("\n\n"));
        }
        let is_wanted = |address: &Arc<str>| wanted.iter().any(|wanted| wanted.text == *address);
        let gone = self.open.keys().filter(|address| !is_wanted(address)).cloned().collect();
        let modes = known.into_iter().map(|one| SocketMode { address: one.text.clone(), mode: one.mode }).collect();
        Ok(SocketChanges { new, gone, modes })
    }

    /// Checks that no other process uses an address. Our workers share it, and so could another process, which would
    /// get a part of the connections unnoticed. Addresses that overlap one of ours can't be checked.
    fn check_unused(&self, address: &str) -> Result<(), BindFailure> {
        let Some(tcp) = tcp(address) else { return Ok(()) };
        let open = self.open.values().filter_map(|open| match &open.place {
            BoundPlace::Tcp(own) => Some(own),
            BoundPlace::Unix(_) => None,
        });
        let closing = self.closing.iter().filter(|closing| closing.ordered_at.elapsed() < CLOSING);
        let mut own = open.chain(closing.map(|closing| &closing.bound));
        let is_own = own.any(|own| Address::Tcp(*own).overlaps(&Address::Tcp(tcp)));
        let unused = || tcp_socket(tcp)?.bind(&tcp.into());
        if is_own { Ok(()) } else { unused().map_err(|error| BindFailure::tcp(tcp, error)) }
    }

    /// Makes the workers accept at new sockets, and stop accepting at removed ones.
    pub fn apply(&mut self, change: SocketChanges) {
        for NewSocket { address, open, sockets } in change.new {
            for (worker, socket) in self.workers.iter().zip(sockets) {
                let _ = worker.send(SocketChange::Open(address.clone(), socket));
            }
            info!("listening at {}", open.shown);
            self.open.insert(address, open);
        }
        for address in change.gone {
            let Some(gone) = self.open.remove(&address) else { continue };
            let shown = gone.shown.clone();
            self.closing.retain(|closing| closing.ordered_at.elapsed() < CLOSING);
            if let BoundPlace::Tcp(bound) = gone.place {
                self.closing.push(ClosingAddress { bound, ordered_at: Instant::now() });
            }
            // The file goes first: a client that found it later would be refused.
            drop(gone);
            for worker in &self.workers {
                let _ = worker.send(SocketChange::Close(address.clone()));
            }
            info!("no longer listening at {shown}");
        }
        for SocketMode { address, mode } in change.modes {
            if let Some(OpenListener { place: BoundPlace::Unix(file), .. }) = self.open.get_mut(&address) {
                file.change_mode(mode);
            }
        }
        self.restore();
    }

    /// Binds unix sockets again whose files were removed, and reports files that another process has replaced: no
    /// client reaches the listener by them.
    pub fn restore(&mut self) {
        for (address, open) in &mut self.open {
            let BoundPlace::Unix(file) = &mut open.place else { continue };
            if file.is_in_place() {
                file.is_reported = false;
                continue;
            }
            match SocketFile::bind(&file.path, file.mode)
                .and_then(|bound| Ok((bound.shared(self.workers.len())?, bound)))
            {
                Ok((sockets, bound)) => {
                    for (worker, socket) in self.workers.iter().zip(sockets) {
                        let _ = worker.send(SocketChange::Open(address.clone(), socket));
                    }
                    warn!(listener = &**address, "the file of a unix socket was removed; it is made again");
                    *file = bound;
                }
                Err(error) if !file.is_reported => {
                    let error = BindFailure::unix(&file.path, error);
                    warn!(listener = &**address, %error, "the file of a unix socket is lost, and no client reaches it");
                    file.is_reported = true;
                }
                Err(_) => {}
            }
        }
    }
}

impl NewSocket {
    fn bind(address: &ListenerAddress, workers: usize) -> anyhow::Result<Self> {
        let ListenerAddress { text, is_tls, mode, .. } = address;
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            let bound = SocketFile::bind(path, *mode).and_then(|file| Ok((file.shared(workers)?, file)));
            let (sockets, file) = bound.map_err(|error| BindFailure::unix(path, error))?;
            let open = OpenListener { shown: text.to_string(), place: BoundPlace::Unix(file) };
            return Ok(NewSocket { address: text.clone(), open, sockets });
        }
        let mut bound: SocketAddr = text.parse()?;
        let mut sockets = Vec::new();
        for _ in 0..workers {
            let listener = bind_tcp(bound).map_err(|error| BindFailure::tcp(bound, error))?;
            bound = listener.local_addr()?;
            sockets.push(ListeningSocket::Tcp(listener));
        }
        let shown = format!("http{}://{bound}", if *is_tls { "s" } else { "" });
        Ok(NewSocket { address: text.clone(), open: OpenListener { shown, place: BoundPlace::Tcp(bound) }, sockets })
    }
}

impl SocketFile {
    /// Binds a path, replacing the socket of a process that has ended. The file has this mode, or the one that the umask
    /// of the process leaves.
    fn bind(path: &Path, mode: Option<u32>) -> io::Result<Self> {
        // A socket without a listener is left from a killed process. Other files are not ours to remove.
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
        if is_socket && !is_live(path) {
            std::fs::remove_file(path)?;
        }
        let socket = RawSocket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        if let Some(mode) = mode {
            // On Linux the file gets the mode of the socket, so that it is never more open; elsewhere it is set below.
            let _ = rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(mode as _));
        }
        socket.bind(&SockAddr::unix(path)?)?;
        let id = FileId::of(&std::fs::symlink_metadata(path)?);
        let file =
            SocketFile { path: path.into(), mode, id, socket: socket.into(), is_reported: false, keeps_mode: false };
        if let Some(mode) = mode {
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        rustix::net::listen(&file.socket, BACKLOG)?;
        Ok(file)
    }

    /// Returns the socket for each worker.
    fn shared(&self, workers: usize) -> io::Result<Vec<ListeningSocket>> {
        (0..workers).map(|_| self.socket.try_clone().map(ListeningSocket::Unix)).collect()
    }

    /// Whether the path still leads to this socket.
    fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| FileId::of(&metadata) == self.id)
    }

    fn change_mode(&mut self, mode: Option<u32>) {
        match mode {
            Some(mode) if self.mode != Some(mode) && self.is_in_place() => {
                if let Err(error) = std::fs::set_permissions(&self.path, Permissions::from_mode(mode)) {
                    warn!(path = ?self.path, %error, "the mode of a unix socket can't be changed");
                }
            }
            None if self.keeps_mode => return,
            None if self.mode.is_some() => {
                self.keeps_mode = true;
                warn!(path = ?self.path, "a unix socket has its mode until the next start: the manifest no longer has `mode`");
                return;
            }
            _ => {}
        }
        (self.mode, self.keeps_mode) = (mode, false);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Parses the address of a listener; `None` if it is a path.
fn tcp(address: &str) -> Option<SocketAddr> {
    address.parse().ok()
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tcp_socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn tcp_socket(address: SocketAddr) -> io::Result<RawSocket> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}
