//! Further connections with HTTP/2 to an endpoint, for when those that there are have no room for another stream. No request
//! depends on one: the endpoint may accept no more connections, and a stream may become free first.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::connect::{self, ConnectTerms};
use super::connection::{Connection, SharedSender};
use super::connection_limit::ConnectionPermit;
use super::required_protocol::RequiredProtocol;
use super::{ConnectionRequest, ConnectionSettings, Pool};
use crate::net::deadline::Clock;
use crate::system::supervise::{Task, spawn};

/// The further connection of a pool: one is opened at a time.
#[derive(Default)]
pub struct FurtherConnection {
    /// The time since which one is being opened; `None` if none is.
    since: Cell<Option<Instant>>,
    /// The time before which no other one is opened, because the last one failed; `None` for at once.
    paused_until: Cell<Option<Instant>>,
    /// Notified when one has been opened, or has failed.
    ended: Notify,
}

/// Records the end of an attempt to open a further connection when dropped.
struct Opening(Rc<Pool>);

/// The time for which requests wait for a further connection before they wait for a stream of a full one. It is shorter than
/// the time after which a request goes to another endpoint.
const PATIENCE: Duration = Duration::from_millis(200);

/// The time after a failure for which no further connection is opened.
const PAUSE: Duration = Duration::from_secs(1);

/// The interval in which a waiting request looks for a stream that has become free.
const INTERVAL: Duration = Duration::from_millis(20);

impl Pool {
    /// Waits for a stream on a shared connection, while a further one is opened. If that takes too long, the request gets the
    /// connection with the fewest requests, and waits there. Returns `None` if there is no shared connection any more.
    pub(super) async fn wait_for_stream(
        self: &Rc<Self>,
        request: &ConnectionRequest,
        clock: &Rc<Clock>,
    ) -> Option<Box<Connection>> {
        let ConnectionRequest { limit, settings, .. } = request;
        loop {
            let now = clock.now();
            if let Some(connection) = self.shared_connection(settings, limit, now) {
                return Some(connection);
            }
            if !self.shared.borrow().serve(limit, settings.head) {
                return None;
            }
            let is_expected = match self.further.since.get() {
                Some(since) => now.saturating_duration_since(since) < PATIENCE,
                None => self.open_further(request, clock),
            };
            if !is_expected {
                let sender = self.shared.borrow_mut().find_full(limit, settings.head, now)?;
                return Some(Box::new(Connection::of_shared(sender)));
            }
            let _ = tokio::time::timeout(INTERVAL, self.further.ended.notified()).await;
        }
    }

    /// Begins to open a further connection. Returns `false` if the last one has just failed, or the limit has no room.
    fn open_further(self: &Rc<Self>, request: &ConnectionRequest, clock: &Rc<Clock>) -> bool {
        let now = clock.now();
        let is_paused = self.further.paused_until.get().is_some_and(|until| now < until);
        let Some(permit) = request.limit.try_take().filter(|_| !is_paused) else { return false };
        self.further.since.set(Some(now));
        let opening = Opening(self.clone());
        let (settings, clock) = (request.settings.clone(), clock.clone());
        spawn(Task::UpstreamConnection, async move {
            let pool = &opening.0;
            let opened = tokio::time::timeout(settings.connect_timeout, pool.settled_connection(permit, &settings));
            match opened.await.ok().flatten() {
                Some(sender) => drop(pool.share(sender, clock.now())),
                None => pool.further.paused_until.set(Some(clock.now() + PAUSE)),
            }
        });
        true
    }

    /// Opens a connection with HTTP/2, and waits until the endpoint has said how many streams it accepts.
    async fn settled_connection(
        &self,
        permit: ConnectionPermit,
        settings: &ConnectionSettings,
    ) -> Option<SharedSender> {
        let all = self.all.upgrade();
        let terms = ConnectTerms {
            wanted: RequiredProtocol::Any,
            addresses: None,
            proxy_protocol: None,
            head: settings.head,
            within: settings.connect_timeout,
            last: Some(&self.last),
            lookup: Some(&self.lookup),
            stage: None,
            pools: all.as_deref(),
        };
        let connected = connect::connect(&self.address, &terms, permit).await;
        let connection = connected.inspect_err(|error| tracing::debug!(%error, "further upstream connection")).ok()?;
        let sender = connection.shared_sender()?;
        sender.settled().await.then_some(sender)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.further.since.set(None);
        self.0.further.ended.notify_waiters();
    }
}
