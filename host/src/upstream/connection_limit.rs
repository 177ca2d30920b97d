//! The maximum number of connections of an upstream, and the queue of requests that wait for one. A client's requests use a part
//! of the connections, and clients that wait are served in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::required_protocol::RequiredProtocol;
use crate::error::{Error, FailureKind};
use crate::system::client_places::{ClientPlace, ClientPlaces, Entered, Place, PlaceUse};
use crate::system::holder_counts::Holder;

/// The connections of an upstream, over all workers and endpoints.
#[derive(Clone, Debug, Default)]
pub struct ConnectionLimit(Option<Arc<LimitState>>);

#[derive(Debug)]
struct LimitState {
    /// The connections, whose places those keep that no client uses.
    places: Arc<ClientPlaces>,
    /// The waiting requests that can share a connection.
    shareable: AtomicU32,
}

/// The limit that a connection is counted against; empty if there is none.
#[derive(Clone, Debug, Default)]
pub struct LimitHandle(Option<Arc<LimitState>>);

/// The permit of a connection, for as long as it lives; empty if the upstream has no limit.
#[derive(Debug, Default)]
pub struct ConnectionPermit(Option<HeldPermit>);

#[derive(Debug)]
struct HeldPermit {
    limited: Arc<LimitState>,
    _place: Place,
}

/// The permit of a connection that is opened for a client's request.
#[derive(Debug, Default)]
pub struct ConnectionGrant {
    pub permit: ConnectionPermit,
    pub connection_use: ConnectionUse,
}

/// The use of a limited connection by a client, until dropped; empty if the upstream has no limit.
#[derive(Debug, Default)]
pub struct ConnectionUse {
    _place_use: Option<PlaceUse>,
}

/// Counts a request that waits and can share a connection, until dropped.
struct SharedNeed<'a>(&'a LimitState);

impl ConnectionLimit {
    /// Returns a limit of this many connections, and of this many waiting requests.
    pub fn limited(connections: u32, max_waiting: u32) -> Self {
        let places = ClientPlaces::new(connections, max_waiting, 0);
        ConnectionLimit(Some(Arc::new(LimitState { places, shareable: AtomicU32::new(0) })))
    }

    /// Returns the maximum number of connections; `None` if there is no limit.
    pub fn most(&self) -> Option<u32> {
        self.0.as_ref().map(|limited| limited.places.most())
    }

    /// Takes a permit for a connection that no client uses yet; `None` if there is none.
    pub fn try_take(&self) -> Option<ConnectionPermit> {
        let Some(limited) = &self.0 else { return Some(ConnectionPermit::default()) };
        limited.places.take().map(|place| limited.permit(place))
    }

    /// Takes a permit for a client at once, or waits in the queue unless it is full. The future may be dropped at any time.
    pub async fn take(&self, wanted: RequiredProtocol, client: Holder) -> Result<ConnectionGrant, Error> {
        let Some(limited) = &self.0 else { return Ok(ConnectionGrant::default()) };
        let why = "all connections are in use, or the client's part of them, and so is the queue";
        let full = || Error::new(FailureKind::LimitReached, why).with_limit("limits.pending");
        let place = match limited.places.enter(client) {
            Entered::Place(place) => Some(place),
            Entered::Queued(queued) => {
                let _need = (wanted == RequiredProtocol::Any).then(|| SharedNeed::new(limited));
                queued.turn().await
            }
            Entered::Full => None,
        };
        let ClientPlace { place, place_use } = place.ok_or_else(full)?;
        Ok(ConnectionGrant {
            permit: limited.permit(place),
            connection_use: ConnectionUse { _place_use: Some(place_use) },
        })
    }

    /// Whether another connection may be opened at once.
    pub fn has_room(&self) -> bool {
        self.0.as_ref().is_none_or(|limited| limited.places.free() > 0)
    }

    /// Whether a client may use one more connection.
    pub fn leave_one(&self, client: Holder) -> bool {
        self.0.as_ref().is_none_or(|limited| limited.places.leave_one(client))
    }

