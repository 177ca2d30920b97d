//! The choice of the endpoint for a request: by the balancer, or the only endpoint of the upstream.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind};
use crate::exchange::chain::BalancerEdits;
use crate::generation::ids::{PluginId, UpstreamId};
use crate::generation::worker_state::WorkerState;
use crate::plugin::breaker::HookKind;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::instance::Picked;
use crate::plugin::settings::OnError;
use crate::system::holder_counts::Holder;
use crate::upstream::endpoint_set::Availability;
use crate::upstream::endpoint_view::{EndpointView, EndpointViews};

/// The endpoint that a request goes to, and the edits for its response.
pub struct EndpointChoice {
    pub endpoint_view: Rc<EndpointView>,
    pub edits: Option<BalancerEdits>,
}

/// Waits until an endpoint may be chosen for a client, if the balancer takes much of the worker's time.
pub async fn turn(worker: &WorkerState, upstream_id: UpstreamId, client: Holder) {
    if let Some(balancer) = worker.generation.upstreams[upstream_id].balancer {
        worker.guards[balancer].turn(client).await;
    }
}

/// Chooses an endpoint for a request to an upstream, given by its index. The request has failed at the endpoints
/// `tried` already.
pub fn choose(
    worker: &WorkerState,
    upstream_id: UpstreamId,
    context: &ExchangeContext,
    tried: &[Rc<EndpointView>],
    now: Instant,
) -> Result<EndpointChoice, Error> {
    let upstream = &worker.generation.upstreams[upstream_id];
    let endpoint_views = worker.endpoint_views(upstream_id);
    let Some(at) = upstream.balancer else { return only(&endpoint_views) };
    let configured = &worker.generation.bindings[at];
    let before = endpoint_indices(&endpoint_views, tried);
    let picked = worker.call_balancer(upstream_id, HookKind::Balancer, context.holder(), |instance| {
        instance.pick(&configured.balancer, configured.balancer_key.as_ref(), context, before, now)
    });
    let failed = match picked.and_then(|picked| checked_choice(&endpoint_views, at, picked)) {
        Ok(choice) => return choice.ok_or_else(|| unavailable("the balancer found no endpoint")),
        Err(failure) => failure,
    };
    worker.record_plugin_failure(at, "balancer", &failed, Some(context));
    let is_logged = failed.rejection().is_none();
    let error = Error { is_logged, ..Error::new(FailureKind::PluginError, failed) };
    match configured.on_error {
        OnError::Skip => without_balancer(&endpoint_views, tried),
        OnError::Fail => Err(error),
        OnError::Respond(status) => Err(Error { status: Some(status), ..error }),
    }
}

/// Returns the endpoint that a balancer has picked; an error unless it is one of those that were offered.
fn checked_choice(
    endpoint_views: &EndpointViews,
    binding: PluginId,
    picked: Option<Picked>,
) -> Result<Option<EndpointChoice>, PluginFailure> {
    let Some(Picked { endpoint: index, edits }) = picked else { return Ok(None) };
    let count = endpoint_views.list.len();
    let endpoint_view = endpoint_views.list.get(index as usize);
    let endpoint_view = endpoint_view
        .ok_or_else(|| PluginFailure::Senseless(format!("it picked endpoint {index}, and there are {count}")))?;
    if endpoint_view.offer == Availability::Draining {
        return Err(PluginFailure::Senseless(format!(
            "it picked endpoint {index}, `{}`, which is draining",
            endpoint_view.name
        )));
    }
    let edits = edits.map(|edits| BalancerEdits { binding, edits });
    Ok(Some(EndpointChoice { endpoint_view: endpoint_view.clone(), edits }))
}

/// Returns the endpoint with the fewest requests in flight, for a balancer that has failed and is skipped.
fn without_balancer(endpoint_views: &EndpointViews, tried: &[Rc<EndpointView>]) -> Result<EndpointChoice, Error> {
    let was_tried = |endpoint_view: &Rc<EndpointView>| {
        tried.iter().any(|tried| Arc::ptr_eq(&tried.endpoint, &endpoint_view.endpoint))
    };
    let offered = endpoint_views.list.iter().filter(|endpoint_view| endpoint_view.offer == Availability::Up);
    let least =
        offered.min_by_key(|endpoint_view| (was_tried(endpoint_view), endpoint_view.endpoint.in_flight.count()));
    let endpoint_view = least.ok_or_else(|| unavailable("no endpoint is up"))?;
    Ok(EndpointChoice { endpoint_view: endpoint_view.clone(), edits: None })
}

/// The endpoint of an upstream that needs no balancer.
fn only(endpoint_views: &EndpointViews) -> Result<EndpointChoice, Error> {
    let endpoint_view = endpoint_views.list.first().ok_or_else(|| unavailable("the upstream has no endpoint"))?;
    match endpoint_view.offer {
        Availability::Up => Ok(EndpointChoice { endpoint_view: endpoint_view.clone(), edits: None }),
        Availability::Down => Err(unavailable("the endpoint is down")),
        Availability::Draining => Err(unavailable("the endpoint is draining")),
    }
}

/// Returns the indices of the endpoints that were tried, as far as they are still in the set.
fn endpoint_indices(endpoint_views: &EndpointViews, tried: &[Rc<EndpointView>]) -> SmallVec<[u32; 4]> {
    let index_of = |tried: &Rc<EndpointView>| {
        let is_it = |endpoint_view: &Rc<EndpointView>| Arc::ptr_eq(&endpoint_view.endpoint, &tried.endpoint);
        endpoint_views.list.iter().position(is_it).map(|index| index as u32)
    };
    tried.iter().filter_map(index_of).collect()
}

fn unavailable(why: &'static str) -> Error {
    Error::new(FailureKind::DestinationUnavailable, why)
}
