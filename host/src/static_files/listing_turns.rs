//! The turns in which lists of folders are made: few at a time, and the clients that wait are served in turn, however many
//! lists each of them asks for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::protocol::client_net::ClientNet;
use crate::system::fair_queue::FairQueue;

/// The turns of a site.
#[derive(Clone, Debug)]
pub struct ListingTurns(Arc<Mutex<Turns>>);

#[derive(Debug)]
struct Turns {
    free: usize,
    waiting: FairQueue<Option<ClientNet>, oneshot::Sender<ListingTurn>>,
}

/// The permit to make a list. The next client has it once it is dropped.
#[derive(Debug)]
pub struct ListingTurn {
    /// The turns of the site; `None` once the turn has gone on.
    turns: Option<ListingTurns>,
}

impl ListingTurns {
    /// Returns so many turns at a time.
    pub fn new(at_a_time: usize) -> Self {
        ListingTurns(Arc::new(Mutex::new(Turns { free: at_a_time, waiting: FairQueue::default() })))
    }

    /// Waits for the turn of a client. The future may be dropped at any time.
    pub async fn next(&self, client: Option<ClientNet>) -> ListingTurn {
        let turn = {
            let mut turns = self.lock();
            if turns.free > 0 {
                turns.free -= 1;
                return ListingTurn { turns: Some(self.clone()) };
            }
            let (sender, turn) = oneshot::channel();
            turns.waiting.push(client, sender);
            turn
        };
        // Each sender in the queue is used.
        turn.await.unwrap_or(ListingTurn { turns: None })
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ListingTurn {
    fn drop(&mut self) {
        let Some(turns) = self.turns.take() else { return };
        loop {
            let next = {
                let mut locked = turns.lock();
                let next = locked.waiting.pop();
                locked.free += usize::from(next.is_none());
                next
            };
            let Some(next) = next else { return };
            match next.send(ListingTurn { turns: Some(turns.clone()) }) {
                Ok(()) => return,
                // The request has left.
                Err(mut unused) => unused.turns = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn clients_are_served_in_turn_and_those_that_have_left_are_passed_over() {
        let turns = ListingTurns::new(1);
        let client = |number: u8| ClientNet::new(Some(IpAddr::from([192, 0, 2, number])));
        let first = turns.next(client(1)).await;
        let mut cx = Context::from_waker(Waker::noop());
        let (mut greedy, mut left, mut other) =
            (pin!(turns.next(client(1))), Box::pin(turns.next(client(1))), pin!(turns.next(client(2))));
        assert!(greedy.as_mut().poll(&mut cx).is_pending() && left.as_mut().poll(&mut cx).is_pending());
        assert!(other.as_mut().poll(&mut cx).is_pending());
        drop(left);
        drop(first);
        let second = greedy.await;
        assert!(other.as_mut().poll(&mut cx).is_pending());
        drop(second);
        drop(other.await);
        assert_eq!(turns.lock().free, 1);
    }
}
