//! The time that long computations of a worker share: in each turn of the event loop, all of them together have
//! [`BUDGET`]. Those for which no time is left wait in a queue, while the worker serves everybody else.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The time of all computations in one turn of a worker's event loop: others wait for it at each of their steps.
const BUDGET: Duration = Duration::from_micros(500);

/// The computations that are woken when a turn begins. Each that leaves time wakes another one.
const WOKEN: usize = 4;

/// The claim of one computation to the time of its worker.
#[derive(Debug, Default)]
pub struct TurnClaim {
    /// The place in the queue; `None` if the computation does not wait.
    ticket: Option<Ticket>,
}

/// A place in the queue, which is `true` once the computation is due.
type Ticket = Rc<Cell<bool>>;

/// The computations of a worker.
#[derive(Default)]
struct Turns {
    /// The time that computations have taken since the turn began.
    spent: Duration,
    /// The computations that were due in a turn without time left, in front of all others.
    overdue: VecDeque<(Ticket, Waker)>,
    waiting: VecDeque<(Ticket, Waker)>,
    /// The task that may compute in this turn; its computations may be one inside the other.
    granted: Option<Waker>,
    /// Whether [`pace`] runs on this thread.
    is_paced: bool,
    /// The waker of [`pace`]; `None` while it has something to do.
    pacer: Option<Waker>,
}

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

impl TurnClaim {
    /// Waits until the computation may continue for a while.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        TURNS.with_borrow_mut(|turns| match &self.ticket {
            Some(ticket) if !ticket.get() => Poll::Pending,
            None if turns.admits(cx) => Poll::Ready(()),
            Some(_) if turns.has_time() => {
                self.ticket = None;
                turns.granted = Some(cx.waker().clone());
                Poll::Ready(())
            }
            waited => {
                let waited = waited.is_some();
                self.ticket = turns.queue(waited, cx);
                Poll::Pending
            }
        })
    }
}

impl Turns {
    fn has_time(&self) -> bool {
        self.spent < BUDGET
    }

    /// Whether a computation may begin though it has not waited.
    fn admits(&self, cx: &Context<'_>) -> bool {
        let is_granted = || self.granted.as_ref().is_some_and(|granted| granted.will_wake(cx.waker()));
        self.has_time() && (self.is_empty() || is_granted())
    }

    fn is_empty(&self) -> bool {
        self.overdue.is_empty() && self.waiting.is_empty()
    }

    /// Queues a computation and returns its ticket; `None` if it only waits for the next turn.
    fn queue(&mut self, was_due: bool, cx: &mut Context<'_>) -> Option<Ticket> {
        if !self.is_paced {
            self.spent = Duration::ZERO;
            give_way(cx);
            return None;
        }
        let ticket = Ticket::default();
        let place = (ticket.clone(), cx.waker().clone());
        match was_due {
            true => self.overdue.push_back(place),
            false => self.waiting.push_back(place),
        }
        self.pacer.take().into_iter().for_each(Waker::wake);
        Some(ticket)
    }

    /// Begins another turn.
    fn begin(&mut self) {
        (self.spent, self.granted) = (Duration::ZERO, None);
        (0..WOKEN).for_each(|_| self.wake());
    }

    /// Wakes the computation that has waited for longest.
    fn wake(&mut self) {
        if let Some((ticket, waker)) = self.overdue.pop_front().or_else(|| self.waiting.pop_front()) {
            ticket.set(true);
            waker.wake();
        }
    }
}

/// Whether a computation would have to wait for its turn.
pub fn is_contended() -> bool {
    TURNS.with_borrow(|turns| !turns.has_time() || !turns.is_empty())
}

/// Counts the time of a computation whose claim was granted.
pub fn spend(time: Duration) {
    TURNS.with_borrow_mut(|turns| {
        turns.spent += time;
        if turns.has_time() {
            turns.wake();
        }
    });
}

/// Begins another turn for the computations that wait, each time that the worker has looked for new events of its sockets.
/// Every worker runs it.
pub async fn pace() {
    TURNS.with_borrow_mut(|turns| turns.is_paced = true);
    loop {
        poll_fn(|cx| {
            TURNS.with_borrow_mut(|turns| {
                if turns.is_empty() {
                    turns.pacer = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
        })
        .await;
        tokio::task::yield_now().await;
        TURNS.with_borrow_mut(Turns::begin);
    }
}

/// Has the task woken once others have had a turn, and once the worker has looked for new events of its sockets: a task that
/// wakes itself is polled dozens of times before that.
fn give_way(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs computations of a number of steps each on one worker, and returns the order of their steps.
    fn run(steps: &[usize], step: Duration) -> Vec<usize> {
        let order = Rc::new(RefCell::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_current_thread().build_local(Default::default()).unwrap();
        runtime.block_on(async {
            let pacer = tokio::task::spawn_local(pace());
            tokio::task::yield_now().await;
            let compute = |name: usize| {
                let (order, mut claim, mut left) = (order.clone(), TurnClaim::default(), steps[name]);
                tokio::task::spawn_local(poll_fn(move |cx| {
                    while left > 0 {
                        std::task::ready!(claim.poll(cx));
                        order.borrow_mut().push(name);
                        left -= 1;
                        spend(step);
                    }
                    Poll::Ready(())
                }))
            };
            for task in (0..steps.len()).map(compute).collect::<Vec<_>>() {
                task.await.unwrap();
            }
            pacer.abort();
        });
        order.take()
    }

    #[test]
    fn computations_that_use_up_a_turn_take_turns() {
        // The first one that finds no time left is the first of the next turn.
        assert_eq!(run(&[3, 3, 3], BUDGET), [0, 0, 1, 2, 0, 1, 2, 1, 2]);
    }

    #[test]
    fn a_turn_has_room_for_many_short_steps() {
        let order = run(&[40, 40], BUDGET / 10);
        let runs: Vec<usize> = order.chunk_by(|one, next| one == next).map(<[usize]>::len).collect();
        assert!(runs.len() > 3 && runs.iter().all(|run| (10..=20).contains(run)), "{runs:?}");
    }

    #[test]
    fn a_computation_that_is_not_polled_again_holds_up_no_other() {
        let runtime = tokio::runtime::Builder::new_current_thread().build_local(Default::default()).unwrap();
        runtime.block_on(async {
            let pacer = tokio::task::spawn_local(pace());
            tokio::task::yield_now().await;
            spend(BUDGET);
            // Those that wait first ignore that they are due, or are gone.
            let mut ignoring: Vec<TurnClaim> = (0..9).map(|_| TurnClaim::default()).collect();
            for claim in &mut ignoring {
                assert!(poll_fn(|cx| Poll::Ready(claim.poll(cx))).await.is_pending());
            }
            ignoring.truncate(6);
            let mut claim = TurnClaim::default();
            tokio::task::spawn_local(poll_fn(move |cx| claim.poll(cx))).await.unwrap();
            pacer.abort();
        });
    }
}
