//! The thread that makes instances: for workers that take a generation into service, and spare ones for those that lost
//! theirs. Workers never wait for it while they serve.
//!
//! One plugin can't keep the thread from the others: it rests after each spare instance and each that a call waits for, and
//! backs off after a failure.
#![expect(clippy::disallowed_methods, reason = "the maker is a thread of its own")]

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tracing::warn;

use super::call_error::PluginFailure;
use super::early_answers::EarlyAnswers;
use super::instance::Instance;
use super::instance_orders::{InstanceOrder, InstanceOrders, MadeInstance, WantedInstance, WorkerOrder};
use super::settings::Isolation;
use super::version::{PluginVersion, PluginVersions};
use crate::system::supervise::{Task, guard};
use crate::system::thread_time::thread_time;

/// A spare instance that is due later.
struct PendingSpare<V> {
    due: Instant,
    version: Weak<V>,
    /// Failures before, in a row.
    failures: u32,
}

/// The pause after a spare instance was made, as a multiple of the time that making it took. Instances that are lost
/// over and over take at most a tenth of a core.
const REST: u32 = 9;

/// The multiple for plugins with a fresh instance for each call, whose instances are not lost by failures, and for instances
/// that calls wait for, which are charged to the share of the plugin.
const REST_PER_CALL: u32 = 1;

/// The backoff after the first failure; it doubles up to [`MAX_BACKOFF`].
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The time after which making an instance is retried if there was no place for it.
const SHORTAGE: Duration = Duration::from_millis(100);

/// The priority of the thread: it has a third of a worker's weight, so that workers run first if cores are scarce.
const NICENESS: i32 = 5;

impl PluginVersions {
    /// Starts the thread that makes instances; returns an empty set of versions. The thread ends with the last version.
    pub fn start() -> std::io::Result<Self> {
        let (orders, queue) = InstanceOrders::queue();
        std::thread::Builder::new().name("plugin-maker".into()).spawn(move || run(&queue))?;
        Ok(PluginVersions::new(orders))
    }
}

/// The state of the thread.
struct Queues<V> {
    /// The instances that workers need before they use a generation, and those of balancers.
    for_workers: VecDeque<WorkerOrder<V>>,
    /// The instances that calls wait for. The versions are served in turn.
    for_calls: VecDeque<CallOrders<V>>,
    later: Vec<PendingSpare<V>>,
    /// The kind of the last instance.
    last: InstancePurpose,
}

/// The instances of one version that calls wait for.
struct CallOrders<V> {
    /// The address of the version, which tells it from others.
    version: usize,
    /// The end of the rest after the version's last instance.
    due: Instant,
    orders: VecDeque<WorkerOrder<V>>,
}

/// The kinds of instances, which take turns.
#[derive(Clone, Copy)]
enum InstancePurpose {
    Spare,
    ForWorker,
    ForCall,
}

/// The instance that is made next.
enum NextInstance<V> {
    Spare(PendingSpare<V>),
    ForWorker(WorkerOrder<V>),
    ForCall(WorkerOrder<V>),
}

