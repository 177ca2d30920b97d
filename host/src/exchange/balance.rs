//! Which endpoint of an upstream gets a request: the balancer's word, or the only one there is.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use crate::context::Head;
use crate::error::{Error, Kind};
use crate::exchange::chain::BalancerEdits;
use crate::generation::Running;
use crate::plugin::configured::OnError;
use crate::plugin::instance::{Picked, Trap};
use crate::upstream::endpoint_set::Offer;
use crate::upstream::endpoint_view::{Seat, Seats};

/// Where a request goes, and what its response is to have besides.
pub struct Choice {
    pub seat: Rc<Seat>,
    pub edits: Option<BalancerEdits>,
}

/// Chooses for a request to an upstream, given by its place, that has failed at some endpoints already.
pub fn choose(running: &Running, place: usize, head: &Head, tried: &[Rc<Seat>], now: Instant) -> Result<Choice, Error> {
    let upstream = &running.generation.upstreams[place];
    let seats = running.seats(place);
    let Some(at) = upstream.balancer else { return only(&seats) };
    let binding = &running.generation.bindings[at];
    let before = places(&seats, tried);
    let picked = running.balance(place, |instance| {
        instance.pick((&binding.balancer, binding.balancer_key.as_ref()), head, before, now)
    });
    let failed = match picked.and_then(|picked| chosen(&seats, at, picked)) {
        Ok(choice) => return choice.ok_or_else(|| unavailable("the balancer found no endpoint")),
        Err(trap) => trap,
    };
    running.plugin_failed(at, "balancer", &failed, Some(head));
    let is_logged = failed.rejection().is_none();
    let error = Error { is_logged, ..Error::new(Kind::PluginError, failed) };
    match binding.on_error {
        OnError::Skip => without_balancer(&seats, tried),
        OnError::Fail => Err(error),
        OnError::Respond(status) => Err(Error { status: Some(status), ..error }),
    }
}

/// The endpoint that a balancer has picked, which has to be one that is offered.
fn chosen(seats: &Seats, binding: usize, picked: Option<Picked>) -> Result<Option<Choice>, Trap> {
    let Some(Picked { endpoint: index, edits }) = picked else { return Ok(None) };
    let count = seats.list.len();
    let seat = seats.list.get(index as usize);
    let seat = seat.ok_or_else(|| Trap::Senseless(format!("it picked endpoint {index}, and there are {count}")))?;
    if seat.offer == Offer::Draining {
        return Err(Trap::Senseless(format!("it picked endpoint {index}, `{}`, which is draining", seat.name)));
    }
    let edits = edits.map(|edits| BalancerEdits { binding, edits });
    Ok(Some(Choice { seat: seat.clone(), edits }))
}

/// The endpoint with the fewest requests in flight: what stands for a balancer that has failed and is to be skipped.
fn without_balancer(seats: &Seats, tried: &[Rc<Seat>]) -> Result<Choice, Error> {
    let was_tried = |seat: &Rc<Seat>| tried.iter().any(|tried| Arc::ptr_eq(&tried.endpoint, &seat.endpoint));
    let offered = seats.list.iter().filter(|seat| seat.offer == Offer::Up);
    let least = offered.min_by_key(|seat| (was_tried(seat), seat.endpoint.in_flight.count()));
    let seat = least.ok_or_else(|| unavailable("no endpoint is up"))?;
    Ok(Choice { seat: seat.clone(), edits: None })
}

/// The endpoint of an upstream that needs no balancer.
fn only(seats: &Seats) -> Result<Choice, Error> {
    let seat = seats.list.first().ok_or_else(|| unavailable("the upstream has no endpoint"))?;
    match seat.offer {
        Offer::Up => Ok(Choice { seat: seat.clone(), edits: None }),
        Offer::Down => Err(unavailable("the endpoint is down")),
        Offer::Draining => Err(unavailable("the endpoint is draining")),
    }
}

/// The indices of those that were tried, as far as they are still in the set.
fn places(seats: &Seats, tried: &[Rc<Seat>]) -> SmallVec<[u32; 4]> {
    let place = |tried: &Rc<Seat>| {
        let is_it = |seat: &Rc<Seat>| Arc::ptr_eq(&seat.endpoint, &tried.endpoint);
        seats.list.iter().position(is_it).map(|place| place as u32)
    };
    tried.iter().filter_map(place).collect()
}

fn unavailable(why: &'static str) -> Error {
    Error::new(Kind::DestinationUnavailable, why)
}
