//! The connections of an admin listener: their number, the time limit of each phase, and which one is closed for a new
//! one.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;

/// The maximum number of concurrent connections of a listener. Monitoring needs a few, a person one.
pub const MAX_CONNECTIONS: usize = 64;

/// The timeout for a request head, and for the first one after connecting: local clients send it at once.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// The timeout between requests, longer than the usual interval of monitoring systems.
const IDLE_TIME: Duration = Duration::from_secs(75);

/// The timeout for a client that accepts no data of a response.
const STALL_TIME: Duration = Duration::from_secs(10);

/// The timeout for a whole response, however slowly the client reads; Prometheus gives up after 10 s by default.
const SEND_TIME: Duration = Duration::from_secs(60);

/// The maximum size of different documents that are being sent, in bytes. Beyond it the slowest reader is closed, so
/// that readers that do not read can't make the process keep more.
const MAX_UNSENT_BYTES: usize = 64 << 20;

/// The open connections of an admin listener.
#[derive(Default)]
pub struct Connections {
    open: RefCell<BTreeMap<u64, OpenConnection>>,
    opened: Cell<u64>,
    is_stopping: Cell<bool>,
}

struct OpenConnection {
    state: Rc<AdminConnectionState>,
    task: AbortHandle,
}

/// The state of a connection, updated by its socket and its requests.
pub struct AdminConnectionState {
    phase: Cell<AdminPhase>,
    /// The time when the phase began, or when the client last accepted data.
    since: Cell<Instant>,
    /// The time when the last response began.
    answered: Cell<Instant>,
    /// The document that is being sent; `None` if there is none.
    sending: RefCell<Option<Bytes>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdminPhase {
    /// The connection is open, and the client has sent nothing yet.
    New,
    /// A part of a request head has arrived.
    Head,
    /// The connection is between two requests.
    Idle,
    /// A response is being sent.
    Sending,
    /// A document is being created.
    Reading,
    /// A command is being carried out, for a client that is allowed to send it.
    Changing,
}

impl Connections {
    /// Adds a connection, which `start` begins to serve.
    pub fn add(&self, now: Instant, start: impl FnOnce(Rc<AdminConnectionState>, u64) -> AbortHandle) {
        let id = self.opened.get();
        self.opened.set(id + 1);
        let state = Rc::new(AdminConnectionState::new(now));
        let task = start(state.clone(), id);
        self.open.borrow_mut().insert(id, OpenConnection { state, task });
    }

    /// Removes a connection that has ended.
    pub fn remove(&self, id: u64) {
        self.open.borrow_mut().remove(&id);
    }

    /// Makes room for a connection, if necessary by closing the one with the least progress; `false` if there is no
    /// room.
    pub fn make_room(&self) -> bool {
        let mut open = self.open.borrow_mut();
        if open.len() < MAX_CONNECTIONS {
            return true;
        }
        let can_go = open.iter().filter(|(_, open)| open.state.phase.get() != AdminPhase::Changing);
        let first = can_go.min_by_key(|(_, open)| (open.state.phase.get(), open.state.since.get())).map(|(id, _)| *id);
        first.and_then(|id| open.remove(&id)).is_some_and(|closed| closed.close("a new connection needs its place"))
    }

    /// Closes the connections that exceed the time limit of their phase.
    pub fn close_late(&self, now: Instant) {
        let is_stopping = self.is_stopping.get();
        self.open.borrow_mut().retain(|_, open| !(open.state.is_late(now, is_stopping) && open.close("timeout")));
    }

    /// Finishes requests that are being served, and closes all other connections.
    pub fn stop(&self, now: Instant) {
        self.is_stopping.set(true);
        self.close_late(now);
    }

    /// Whether connections close after the current response.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.get()
    }

    /// Notes that a connection sends a document. Slow readers of other documents may be closed for that.
    pub fn send(&self, state: &Rc<AdminConnectionState>, document: Bytes, now: Instant) {
        state.answered.set(now);
        state.enter(AdminPhase::Sending, now);
        *state.sending.borrow_mut() = Some(document);
        let mut open = self.open.borrow_mut();
        while sending(&open) > MAX_UNSENT_BYTES {
            let others = open.iter().filter(|(_, open)| !Rc::ptr_eq(&open.state, state));
            let slow = others.filter(|(_, open)| open.state.sending.borrow().is_some());
            let Some(id) = slow.min_by_key(|(_, open)| open.state.answered.get()).map(|(id, _)| *id) else { break };
            if let Some(closed) = open.remove(&id) {
                closed.close("it reads too slowly");
            }
        }
    }
}

/// Returns the total size of the different documents that are being sent, in bytes.
fn sending(open: &BTreeMap<u64, OpenConnection>) -> usize {
    let documents = open.values().filter_map(|open| open.state.sending.borrow().clone());
    documents.map(|document| (document.as_ptr(), document.len())).collect::<HashMap<_, _>>().values().sum()
}

impl OpenConnection {
    fn close(&self, why: &str) -> bool {
        tracing::debug!(why, phase = ?self.state.phase.get(), "admin connection closed");
        self.task.abort();
        true
    }
}

impl AdminConnectionState {
    fn new(now: Instant) -> Self {
        let (since, answered) = (Cell::new(now), Cell::new(now));
        AdminConnectionState { phase: Cell::new(AdminPhase::New), since, answered, sending: RefCell::default() }
    }

    /// Enters a phase.
    pub fn enter(&self, phase: AdminPhase, now: Instant) {
        self.phase.set(phase);
        self.since.set(now);
    }

    fn is_late(&self, now: Instant, is_stopping: bool) -> bool {
        let waited = now.saturating_duration_since(self.since.get());
        match self.phase.get() {
            AdminPhase::New | AdminPhase::Head | AdminPhase::Idle if is_stopping => true,
            AdminPhase::New | AdminPhase::Head => waited > HEAD_TIME,
            AdminPhase::Idle => waited > IDLE_TIME,
            AdminPhase::Sending => {
                waited > STALL_TIME || now.saturating_duration_since(self.answered.get()) > SEND_TIME
            }
            AdminPhase::Reading => waited > SEND_TIME,
            // The duration is bounded by the command itself.
            AdminPhase::Changing => false,
        }
    }
}

/// A socket that records its progress in the state of its connection.
pub struct WatchedAdminSocket<S> {
    socket: S,
    state: Rc<AdminConnectionState>,
}

impl<S> WatchedAdminSocket<S> {
    /// Wraps a socket.
    pub fn new(socket: S, state: Rc<AdminConnectionState>) -> Self {
        WatchedAdminSocket { socket, state }
    }

    fn wrote(&self, count: usize) {
        if count > 0 {
            self.state.enter(AdminPhase::Sending, Instant::now());
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedAdminSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        if buffer.filled().len() > before && matches!(self.state.phase.get(), AdminPhase::New | AdminPhase::Idle) {
            self.state.enter(AdminPhase::Head, Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedAdminSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes))?;
        self.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, slices))?;
        self.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// Records the end of a response: hyper flushes when all of the response is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        if self.state.phase.get() == AdminPhase::Sending {
            self.state.enter(AdminPhase::Idle, Instant::now());
            self.state.sending.take();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
