//! The listening sockets of the process: bound once for each worker, and kept while the manifest has them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::sync::mpsc;
use tracing::info;

use crate::assemble::addresses::ListenerAddress;
use crate::server::admin::socket::is_live;
use crate::server::worker::{BACKLOG, ListeningSocket, SocketChange};
use crate::system::bind_error::BindFailure;

/// All listening sockets of the process, by their addresses in the manifest.
pub struct ListeningSockets {
    workers: Vec<mpsc::UnboundedSender<SocketChange>>,
    /// The open listeners by their manifest addresses, each with the address for the log.
    open: BTreeMap<Arc<str>, String>,
}

/// A change of the listeners. New sockets are bound already, but no worker accepts at them: dropping closes them.
pub struct SocketChanges {
    new: Vec<NewSocket>,
    gone: Vec<Arc<str>>,
}

struct NewSocket {
    address: Arc<str>,
    /// The bound address, with the port that the system chose.
    shown: String,
    /// The sockets, one for each worker.
    sockets: Vec<ListeningSocket>,
}

impl ListeningSockets {
    /// Creates an empty set of listeners for these workers.
    pub fn new(workers: Vec<mpsc::UnboundedSender<SocketChange>>) -> Self {
        ListeningSockets { workers, open: BTreeMap::new() }
    }

    /// Binds the addresses that are not open yet. Nothing changes before [`ListeningSockets::apply`]. The error is about
    /// all addresses that can't be bound, each with its place in the manifest.
    pub fn bind_new(&self, wanted: &[ListenerAddress]) -> Result<SocketChanges, String> {
        let mut own: BTreeSet<u16> =
            self.open.keys().filter_map(|address| tcp(address)).map(|tcp| tcp.port()).collect();
        let (mut new, mut errors) = (Vec::new(), Vec::new());
        for address in wanted.iter().filter(|wanted| !self.open.contains_key(&wanted.text)) {
            let unused = match tcp(&address.text) {
                Some(tcp) if own.insert(tcp.port()) => {
                    check_unused(tcp).map_err(|error| BindFailure::tcp(tcp, error).into())
                }
                _ => Ok(()),
            };
            match unused.and_then(|()| NewSocket::bind(&address.text, address.is_tls, self.workers.len())) {
                Ok(socket) => new.push(socket),
                Err(error) => {
                    let message = format!("can't listen at {}: {error}", address.text);
                    errors.push(address.place.error(&message));
                }
            }
        }
        let is_wanted = |address: &Arc<str>| wanted.iter().any(|wanted| wanted.text == *address);
        let gone = self.open.keys().filter(|address| !is_wanted(address)).cloned().collect();
        if errors.is_empty() { Ok(SocketChanges { new, gone }) } else { Err(errors.join("\n\n")) }
    }

    /// Makes the workers accept at new sockets, and stop accepting at removed ones.
    pub fn apply(&mut self, change: SocketChanges) {
        for NewSocket { address, shown, sockets } in change.new {
            for (worker, socket) in self.workers.iter().zip(sockets) {
                let _ = worker.send(SocketChange::Open(address.clone(), socket));
            }
            info!("listening at {shown}");
            self.open.insert(address, shown);
        }
        for address in change.gone {
            for worker in &self.workers {
                let _ = worker.send(SocketChange::Close(address.clone()));
            }
            let shown = self.open.remove(&address);
            unlink(&address);
            info!("no longer listening at {}", shown.as_deref().unwrap_or(&address));
        }
    }
}

impl Drop for ListeningSockets {
    fn drop(&mut self) {
        self.open.keys().for_each(|address| unlink(address));
    }
}

impl NewSocket {
    fn bind(address: &Arc<str>, is_tls: bool, workers: usize) -> anyhow::Result<Self> {
        if let Some(path) = address.strip_prefix("unix:") {
            let listener = bind_unix(path).map_err(|error| BindFailure::unix(Path::new(path), error))?;
            let shared = |_| Ok(ListeningSocket::Unix(listener.try_clone()?));
            let sockets = (0..workers).map(shared).collect::<std::io::Result<_>>()?;
            return Ok(NewSocket { address: address.clone(), shown: address.to_string(), sockets });
        }
        let mut bound: SocketAddr = address.parse()?;
        let mut sockets = Vec::new();
        for _ in 0..workers {
            let listener = bind_tcp(bound).map_err(|error| BindFailure::tcp(bound, error))?;
            bound = listener.local_addr()?;
            sockets.push(ListeningSocket::Tcp(listener));
        }
        Ok(NewSocket {
            address: address.clone(),
            shown: format!("http{}://{bound}", if is_tls { "s" } else { "" }),
            sockets,
        })
    }
}

/// Parses the address of a listener; `None` if it is a path.
fn tcp(address: &str) -> Option<SocketAddr> {
    address.parse().ok()
}

/// Checks that no other process uses a port. Our workers share the port, and so could another process, which would get
/// a part of the connections unnoticed.
fn check_unused(address: SocketAddr) -> std::io::Result<()> {
    tcp_socket(address)?.bind(&address.into())
}

fn bind_tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = tcp_socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn tcp_socket(address: SocketAddr) -> std::io::Result<RawSocket> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn bind_unix(path: &str) -> std::io::Result<UnixListener> {
    // A socket without a listener is left from a killed process. Other files are not ours to remove.
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && !is_live(Path::new(path)) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Removes the file of a unix socket that this process has created.
fn unlink(address: &str) {
    if let Some(path) = address.strip_prefix("unix:") {
        let _ = std::fs::remove_file(path);
    }
}
