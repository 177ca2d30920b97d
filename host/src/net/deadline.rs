//! Deadlines that cost nothing until they are met: a worker scans them a few times a second, instead of a timer for
//! each request.
#![expect(clippy::disallowed_methods, reason = "the clock of a worker")]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;

/// The precision of deadlines: they are late by up to this time.
pub const TICK: Duration = Duration::from_millis(50);

/// The deadlines of a worker.
pub struct Clock {
    now: Cell<Instant>,
    stopping: Cell<bool>,
    tasks: RefCell<Vec<Weak<DeadlineTask>>>,
}

/// A deadline of a task, set and cleared repeatedly by its owner.
#[derive(Clone)]
pub struct Deadline {
    task: Rc<DeadlineTask>,
    index: usize,
}

/// The deadlines that wake the same task.
struct DeadlineTask {
    clock: Rc<Clock>,
    due: [Cell<Option<Instant>>; MAX_DEADLINES],
    waker: RefCell<Option<Waker>>,
}

/// The maximum number of deadlines per task: an HTTP/1 connection needs this many.
const MAX_DEADLINES: usize = 5;

/// The error of a future that took too long.
#[derive(Debug)]
pub struct DeadlineExceeded;

impl Clock {
    pub fn new() -> Rc<Self> {
        let (stopping, tasks) = (Cell::new(false), RefCell::default());
        Rc::new(Clock { now: Cell::new(Instant::now()), stopping, tasks })
    }

    /// Returns unset deadlines of one task. Watching one of them from another task redirects the wake-ups of all.
    pub fn deadlines<const N: usize>(self: &Rc<Self>) -> [Deadline; N] {
        const { assert!(N <= MAX_DEADLINES) };
        let task = Rc::new(DeadlineTask { clock: self.clone(), due: Default::default(), waker: RefCell::default() });
        self.tasks.borrow_mut().push(Rc::downgrade(&task));
        std::array::from_fn(|index| Deadline { task: task.clone(), index })
    }

    /// Returns the time of the last tick.
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// Runs a future to its end; `None` if the process stops before. Relies on a deadline that the caller watches to be
    /// woken.
    pub async fn unless_stopping<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Pending if self.is_stopping() => Poll::Ready(None),
            polled => polled.map(Some),
        })
        .await
    }

    /// Whether the process is to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Wakes every task with a deadline, so that it notices that the process stops.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.wake_all();
    }

    /// Wakes every task with a deadline.
    pub fn wake_all(&self) {
        self.wake(|_| true);
    }

    /// Updates the time, and wakes the tasks whose deadlines are met.
    pub fn tick(&self) {
        let now = Instant::now();
        self.now.set(now);
        let is_met = |due: &Cell<Option<Instant>>| due.get().is_some_and(|due| due <= now);
        self.wake(|task| task.due.iter().any(is_met));
    }

    fn wake(&self, which: impl Fn(&DeadlineTask) -> bool) {
        self.tasks.borrow_mut().retain(|task| {
            let Some(task) = task.upgrade() else { return false };
            if which(&task)
                && let Some(waker) = task.waker.take()
            {
                waker.wake();
            }
            true
        });
    }
}

impl Deadline {
    fn due(&self) -> &Cell<Option<Instant>> {
        &self.task.due[self.index]
    }

    /// Sets the deadline to `after` from now; never early, since the clock may be a tick behind.
    pub fn set(&self, after: Duration) {
        self.due().set(self.clock().now().checked_add(TICK + after));
    }

    /// Clears the deadline.
    pub fn clear(&self) {
        self.due().set(None);
    }

    /// Whether the deadline is set.
    pub fn is_set(&self) -> bool {
        self.due().get().is_some()
    }

    /// Whether the deadline is met.
    pub fn is_met(&self) -> bool {
        self.due().get().is_some_and(|due| due <= self.clock().now())
    }

    /// Registers the task to be woken when any of its deadlines is met, or when the process stops.
    pub fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.task.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Returns the clock of the deadline.
    pub fn clock(&self) -> &Rc<Clock> {
        &self.task.clock
    }

    /// Whether the caller has been pending for `after`. The time runs from the first call after [`Deadline::clear`].
    pub fn is_late(&self, after: Duration, cx: &Context<'_>) -> bool {
        if self.due().get().is_none() {
            self.set(after);
        }
        self.watch(cx);
        self.is_met()
    }

    /// Runs a future for at most `after` from now on.
    pub fn limit<F: Future>(&self, after: Duration, future: F) -> WithDeadline<'_, F> {
        self.set(after);
        WithDeadline { future, deadline: self, stopping: Stopping::Clears }
    }

    /// Runs a future until the deadline is met, if it is set.
    pub fn until_met<F: Future>(&self, future: F) -> WithDeadline<'_, F> {
        WithDeadline { future, deadline: self, stopping: Stopping::Leaves }
    }
}

pin_project! {
    /// A future with a deadline. Not an `async fn`, which would reserve room for the future twice.
    pub struct WithDeadline<'a, F> {
        #[pin]
        future: F,
        deadline: &'a Deadline,
        stopping: Stopping,
    }
}

/// The treatment of the deadline when the future ends.
#[derive(Clone, Copy, PartialEq)]
enum Stopping {
    Clears,
    Leaves,
}

impl<F: Future> Future for WithDeadline<'_, F> {
    type Output = Result<F::Output, DeadlineExceeded>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let limited = self.project();
        let outcome = match limited.future.poll(cx) {
            Poll::Ready(output) => Ok(output),
            Poll::Pending if limited.deadline.is_met() => Err(DeadlineExceeded),
            Poll::Pending => {
                limited.deadline.watch(cx);
                return Poll::Pending;
            }
        };
        if *limited.stopping == Stopping::Clears {
            limited.deadline.clear();
        }
        Poll::Ready(outcome)
    }
}
