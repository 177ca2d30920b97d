//! The Linux backend: watches folders with inotify. Events are files that were written and closed, created, moved or
//! removed; not each write to an open file: a log that grows beside a manifest costs nothing.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use futures_core::Stream;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};

/// The watched folders. The type has the name of the portable backend's, because a build contains one of the two only.
pub struct Folders {
    events: EventStream<[u8; ROOM]>,
    watched: HashMap<WatchDescriptor, PathBuf>,
}

/// The events that may change a file for a reader: the file was written, a file or a link was created or removed, or
/// the file may have become readable.
const CHANGES: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::CREATE)
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::DELETE)
    .union(WatchMask::ATTRIB)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::DELETE_SELF);

/// The events of a folder that may have another in its place from now on, which is not watched yet.
const GONE: EventMask = EventMask::MOVE_SELF.union(EventMask::DELETE_SELF);

/// The buffer for events that are read at once, in bytes: at least one with the longest name, of some 270 bytes.
const ROOM: usize = 4 << 10;

impl Folders {
    /// Creates a watch without folders. Requires a runtime.
    pub fn new() -> io::Result<Self> {
        Ok(Folders { events: Inotify::init()?.into_event_stream([0; ROOM])?, watched: HashMap::new() })
    }

    /// Watches exactly these folders from now on. Returns whether there are new ones among them.
    pub fn keep(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        let mut watched = HashMap::new();
        for folder in folders {
            // A folder that is watched already has its descriptor; a folder that replaced another has a new one.
            match self.events.watches().add(folder, CHANGES) {
                Ok(descriptor) => drop(watched.insert(descriptor, folder.clone())),
                Err(error) => tracing::warn!(%error, folder = %folder.display(), "not watched"),
            }
        }
        let are_new = watched.keys().any(|descriptor| !self.watched.contains_key(descriptor));
        for (descriptor, _) in std::mem::replace(&mut self.watched, watched) {
            if !self.watched.contains_key(&descriptor) {
                let _ = self.events.watches().remove(descriptor);
            }
        }
        are_new
    }

    /// Waits until a file changes that `is_of_concern` accepts. Cancel safe.
    pub async fn wait_for_change(&mut self, is_of_concern: impl Fn(&Path) -> bool) -> io::Result<()> {
        while let Some(event) = poll_fn(|cx| Pin::new(&mut self.events).poll_next(cx)).await {
            let EventOwned { wd, mask, name, .. } = event?;
            if self.tells(&wd, mask, name.as_deref(), &is_of_concern) {
                return Ok(());
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    fn tells(
        &mut self,
        folder: &WatchDescriptor,
        mask: EventMask,
        name: Option<&OsStr>,
        is_of_concern: impl Fn(&Path) -> bool,
    ) -> bool {
        let is_gone = mask.intersects(GONE) && self.watched.contains_key(folder);
        if mask.contains(EventMask::IGNORED) {
            self.watched.remove(folder);
        }
        // Events that were lost may have concerned any file.
        let is_any = mask.contains(EventMask::Q_OVERFLOW);
        is_any
            || is_gone
            || self.watched.get(folder).zip(name).is_some_and(|(folder, name)| is_of_concern(&folder.join(name)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Whether an event of concern has occurred.
    async fn is_told(folders: &mut Folders, is_of_concern: impl Fn(&Path) -> bool) -> bool {
        // Past events are available at the first poll.
        tokio::select! {
            biased;
            changed = folders.wait_for_change(is_of_concern) => changed.map(|()| true).unwrap(),
            () = tokio::task::yield_now() => false,
        }
    }

    fn folder(folder: &tempfile::TempDir) -> BTreeSet<PathBuf> {
        BTreeSet::from([folder.path().to_path_buf()])
    }

    #[tokio::test]
    async fn a_file_counts_once_it_is_closed() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("log");
        let mut file = std::fs::File::create(&path).unwrap();
        let mut folders = Folders::new().unwrap();
        folders.keep(&folder(&parent));

        file.write_all(b"a line").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"a line");
        assert!(!is_told(&mut folders, |_| true).await);
        drop(file);
        assert!(is_told(&mut folders, |changed| changed == path).await);
        assert!(!is_told(&mut folders, |_| true).await);
    }

    #[tokio::test]
    async fn only_the_folders_that_were_named_last_are_watched() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut folders = Folders::new().unwrap();
        folders.keep(&folder(&one));
        folders.keep(&folder(&other));
        std::fs::write(one.path().join("file"), "").unwrap();
        assert!(!is_told(&mut folders, |_| true).await);
        std::fs::write(other.path().join("file"), "").unwrap();
        assert!(is_told(&mut folders, |_| true).await);
    }

    #[tokio::test]
    async fn a_folder_that_was_moved_away_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let (path, away) = (parent.path().join("folder"), parent.path().join("away"));
        let named = BTreeSet::from([path.clone()]);
        let mut folders = Folders::new().unwrap();
        std::fs::create_dir(&path).unwrap();
        folders.keep(&named);
        std::fs::rename(&path, &away).unwrap();
        std::fs::create_dir(&path).unwrap();
        folders.keep(&named);
        std::fs::write(away.join("file"), "").unwrap();
        assert!(!is_told(&mut folders, |_| true).await);
        std::fs::write(path.join("file"), "").unwrap();
        assert!(is_told(&mut folders, |_| true).await);
    }

    #[tokio::test]
    async fn a_folder_that_leaves_its_place_counts_as_a_change() {
        let parent = tempfile::tempdir().unwrap();
        let (path, away) = (parent.path().join("folder"), parent.path().join("away"));
        std::fs::create_dir(&path).unwrap();
        let mut folders = Folders::new().unwrap();
        folders.keep(&BTreeSet::from([path.clone()]));
        std::fs::rename(&path, &away).unwrap();
        assert!(is_told(&mut folders, |_| false).await);
        std::fs::remove_dir(&away).unwrap();
        assert!(is_told(&mut folders, |_| false).await);
    }

    #[tokio::test]
    async fn queue_overflow_counts_as_a_change_of_any_file() {
        let mut folders = Folders::new().unwrap();
        let parent = tempfile::tempdir().unwrap();
        let descriptor = folders.events.watches().add(parent.path(), CHANGES).unwrap();
        assert!(folders.tells(&descriptor, EventMask::Q_OVERFLOW, None, |_| false));
        assert!(!folders.tells(&descriptor, EventMask::CREATE, None, |_| true));
    }

    #[tokio::test]
    async fn a_folder_that_was_put_in_the_place_of_another_is_watched() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("folder");
        std::fs::create_dir(&path).unwrap();
        let mut folders = Folders::new().unwrap();
        folders.keep(&BTreeSet::from([path.clone()]));
        std::fs::remove_dir(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        folders.keep(&BTreeSet::from([path.clone()]));
        assert!(!is_told(&mut folders, |_| true).await);
        std::fs::write(path.join("file"), "").unwrap();
        assert!(is_told(&mut folders, |changed| changed == path.join("file")).await);
    }
}
