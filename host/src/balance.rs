//! Which endpoint of an upstream gets a request: the balancer's word, or the only one there is.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use crate::edit::Edit;
use crate::error::{Error, Kind};
use crate::generation::Running;
use crate::head::Head;
use crate::plugin::instance::Picked;
use crate::upstream::live::Offer;
use crate::upstream::seats::{Seat, Seats};

/// Where a request goes, and what its response is to have besides.
pub struct Choice {
    pub seat: Rc<Seat>,
    pub edits: Option<Arc<[Edit]>>,
}

/// Chooses for a request to an upstream, given by its place, that has failed at some endpoints already.
pub fn choose(running: &Running, place: usize, head: &Head, tried: &[Rc<Seat>], now: Instant) -> Result<Choice, Error> {
    let upstream = &running.generation.upstreams[place];
    let seats = running.seats(place);
    let Some(at) = upstream.balancer else { return only(&seats) };
    let binding = &running.generation.bindings[at];
    let tried = places(&seats, tried);
    let picked = running
        .balance(place, |instance| instance.pick((&binding.balancer, binding.balancer_key.as_ref()), head, tried, now));
    let picked = picked.inspect_err(|trap| running.plugin_failed(at, "balancer", trap, Some(head)));
    let picked = picked.map_err(|trap| Error::new(Kind::PluginError, trap))?;
    let Picked { endpoint: index, edits } = picked.ok_or_else(|| unavailable("the balancer found no endpoint"))?;
    let seat = seats.list.get(index as usize).filter(|seat| seat.offer != Offer::Draining).cloned();
    let none = || Error::new(Kind::PluginError, format!("the balancer chose endpoint {index}, which it may not"));
    Ok(Choice { seat: seat.ok_or_else(none)?, edits })
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
