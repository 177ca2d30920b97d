//! Further connections with HTTP/2 to an endpoint, for when those that there are have no room for another stream. No request
//! depends on one: the endpoint may accept no more connections, and a stream may become free first.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{ConnectionRequest, Pool};
use crate::net::deadline::Clock;
use crate::system::supervise::{Task, spawn};
use crate::upstream::connection::Connection;
use crate::upstream::connection_limit::ConnectionPermit;
use crate::upstream::http2::SharedSender;
use crate::upstream::required_protocol::RequiredProtocol;
use crate::upstream::{ConnectionSettings, connect};

/// The further connection of a pool: one is opened at a time.
#[derive(Default)]
pub struct FurtherConnection {
    is_opening: Cell<bool>,
    /// The time before which no other one is opened, because the last one failed; `None` for at once.
    paused_until: Cell<Option<Instant>>,
    /// Notified when one has been opened or has failed, and when an exchange leaves a shared connection.
    pub(super) changed: Rc<Notify>,
}

/// Records the end of an attempt to open a further connection when dropped.
struct Opening(Rc<Pool>);

/// The time after a failure for which no further connection is opened.
const PAUSE: Duration = Duration::from_secs(1);

/// The interval in which a waiting request looks whether it has waited long enough.
const INTERVAL: Duration = Duration::from_millis(250);

impl Pool {
    /// Waits for a stream on whichever shared connection has one first, while a further connection is opened. After
    /// `patience`, or if none serves requests well, it gets the connection with the fewest requests, and waits there. Returns
    /// `None` if it should open a connection.
    pub async fn wait_for_stream(
        self: &Rc<Self>,
        request: &ConnectionRequest,
        patience: Duration,
        clock: &Rc<Clock>,
    ) -> Option<Box<Connection>> {
        let ConnectionRequest { limit, settings, .. } = request;
        let began = clock.now();
        loop {
            let (now, changed) = (clock.now(), self.further.changed.notified());
            if let Some(connection) = self.shared_connection(settings, limit, now) {
                return Some(connection);
            }
            let is_served = self.shared.borrow().serve(limit, settings.head, now);
            if !is_served && limit.has_room() {
                return None;
            }
            if !is_served || now.saturating_duration_since(began) >= patience {
                let sender = self.shared.borrow_mut().find_full(limit, settings.head, now)?;
                return Some(Box::new(Connection::http2(sender)));
            }
            if !self.further.is_opening.get() {
                self.open_further(request, clock);
            }
            let _ = tokio::time::timeout(INTERVAL, changed).await;
        }
    }

    /// Begins to open a further connection, unless the last one has just failed, or the limit has no room.
    fn open_further(self: &Rc<Self>, request: &ConnectionRequest, clock: &Rc<Clock>) {
        let now = clock.now();
        let is_paused = self.further.paused_until.get().is_some_and(|until| now < until);
        let Some(permit) = request.limit.try_take().filter(|_| !is_paused) else { return };
        self.further.is_opening.set(true);
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
    }

    /// Opens a connection with HTTP/2, and waits until the endpoint has said how many streams it accepts.
    async fn settled_connection(
        &self,
        permit: ConnectionPermit,
        settings: &ConnectionSettings,
    ) -> Option<SharedSender> {
        let all = self.all.upgrade();
        let terms = self.terms(RequiredProtocol::Any, settings, all.as_deref());
        let connected = connect::connect(&self.address, &terms, permit).await;
        let connection = connected.inspect_err(|error| tracing::debug!(%error, "further upstream connection")).ok()?;
        let sender = connection.shared_sender()?;
        sender.settled().await.then_some(sender)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.further.is_opening.set(false);
        self.0.further.changed.notify_waiters();
    }
}
