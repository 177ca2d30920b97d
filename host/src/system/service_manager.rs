//! Messages to the service manager that has started the process, such as systemd.

use std::time::Duration;

use sd_notify::NotifyState;

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

/// Sends a state to the service manager that `NOTIFY_SOCKET` names, if there is one. The thread of the caller does not
/// wait: a manager that reads nothing would block it.
pub async fn notify(state: ServiceState) {
    let message = match state {
        ServiceState::Serving => NotifyState::Ready,
        ServiceState::Stopping => NotifyState::Stopping,
    };
    let sent = background::run(Task::Other, move || sd_notify::notify(&[message]));
    match tokio::time::timeout(PATIENCE, sent).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error)) | Err(error)) => tracing::warn!(%error, "the service manager can't be notified"),
        Err(_) => tracing::warn!("the service manager accepts no message"),
    }
}

/// The maximum time for a message, which is handed over at once unless the manager reads nothing.
const PATIENCE: Duration = Duration::from_millis(500);
