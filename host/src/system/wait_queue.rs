//! A queue of requests that wait for something. Clients are served in turn, however many of a client's requests wait.

use tokio::sync::oneshot;

use super::fair_queue::FairQueue;
use super::holder_counts::Holder;

/// The requests that wait for a `T`.
#[derive(Debug)]
pub struct WaitQueue<T> {
    /// Requests that were given up stay until their turn, or until there are many.
    queue: FairQueue<Holder, oneshot::Sender<T>>,
    /// The length beyond which requests that were given up are removed.
    max_len: usize,
}

/// The length up to which requests that were given up are not removed.
const SHORT: usize = 64;

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        WaitQueue { queue: FairQueue::default(), max_len: SHORT }
    }
}

impl<T> WaitQueue<T> {
    /// Puts a request behind the others of its client, and returns the receiver of what it waits for. Dropping the receiver
    /// gives the request up.
    pub fn push(&mut self, client: Holder) -> oneshot::Receiver<T> {
        let (hand_over, turn) = oneshot::channel();
        self.queue.push(client, hand_over);
        if self.queue.len() > self.max_len {
            self.queue.retain(|hand_over| !hand_over.is_closed());
            // As many are added before the next look as were kept by this one.
            self.max_len = SHORT.max(2 * self.queue.len());
        }
        turn
    }

    /// Removes the next request of a client that may be served.
    pub fn pop_if(&mut self, may_be_served: impl Fn(&Holder) -> bool) -> Option<(Holder, oneshot::Sender<T>)> {
        self.queue.pop_if(may_be_served, |hand_over| !hand_over.is_closed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_are_given_up_do_not_fill_the_queue() {
        let mut queue = WaitQueue::<()>::default();
        let kept = queue.push(Holder::numbered(1));
        for _ in 0..1000 {
            drop(queue.push(Holder::UNKNOWN));
        }
        assert!(queue.queue.len() <= SHORT + 1);
        let served = queue.pop_if(|_| true).map(|(client, _)| client);
        assert_eq!(served, Some(Holder::numbered(1)));
        drop(kept);
    }
}
