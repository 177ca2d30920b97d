//! The places of a worker for fetches of a cache that no client waits for, at an upstream: background revalidations, and
//! fetches that their clients have left. Each route leaves places to the others.

use std::cell::RefCell;
use std::rc::Rc;

use crate::generation::ids::RouteId;

/// The fetches of a kind at an upstream, or of responses of no upstream, that are in progress.
#[derive(Clone, Default)]
pub struct FetchPlaces {
    /// The route of each of them.
    taken: Rc<RefCell<Vec<RouteId>>>,
}

/// A fetch in progress that no client waits for, until dropped.
pub struct FetchPlace {
    taken: Rc<RefCell<Vec<RouteId>>>,
    route: RouteId,
}

/// The number of such fetches of a kind of a worker at an upstream at a time. An endpoint that answers in 10 ms revalidates 6,400
/// responses a second then; one that hangs holds 64 connections, and not one for each stored response.
pub const MAX_FETCHES: usize = 64;

/// The part that a route may take of the places that the other routes leave: three quarters. However slowly the responses
/// of some routes arrive, others find a place.
const ROUTE_PART: (usize, usize) = (3, 4);

impl FetchPlaces {
    /// Takes a place for a route; `None` if the route has its part already.
    pub fn take(&self, route: RouteId) -> Option<FetchPlace> {
        let mut taken = self.taken.borrow_mut();
        let own = taken.iter().filter(|other| **other == route).count();
        let left = MAX_FETCHES - (taken.len() - own);
        if own >= (left * ROUTE_PART.0).div_ceil(ROUTE_PART.1) || own >= left {
            return None;
        }
        taken.push(route);
        Some(FetchPlace { taken: self.taken.clone(), route })
    }
}

impl Drop for FetchPlace {
    fn drop(&mut self) {
        let mut taken = self.taken.borrow_mut();
        if let Some(index) = taken.iter().position(|route| *route == self.route) {
            taken.swap_remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::ids::ById;

    #[test]
    fn each_route_leaves_places_to_others() {
        let (places, mut held) = (FetchPlaces::default(), Vec::new());
        let routes: ById<RouteId, ()> = (0..6).map(|_| ()).collect();
        let mut fill = |route: RouteId| {
            let before = held.len();
            while let Some(place) = places.take(route) {
                held.push(place);
            }
            held.len() - before
        };
        let numbers: Vec<usize> = routes.ids().map(&mut fill).collect();
        assert_eq!(numbers, [48, 12, 3, 1, 0, 0]);
        held.clear();
        assert_eq!(places.taken.borrow().len(), 0);
    }
}
