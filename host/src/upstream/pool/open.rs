//! Opens connections for requests: one of the request's own, or one that others may share.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::{Acquired, ConnectionRequest, Pool, Pools};
use crate::error::Error;
use crate::net::deadline::Clock;
use crate::net::happy_eyeballs;
use crate::system::supervise::{Task, spawn};
use crate::upstream::ConnectionSettings;
use crate::upstream::client_hold::ClientHold;
use crate::upstream::connect::{self, ConnectTerms, IdleConnections};
use crate::upstream::connection::Connection;
use crate::upstream::connection_limit::ConnectionGrant;
use crate::upstream::http2::{OwnPlace, SharedSender};
use crate::upstream::required_protocol::RequiredProtocol;

/// The longest time for which requests wait for the settings of a new connection with HTTP/2. They come with the handshake
/// or within a round trip (RFC 9113 §3.4).
const SETTLING: Duration = Duration::from_secs(1);

impl Pool {
    /// Opens a new connection, or returns a shared one that another request has just opened. `grant` is for a new
    /// connection.
    pub async fn open(
        self: &Rc<Self>,
        grant: ConnectionGrant,
        request: &ConnectionRequest,
        clock: &Rc<Clock>,
    ) -> Result<Box<Connection>, Error> {
        let needs_http1 = request.wanted == RequiredProtocol::Http1 || request.settings.proxy_protocol.is_some();
        if self.exclusive.get() || needs_http1 {
            return self.open_alone(grant, request, RequiredProtocol::Http1).await;
        }
        if request.wanted == RequiredProtocol::Unshared {
            let connection = self.open_alone(grant, request, RequiredProtocol::Unshared).await?;
            self.learn_protocol(&connection);
            // An endpoint that accepts no further connection may leave one without settings.
            if let Some(sender) = connection.unshared_sender() {
                sender.settled().await;
            }
            return Ok(connection);
        }
        self.open_shareable(grant, request, clock).await
    }

    /// Opens a connection that serves one exchange at a time, and counts it for the client.
    async fn open_alone(
        &self,
        grant: ConnectionGrant,
        request: &ConnectionRequest,
        wanted: RequiredProtocol,
    ) -> Result<Box<Connection>, Error> {
        let (descriptor, all) = (self.descriptor_for(request.client)?, self.all.upgrade());
        let ConnectionGrant { permit, connection_use } = grant;
        // Counted from now on, so that no more are begun at a time than may be open.
        let own = (wanted == RequiredProtocol::Unshared).then(|| OwnPlace::new(&self.own));
        let terms = self.terms_for(request, wanted, all.as_deref());
        let mut connection = connect::connect(&self.address, &terms, permit).await?;
        own.into_iter().for_each(|own| connection.make_unshared(own));
        connection.hold(|_| ClientHold { descriptor, connection_use });
        Ok(Box::new(connection))
    }

    /// Opens a connection that others may share, one request at a time, as the first one may have room for all.
    async fn open_shareable(
        self: &Rc<Self>,
        mut grant: ConnectionGrant,
        request: &ConnectionRequest,
        clock: &Rc<Clock>,
    ) -> Result<Box<Connection>, Error> {
        let ConnectionRequest { limit, wanted, settings: rules, .. } = request;
        let all = self.all.upgrade();
        let mut first = self.first.clone().lock_owned().await;
        if let Some(connection) = self.shared_connection(rules, limit, clock.now()) {
            return Ok(connection);
        }
        if self.shared.borrow().serve(limit, rules.head, clock.now()) {
            drop((first, grant));
            if let Some(connection) = self.wait_for_stream(request, rules.patience(), clock).await {
                return Ok(connection);
            }
            grant = match self.acquire(request, clock).await? {
                Acquired::Connect(grant) => grant,
                Acquired::Use(connection) => return Ok(connection),
            };
            first = self.first.clone().lock_owned().await;
        }
        if self.exclusive.get() {
            // The first request has learned the protocol: no other has to wait.
            drop(first);
            return self.open_alone(grant, request, RequiredProtocol::Http1).await;
        }
        // A connection that others may share counts for no client once it is open.
        let ConnectionGrant { permit, connection_use: _opening } = grant;
        let terms = self.terms_for(request, *wanted, all.as_deref());
        let mut connecting = pin!(connect::connect(&self.address, &terms, permit));
        let (connected, first) = match tokio::time::timeout(happy_eyeballs::DELAY, connecting.as_mut()).await {
            Ok(connected) => (connected, Some(first)),
            // It may never open: the next request tries one of its own.
            Err(_) => {
                drop(first);
                (connecting.await, None)
            }
        };
        let connection = connected?;
        self.learn_protocol(&connection);
        let Some(sender) = connection.shared_sender() else { return Ok(Box::new(connection)) };
        first.into_iter().for_each(|first| hold_until_settled(first, &sender));
        Ok(self.share(sender, clock.now()))
    }

    /// Records that the endpoint has chosen HTTP/1 in a handshake that offered HTTP/2 too.
    fn learn_protocol(&self, connection: &Connection) {
        if connection.version() == http::Version::HTTP_11 {
            self.exclusive.set(true);
        }
    }

    /// Returns the terms of a new connection for a request.
    fn terms_for<'a>(
        &'a self,
        request: &'a ConnectionRequest,
        wanted: RequiredProtocol,
        pools: Option<&'a Pools>,
    ) -> ConnectTerms<'a> {
        let ConnectionRequest { addresses, settings, stage, .. } = request;
        ConnectTerms { addresses: *addresses, stage: Some(stage), ..self.terms(wanted, settings, pools) }
    }

    /// Returns the terms of a new connection that no client waits for.
    pub(super) fn terms<'a>(
        &'a self,
        wanted: RequiredProtocol,
        rules: &ConnectionSettings,
        pools: Option<&'a Pools>,
    ) -> ConnectTerms<'a> {
        let ConnectionSettings { proxy_protocol, head, connect_timeout: within, .. } = *rules;
        let (last, lookup) = (Some(&self.last), Some(&self.lookup));
        let idle = pools.map(|pools| pools as &dyn IdleConnections);
        ConnectTerms { wanted, addresses: None, proxy_protocol, head, within, last, lookup, stage: None, idle }
    }
}

/// Makes other requests wait for the settings of a new connection, while its first request is sent.
fn hold_until_settled(first: OwnedMutexGuard<()>, sender: &SharedSender) {
    let settled = sender.settled();
    spawn(Task::UpstreamConnection, async move {
        let _ = tokio::time::timeout(SETTLING, settled).await;
        drop(first);
    });
}
