//! The portable backend: watches folders with the mechanism of the system.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// The watched folders. The type has the name of the Linux backend's, because a build contains one of the two only.
pub struct Folders {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    changed: mpsc::Receiver<Vec<PathBuf>>,
    /// Whether events were lost, which may have concerned any file.
    overflowed: Arc<AtomicBool>,
}

/// The maximum number of queued events.
const MAX_QUEUED_EVENTS: usize = 1 << 10;

impl Folders {
    /// Creates a watch without folders.
    pub fn new() -> io::Result<Self> {
        let (sender, changed) = mpsc::channel(MAX_QUEUED_EVENTS);
        let overflowed = Arc::new(AtomicBool::new(false));
        let overflow = overflowed.clone();
        let notice = move |event: notify::Result<Event>| {
            let Ok(event) = event else { return };
            if event.need_rescan() {
                overflow.store(true, Ordering::Relaxed);
            } else if !matches!(event.kind, EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_)) {
                return;
            }
            if sender.try_send(event.paths).is_err() {
                overflow.store(true, Ordering::Relaxed);
                // If there is room by now, the reader hasn't seen the overflow yet.
                let _ = sender.try_send(Vec::new());
            }
        };
        let watcher = notify::recommended_watcher(notice).map_err(io::Error::other)?;
        Ok(Folders { watcher, watched: BTreeSet::new(), changed, overflowed })
    }

    /// Watches exactly these folders from now on. Returns whether events may have been missed, because some folders are
    /// new or the system has restarted all watches.
    pub fn keep(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        for gone in self.watched.difference(folders) {
            let _ = self.watcher.unwatch(gone);
        }
        for new in folders.difference(&self.watched) {
            if let Err(error) = self.watcher.watch(new, RecursiveMode::NonRecursive) {
                tracing::warn!(%error, folder = %new.display(), "not watched");
            }
        }
        let is_other = *folders != self.watched;
        self.watched.clone_from(folders);
        is_other
    }

    /// Waits until a file changes that `is_of_concern` accepts. Cancel safe.
    pub async fn wait_for_change(&mut self, is_of_concern: impl Fn(&Path) -> bool) -> io::Result<()> {
        while let Some(paths) = self.changed.recv().await {
            if self.overflowed.swap(false, Ordering::Relaxed) || paths.iter().any(|path| is_of_concern(path)) {
                return Ok(());
            }
        }
        Err(io::ErrorKind::BrokenPipe.into())
    }
}
