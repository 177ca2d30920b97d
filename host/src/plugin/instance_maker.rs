//! The thread that makes instances: for workers that take a generation into service, and spare ones for those that lost
//! theirs. Workers never wait for it while they serve.
//!
//! One plugin can't keep the thread from the others: it rests after each spare instance, and backs off after a failure.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::warn;

use super::call_error::PluginFailure;
use super::configured::ConfiguredPlugin;
use super::cpu_time::thread_time;
use super::instance::Instance;
use super::settings::Isolation;
use super::version::PluginVersion;
use crate::system::supervise::{Task, guard};
use crate::upstream::endpoint_set::EndpointSnapshot;

/// Orders for the thread that makes instances.
#[derive(Clone)]
pub struct InstanceMaker(SyncSender<InstanceOrder>);

/// An instance that will come, or the error of making it.
pub struct OrderedInstance(oneshot::Receiver<Result<Box<Instance>, PluginFailure>>);

enum InstanceOrder {
    Spare(SpareOrder),
    Instance(WorkerOrder),
}

/// An order for an instance that a worker waits for.
struct WorkerOrder {
    configured: Arc<ConfiguredPlugin>,
    /// The endpoints that are passed to it, if it is a balancer.
    members: Option<Arc<EndpointSnapshot>>,
    reply: oneshot::Sender<Result<Box<Instance>, PluginFailure>>,
}

/// The plugin that a spare instance is wanted of. The binding is that of the generation which ordered the instance.
#[derive(Clone)]
struct SpareOrder {
    configured: Weak<ConfiguredPlugin>,
    supply: Weak<PluginVersion>,
}

/// A spare instance that is due later.
struct PendingSpare {
    due: Instant,
    wanted: SpareOrder,
    /// Failures before, in a row.
    failures: u32,
}

/// Orders that may wait: workers send one at a time for a new generation, and one for each balancer that learns endpoints.
const QUEUE: usize = 4096;

/// After a spare instance that took some time, the next one of the same plugin is due when so many times that time has
/// passed: instances that are lost over and over take at most a tenth of a core.
const REST: u32 = 9;

/// The rest for plugins with a fresh instance for each call, whose instances are not lost by failures.
const REST_PER_CALL: u32 = 1;

/// The backoff after the first failure; it doubles up to [`LONGEST_BACKOFF`].
const BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// An instance that found no place is tried again after this time.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Workers go first where cores are scarce: the thread has a third of a worker's weight.
const NICENESS: i32 = 5;

impl InstanceMaker {
    /// Starts the thread, which ends with the last sender of orders.
    pub(super) fn start() -> std::io::Result<Self> {
        let (orders, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("plugin-maker".into()).spawn(move || run(&queue))?;
        Ok(InstanceMaker(orders))
    }

    /// Orders a spare instance; returns whether there was room for the order.
    pub(super) fn order_spare(&self, configured: &Arc<ConfiguredPlugin>) -> bool {
        let wanted = SpareOrder { configured: Arc::downgrade(configured), supply: Arc::downgrade(&configured.supply) };
        self.0.try_send(InstanceOrder::Spare(wanted)).is_ok()
    }

    /// Orders an instance for a worker. The receiver's sender is dropped if there is no room for the order.
    pub(super) fn order(
        &self,
        configured: &Arc<ConfiguredPlugin>,
        members: Option<Arc<EndpointSnapshot>>,
    ) -> OrderedInstance {
        let (reply, receiver) = oneshot::channel();
        let _ =
            self.0.try_send(InstanceOrder::Instance(WorkerOrder { configured: configured.clone(), members, reply }));
        OrderedInstance(receiver)
    }
}

impl OrderedInstance {
    /// Waits for the instance.
    pub async fn wait(self) -> Result<Box<Instance>, PluginFailure> {
        self.0.await.unwrap_or_else(|_| Err(dropped()))
    }

    /// Returns the instance, or why there is none; `None` if the instance is still being made.
    pub fn poll(&mut self) -> Option<Result<Box<Instance>, PluginFailure>> {
        match self.0.try_recv() {
            Ok(made) => Some(made),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(dropped())),
        }
    }
}

