//! Orders for the thread that makes instances.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use super::call_error::PluginFailure;
use super::early_answers::EarlyAnswers;
use super::instance::Instance;
use crate::upstream::endpoint_set::EndpointSnapshot;

/// The sender of orders for instances of versions `V`.
pub struct InstanceOrders<V>(SyncSender<InstanceOrder<V>>);

/// An instance that is being made, or the error of making it.
pub struct OrderedInstance(oneshot::Receiver<MadeInstance>);

/// An instance that was made, or the error of making it.
pub(super) struct MadeInstance {
    pub(super) made: Result<Box<Instance>, PluginFailure>,
    /// The CPU time that making the instance took.
    pub(super) took: Duration,
}

/// An order for an instance of a version.
pub(super) enum InstanceOrder<V> {
    /// The version has too few spare instances. An order is void once no generation has the version any more.
    Spare(Weak<V>),
    /// A worker waits for an instance.
    ForWorker(WorkerOrder<V>),
}

/// An order for an instance that a worker waits for.
pub(super) struct WorkerOrder<V> {
    pub(super) version: Arc<V>,
    pub(super) wanted: WantedInstance,
    pub(super) reply: oneshot::Sender<MadeInstance>,
}

/// The properties of an instance that a worker waits for.
#[derive(Default)]
pub(super) struct WantedInstance {
    /// The endpoints for the instance, if it is a balancer.
    pub(super) members: Option<Arc<EndpointSnapshot>>,
    /// The answers with which the instance is configured, if its plugin asks meanwhile.
    pub(super) answers: Option<Arc<EarlyAnswers>>,
    /// Whether a call waits for the instance, rather than a generation or a balancer.
    pub(super) is_for_call: bool,
}

/// The maximum number of orders that wait: workers send one at a time for a new generation, and one for each balancer
/// whose endpoints change.
const QUEUE: usize = 4096;

impl<V> InstanceOrders<V> {
    /// Returns both ends of a queue of orders.
    pub(super) fn queue() -> (Self, Receiver<InstanceOrder<V>>) {
        let (orders, queue) = sync_channel(QUEUE);
        (InstanceOrders(orders), queue)
    }

    /// Orders a spare instance. Returns whether there was room for the order.
    pub(super) fn order_spare(&self, version: &Arc<V>) -> bool {
        self.0.try_send(InstanceOrder::Spare(Arc::downgrade(version))).is_ok()
    }

    /// Orders an instance for a worker. The receiver's sender is dropped if there is no room for the order.
    pub(super) fn order(&self, version: &Arc<V>, wanted: WantedInstance) -> OrderedInstance {
        let (reply, receiver) = oneshot::channel();
        let _ = self.0.try_send(InstanceOrder::ForWorker(WorkerOrder { version: version.clone(), wanted, reply }));
        OrderedInstance(receiver)
    }
}

impl<V> Clone for InstanceOrders<V> {
    fn clone(&self) -> Self {
        InstanceOrders(self.0.clone())
    }
}

impl OrderedInstance {
    /// Waits for the instance.
    pub(super) async fn wait(self) -> MadeInstance {
        self.0.await.unwrap_or_else(|_| MadeInstance { made: Err(dropped()), took: Duration::ZERO })
    }

    /// Returns the instance, or the error of making it; `None` if the instance is still being made.
    pub fn poll(&mut self) -> Option<Result<Box<Instance>, PluginFailure>> {
        match self.0.try_recv() {
            Ok(MadeInstance { made, .. }) => Some(made),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(dropped())),
        }
    }
}

fn dropped() -> PluginFailure {
    PluginFailure::NoInstance("too many are waited for")
}
