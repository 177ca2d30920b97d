//! A worker's view of an upstream's endpoints: the connections and counters of each, and the reports of outcomes.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::endpoint::{Endpoint, EndpointFigures, LimitedRequest, RequestLimit};
use super::endpoint_set::{Availability, EndpointSet, EndpointSnapshot};
use super::health::EndpointFailure;
use super::pool::{Pool, Pools};
use crate::system::holder_counts::Holder;
use crate::telemetry::failure_log::{self, Topic};

/// A worker's view of a set of endpoints, as it was at some version.
pub struct EndpointViews {
    pub members: Arc<EndpointSnapshot>,
    /// The endpoints, in the order of the set.
    pub list: Vec<Rc<EndpointView>>,
}

/// A worker's view of one endpoint.
pub struct EndpointView {
    pub endpoint: Arc<Endpoint>,
    /// The name of the endpoint, in a copy of this worker, because counting references to a shared one would contend.
    pub name: Arc<str>,
    pub pool: Rc<Pool>,
    pub offer: Availability,
    figures: Arc<EndpointFigures>,
    live: Arc<EndpointSet>,
}

/// A guard that counts one request as in flight until it is dropped.
pub struct InFlightGuard {
    endpoint_view: Rc<EndpointView>,
    _limited: LimitedRequest,
}

impl EndpointViews {
    /// Returns the view of the current set.
    pub fn new(live: &Arc<EndpointSet>, pools: &Rc<Pools>, worker: usize) -> Self {
        let members = live.members();
        let endpoint_view = |member: &super::endpoint_set::EndpointState| {
            let endpoint = member.endpoint.clone();
            let (pool, figures) = (pools.pool(&endpoint.address), endpoint.figures(worker));
            let name = Arc::from(&*endpoint.address.text);
            Rc::new(EndpointView { endpoint, name, pool, offer: member.offer, figures, live: live.clone() })
        };
        EndpointViews { list: members.list.iter().map(endpoint_view).collect(), members }
    }
}

impl EndpointView {
    /// A response began, so long after the request.
    pub fn record_answer(&self, status: StatusCode, took: Duration, now: Instant) {
        self.count(status, took);
        self.endpoint.latency.observe(took, now);
    }

    /// Records that a response arrived to its end, so that earlier failures in a row no longer count. The success is
    /// logged if the failures were.
    pub fn record_success(&self, now: Instant) {
        let mut was_logged = self.endpoint.notice.succeed();
        if self.endpoint.failures.load(Ordering::Relaxed) > 0 {
            self.endpoint.failures.store(0, Ordering::Relaxed);
            was_logged |= self.live.record_recovery(&self.endpoint, now);
        }
        if was_logged && failure_log::admits(Topic::Endpoint, self.live.name()) {
            tracing::info!(upstream = self.live.name(), endpoint = &*self.name, "endpoint answers again");
        }
    }

    /// A response began whose status counts as a failure.
    pub fn record_bad_answer(&self, status: StatusCode, took: Duration, now: Instant) {
        self.count(status, took);
        self.figures.bad_responses.add(1);
        self.in_a_row(EndpointFailure::Exchange, took, now);
    }

    /// A request failed after so long.
    pub fn record_failure(&self, failed: EndpointFailure, took: Duration, now: Instant) {
        self.figures.failures.add(1);
        self.in_a_row(failed, took, now);
    }

    fn count(&self, status: StatusCode, took: Duration) {
        self.figures.responses[usize::from(status.as_u16() / 100).min(5)].add(1);
        self.figures.latency_us.add(took.as_micros() as u64);
    }

    fn in_a_row(&self, failed: EndpointFailure, took: Duration, now: Instant) {
        self.endpoint.latency.record_failure(took, now);
        let failures = self.endpoint.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.live.record_failure(&self.endpoint, failed, failures, now);
    }
}

impl InFlightGuard {
    /// Counts a client's request as in flight at an endpoint. Returns `None` if the upstream has as many of them as `limit`
    /// allows, or the client its part. `own` is the number of times that the request is counted already.
    pub fn begin(endpoint_view: &Rc<EndpointView>, limit: &RequestLimit, client: Holder, own: u32) -> Option<Self> {
        let limited = limit.begin(client, own)?;
        if !endpoint_view.live.in_flight.begin(limit.max().saturating_add(own)) {
            return None;
        }
        endpoint_view.endpoint.in_flight.begin(u32::MAX);
        Some(InFlightGuard { endpoint_view: endpoint_view.clone(), _limited: limited })
    }

    /// The endpoint that the request is in flight at.
    pub fn endpoint_view(&self) -> &Rc<EndpointView> {
        &self.endpoint_view
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.endpoint_view.endpoint.in_flight.end();
        self.endpoint_view.live.in_flight.end();
    }
}
