//! Folders watched by whatever the system has.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// The watched folders.
pub struct Folders {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    changed: mpsc::UnboundedReceiver<Vec<PathBuf>>,
}

impl Folders {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        let (sender, changed) = mpsc::unbounded_channel();
        let notice = move |event: notify::Result<Event>| {
            let Ok(event) = event else { return };
            if matches!(event.kind, EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_)) {
                let _ = sender.send(event.paths);
            }
        };
        let watcher = notify::recommended_watcher(notice).map_err(io::Error::other)?;
        Ok(Folders { watcher, watched: BTreeSet::new(), changed })
    }

    /// Watches these from now on, and no others.
    pub fn keep(&mut self, folders: &BTreeSet<PathBuf>) {
        for gone in self.watched.difference(folders) {
            let _ = self.watcher.unwatch(gone);
        }
        for new in folders.difference(&self.watched) {
            if let Err(error) = self.watcher.watch(new, RecursiveMode::NonRecursive) {
                tracing::warn!(%error, folder = %new.display(), "not watched");
            }
        }
        self.watched.clone_from(folders);
    }

    /// Waits until a file changes that is of concern. May be dropped at any time.
    pub async fn changed(&mut self, is_of_concern: impl Fn(&Path) -> bool) -> io::Result<()> {
        while let Some(paths) = self.changed.recv().await {
            if paths.iter().any(|path| is_of_concern(path)) {
                return Ok(());
            }
        }
        Err(io::ErrorKind::BrokenPipe.into())
    }
}
