//! The lookup of an endpoint's name by the system. Each takes a thread for as long as the system's name server leaves it
//! unanswered, and a worker has a few hundred: all requests that need the addresses at the same time share one lookup.

use std::cell::{OnceCell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::system::supervise::{Task, spawn};

/// The addresses of a name.
pub type Addresses = SmallVec<[SocketAddr; 2]>;

/// The lookups of one name.
#[derive(Default)]
pub struct NameLookup(RefCell<Option<Rc<Running>>>);

/// A lookup that has not ended, or whose requests have not seen its end.
#[derive(Default)]
struct Running {
    found: OnceCell<io::Result<Addresses>>,
    ended: Notify,
}

impl NameLookup {
    /// Returns the result of the lookup that is under way, or begins `lookup`. It runs to its end, also if the requests that
    /// wait for it give up.
    pub async fn shared<F>(self: &Rc<Self>, lookup: impl FnOnce() -> F) -> io::Result<Addresses>
    where
        F: Future<Output = io::Result<Addresses>> + 'static,
    {
        let under_way = self.0.borrow().clone();
        let running = under_way.unwrap_or_else(|| self.begin(lookup()));
        loop {
            let ended = running.ended.notified();
            if let Some(found) = running.found.get() {
                return match found {
                    Ok(addresses) => Ok(addresses.clone()),
                    Err(error) => Err(copy(error)),
                };
            }
            ended.await;
        }
    }

    fn begin(self: &Rc<Self>, lookup: impl Future<Output = io::Result<Addresses>> + 'static) -> Rc<Running> {
        let running = Rc::<Running>::default();
        *self.0.borrow_mut() = Some(running.clone());
        let (lookups, ended) = (self.clone(), running.clone());
        spawn(Task::UpstreamConnection, async move {
            let found = lookup.await;
            lookups.0.borrow_mut().take();
            let _ = ended.found.set(found);
            ended.ended.notify_waiters();
        });
        running
    }
}

fn copy(error: &io::Error) -> io::Error {
    let of_system = error.raw_os_error().map(io::Error::from_raw_os_error);
    of_system.unwrap_or_else(|| io::Error::new(error.kind(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::task::{LocalSet, yield_now};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn requests_share_a_lookup_that_hangs_and_the_next_one_begins_after_it() {
        let (lookup, begun, answer) =
            (Rc::<NameLookup>::default(), Rc::<Cell<u32>>::default(), Rc::<Notify>::default());
        let ask = || {
            let (lookup, begun, answer) = (lookup.clone(), begun.clone(), answer.clone());
            tokio::task::spawn_local(async move {
                let look = || {
                    begun.set(begun.get() + 1);
                    async move {
                        answer.notified().await;
                        Err(io::Error::other("no such name"))
                    }
                };
                lookup.shared(look).await
            })
        };
        LocalSet::new()
            .run_until(async {
                // The one that began it gives up.
                let first = ask();
                yield_now().await;
                first.abort();
                let others: Vec<_> = (0..3).map(|_| ask()).collect();
                yield_now().await;
                answer.notify_one();
                for other in others {
                    assert_eq!(other.await.unwrap().unwrap_err().to_string(), "no such name");
                }
                assert_eq!(begun.get(), 1);
                let next = ask();
                answer.notify_one();
                assert!(next.await.unwrap().is_err());
                assert_eq!(begun.get(), 2);
            })
            .await;
    }
}
