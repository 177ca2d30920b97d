//! The limit of the calls that may wait of one version of a plugin, and their queue; the limit of the requests that they
//! make.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::call_error::PluginFailure;
use super::settings::WaitingLimits;
use crate::net::deadline::Deadline;
use crate::system::client_places::{ClientPlace, ClientPlaces, Entered, FEW};
use crate::system::holder_counts::Holder;

/// The limit of a version's calls at a time, which all workers share.
pub struct WaitingLimit {
    calls: Arc<ClientPlaces>,
    callouts: Arc<ClientPlaces>,
    /// The number of instances for such calls, idle or not, beyond the first of each worker.
    pub(super) instances: AtomicU32,
    /// The number of instances that no call has at the moment, beyond the only one of a worker.
    idle: AtomicU32,
}

/// Instances for calls that may wait that a plugin has places for, whatever others do. More take what is free.
pub const RESERVED_CALLS: u32 = 32;

impl WaitingLimit {
    /// Returns a limit that nothing uses yet.
    pub(super) fn new(limits: WaitingLimits) -> Self {
        let calls = ClientPlaces::new(limits.calls, limits.queued, FEW);
        let callouts = ClientPlaces::new(limits.callouts, u32::MAX, FEW);
        WaitingLimit { calls, callouts, instances: AtomicU32::new(0), idle: AtomicU32::new(0) }
    }

    /// Counts one more idle instance; returns whether there are no more of them than calls at a time.
    pub(super) fn keeps_idle(&self, limits: WaitingLimits) -> bool {
        let add = |count: u32| (count < limits.calls).then_some(count + 1);
        self.idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// Counts one idle instance less.
    pub(super) fn end_idle(&self) {
        self.idle.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits until a call of a client may be made.
    pub(super) async fn admit(
        &self,
        limits: WaitingLimits,
        client: Holder,
        step: &Deadline,
    ) -> Result<ClientPlace, PluginFailure> {
        let queued = match self.calls.enter(client) {
            Entered::Place(place) => return Ok(place),
            Entered::Queued(queued) => queued,
            Entered::Full => return Err(PluginFailure::Queue { calls: limits.calls, queued: limits.queued }),
        };
        let late = PluginFailure::QueueTime { calls: limits.calls, time: limits.queue_time };
        step.limit(limits.queue_time, queued.turn()).await.ok().flatten().ok_or(late)
    }

    /// Waits until the plugin may have one more request of its own under way for a client.
    pub(super) async fn callout(&self, client: Holder) -> Option<ClientPlace> {
        match self.callouts.enter(client) {
            Entered::Place(place) => Some(place),
            Entered::Queued(queued) => queued.turn().await,
            // The calls that may wait bound the queue before.
            Entered::Full => None,
        }
    }
}
