//! Which endpoint of an upstream gets a request: the balancer's word, or the only one there is.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind};
use crate::exchange::chain::BalancerEdits;
use crate::generation::WorkerState;
use crate::plugin::call_error::PluginFailure;
use crate::plugin::instance::Picked;
use crate::plugin::settings::OnError;
use crate::upstream::endpoint_set::Availability;
use crate::upstream::endpoint_view::{EndpointView, EndpointViews};

/// The endpoint that a request goes to, and the edits for its response.
pub struct EndpointChoice {
    pub seat: Rc<EndpointView>,
    pub edits: Option<BalancerEdits>,
}

/// Chooses for a request to an upstream, given by its place, that has failed at some endpoints already.
pub fn choose(
    worker: &WorkerState,
    place: usize,
    context: &ExchangeContext,
    tried: &[Rc<EndpointView>],
    now: Instant,
) -> Result<EndpointChoice, Error> {
    let upstream = &worker.generation.upstreams[place];
    let seats = worker.endpoint_views(place);
    let Some(at) = upstream.balancer else { return only(&seats) };
    let configured = &worker.generation.bindings[at];
    let before = endpoint_indices(&seats, tried);
    let picked = worker.call_balancer(place, |instance| {
        instance.pick(&configured.balancer, configured.balancer_key.as_ref(), context, before, now)
    });
    let failed = match picked.and_then(|picked| checked_choice(&seats, at, picked)) {
        Ok(choice) => return choice.ok_or_else(|| unavailable("the balancer found no endpoint")),
        Err(failure) => failure,
    };
    worker.plugin_failed(at, "balancer", &failed, Some(context));
    let is_logged = failed.rejection().is_none();
    let error = Error { is_logged, ..Error::new(FailureKind::PluginError, failed) };
    match configured.on_error {
        OnError::Skip => without_balancer(&seats, tried),
        OnError::Fail => Err(error),
        OnError::Respond(status) => Err(Error { status: Some(status), ..error }),
    }
}

/// The endpoint that a balancer has picked, which has to be one that is offered.
fn checked_choice(
    seats: &EndpointViews,
    binding: usize,
    picked: Option<Picked>,
) -> Result<Option<EndpointChoice>, PluginFailure> {
    let Some(Picked { endpoint: index, edits }) = picked else { return Ok(None) };
    let count = seats.list.len();
    let seat = seats.list.get(index as usize);
    let seat =
        seat.ok_or_else(|| PluginFailure::Senseless(format!("it picked endpoint {index}, and there are {count}")))?;
    if seat.offer == Availability::Draining {
        return Err(PluginFailure::Senseless(format!(
            "it picked endpoint {index}, `{}`, which is draining",
            seat.name
        )));
    }
    let edits = edits.map(|edits| BalancerEdits { binding, edits });
    Ok(Some(EndpointChoice { seat: seat.clone(), edits }))
}

/// The endpoint with the fewest requests in flight: what stands for a balancer that has failed and is to be skipped.
fn without_balancer(seats: &EndpointViews, tried: &[Rc<EndpointView>]) -> Result<EndpointChoice, Error> {
    let was_tried = |seat: &Rc<EndpointView>| tried.iter().any(|tried| Arc::ptr_eq(&tried.endpoint, &seat.endpoint));
    let offered = seats.list.iter().filter(|seat| seat.offer == Availability::Up);
    let least = offered.min_by_key(|seat| (was_tried(seat), seat.endpoint.in_flight.count()));
    let seat = least.ok_or_else(|| unavailable("no endpoint is up"))?;
    Ok(EndpointChoice { seat: seat.clone(), edits: None })
}

/// The endpoint of an upstream that needs no balancer.
fn only(seats: &EndpointViews) -> Result<EndpointChoice, Error> {
    let seat = seats.list.first().ok_or_else(|| unavailable("the upstream has no endpoint"))?;
    match seat.offer {
        Availability::Up => Ok(EndpointChoice { seat: seat.clone(), edits: None }),
        Availability::Down => Err(unavailable("the endpoint is down")),
        Availability::Draining => Err(unavailable("the endpoint is draining")),
    }
}

/// The indices of those that were tried, as far as they are still in the set.
fn endpoint_indices(seats: &EndpointViews, tried: &[Rc<EndpointView>]) -> SmallVec<[u32; 4]> {
    let place = |tried: &Rc<EndpointView>| {
        let is_it = |seat: &Rc<EndpointView>| Arc::ptr_eq(&seat.endpoint, &tried.endpoint);
        seats.list.iter().position(is_it).map(|place| place as u32)
    };
    tried.iter().filter_map(place).collect()
}

fn unavailable(why: &'static str) -> Error {
    Error::new(FailureKind::DestinationUnavailable, why)
}
