//! Turns of a worker's event loop: in each turn, all long computations together have [`BUDGET`]. A computation that finds no
//! time left waits in the queue of its owner, while the worker serves other tasks. The kinds of computations are served in
//! turn, and of each kind the clients.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use smallvec::SmallVec;

use crate::system::fair_queue::GroupedFairQueue;
use crate::system::holder_counts::Holder;
use crate::system::thread_time::timed;

/// The time of all computations in one turn of a worker's event loop. Each step of another task waits for this time at
/// most, and for the step that exceeds it.
const BUDGET: Duration = Duration::from_micros(500);

/// The time that a computation has without waiting. A short one never waits, because what it holds meanwhile, such as an
/// instance of a plugin, would cost more than the wait of others.
const FREE: Duration = Duration::from_micros(100);

/// The number of computations that are woken when a turn begins. A computation that leaves time wakes another one.
const WOKEN: usize = 4;

/// The owner of computations: however many they are, they wait in one queue.
#[derive(Clone, Copy, Debug)]
pub struct TurnOwner {
    pub kind: ComputationKind,
    /// The client for which the worker computes.
    pub client: Holder,
}

/// A kind of computations. However many clients they are for, all of a kind have one turn of the kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ComputationKind {
    /// Blocks of files of the cache are read.
    StoredBlocks,
    /// TLS handshakes with clients are made.
    Handshakes,
    /// A plugin's version runs, or the host works for it.
    Plugin(usize),
}

/// The claim of one computation to the time of its worker.
#[derive(Debug)]
pub struct TurnClaim {
    owner: TurnOwner,
    /// The place in the queue; `None` if the computation does not wait.
    place: Option<Rc<QueuePlace>>,
    /// The time that the computation has taken.
    used: Duration,
}

/// The place of a claim in the queue. The queue drops it once the claim is dropped.
#[derive(Debug)]
struct QueuePlace {
    /// Whether the computation was woken, and has left the queue.
    is_due: Cell<bool>,
    /// The waker of the last poll: bodies move between tasks.
    waker: RefCell<Waker>,
}

/// The computations of a worker.
#[derive(Default)]
struct Turns {
    /// The time that computations have taken since [`Turns::begin`], which is called only while some wait.
    spent: Duration,
    /// The computations that were woken and found no time left. They precede those in `waiting`.
    overdue: VecDeque<Rc<QueuePlace>>,
    waiting: GroupedFairQueue<ComputationKind, Holder, Rc<QueuePlace>>,
    /// The tasks that were woken in this turn. All their claims are granted, because one computation may run inside another.
    granted: SmallVec<[Waker; WOKEN]>,
    /// Whether [`pace`] runs on this thread.
    is_paced: bool,
    /// The waker of [`pace`]; `None` while it has something to do.
    pacer: Option<Waker>,
}

thread_local! {
    static TURNS: RefCell<Turns> = RefCell::default();
}

impl TurnClaim {
    /// Waits until the computation may take another step.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.used < FREE {
            return Poll::Ready(());
        }
        let woken = TURNS.with_borrow_mut(|turns| match &self.place {
            Some(place) if !place.is_due.get() => {
                place.waker.borrow_mut().clone_from(cx.waker());
                Err(None)
            }
            None if turns.admits(cx) => Ok(()),
            Some(_) if turns.has_time() => {
                self.place = None;
                Ok(())
            }
            place => {
                let was_due = place.is_some();
                self.place = turns.queue(self.owner, was_due, cx);
                Err(turns.pacer.take())
            }
        });
        match woken {
            Ok(()) => Poll::Ready(()),
            Err(pacer) => {
                pacer.into_iter().for_each(Waker::wake);
                Poll::Pending
            }
        }
    }

    /// Counts time that the computation has taken.
    pub fn spend(&mut self, time: Duration) {
        self.used = self.used.saturating_add(time);
        spend(time);
    }

    /// Returns a claim, which may wait `from_the_beginning` or has some time without waiting.
    pub fn new(owner: TurnOwner, from_the_beginning: bool) -> Self {
        TurnClaim { owner, place: None, used: if from_the_beginning { FREE } else { Duration::ZERO } }
    }
}

impl Turns {
    fn has_time(&self) -> bool {
        self.spent < BUDGET
    }

    /// Whether a computation may begin though it has not waited.
    fn admits(&self, cx: &Context<'_>) -> bool {
        let is_granted = || self.granted.iter().any(|granted| granted.will_wake(cx.waker()));
        self.has_time() && (self.is_empty() || is_granted())
    }

