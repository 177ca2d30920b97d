//! The maximum number of connections of an upstream, and the queue of requests that wait for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::required_protocol::RequiredProtocol;
use crate::error::{Error, FailureKind};

/// The connections of an upstream, over all workers and endpoints.
#[derive(Clone, Debug, Default)]
pub struct ConnectionLimit(Option<Arc<LimitState>>);

#[derive(Debug)]
struct LimitState {
    free: Arc<Semaphore>,
    most: u32,
    waiting: AtomicU32,
    /// The waiting requests that can share a connection.
    shareable: AtomicU32,
    max_waiting: u32,
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
    _permit: OwnedSemaphorePermit,
}

/// Waits in the queue until dropped.
struct WaitingGuard<'a> {
    limited: &'a LimitState,
    is_shareable: bool,
}

impl ConnectionLimit {
    /// Returns a limit of this many connections, and of this many waiting requests.
    pub fn limited(connections: u32, max_waiting: u32) -> Self {
        let free = Arc::new(Semaphore::new(connections as usize));
        let (waiting, shareable) = (AtomicU32::new(0), AtomicU32::new(0));
        ConnectionLimit(Some(Arc::new(LimitState { free, most: connections, waiting, shareable, max_waiting })))
    }

    /// Returns the maximum number of connections; `None` if there is no limit.
    pub fn most(&self) -> Option<u32> {
        self.0.as_ref().map(|limited| limited.most)
    }

    /// Takes a permit at once; `None` if there is none.
    pub fn try_take(&self) -> Option<ConnectionPermit> {
        let Some(limited) = &self.0 else { return Some(ConnectionPermit::default()) };
        limited.free.clone().try_acquire_owned().ok().map(|permit| limited.held(permit))
    }

    /// Takes a permit at once, or waits in the queue unless it is full. The future may be dropped at any time.
    pub async fn take(&self, wanted: RequiredProtocol) -> Result<ConnectionPermit, Error> {
        if let Some(permit) = self.try_take() {
            return Ok(permit);
        }
        let Some(limited) = &self.0 else { return Ok(ConnectionPermit::default()) };
        let why = "all connections are in use, and the queue is full";
        let full = || Error::new(FailureKind::LimitReached, why).with_limit("limits.pending");
        let _waiting = WaitingGuard::begin(limited, wanted).ok_or_else(full)?;
        let permit = limited.free.clone().acquire_owned().await;
        permit.map(|permit| limited.held(permit)).map_err(|error| Error::new(FailureKind::LimitReached, error))
    }

    /// Whether another connection may be opened at once.
    pub fn has_room(&self) -> bool {
        self.0.as_deref().is_none_or(LimitState::has_room)
    }

    /// Whether more than half of the connections are free, and more than one, so that a request may have one that it could
    /// do without.
    pub fn has_plenty(&self) -> bool {
        let has_plenty = |limited: &LimitState| {
            let free = limited.free.available_permits();
            free > 1 && 2 * free > limited.most as usize
        };
        self.0.as_deref().is_none_or(has_plenty)
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

    /// Whether a request that can share a connection waits for a permit, on any worker.
    pub fn is_wanted_to_share(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.shareable.load(Ordering::Relaxed) > 0)
    }

    /// Whether a request waits for a permit, on any worker.
    pub fn is_wanted(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.waiting.load(Ordering::Relaxed) > 0)
    }
}

impl LimitState {
    /// Counts a connection by a permit.
    fn held(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> ConnectionPermit {
        ConnectionPermit(Some(HeldPermit { limited: self.clone(), _permit: permit }))
    }

    fn has_room(&self) -> bool {
        self.free.available_permits() > 0
    }
}

impl<'a> WaitingGuard<'a> {
    fn begin(limited: &'a LimitState, wanted: RequiredProtocol) -> Option<Self> {
        let waiting = WaitingGuard { limited, is_shareable: wanted == RequiredProtocol::Any };
        let before = limited.waiting.fetch_add(1, Ordering::Relaxed);
        limited.shareable.fetch_add(waiting.is_shareable.into(), Ordering::Relaxed);
        (before < limited.max_waiting).then_some(waiting)
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.limited.waiting.fetch_sub(1, Ordering::Relaxed);
        self.limited.shareable.fetch_sub(self.is_shareable.into(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn beyond_the_connections_a_queue_and_beyond_that_nobody() {
        let connection_limit = ConnectionLimit::limited(1, 1);
        let first = connection_limit.take(RequiredProtocol::Any).await.unwrap();
        let counted = first.limit_handle();
        assert!(counted.is_limited() && !counted.is_wanted());
        let mut second = Box::pin(connection_limit.take(RequiredProtocol::Any));
        assert!(poll(second.as_mut()).is_none() && counted.is_wanted());
        assert_eq!(connection_limit.take(RequiredProtocol::Any).await.unwrap_err().kind, FailureKind::LimitReached);
        drop(first);
        let second = second.await.unwrap();
        assert!(!counted.is_wanted());
        assert!(
            connection_limit.have(&counted)
                && !ConnectionLimit::limited(1, 1).have(&counted)
                && !ConnectionLimit::default().have(&counted)
        );
        assert!(!connection_limit.have(&LimitHandle::default()));
        drop(second);
        assert!(connection_limit.take(RequiredProtocol::Any).await.is_ok(), "the permit came back");
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
