//! A connection to an endpoint that is being opened for a request. The request may go to another endpoint in the
//! meantime, because an address that doesn't answer must not delay requests that others could serve.
#![expect(clippy::disallowed_methods, reason = "the time of a connect is measured exactly")]

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{ConnectionRequest, Pool};
use crate::error::Error;
use crate::net::deadline::Clock;
use crate::system::supervise::{Task, spawn};
use crate::upstream::ConnectionSettings;
use crate::upstream::connect::ConnectStage;
use crate::upstream::connection::Connection;
use crate::upstream::connection_limit::ConnectionGrant;
use crate::upstream::endpoint_view::EndpointView;
use crate::upstream::health::EndpointFailure;

/// A connection that is being made. Nothing is left behind if this is dropped half-way.
pub struct PendingConnection {
    attempt: Pin<Box<dyn Future<Output = Result<Box<Connection>, Error>>>>,
    /// The progress of the connection.
    stage: Rc<Cell<ConnectStage>>,
    endpoint_view: Rc<EndpointView>,
    rules: Rc<ConnectionSettings>,
    began: Instant,
}

/// Counts a connection that is being made for no request, until dropped.
struct Stuck(Rc<Pool>);

impl PendingConnection {
    /// Prepares a connection for a client's request.
    pub fn new(
        endpoint_view: &Rc<EndpointView>,
        grant: ConnectionGrant,
        request: ConnectionRequest,
        clock: &Rc<Clock>,
    ) -> Self {
        let (stage, rules) = (request.stage.clone(), request.settings.clone());
        let (pool, clock) = (endpoint_view.pool.clone(), clock.clone());
        let attempt = Box::pin(async move { pool.open(grant, &request, &clock).await });
        PendingConnection { attempt, stage, endpoint_view: endpoint_view.clone(), rules, began: Instant::now() }
    }

    /// Returns the future of the connection, or of the error.
    pub fn attempt(&mut self) -> &mut (impl Future<Output = Result<Box<Connection>, Error>> + use<>) {
        &mut self.attempt
    }

    /// Returns the progress of the connection.
    pub fn stage(&self) -> ConnectStage {
        self.stage.get()
    }

    /// Continues without the request for a while: the connection is kept for others, or its failure is noted.
    pub fn go_on_alone(self, within: Duration) {
        let PendingConnection { attempt, endpoint_view, rules, began, .. } = self;
        let stuck = Stuck::new(&endpoint_view.pool);
        spawn(Task::UpstreamConnection, async move {
            let connected = tokio::time::timeout(within, attempt).await;
            drop(stuck);
            let now = Instant::now();
            match connected {
                Ok(Ok(connection)) => endpoint_view.pool.put_back(connection, &rules, now),
                Ok(Err(error)) if !error.kind.blames_endpoint() => {}
                Ok(Err(_)) | Err(_) => endpoint_view.record_failure(EndpointFailure::Connect, now - began, now),
            }
        });
    }
}

impl Stuck {
    fn new(pool: &Rc<Pool>) -> Self {
        pool.stuck.set(pool.stuck.get() + 1);
        Stuck(pool.clone())
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.0.stuck.set(self.0.stuck.get() - 1);
    }
}
