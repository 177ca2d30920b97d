//! The search for the files of maintenance, on a thread beside the control thread. A file system may be slow, and
//! neither the control thread nor a worker waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::generation::Generation;
use crate::system::background;
use crate::system::supervise::{Task, spawn};

/// The task that looks for the files of maintenance, which is aborted on drop.
pub struct MaintenanceMonitor(AbortHandle);

/// The time between two looks. Each costs a system call for each file.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

impl MaintenanceMonitor {
    /// Looks for the files of the generation in service from now on.
    pub fn start(generation: watch::Receiver<Arc<Generation>>) -> Self {
        MaintenanceMonitor(spawn(Task::Maintenance, look_for_ever(generation)).abort_handle())
    }
}

impl Drop for MaintenanceMonitor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Looks for the files in turns, each of which begins after the one before has ended.
async fn look_for_ever(mut generation: watch::Receiver<Arc<Generation>>) {
    loop {
        let switches = generation.borrow_and_update().maintenance.clone();
        if switches.is_empty() {
            if generation.changed().await.is_err() {
                return;
            }
            continue;
        }
        let _ = background::run(Task::Maintenance, move || switches.iter().for_each(|switch| switch.look())).await;
        sleep(LOOK_INTERVAL).await;
    }
}
