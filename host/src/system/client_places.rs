//! A limited number of places, and a queue for them. A client has a part of both, and clients that wait are served in turn: one
//! that keeps its places for long leaves some to others.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::client_parts::ClientParts;
use super::holder_counts::Holder;
use super::wait_queue::WaitQueue;

/// The places that all workers share.
#[derive(Debug)]
pub struct ClientPlaces {
    most: u32,
    max_queued: u32,
    /// The places that are taken. Some may be kept for no client, such as idle connections.
    taken: AtomicU32,
    uses: ClientParts,
    queued: ClientParts,
    // Held for some hundred nanoseconds, when a client begins to wait or a place becomes free for one.
    queue: Mutex<WaitQueue<ClientPlace>>,
}

/// A place that a client uses, until dropped.
#[derive(Debug)]
pub struct ClientPlace {
    // Dropped first, so that the next client finds its part as it is then.
    pub place_use: PlaceUse,
    pub place: Place,
}

/// A place that is taken, until dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<ClientPlaces>,
    /// The number of places that were taken before this one.
    pub before: u32,
}

/// The use of a place by a client, until dropped.
#[derive(Debug)]
pub struct PlaceUse {
    places: Arc<ClientPlaces>,
    client: Holder,
}

/// A client that waits for a place, until dropped.
#[derive(Debug)]
pub struct QueuedClient {
    places: Arc<ClientPlaces>,
    client: Holder,
    turn: oneshot::Receiver<ClientPlace>,
}

/// The outcome of a request for a place.
#[derive(Debug)]
pub enum Entered {
    Place(ClientPlace),
    Queued(QueuedClient),
    /// The queue has no room for another one of the client.
    Full,
}

/// The usual number of places, and of waiting requests, up to which a client has few: it has them whatever its part is.
pub const FEW: u32 = 4;

impl ClientPlaces {
    /// Returns so many places, and a queue of this length. A client has `few` places whatever its part is.
    pub fn new(most: u32, max_queued: u32, few: u32) -> Arc<Self> {
        Arc::new(ClientPlaces {
            most,
            max_queued,
            taken: AtomicU32::new(0),
            uses: ClientParts::new(few),
            queued: ClientParts::new(FEW),
            queue: Mutex::default(),
        })
    }

    /// Takes a place for a client, or else one in the queue.
    pub fn enter(self: &Arc<Self>, client: Holder) -> Entered {
        if let Some(place) = self.enter_at_once(client) {
            return Entered::Place(place);
        }
        if !self.queued.take(client, self.max_queued) {
            return Entered::Full;
        }
        let turn = self.lock().push(client);
        // A place may have become free before the queue had this client.
        self.serve_queue();
        Entered::Queued(QueuedClient { places: self.clone(), client, turn })
    }

    /// Takes a place for a client of which no other request waits; `None` if none is free, or the client has its part.
    pub fn enter_at_once(self: &Arc<Self>, client: Holder) -> Option<ClientPlace> {
        if self.queued.of(client) > 0 {
            return None;
        }
        let place = self.take()?;
        self.uses
            .take(client, self.most)
            .then(|| ClientPlace { place_use: PlaceUse { places: self.clone(), client }, place })
    }

    /// Takes a place for no client; `None` if none is free.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        self.mark_taken().map(|before| Place { places: self.clone(), before })
    }

    /// Counts a client's use of a place that is taken already.
    pub fn count_use(self: &Arc<Self>, client: Holder) -> PlaceUse {
        self.uses.count(client);
        PlaceUse { places: self.clone(), client }
    }

    /// Whether a client may use one more place.
    pub fn leave_one(&self, client: Holder) -> bool {
        self.uses.leave_one(client, self.most)
    }

    /// Whether a client has its part or waits for it, while others have room.
    pub fn holds_back(&self, client: Holder) -> bool {
        let waits = || self.uses.all() < self.most && self.queued.of(client) > 0;
        self.uses.hold_back(client, self.most) || waits()
    }

    /// Returns the number of places.
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Returns the number of places that are taken.
    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::SeqCst)
    }

    /// Returns the number of places that are not taken.
    pub fn free(&self) -> u32 {
        self.most.saturating_sub(self.taken())
    }

    /// Whether clients wait for a place that is taken.
    pub fn is_wanted(&self) -> bool {
        self.queued.all() > 0 && self.free() == 0
    }

    /// Marks a place as taken, and returns the number of those before it; `None` if none was free.
    fn mark_taken(&self) -> Option<u32> {
        let more = |taken: u32| (taken < self.most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()
    }

    /// Gives the free places to the next clients in the queue.
    fn serve_queue(self: &Arc<Self>) {
        // What was freed before is seen by a client that is counted as waiting after this.
        fence(Ordering::SeqCst);
        while self.queued.all() > 0
            && let Some((place, hand_over)) = self.next_served()
        {
            // A place that its client does not take any more is given back by its drop.
            drop(hand_over.send(place));
        }
    }

    /// Takes a free place for the next client that may have one.
    fn next_served(self: &Arc<Self>) -> Option<(ClientPlace, oneshot::Sender<ClientPlace>)> {
        let mut queue = self.lock();
        let before = self.mark_taken()?;
        let Some((client, hand_over)) = queue.pop_if(|client| self.leave_one(*client)) else {
            // No one has missed this place meanwhile: a client that found none looks again once it is in the queue.
            self.taken.fetch_sub(1, Ordering::SeqCst);
            return None;
        };
        drop(queue);
        Some((
            ClientPlace { place_use: self.count_use(client), place: Place { places: self.clone(), before } },
            hand_over,
        ))
    }

    fn lock(&self) -> MutexGuard<'_, WaitQueue<ClientPlace>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueuedClient {
    /// Waits for the place. May be dropped at any time.
    pub async fn turn(mut self) -> Option<ClientPlace> {
        (&mut self.turn).await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(1, Ordering::SeqCst);
        self.places.serve_queue();
    }
}

