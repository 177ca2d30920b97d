//! The clients whose calls have cost most lately, in a summary of fixed size.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::system::holder_counts::Holder;

/// The clients whose calls have cost most lately. The cost of a client that has a place is never counted too low, and too high
/// by no more than a [`PLACES`]th of all: a client without a place gets that of the client with the lowest cost, and its count.
pub(super) struct HeavyClients {
    places: RefCell<[ClientCost; PLACES]>,
    /// The cost of all clients.
    total: Cell<i64>,
    /// The time until which old costs have lost their weight.
    aged: Cell<Instant>,
}

/// The recent cost of a client.
#[derive(Clone, Copy)]
struct ClientCost {
    client: Holder,
    cost: i64,
}

/// The number of clients that are told apart: twice as many as can be heavy.
const PLACES: usize = 32;

/// The part of the recent cost beyond which a client is heavy, as a divisor.
const HEAVY_PART: i64 = 16;

/// The part of the heaviest client's cost beyond which a client is heavy too, as a divisor: of a few clients, one that uses
/// much less than another is not to blame. An attacker needs five addresses to keep the reserve of a bucket empty too.
const OF_HEAVIEST: i64 = 8;

/// The time in which old costs lose half of their weight. After a call of 45 ms, which uses up the share of half a minute,
/// its client is heavy for most of that time.
const HALF_TIME: Duration = Duration::from_secs(4);

impl HeavyClients {
    pub(super) fn new(now: Instant) -> Self {
        let none = ClientCost { client: Holder::UNKNOWN, cost: 0 };
        HeavyClients { places: RefCell::new([none; PLACES]), total: Cell::new(0), aged: Cell::new(now) }
    }

    /// Counts the cost of a call for a client.
    pub(super) fn add(&self, client: Holder, cost: i64, now: Instant) {
        self.age(now);
        self.total.set(self.total.get().saturating_add(cost));
        let places = &mut *self.places.borrow_mut();
        let known = places.iter().position(|place| place.client == client);
        let lightest = || places.iter().enumerate().min_by_key(|(_, place)| place.cost).map(|(index, _)| index);
        if let Some(place) = known.or_else(lightest).and_then(|index| places.get_mut(index)) {
            *place = ClientCost { client, cost: place.cost.saturating_add(cost) };
        }
    }

    /// Whether the calls of a client have cost so much lately that they are to blame for what is missing.
    pub(super) fn is_heavy(&self, client: Holder) -> bool {
        let places = self.places.borrow();
        let cost = places.iter().find(|place| place.client == client).map_or(0, |place| place.cost);
        let heaviest = places.iter().map(|place| place.cost).max().unwrap_or(0);
        cost > self.total.get() / HEAVY_PART && cost > heaviest / OF_HEAVIEST
    }

    /// Halves old costs. Costs to which none is added keep their proportions, and are not halved.
    fn age(&self, now: Instant) {
        let halvings = now.saturating_duration_since(self.aged.get()).as_secs() / HALF_TIME.as_secs();
        if halvings == 0 {
            return;
        }
        self.aged.set(self.aged.get() + HALF_TIME.saturating_mul(u32::try_from(halvings).unwrap_or(u32::MAX)));
        let halved = |cost: i64| cost.checked_shr(u32::try_from(halvings).unwrap_or(u32::MAX)).unwrap_or(0);
        self.total.set(halved(self.total.get()));
        self.places.borrow_mut().iter_mut().for_each(|place| place.cost = halved(place.cost));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Holder = Holder::UNKNOWN;

    fn other(number: u64) -> Holder {
        Holder::numbered(1000 + number)
    }

    #[test]
    fn a_client_with_a_small_part_is_not_heavy() {
        let now = Instant::now();
        let clients = HeavyClients::new(now);
        assert!(!clients.is_heavy(CLIENT));
        clients.add(CLIENT, 10, now);
        assert!(clients.is_heavy(CLIENT));
        clients.add(other(1), 100, now);
        assert!(clients.is_heavy(other(1)) && !clients.is_heavy(CLIENT));
        // More than an eighth of the heaviest one's cost.
        clients.add(CLIENT, 20, now);
        assert!(clients.is_heavy(CLIENT));
    }

    #[test]
    fn heavy_clients_are_found_among_very_many() {
        let now = Instant::now();
        let clients = HeavyClients::new(now);
        for number in 0..100_000 {
            clients.add(other(number), 10, now);
            for heavy in 0..3 {
                clients.add(Holder::numbered(heavy), 5, now);
            }
        }
        assert!((0..3).all(|heavy| clients.is_heavy(Holder::numbered(heavy))));
        assert!((0..100_100).all(|number| !clients.is_heavy(other(number))));
    }

    #[test]
    fn of_very_many_equal_clients_none_is_heavy() {
        let now = Instant::now();
        let clients = HeavyClients::new(now);
        (0..100_000).for_each(|number| clients.add(other(number % 1000), 10, now));
        assert!((0..1000).all(|number| !clients.is_heavy(other(number))));
    }

    #[test]
    fn old_costs_lose_their_weight() {
        let now = Instant::now();
        let (clients, later) = (HeavyClients::new(now), now + HALF_TIME * 10);
        clients.add(CLIENT, 10_000, now);
        clients.add(other(1), 100, later);
        assert!(!clients.is_heavy(CLIENT) && clients.is_heavy(other(1)));
        clients.add(CLIENT, 1, now + Duration::from_secs(1 << 40));
        assert!(clients.is_heavy(CLIENT) && !clients.is_heavy(other(1)));
    }
}