    fn is_empty(&self) -> bool {
        self.overdue.is_empty() && self.waiting.is_empty()
    }

    /// Queues a computation and returns its place; `None` if it only waits for the next turn.
    fn queue(&mut self, owner: TurnOwner, was_due: bool, cx: &mut Context<'_>) -> Option<Rc<QueuePlace>> {
        if !self.is_paced {
            self.spent = Duration::ZERO;
            give_way(cx);
            return None;
        }
        let waker = RefCell::new(cx.waker().clone());
        let place = Rc::new(QueuePlace { is_due: Cell::new(false), waker });
        match was_due {
            true => self.overdue.push_back(place.clone()),
            false => self.waiting.push(owner.kind, owner.client, place.clone()),
        }
        Some(place)
    }

    /// Begins another turn; returns the wakers of the computations that are due.
    fn begin(&mut self) -> SmallVec<[Waker; WOKEN]> {
        self.spent = Duration::ZERO;
        self.granted.clear();
        (0..WOKEN).map_while(|_| self.next()).collect()
    }

    /// Makes a computation due; returns its waker.
    fn next(&mut self) -> Option<Waker> {
        loop {
            let place = self.overdue.pop_front().or_else(|| self.waiting.pop())?;
            // The claims of streams that were reset have left their places behind.
            if Rc::strong_count(&place) > 1 {
                place.is_due.set(true);
                let waker = place.waker.borrow().clone();
                self.granted.push(waker.clone());
                return Some(waker);
            }
        }
    }
}

/// Waits until a computation may begin.
pub async fn next_turn(owner: TurnOwner) {
    let mut claim = TurnClaim::new(owner, true);
    poll_fn(|cx| claim.poll(cx)).await;
}

/// Runs a future each of whose polls may be a long computation, in turns.
pub async fn in_turns<T>(owner: TurnOwner, future: impl Future<Output = T>) -> T {
    let (mut future, mut claim) = (pin!(future), TurnClaim::new(owner, true));
    poll_fn(|cx| {
        ready!(claim.poll(cx));
        let (polled, time) = timed(|| future.as_mut().poll(cx));
        claim.spend(time);
        polled
    })
    .await
}

/// Whether a computation would have to wait for its turn. After [`BUDGET`] has been used up without others that wait, one
/// computation waits for nothing: turns are counted only while some wait.
pub fn is_contended() -> bool {
    TURNS.with_borrow(|turns| !turns.has_time() || !turns.is_empty())
}

/// Counts time that a computation has taken, with or without a claim, and wakes another one if time is left.
pub fn spend(time: Duration) {
    let next = TURNS.with_borrow_mut(|turns| {
        turns.spent += time;
        if turns.has_time() { turns.next() } else { None }
    });
    next.into_iter().for_each(Waker::wake);
}

/// Begins a turn each time that the worker has polled its sockets, as long as computations wait. Each worker runs one such
/// task.
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
        // Woken outside of the borrow: a waker may run code that asks for a turn.
        TURNS.with_borrow_mut(Turns::begin).into_iter().for_each(Waker::wake);
    }
}