fn run(orders: &Receiver<InstanceOrder<PluginVersion>>) {
    lower_priority();
    let mut queues = Queues::new();
    loop {
        let received = match queues.wait() {
            Some(wait) => orders.recv_timeout(wait),
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(order) => queues.take(order),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        orders.try_iter().for_each(|order| queues.take(order));
        match queues.next(Instant::now()) {
            Some(NextInstance::Spare(due)) => queues.make_spare(due),
            Some(NextInstance::ForWorker(order)) => {
                make_for_worker(order);
            }
            Some(NextInstance::ForCall(order)) => {
                let version = Arc::as_ptr(&order.version).addr();
                let rest = make_for_worker(order);
                queues.rest(version, Instant::now() + rest);
            }
            None => {}
        }
    }
}

impl<V> Queues<V> {
    fn new() -> Self {
        let (for_workers, for_calls, later) = (VecDeque::new(), VecDeque::new(), Vec::new());
        Queues { for_workers, for_calls, later, last: InstancePurpose::ForCall }
    }

    fn take(&mut self, order: InstanceOrder<V>) {
        match order {
            InstanceOrder::Spare(version) => {
                self.later.push(PendingSpare { due: Instant::now(), version, failures: 0 })
            }
            InstanceOrder::ForWorker(order) if order.wanted.is_for_call => self.take_for_call(order),
            InstanceOrder::ForWorker(order) => self.for_workers.push_back(order),
        }
    }

    fn take_for_call(&mut self, order: WorkerOrder<V>) {
        let version = Arc::as_ptr(&order.version).addr();
        match self.for_calls.iter_mut().find(|known| known.version == version) {
            Some(known) => known.orders.push_back(order),
            None => self.for_calls.push_back(CallOrders { version, due: Instant::now(), orders: [order].into() }),
        }
    }

    /// Makes no further instance of a version that a call waits for before `due`.
    fn rest(&mut self, version: usize, due: Instant) {
        match self.for_calls.iter_mut().find(|known| known.version == version) {
            Some(known) => known.due = due,
            None => self.for_calls.push_back(CallOrders { version, due, orders: VecDeque::new() }),
        }
    }

    /// Returns the time until an instance is due; `None` if none will be.
    fn wait(&self) -> Option<Duration> {
        if !self.for_workers.is_empty() {
            return Some(Duration::ZERO);
        }
        let for_calls = self.for_calls.iter().filter(|version| !version.orders.is_empty()).map(|version| version.due);
        let next = self.later.iter().map(|later| later.due).chain(for_calls).min();
        next.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Returns the instance to make next. The kinds take turns: requests are served less well without a spare instance than
    /// with an old generation, but plugins that lose theirs over and over are to hold up no reload and no call.
    fn next(&mut self, now: Instant) -> Option<NextInstance<V>> {
        let turns = match self.last {
            InstancePurpose::Spare => [InstancePurpose::ForWorker, InstancePurpose::ForCall, InstancePurpose::Spare],
            InstancePurpose::ForWorker => {
                [InstancePurpose::ForCall, InstancePurpose::Spare, InstancePurpose::ForWorker]
            }
            InstancePurpose::ForCall => [InstancePurpose::Spare, InstancePurpose::ForWorker, InstancePurpose::ForCall],
        };
        turns.into_iter().find_map(|purpose| {
            self.last = purpose;
            match purpose {
                InstancePurpose::Spare => self.due(now).map(NextInstance::Spare),
                InstancePurpose::ForWorker => self.for_workers.pop_front().map(NextInstance::ForWorker),
                InstancePurpose::ForCall => self.due_for_call(now).map(NextInstance::ForCall),
            }
        })
    }

    /// Returns an instance that a call waits for, of the version whose turn it is. Those of calls that have ended are
    /// forgotten.
    fn due_for_call(&mut self, now: Instant) -> Option<WorkerOrder<V>> {
        self.for_calls.iter_mut().for_each(|version| version.orders.retain(|order| !order.reply.is_closed()));
        self.for_calls.retain(|version| version.due > now || !version.orders.is_empty());
        let next = self.for_calls.iter().position(|version| version.due <= now)?;
        let mut version = self.for_calls.remove(next)?;
        let order = version.orders.pop_front();
        self.for_calls.push_back(version);
        order
    }

    /// Returns the spare instance that has been due for the longest time.
    fn due(&mut self, now: Instant) -> Option<PendingSpare<V>> {
        let due = self.later.iter().enumerate().filter(|(_, later)| later.due <= now);
        let next = due.min_by_key(|(_, later)| later.due)?.0;
        Some(self.later.swap_remove(next))
    }
}

impl Queues<PluginVersion> {
    /// Makes a spare instance. The plugin's next one is due after a rest, even if its order comes before.
    fn make_spare(&mut self, later: PendingSpare<PluginVersion>) {
        // A version that no generation has any more needs no instances.
        let Some(version) = later.version.upgrade() else { return };
        if !version.is_short() && !version.is_failing() {
            version.order_done();
            return;
        }
        let began = thread_time();
        match make(&version, None) {
            Ok(instance) => {
                version.keep(instance);
                let rest = if version.isolation == Isolation::Request { REST_PER_CALL } else { REST };
                let due = Instant::now() + thread_time().saturating_sub(began) * rest;
                self.later.push(PendingSpare { due, version: later.version, failures: 0 });
            }
            Err(PluginFailure::NoPlace) => {
                version.lacked_place();
                self.later.push(PendingSpare { due: Instant::now() + SHORTAGE, ..later });
            }
            Err(error) => {
                let backoff = (BACKOFF * (1 << later.failures.min(6))).min(MAX_BACKOFF);
                warn!(plugin = &*version.name, %error, retry_in = ?backoff, "plugin instance not made");
                let (due, failures) = (Instant::now() + backoff, later.failures + 1);
                self.later.push(PendingSpare { due, version: later.version, failures });
            }
        }
    }
}

/// Makes an instance that a worker waits for. Returns the rest of its version, which is longer if the plugin is not charged,
/// because the call has ended.
fn make_for_worker(order: WorkerOrder<PluginVersion>) -> Duration {
    let WorkerOrder { version, wanted: WantedInstance { members, answers, .. }, reply } = order;
    // The worker has given up, because another instance could not be made.
    if reply.is_closed() {
        return Duration::ZERO;
    }
    let began = thread_time();
    let made = make(&version, answers).and_then(|mut instance| {
        if let Some(members) = &members {
            let tell = || instance.endpoints_changed(members, version.recipe.limits.making_time());
            version.measure_telling(|| guarded(tell))?;
        }
        Ok(instance)
    });
    let took = thread_time().saturating_sub(began);
    let sent = reply.send(MadeInstance { made, took });
    took * if sent.is_ok() { REST_PER_CALL } else { REST }
}

fn make(version: &PluginVersion, answers: Option<Arc<EarlyAnswers>>) -> Result<Box<Instance>, PluginFailure> {
    let recipe = &version.recipe;
    version.measure(|| guarded(|| Instance::new(recipe, answers, recipe.limits.making_time()).map(Box::new)))
}

/// Turns a panic into a failure: the thread serves all plugins.
fn guarded<R>(work: impl FnOnce() -> Result<R, PluginFailure>) -> Result<R, PluginFailure> {
    guard(Task::Other, work).unwrap_or_else(|_| Err(PluginFailure::Reported("the host panicked".into())))
}

fn lower_priority() {
    // On Linux, the priority is the thread's own.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "the thread that makes instances has the priority of workers");
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn spares_that_are_always_due_hold_up_no_worker() {
        let (mut queues, began) = (Queues::new(), Instant::now());
        let versions: Vec<Arc<&str>> = ["a", "b", "c"].into_iter().map(Arc::new).collect();
        versions.iter().for_each(|version| queues.take(InstanceOrder::Spare(Arc::downgrade(version))));
        for version in ["x", "y"] {
            let reply = oneshot::channel().0;
            let wanted = WantedInstance::default();
            queues.take(InstanceOrder::ForWorker(WorkerOrder { version: Arc::new(version), wanted, reply }));
        }
        let mut made = Vec::new();
        for seconds in 1..=8 {
            let now = began + Duration::from_secs(seconds);
            match queues.next(now) {
                Some(NextInstance::Spare(spare)) => {
                    made.extend(spare.version.upgrade().map(|version| *version));
                    // The plugin has lost the instance already.
                    queues.later.push(PendingSpare { due: now, ..spare });
                }
                Some(NextInstance::ForWorker(order)) => made.push(*order.version),
                Some(NextInstance::ForCall(_)) | None => break,
            }
        }
        assert_eq!(made, ["a", "x", "b", "y", "c", "a", "b", "c"]);
    }

    #[test]
    fn calls_of_one_plugin_hold_up_no_others_and_no_reload() {
        let (mut queues, began) = (Queues::new(), Instant::now());
        let versions: Vec<Arc<&str>> = ["a", "b", "c", "x"].into_iter().map(Arc::new).collect();
        let mut order = |version: usize| {
            let (reply, receiver) = oneshot::channel();
            let wanted = WantedInstance { is_for_call: version < 3, ..WantedInstance::default() };
            queues.take(InstanceOrder::ForWorker(WorkerOrder { version: versions[version].clone(), wanted, reply }));
            receiver
        };
        let receivers = [0, 0, 0, 0, 1, 2, 3, 3].map(&mut order);
        // The call of this one has ended.
        drop(order(1));
        let (mut now, mut made) = (began, Vec::new());
        while made.len() < receivers.len() {
            now += Duration::from_secs(1);
            match queues.next(now) {
                Some(NextInstance::ForCall(order)) => {
                    made.push(*order.version);
                    // Each instance takes so long that three of others fit into the rest.
                    queues.rest(Arc::as_ptr(&order.version).addr(), now + Duration::from_secs(4));
                }
                Some(NextInstance::ForWorker(order)) => made.push(*order.version),
                Some(NextInstance::Spare(_)) => break,
                None => made.push("-"),
            }
        }
        assert_eq!(made, ["x", "a", "x", "b", "c", "a", "-", "-"]);
        assert!(queues.wait().is_some());
        drop(receivers);
        assert!(queues.next(now + Duration::from_secs(60)).is_none() && queues.wait().is_none());
    }
}
