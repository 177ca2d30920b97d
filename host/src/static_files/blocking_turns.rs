//! The turns of a site on the threads for blocking work of a worker. Other sites, the cache and bodies in files use the same
//! threads, and a disk or a network that hangs must leave them some.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of a site on one worker.
#[derive(Clone, Debug)]
pub struct BlockingTurns(Arc<Semaphore>);

/// The right to keep a thread busy, until dropped.
#[derive(Debug)]
pub struct BlockingTurn {
    _permit: Option<OwnedSemaphorePermit>,
}

/// The maximum number of threads that a site keeps busy: an eighth of those that a runtime has at most, and more requests
/// than disks serve at a time.
const AT_A_TIME: usize = 64;

impl Default for BlockingTurns {
    fn default() -> Self {
        BlockingTurns(Arc::new(Semaphore::new(AT_A_TIME)))
    }
}

impl BlockingTurns {
    /// Waits for a turn.
    pub async fn begin(&self) -> BlockingTurn {
        // Nothing closes the semaphore.
        BlockingTurn { _permit: self.0.clone().acquire_owned().await.ok() }
    }
}