/// Wakes the task after the worker has polled its sockets. A task that wakes itself is polled dozens of times before that.
pub fn give_way(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::*;

    /// Returns the owner of a plugin's computations for a client.
    fn owner(version: usize, client: u64) -> TurnOwner {
        TurnOwner { kind: ComputationKind::Plugin(version), client: Holder::numbered(client) }
    }

    /// Returns a claim that has no time without waiting.
    fn claim_that_waits() -> TurnClaim {
        TurnClaim::new(owner(0, 0), true)
    }

    /// Runs computations of a number of steps each on one worker, and returns the order of their steps.
    fn run(steps: &[usize], step: Duration) -> Vec<usize> {
        let order = Rc::new(RefCell::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_current_thread().build_local(Default::default()).unwrap();
        runtime.block_on(async {
            let pacer = tokio::task::spawn_local(pace());
            tokio::task::yield_now().await;
            let compute = |name: usize| {
                let (order, mut claim, mut left) = (order.clone(), claim_that_waits(), steps[name]);
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

    #[tokio::test]
    async fn a_future_whose_polls_take_long_waits_for_its_turn() {
        spend(BUDGET);
        let polls = Cell::new(0);
        let mut future = pin!(in_turns(owner(0, 0), async { polls.set(polls.get() + 1) }));
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(polls.get(), 0);
        future.await;
        assert_eq!(polls.get(), 1);
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

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_short_computation_does_not_wait() {
        TURNS.with_borrow_mut(|turns| turns.is_paced = true);
        spend(BUDGET);
        let mut claim = TurnClaim::new(owner(0, 0), false);
        assert!(claim.poll(&mut Context::from_waker(Waker::noop())).is_ready());
        claim.spend(FREE / 2);
        assert!(claim.poll(&mut Context::from_waker(Waker::noop())).is_ready());
        claim.spend(FREE / 2);
        assert!(claim.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[test]
    fn the_last_task_that_has_polled_a_claim_is_woken() {
        TURNS.with_borrow_mut(|turns| turns.is_paced = true);
        spend(BUDGET);
        let (first, second) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
        let mut claim = claim_that_waits();
        for task in [&first, &second] {
            assert!(claim.poll(&mut Context::from_waker(&Waker::from(task.clone()))).is_pending());
        }
        TURNS.with_borrow_mut(Turns::begin).into_iter().for_each(Waker::wake);
        assert_eq!([first, second].map(|task| task.0.load(Ordering::Relaxed)), [0, 1]);
        assert!(claim.poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    #[test]
    fn claims_that_were_dropped_use_up_no_turn() {
        TURNS.with_borrow_mut(|turns| turns.is_paced = true);
        spend(BUDGET);
        let task = Arc::new(Wakes::default());
        let waker = Waker::from(task.clone());
        for _ in 0..1000 {
            assert!(claim_that_waits().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let mut claim = claim_that_waits();
        assert!(claim.poll(&mut Context::from_waker(&waker)).is_pending());
        TURNS.with_borrow_mut(Turns::begin).into_iter().for_each(Waker::wake);
        assert_eq!(task.0.load(Ordering::Relaxed), 1);
        assert!(TURNS.with_borrow(Turns::is_empty));
    }

    #[test]
    fn all_claims_of_a_task_that_is_due_are_granted() {
        TURNS.with_borrow_mut(|turns| turns.is_paced = true);
        spend(BUDGET);
        let (task, other) = (Waker::from(Arc::new(Wakes::default())), Waker::from(Arc::new(Wakes::default())));
        let (mut inner, mut outer, mut others) = (claim_that_waits(), claim_that_waits(), Vec::new());
        assert!(inner.poll(&mut Context::from_waker(&task)).is_pending());
        for _ in 0..2 * WOKEN {
            let mut claim = claim_that_waits();
            assert!(claim.poll(&mut Context::from_waker(&other)).is_pending());
            others.push(claim);
        }
        TURNS.with_borrow_mut(Turns::begin).into_iter().for_each(Waker::wake);
        for claim in [&mut outer, &mut inner] {
            assert!(claim.poll(&mut Context::from_waker(&task)).is_ready());
        }
    }

    #[test]
    fn one_of_an_owner_waits_for_one_of_each_other_owner() {
        TURNS.with_borrow_mut(|turns| turns.is_paced = true);
        spend(BUDGET);
        let queued = |owner, waker: &Waker| {
            let mut claim = TurnClaim::new(owner, true);
            assert!(claim.poll(&mut Context::from_waker(waker)).is_pending());
            claim
        };
        let many = Waker::from(Arc::new(Wakes::default()));
        let mut claims: Vec<TurnClaim> = (0..100).map(|_| queued(owner(1, 1), &many)).collect();
        let others = [owner(1, 2), owner(2, 1)].map(|owner| {
            let task = Arc::new(Wakes::default());
            claims.push(queued(owner, &Waker::from(task.clone())));
            task
        });
        TURNS.with_borrow_mut(Turns::begin).into_iter().for_each(Waker::wake);
        assert_eq!(others.map(|task| task.0.load(Ordering::Relaxed)), [1, 1]);
        drop(claims);
    }

    #[test]
    fn a_computation_that_is_not_polled_again_holds_up_no_other() {
        let runtime = tokio::runtime::Builder::new_current_thread().build_local(Default::default()).unwrap();
        runtime.block_on(async {
            let pacer = tokio::task::spawn_local(pace());
            tokio::task::yield_now().await;
            spend(BUDGET);
            // Those that wait first ignore that they are due, or are gone.
            let mut ignoring: Vec<TurnClaim> = (0..9).map(|_| claim_that_waits()).collect();
            for claim in &mut ignoring {
                assert!(poll_fn(|cx| Poll::Ready(claim.poll(cx))).await.is_pending());
            }
            ignoring.truncate(6);
            let mut claim = claim_that_waits();
            tokio::task::spawn_local(poll_fn(move |cx| claim.poll(cx))).await.unwrap();
            pacer.abort();
        });
    }
}
