//! Deadlines that cost nothing while they are not met: a worker looks through them a few times a second, in place of
//! a timer for each request. The one place of a worker that asks the system for the time.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// How exact deadlines are: late by up to this much.
pub const TICK: Duration = Duration::from_millis(50);

/// A worker's deadlines.
pub struct Clock {
    now: Cell<Instant>,
    stopping: Cell<bool>,
    deadlines: RefCell<Vec<Weak<Deadline>>>,
}

/// One deadline, set and cleared over and over by its owner.
pub struct Deadline {
    clock: Rc<Clock>,
    due: Cell<Option<Instant>>,
    waker: RefCell<Option<Waker>>,
}

/// A future took too long.
#[derive(Debug)]
pub struct Late;

impl Clock {
    pub fn new() -> Rc<Self> {
        let (stopping, deadlines) = (Cell::new(false), RefCell::default());
        Rc::new(Clock { now: Cell::new(Instant::now()), stopping, deadlines })
    }

    /// A deadline that is not set yet.
    pub fn deadline(self: &Rc<Self>) -> Rc<Deadline> {
        let deadline = Rc::new(Deadline { clock: self.clone(), due: Cell::new(None), waker: RefCell::default() });
        self.deadlines.borrow_mut().push(Rc::downgrade(&deadline));
        deadline
    }

    /// The time, as it was at the last tick.
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// Whether the process is to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Wakes everyone who has a deadline, to notice that the process is to stop.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.wake(|_| true);
    }

    /// Lets time pass; wakes those whose deadline is met.
    pub fn tick(&self) {
        let now = Instant::now();
        self.now.set(now);
        self.wake(|deadline| deadline.due.get().is_some_and(|due| due <= now));
    }

    fn wake(&self, which: impl Fn(&Deadline) -> bool) {
        self.deadlines.borrow_mut().retain(|deadline| {
            let Some(deadline) = deadline.upgrade() else { return false };
            if which(&deadline)
                && let Some(waker) = deadline.waker.take()
            {
                waker.wake();
            }
            true
        });
    }
}

impl Deadline {
    /// Sets it to some time from now; never early, since the clock may be a tick behind.
    pub fn set(&self, after: Duration) {
        self.due.set(Some(self.clock.now() + TICK + after));
    }

    /// Clears it.
    pub fn clear(&self) {
        self.due.set(None);
    }

    /// Whether it is met.
    pub fn is_met(&self) -> bool {
        self.due.get().is_some_and(|due| due <= self.clock.now())
    }

    /// Has the task woken when it is met, or when the process stops.
    pub fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// The clock that it goes by.
    pub fn clock(&self) -> &Rc<Clock> {
        &self.clock
    }

    /// Runs a future for at most so long.
    pub async fn limit<T>(&self, after: Duration, future: impl Future<Output = T>) -> Result<T, Late> {
        let mut future = pin!(future);
        self.set(after);
        let outcome = poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if self.is_met() => Poll::Ready(Err(Late)),
            Poll::Pending => {
                self.watch(cx);
                Poll::Pending
            }
        });
        let outcome = outcome.await;
        self.clear();
        outcome
    }
}
