//! Tasks that wait until their holder gives back some of its share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::holder_counts::Holder;

/// The waiting tasks of all workers.
#[derive(Debug, Default)]
pub struct HolderWaits {
    /// The number of waiting tasks. While it is zero, a holder that gives something back takes no lock.
    tasks: AtomicUsize,
    by_holder: Mutex<HashMap<Holder, TasksOfHolder>>,
}

/// The waiting tasks of a holder.
#[derive(Debug, Default)]
struct TasksOfHolder {
    tasks: usize,
    returned: Arc<Notify>,
}

/// The place of a waiting task, until dropped.
#[derive(Debug)]
pub struct HolderWait<'a> {
    waits: &'a HolderWaits,
    holder: Holder,
    returned: Arc<Notify>,
}

impl HolderWaits {
    /// Registers a task of a holder. What is given back from now on wakes one of the holder's tasks.
    pub fn enter(&self, holder: Holder) -> HolderWait<'_> {
        let mut by_holder = self.lock();
        let of_holder = by_holder.entry(holder).or_default();
        of_holder.tasks += 1;
        let returned = of_holder.returned.clone();
        self.tasks.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence of `wake_one`: either this task sees what was given back, or its number is seen.
        fence(Ordering::SeqCst);
        HolderWait { waits: self, holder, returned }
    }

    /// Wakes the first task of a holder that has given something back.
    pub fn wake_one(&self, holder: Holder) {
        fence(Ordering::SeqCst);
        if self.tasks.load(Ordering::Relaxed) > 0
            && let Some(of_holder) = self.lock().get(&holder)
        {
            of_holder.returned.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Holder, TasksOfHolder>> {
        self.by_holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HolderWait<'_> {
    /// Waits until the holder gives something back, after `enter` or after the last wait.
    pub async fn returned(&self) {
        self.returned.notified().await;
    }
}

impl Drop for HolderWait<'_> {
    fn drop(&mut self) {
        let mut by_holder = self.waits.lock();
        self.waits.tasks.fetch_sub(1, Ordering::Relaxed);
        if let Some(of_holder) = by_holder.get_mut(&self.holder) {
            of_holder.tasks -= 1;
            if of_holder.tasks == 0 {
                by_holder.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_ready(future: &mut std::pin::Pin<Box<impl Future<Output = ()>>>) -> bool {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn what_a_holder_gives_back_wakes_one_of_its_tasks() {
        let waits = HolderWaits::default();
        let (one, other) = (Holder::numbered(1), Holder::numbered(2));
        let entered = [waits.enter(one), waits.enter(one), waits.enter(other)];
        let mut returned: Vec<_> = entered.iter().map(|wait| Box::pin(wait.returned())).collect();
        assert!(returned.iter_mut().all(|returned| !is_ready(returned)));
        waits.wake_one(one);
        assert_eq!([0, 1, 2].map(|index| is_ready(&mut returned[index])), [true, false, false]);
        waits.wake_one(other);
        assert_eq!([1, 2].map(|index| is_ready(&mut returned[index])), [false, true]);
    }

    #[test]
    fn a_task_that_gives_up_passes_its_turn_on() {
        let waits = HolderWaits::default();
        let holder = Holder::numbered(1);
        let (first, second) = (waits.enter(holder), waits.enter(holder));
        let (mut gives_up, mut waiting) = (Box::pin(first.returned()), Box::pin(second.returned()));
        assert!(!is_ready(&mut gives_up) && !is_ready(&mut waiting));
        waits.wake_one(holder);
        drop(gives_up);
        drop(first);
        assert!(is_ready(&mut waiting));
    }

    #[test]
    fn nothing_is_kept_for_holders_that_wait_no_longer() {
        let waits = HolderWaits::default();
        drop([waits.enter(Holder::numbered(1)), waits.enter(Holder::numbered(1)), waits.enter(Holder::numbered(2))]);
        assert!(waits.lock().is_empty());
        assert_eq!(waits.tasks.load(Ordering::Relaxed), 0);
    }
}
