//! The offers of idle connections to requests of the same worker that wait for a permit. Clients have turns.

use std::cell::RefCell;

use tokio::sync::oneshot;

use crate::system::holder_counts::Holder;
use crate::system::wait_queue::WaitQueue;
use crate::upstream::connection_limit::ConnectionLimit;

/// The requests of a worker that wait for a permit of one endpoint's upstreams.
#[derive(Default)]
pub(super) struct IdleOffers(RefCell<WaitQueue<()>>);

/// A request that waits, until dropped.
pub(super) struct WaitingRequest<'a> {
    offers: &'a IdleOffers,
    limit: &'a ConnectionLimit,
    client: Holder,
    offer: oneshot::Receiver<()>,
}

impl IdleOffers {
    /// Puts a client's request behind the others of the client.
    pub fn wait<'a>(&'a self, limit: &'a ConnectionLimit, client: Holder) -> WaitingRequest<'a> {
        let offer = self.0.borrow_mut().push(client);
        WaitingRequest { offers: self, limit, client, offer }
    }

    /// Offers a connection to the next request of a client that may be served; returns whether there is one. A request that
    /// has no use for the offer any more passes it on.
    pub fn offer(&self, may_be_served: impl Fn(&Holder) -> bool) -> bool {
        let next = self.0.borrow_mut().pop_if(may_be_served);
        next.is_some_and(|(_, offer)| offer.send(()).is_ok())
    }
}

impl WaitingRequest<'_> {
    /// Waits for an offer, and waits behind the others of the client from then on. May be dropped at any time.
    pub async fn offered(&mut self) {
        let _ = (&mut self.offer).await;
        self.offer = self.offers.0.borrow_mut().push(self.client);
    }
}

impl Drop for WaitingRequest<'_> {
    fn drop(&mut self) {
        if self.offer.try_recv().is_ok() {
            self.offers.offer(|client| self.limit.leave_one(*client));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_offer_that_is_not_used_is_passed_on() {
        let (offers, limit) = (IdleOffers::default(), ConnectionLimit::default());
        let mut waiting: Vec<_> = (1..4).map(|client| offers.wait(&limit, Holder::numbered(client))).collect();
        assert!(offers.offer(|client| *client == Holder::numbered(2)));
        drop(waiting.remove(1));
        let passed_on = waiting.iter_mut().filter_map(|waiting| waiting.offer.try_recv().ok()).count();
        assert_eq!(passed_on, 1);
    }
}