fn dropped() -> PluginFailure {
    PluginFailure::NoInstance("too many are waited for")
}

/// The state of the thread.
#[derive(Default)]
struct Queues {
    /// Instances that workers wait for to take a generation into service.
    commissions: VecDeque<WorkerOrder>,
    later: Vec<PendingSpare>,
}

fn run(orders: &Receiver<InstanceOrder>) {
    lower_priority();
    let mut queues = Queues::default();
    loop {
        let wait = if queues.commissions.is_empty() { queues.wait() } else { Some(Duration::ZERO) };
        let received = match wait {
            Some(wait) => orders.recv_timeout(wait),
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(order) => queues.take(order),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        orders.try_iter().for_each(|order| queues.take(order));
        // Requests are served less well without a spare instance than with an old generation.
        if let Some(due) = queues.due() {
            queues.make_spare(due);
        } else if let Some(commission) = queues.commissions.pop_front() {
            commission.make();
        }
    }
}

impl Queues {
    fn take(&mut self, order: InstanceOrder) {
        match order {
            InstanceOrder::Spare(wanted) => self.later.push(PendingSpare { due: Instant::now(), wanted, failures: 0 }),
            InstanceOrder::Instance(commission) => self.commissions.push_back(commission),
        }
    }

    /// Returns the time until a spare instance is due; `None` if none will be.
    fn wait(&self) -> Option<Duration> {
        let next = self.later.iter().map(|later| later.due).min();
        next.map(|due| due.saturating_duration_since(Instant::now()))
    }

    fn due(&mut self) -> Option<PendingSpare> {
        let now = Instant::now();
        let next = self.later.iter().position(|later| later.due <= now)?;
        Some(self.later.swap_remove(next))
    }

    /// Makes a spare instance. The plugin's next one is due after a rest, even if its order comes before.
    fn make_spare(&mut self, later: PendingSpare) {
        // A version that no generation has any more needs no instances.
        let Some(supply) = later.wanted.supply.upgrade() else { return };
        let Some(configured) = later.wanted.configured.upgrade() else { return supply.order_done() };
        if !supply.is_short() && !supply.is_failing() {
            supply.order_done();
            return;
        }
        let began = thread_time();
        match make(&configured, &supply) {
            Ok(instance) => {
                supply.keep(instance);
                let rest = if configured.isolation == Isolation::Request { REST_PER_CALL } else { REST };
                let due = Instant::now() + thread_time().saturating_sub(began) * rest;
                self.later.push(PendingSpare { due, wanted: later.wanted, failures: 0 });
            }
            Err(PluginFailure::NoPlace) => {
                supply.lacked_place();
                self.later.push(PendingSpare { due: Instant::now() + SHORTAGE, ..later });
            }
            Err(error) => {
                let backoff = (BACKOFF * (1 << later.failures.min(6))).min(LONGEST_BACKOFF);
                warn!(plugin = &*configured.name, %error, retry_in = ?backoff, "plugin instance not made");
                let (due, failures) = (Instant::now() + backoff, later.failures + 1);
                self.later.push(PendingSpare { due, wanted: later.wanted, failures });
            }
        }
    }
}

impl WorkerOrder {
    fn make(self) {
        // The worker has given up, because another instance could not be made.
        if self.reply.is_closed() {
            return;
        }
        let configured = &self.configured;
        let made = make(configured, &configured.supply).and_then(|mut instance| {
            if let Some(members) = &self.members {
                let tell = || instance.endpoints_changed(members, configured.limits.making_time());
                configured.supply.measure_telling(|| guarded(tell))?;
            }
            Ok(instance)
        });
        let _ = self.reply.send(made);
    }
}

fn make(configured: &Arc<ConfiguredPlugin>, supply: &PluginVersion) -> Result<Box<Instance>, PluginFailure> {
    supply.measure(|| guarded(|| Instance::new(configured, configured.limits.making_time()).map(Box::new)))
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
