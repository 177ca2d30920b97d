//! The places of a plugin's calls that may wait, and the queue for them. A client has a part of both, and clients are served
//! in turn: one whose calls wait for long leaves places to others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::system::fair_queue::FairQueue;
use crate::system::holder_counts::Holder;

/// The places of a version's calls, which all workers share.
pub struct CallPlaces {
    // Held for some hundred nanoseconds, when a call begins or ends; a call waits for at least a hundred times as long.
    state: Mutex<PlaceState>,
    /// The maximum number of calls at a time.
    calls: u32,
    /// The maximum number of calls that are queued.
    queued: u32,
}

struct PlaceState {
    under_way: ClientCounts,
    queued: ClientCounts,
    /// The queued calls. Those that were given up stay until their turn, or until there are too many.
    queue: FairQueue<Holder, oneshot::Sender<CallPlace>>,
}

/// Counts by client.
#[derive(Default)]
struct ClientCounts {
    all: u32,
    by_client: HashMap<Holder, u32>,
}

/// The place of a call, until dropped.
pub struct CallPlace {
    places: Arc<CallPlaces>,
    client: Holder,
}

/// A call in the queue, until dropped.
pub struct QueuedCall {
    places: Arc<CallPlaces>,
    client: Holder,
    turn: oneshot::Receiver<CallPlace>,
}

/// The outcome of a request for a place.
pub enum Entered {
    Place(CallPlace),
    Queued(QueuedCall),
    /// The queue has no room for another call of the client.
    Full,
}

/// The number of places up to which a client has few: it has them whatever its part is.
const FEW: u32 = 4;

/// The number of given-up calls in the queue, beyond as many as wait, for which they are removed.
const MAX_GIVEN_UP: usize = 64;

impl CallPlaces {
    pub fn new(calls: u32, queued: u32) -> Arc<Self> {
        let state = PlaceState {
            under_way: ClientCounts::default(),
            queued: ClientCounts::default(),
            queue: FairQueue::default(),
        };
        Arc::new(CallPlaces { state: Mutex::new(state), calls, queued })
    }

    /// Takes a place for a call of a client, or else one in the queue.
    pub fn enter(self: &Arc<Self>, client: Holder) -> Entered {
        let mut state = self.lock();
        if state.queued.of(client) == 0 && state.under_way.leave_one(client, self.calls) {
            state.under_way.add(client);
            return Entered::Place(CallPlace { places: self.clone(), client });
        }
        if !state.queued.leave_one(client, self.queued) {
            return Entered::Full;
        }
        state.queued.add(client);
        let (hand_over, turn) = oneshot::channel();
        state.queue.push(client, hand_over);
        state.forget_given_up();
        Entered::Queued(QueuedCall { places: self.clone(), client, turn })
    }

    /// Gives a free place to the next call in the queue.
    fn serve_next(self: &Arc<Self>) {
        let mut state = self.lock();
        let PlaceState { under_way, queue, .. } = &mut *state;
        while let Some((client, hand_over)) = queue.pop_if(|client| under_way.leave_one(*client, self.calls)) {
            if !hand_over.is_closed() {
                under_way.add(client);
                drop(state);
                // A place that its call does not take any more is given back by its drop.
                let _ = hand_over.send(CallPlace { places: self.clone(), client });
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, PlaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PlaceState {
    /// Removes the given-up calls from the queue if there are many.
    fn forget_given_up(&mut self) {
        if self.queue.len() > 2 * self.queued.all as usize + MAX_GIVEN_UP {
            self.queue.retain(|hand_over| !hand_over.is_closed());
        }
    }
}

impl QueuedCall {
    /// Waits for the place of the call. May be dropped at any time.
    pub async fn turn(mut self) -> Option<CallPlace> {
        (&mut self.turn).await.ok()
    }
}

impl ClientCounts {
    fn of(&self, client: Holder) -> u32 {
        self.by_client.get(&client).copied().unwrap_or(0)
    }

    /// Whether all clients leave one of `max` to a client: three quarters of what the others leave, or a few.
    fn leave_one(&self, client: Holder, max: u32) -> bool {
        let own = self.of(client);
        let left = max.saturating_sub(self.all - own);
        self.all < max && (own < FEW || own < left - left / 4)
    }

    fn add(&mut self, client: Holder) {
        self.all += 1;
        *self.by_client.entry(client).or_default() += 1;
    }

    fn remove(&mut self, client: Holder) {
        if let Some(count) = self.by_client.get_mut(&client) {
            self.all -= 1;
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&client);
            }
        }
    }
}

impl Drop for CallPlace {
    fn drop(&mut self) {
        self.places.lock().under_way.remove(self.client);
        self.places.serve_next();
    }
}

impl Drop for QueuedCall {
    fn drop(&mut self) {
        self.places.lock().queued.remove(self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAVY: Holder = Holder::UNKNOWN;

    fn place(entered: Entered) -> CallPlace {
        match entered {
            Entered::Place(place) => place,
            Entered::Queued(_) | Entered::Full => panic!("no place"),
        }
    }

    fn queued(entered: Entered) -> QueuedCall {
        match entered {
            Entered::Queued(queued) => queued,
            Entered::Place(_) | Entered::Full => panic!("not queued"),
        }
    }

    #[test]
    fn a_client_leaves_a_quarter_of_the_places_and_of_the_queue_to_others() {
        let places = CallPlaces::new(16, 32);
        let under_way: Vec<_> = (0..12).map(|_| place(places.enter(HEAVY))).collect();
        let waiting: Vec<_> = (0..24).map(|_| queued(places.enter(HEAVY))).collect();
        assert!(matches!(places.enter(HEAVY), Entered::Full));
        let others: Vec<_> = (1..5).map(|number| place(places.enter(Holder::numbered(number)))).collect();
        let waiting_others: Vec<_> = (5..13).map(|number| queued(places.enter(Holder::numbered(number)))).collect();
        assert!(matches!(places.enter(Holder::numbered(20)), Entered::Full));
        drop((under_way, waiting, others, waiting_others));
        let state = places.lock();
        assert!(state.under_way.by_client.is_empty() && state.queued.by_client.is_empty());
    }

    #[tokio::test]
    async fn clients_are_served_in_turn() {
        let places = CallPlaces::new(4, 32);
        let mut under_way: Vec<_> = (0..4).map(|_| place(places.enter(HEAVY))).collect();
        let mut waiting: Vec<_> = (0..3).map(|_| queued(places.enter(HEAVY))).collect();
        let other = queued(places.enter(Holder::numbered(2)));
        drop(waiting.remove(0));
        under_way.pop();
        let first = waiting.remove(0).turn().await;
        assert!(first.is_some(), "the call before it was given up");
        under_way.pop();
        assert!(other.turn().await.is_some());
        drop((first, under_way));
        assert!(waiting.remove(0).turn().await.is_some());
    }

    #[test]
    fn calls_that_are_given_up_do_not_fill_the_queue() {
        let places = CallPlaces::new(1, 8);
        let _under_way = place(places.enter(HEAVY));
        (0..1000).for_each(|_| drop(queued(places.enter(HEAVY))));
        assert!(places.lock().queue.len() <= MAX_GIVEN_UP + 2);
    }
}