impl Drop for PlaceUse {
    fn drop(&mut self) {
        self.places.uses.give_back(self.client);
        self.places.serve_queue();
    }
}

impl Drop for QueuedClient {
    fn drop(&mut self) {
        self.places.queued.give_back(self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAVY: Holder = Holder::UNKNOWN;

    fn place(entered: Entered) -> ClientPlace {
        match entered {
            Entered::Place(place) => place,
            Entered::Queued(_) | Entered::Full => panic!("no place"),
        }
    }

    fn queued(entered: Entered) -> QueuedClient {
        match entered {
            Entered::Queued(queued) => queued,
            Entered::Place(_) | Entered::Full => panic!("not queued"),
        }
    }

    /// Returns clients that are not counted with the heavy one, nor with each other.
    fn light(places: &ClientPlaces) -> Vec<Holder> {
        let mut light: Vec<Holder> = Vec::new();
        let counts = ClientParts::new(0);
        counts.count(HEAVY);
        for client in (1..64).map(Holder::numbered) {
            if [&counts, &places.uses, &places.queued].iter().all(|counts| counts.of(client) == 0) {
                counts.count(client);
                light.push(client);
            }
        }
        light
    }

    #[test]
    fn a_client_leaves_a_quarter_of_the_places_and_of_the_queue_to_others() {
        let places = ClientPlaces::new(16, 32, 4);
        let taken: Vec<_> = (0..12).map(|_| place(places.enter(HEAVY))).collect();
        let waiting: Vec<_> = (0..24).map(|_| queued(places.enter(HEAVY))).collect();
        assert!(matches!(places.enter(HEAVY), Entered::Full));
        let light = light(&places);
        let others: Vec<_> = light[..4].iter().map(|client| place(places.enter(*client))).collect();
        assert!(places.is_wanted() && places.take().is_none());
        let waiting_others: Vec<_> = light[4..12].iter().map(|client| queued(places.enter(*client))).collect();
        assert!(matches!(places.enter(light[12]), Entered::Full));
        drop((waiting, waiting_others, taken, others));
        assert_eq!((places.free(), places.uses.all(), places.queued.all()), (16, 0, 0));
    }

    #[tokio::test]
    async fn clients_are_served_in_turn() {
        let places = ClientPlaces::new(4, 32, 4);
        let mut taken: Vec<_> = (0..4).map(|_| place(places.enter(HEAVY))).collect();
        let mut waiting: Vec<_> = (0..3).map(|_| queued(places.enter(HEAVY))).collect();
        let other = queued(places.enter(light(&places)[0]));
        drop(waiting.remove(0));
        taken.pop();
        let first = waiting.remove(0).turn().await;
        assert!(first.is_some(), "the one before it was given up");
        taken.pop();
        assert!(other.turn().await.is_some());
        drop((first, taken));
        assert!(waiting.remove(0).turn().await.is_some());
    }

    #[tokio::test]
    async fn a_place_that_is_kept_for_no_client_is_in_no_ones_part() {
        let places = ClientPlaces::new(4, 8, 0);
        let ClientPlace { place_use, place: kept } = place(places.enter(HEAVY));
        let taken: Vec<_> = (0..2).map(|_| place(places.enter(HEAVY))).collect();
        let over = queued(places.enter(HEAVY));
        assert!(!places.leave_one(HEAVY) && !places.is_wanted(), "a place is free, and in another one's part");
        drop(place_use);
        let over = over.turn().await;
        assert!(over.is_some() && places.free() == 0);
        drop((kept, over, taken));
        assert_eq!(places.free(), 4);
    }
}
