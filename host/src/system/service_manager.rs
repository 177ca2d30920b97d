//! Messages to the service manager that has started the process, such as systemd.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::system::background;
use crate::system::supervise::Task;

/// A state of the process that its service manager waits for.
#[derive(Clone, Copy, Debug)]
pub enum ServiceState {
    /// The process serves: all listeners accept connections.
    Serving,
    /// The process accepts no more connections and ends soon.
    Stopping,
}

/// The variable with the socket of the service manager (sd_notify(3)).
const SOCKET: &str = "NOTIFY_SOCKET";

/// Sends a state to the service manager that `NOTIFY_SOCKET` names, if there is one. The thread of the caller does not
/// wait: a manager that reads nothing would block it.
pub async fn notify(state: ServiceState) {
    #[expect(clippy::disallowed_methods, reason = "a service manager names its socket by the environment alone")]
    let Some(socket) = std::env::var_os(SOCKET).filter(|socket| !socket.is_empty()) else { return };
    let message = match state {
        ServiceState::Serving => "READY=1\n",
        ServiceState::Stopping => "STOPPING=1\n",
    };
    let shown = socket.to_string_lossy().into_owned();
    let sent = background::run(Task::Other, move || send(&socket, message));
    match tokio::time::timeout(PATIENCE, sent).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error)) | Err(error)) => {
            tracing::warn!(variable = SOCKET, socket = shown, %error, "the service manager can't be notified");
        }
        Err(_) => tracing::warn!(variable = SOCKET, socket = shown, "the service manager accepts no message"),
    }
}

fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    // Managers in containers have sockets without a file: `@` stands for the zero byte that their names begin with.
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => abstract_address(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> io::Result<SocketAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no abstract sockets"))
}

/// The maximum time for a message, which is handed over at once unless the manager reads nothing.
const PATIENCE: Duration = Duration::from_millis(500);