    /// Whether a client has its part or waits for it, while others have room.
    pub fn holds_back(&self, client: Holder) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.places.holds_back(client))
    }

    /// Whether more than half of the connections are free, and more than one, so that a request may have one that it could
    /// do without.
    pub fn has_plenty(&self) -> bool {
        let has_plenty = |places: &ClientPlaces| {
            let free = places.free();
            free > 1 && free > places.most() / 2
        };
        self.0.as_ref().is_none_or(|limited| has_plenty(&limited.places))
    }

    /// Whether a connection counts against this limit, or against none if this is none. Under another limit it would never
    /// be counted, or take the place of a request of another upstream.
    pub fn have(&self, connection: &LimitHandle) -> bool {
        match (&self.0, &connection.0) {
            (None, None) => true,
            (Some(own), Some(its)) => Arc::ptr_eq(own, its),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Whether anything besides this value uses the limit.
    pub fn are_in_use(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| Arc::strong_count(limited) > 1)
    }
}

impl ConnectionPermit {
    pub fn limit_handle(&self) -> LimitHandle {
        LimitHandle(self.0.as_ref().map(|held| held.limited.clone()))
    }
}

impl LimitHandle {
    /// Whether the connection counts against a limit.
    pub fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// Counts the use of the connection by a client.
    pub fn count_use(&self, client: Holder) -> ConnectionUse {
        ConnectionUse { _place_use: self.0.as_ref().map(|limited| limited.places.count_use(client)) }
    }

    /// Whether a client may use one more connection of the limit.
    pub fn leave_one(&self, client: Holder) -> bool {
        self.0.as_ref().is_none_or(|limited| limited.places.leave_one(client))
    }

    /// Whether a request that can share a connection waits for a permit, on any worker.
    pub fn is_wanted_to_share(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.shareable.load(Ordering::Relaxed) > 0)
    }

    /// Whether a request waits for a permit, on any worker.
    pub fn is_wanted(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.places.is_wanted())
    }
}

impl LimitState {
    /// Counts a connection by a permit.
    fn permit(self: &Arc<Self>, place: Place) -> ConnectionPermit {
        ConnectionPermit(Some(HeldPermit { limited: self.clone(), _place: place }))
    }
}

impl<'a> SharedNeed<'a> {
    fn new(limited: &'a LimitState) -> Self {
        limited.shareable.fetch_add(1, Ordering::Relaxed);
        SharedNeed(limited)
    }
}

impl Drop for SharedNeed<'_> {
    fn drop(&mut self) {
        self.0.shareable.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Holder = Holder::UNKNOWN;

    #[tokio::test]
    async fn beyond_the_connections_a_queue_and_beyond_that_nobody() {
        let connection_limit = ConnectionLimit::limited(1, 1);
        let take = || connection_limit.take(RequiredProtocol::Any, CLIENT);
        let first = take().await.unwrap();
        let counted = first.permit.limit_handle();
        assert!(counted.is_limited() && !counted.is_wanted());
        let mut second = Box::pin(take());
        assert!(poll(second.as_mut()).is_none() && counted.is_wanted() && counted.is_wanted_to_share());
        assert_eq!(take().await.unwrap_err().kind, FailureKind::LimitReached);
        drop(first);
        let second = second.await.unwrap();
        assert!(!counted.is_wanted() && !counted.is_wanted_to_share());
        assert!(
            connection_limit.have(&counted)
                && !ConnectionLimit::limited(1, 1).have(&counted)
                && !ConnectionLimit::default().have(&counted)
        );
        assert!(!connection_limit.have(&LimitHandle::default()));
        drop(second);
        assert!(take().await.is_ok(), "the permit came back");
    }

    #[tokio::test]
    async fn a_client_uses_a_part_of_the_connections() {
        let connection_limit = ConnectionLimit::limited(4, 8);
        let take = || connection_limit.take(RequiredProtocol::Unshared, CLIENT);
        let mut grants = vec![take().await.unwrap(), take().await.unwrap(), take().await.unwrap()];
        let mut further = Box::pin(take());
        assert!(poll(further.as_mut()).is_none() && connection_limit.has_room() && !connection_limit.leave_one(CLIENT));
        // An idle connection is kept for no client.
        let ConnectionGrant { permit: idle, connection_use } = grants.remove(0);
        drop(connection_use);
        let further = further.await;
        assert!(further.is_ok() && !connection_limit.has_room());
        let _lent = idle.limit_handle().count_use(CLIENT);
        assert!(!connection_limit.leave_one(CLIENT));
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
