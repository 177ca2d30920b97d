//! The bodies of a plugin version that pass, and those that wait.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio::sync::Notify;

/// The number of bodies for which each plugin has reserved places. Further bodies use free places.
pub const RESERVED_BODIES: u32 = 32;

/// The bodies of a plugin version that pass, and those that wait.
#[derive(Default)]
pub(super) struct BodyCounts {
    pub passing: AtomicU32,
    pub waiting: AtomicU32,
    /// The bytes that the decoders of bodies hold.
    pub decoders: AtomicU64,
    /// Wakes the body that has waited longest when another ends.
    pub ended: Notify,
}

/// A body that waits for a permit, until dropped.
pub(super) struct WaitingBody<'a>(&'a BodyCounts);

impl BodyCounts {
    /// Counts one more body that waits; `None` if as many wait as allowed.
    pub fn wait(&self, most: u32) -> Option<WaitingBody<'_>> {
        let add = |count: u32| (count < most).then_some(count + 1);
        let waiting = self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        waiting.ok().map(|_| WaitingBody(self))
    }
}

impl Drop for WaitingBody<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
