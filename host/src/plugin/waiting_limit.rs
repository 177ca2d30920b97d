//! The limit of the calls that may wait of one version of a plugin, and their queue; the limit of the requests that they
//! make.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::call_error::PluginFailure;
use super::settings::WaitingLimits;
use crate::net::deadline::Deadline;

/// The limit of a version's calls at a time, which all workers share.
pub struct WaitingLimit {
    // Its lock is taken when a call ends, for some nanoseconds; a call waits for at least a hundred times as long.
    calls: Semaphore,
    // The same holds for requests.
    callouts: Semaphore,
    /// The number of calls that are queued.
    queued: AtomicU32,
    /// The number of instances for such calls, idle or not, beyond the first of each worker.
    pub(super) instances: AtomicU32,
    /// The number of instances that no call has at the moment, beyond the only one of a worker.
    idle: AtomicU32,
}

/// A place in the queue of calls, until dropped.
struct QueuedCall<'a>(&'a AtomicU32);

/// Instances for calls that may wait that a plugin has places for, whatever others do. More take what is free.
pub const RESERVED_CALLS: u32 = 32;

impl WaitingLimit {
    /// Returns a limit that nothing uses yet.
    pub(super) fn new(limits: WaitingLimits) -> Self {
        let (calls, callouts) = (Semaphore::new(limits.calls as usize), Semaphore::new(limits.callouts as usize));
        let (queued, instances, idle) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        WaitingLimit { calls, callouts, queued, instances, idle }
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

    /// Waits until a call may be made.
    pub(super) async fn admit(
        &self,
        limits: WaitingLimits,
        step: &Deadline,
    ) -> Result<SemaphorePermit<'_>, PluginFailure> {
        if let Ok(permit) = self.calls.try_acquire() {
            return Ok(permit);
        }
        let _queued = self.queue(limits)?;
        match step.limit(limits.queue_time, self.calls.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(PluginFailure::QueueTime { calls: limits.calls, time: limits.queue_time }),
        }
    }

    /// Waits until the plugin may have one more request of its own under way; `None` if it never may.
    pub(super) async fn callout(&self) -> Option<SemaphorePermit<'_>> {
        self.callouts.acquire().await.ok()
    }

    fn queue(&self, limits: WaitingLimits) -> Result<QueuedCall<'_>, PluginFailure> {
        let add = |count: u32| (count < limits.queued).then_some(count + 1);
        let queued = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        let full = PluginFailure::Queue { calls: limits.calls, queued: limits.queued };
        queued.map(|_| QueuedCall(&self.queued)).map_err(|_| full)
    }
}

impl Drop for QueuedCall<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
