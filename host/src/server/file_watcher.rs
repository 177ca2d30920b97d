//! Reports when a file of the manifest, or a file that it names (a plugin, a certificate, a page, a value), has
//! changed.

use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use inotify::Folders;
#[cfg(not(target_os = "linux"))]
use notify::Folders;

use crate::config::diagnostic::Diagnostics;
use crate::config::load::{Files, ManifestFile};
use crate::config::manifest::PluginRef;
use crate::system::background;
use crate::system::files;
use crate::system::supervise::Task;

#[cfg(target_os = "linux")]
mod inotify;
#[cfg(not(target_os = "linux"))]
mod notify;

/// The time without events after which a change counts: editors and builds write in bursts.
const SETTLED: Duration = Duration::from_millis(150);

/// The maximum time to wait for the end of events: some files change all the time, such as a log among the manifests.
const SURELY_SETTLED: Duration = Duration::from_secs(3);

/// The maximum number of watched folders. Each costs the control thread some microseconds per reload; systems allow
/// 8,192 watches and more.
const MAX_FOLDERS: usize = 4_096;

/// The maximum number of links that are followed, as on Linux.
const MAX_LINKS: usize = 40;

/// A watch on the folders of the configuration's files.
pub struct FileWatcher {
    /// The watched folders; `None` if the system can't watch: then only SIGHUP and the admin listener reload.
    folders: Option<Folders>,
    wanted: WatchedPaths,
    /// The time of the first event of a change that has not settled; `None` if there is none.
    unsettled: Option<Instant>,
    seen: Option<blake3::Hash>,
}

/// A function that reads a manifest, on any thread.
pub type Load = Arc<dyn Fn() -> Result<Files, Diagnostics> + Send + Sync>;

/// The files of a manifest, and the locations of all files that it names.
struct Reading {
    files: Result<Files, Diagnostics>,
    wanted: WatchedPaths,
    /// The digest of all contents; `None` if not all could be read.
    digest: Option<blake3::Hash>,
}

#[derive(Clone, Default)]
struct WatchedPaths {
    /// The folder of the manifest. Folders in it may be replaced by others.
    home: PathBuf,
    /// The manifest and its includes.
    manifests: BTreeSet<PathBuf>,
    /// The files that the manifests name.
    named: BTreeSet<PathBuf>,
    /// The folders of the manifests' patterns.
    patterns: BTreeSet<PathBuf>,
    /// The additional files of the last attempt in which not all could be read.
    tried: BTreeSet<PathBuf>,
    /// The locations of all these files, and the folders and links on the way.
    files: BTreeSet<PathBuf>,
    /// The folders in which any file counts: a pattern may match it.
    folders: BTreeSet<PathBuf>,
}

impl FileWatcher {
    /// Creates a watch without files. Requires a runtime.
    pub fn new() -> Self {
        let folders = Folders::new().inspect_err(|error| tracing::warn!(%error, "files are not watched"));
        FileWatcher { folders: folders.ok(), wanted: WatchedPaths::default(), unsettled: None, seen: None }
    }

    /// Loads the manifest and watches its files from now on; also returns whether the contents differ from the last
    /// load. Files are read on a thread of its own, since a disk or a mounted file system may be slow.
    pub async fn load(&mut self, load: &Load) -> io::Result<(Result<Files, Diagnostics>, bool)> {
        let mut reading = self.read(load).await?;
        if self.follow(reading.wanted) {
            reading = self.read(load).await?;
            self.follow(reading.wanted);
        }
        // What can't be read is a failure that is told, and so is its end.
        let seen = std::mem::replace(&mut self.seen, reading.digest);
        let is_other = reading.digest.is_none() || seen != reading.digest;
        Ok((reading.files, is_other))
    }

    async fn read(&self, load: &Load) -> io::Result<Reading> {
        let (load, before) = (load.clone(), self.wanted.clone());
        background::run(Task::Manifest, move || Reading::new(&load, before)).await
    }

    /// Watches these files from now on. Returns whether they may have changed since they were read, because some were
    /// not watched before.
    fn follow(&mut self, wanted: WatchedPaths) -> bool {
        // Files with earlier events have been read by now, and later events are reported anew.
        self.unsettled = None;
        self.wanted = wanted;
        let Some(folders) = &mut self.folders else { return false };
        let parents = self.wanted.files.iter().filter_map(|file| file.parent().map(Path::to_path_buf));
        let mut all: BTreeSet<PathBuf> = parents.chain(self.wanted.folders.iter().cloned()).collect();
        if let Some(first_beyond) = all.iter().nth(MAX_FOLDERS).cloned() {
            tracing::warn!(folders = all.len(), most = MAX_FOLDERS, "not all folders of the manifest are watched");
            drop(all.split_off(&first_beyond));
        }
        folders.keep(&all)
    }

    /// Waits for a change that has settled. Cancel safe: no change is lost.
    pub async fn wait_for_change(&mut self) {
        let FileWatcher { folders: Some(folders), wanted, unsettled, .. } = self else {
            return std::future::pending().await;
        };
        loop {
            let changed = folders.wait_for_change(|path| wanted.concerns(path));
            let more = match unsettled {
                Some(since) => tokio::time::timeout(SETTLED, changed).await.map(|changed| (changed, since.elapsed())),
                None => Ok((changed.await, Duration::ZERO)),
            };
            match more {
                Ok((Ok(()), waited)) if waited < SURELY_SETTLED => {
                    *unsettled = unsettled.or_else(|| Some(Instant::now()))
                }
                Ok((Err(error), _)) => {
                    tracing::warn!(%error, "files are no longer watched");
                    self.folders = None;
                    return std::future::pending().await;
                }
                _ => {
                    *unsettled = None;
                    return;
                }
            }
        }
    }
}

impl Reading {
    fn new(load: &Load, before: WatchedPaths) -> Self {
        let files = load();
        let mut wanted = match &files {
            Ok(files) => WatchedPaths::of(files).and_tried(&files.problems.files),
            Err(problems) => before.and_tried(&problems.files),
        };
        wanted.find();
        let complete = files.as_ref().ok().filter(|files| files.problems.count() == 0);
        let digest = complete.map(|files| wanted.digest(&files.list));
        Reading { files, wanted, digest }
    }
}

impl WatchedPaths {
    /// Adds the files that are missing or malformed to the wanted ones.
    fn and_tried(mut self, files: &[PathBuf]) -> Self {
        self.tried = files.iter().filter_map(|file| std::path::absolute(file).ok()).collect();
        self
    }

    /// Returns a digest of the contents of all files.
    fn digest(&self, files: &[ManifestFile]) -> blake3::Hash {
        let mut digest = blake3::Hasher::new();
        files.iter().for_each(|file| {
            digest.update(file.source.text.as_bytes()).update(&[0]);
        });
        // With the size limit of the largest kind.
        self.named.iter().for_each(|named| files::update_digest(&mut digest, named, files::COMPONENT));
        digest.finalize()
    }

    fn of(files: &Files) -> Self {
        let mut wanted = WatchedPaths::default();
        wanted.named.extend(files.files_of_values().filter_map(|file| std::path::absolute(file).ok()));
        for ManifestFile { source, manifest } in files.list.iter().filter(|file| file.source.is_file) {
            let Ok(path) = std::path::absolute(&source.path) else { continue };
            let Some(folder) = path.parent() else { continue };
            let inline = manifest.route.iter().flat_map(|route| &route.get_ref().plugins);
            let inline = inline.filter_map(|plugin| match plugin.get_ref() {
                PluginRef::Inline(plugin) => Some(&**plugin),
                PluginRef::Name(_) => None,
            });
            let plugins = manifest.plugin.values().chain(inline).map(|plugin| plugin.r#use.get_ref());
            let components = plugins.filter(|name| name.ends_with(".wasm"));
            let named = components.chain(manifest.files()).map(|name| folder.join(name));
            let patterns = manifest.include.iter().filter(|pattern| pattern.get_ref().contains('*'));
            wanted
                .patterns
                .extend(patterns.filter_map(|pattern| Some(folder.join(pattern.get_ref()).parent()?.to_path_buf())));
            wanted.named.extend(named);
            if wanted.manifests.is_empty() {
                wanted.home = folder.into();
            }
            wanted.manifests.insert(path.clone());
        }
        wanted
    }

    /// Finds the locations of all files. A folder is watched under one name, since its events have only one.
    fn find(&mut self) {
        let given = || self.manifests.iter().chain(&self.named).chain(&self.patterns).chain(&self.tried);
        self.files = given().flat_map(|path| self.way(path)).collect();
        self.folders = self.patterns.iter().filter_map(|folder| folder.canonicalize().ok()).collect();
    }

    /// Returns the paths that may be replaced on the way to a file: the file itself, the folders beside the manifest,
    /// the links. Folders further up are not watched: events of a system's temporary files would be too many.
    fn way(&self, path: &Path) -> impl Iterator<Item = PathBuf> {
        let is_beside = |folder: &&Path| folder.strip_prefix(&self.home).is_ok_and(leads_down);
        let folders = path.ancestors().skip(1).take_while(is_beside);
        let standing = [path].into_iter().filter(|path| *path != self.home).chain(folders).filter_map(stand);
        standing.chain(links(path)).chain(missing(path))
    }

    fn concerns(&self, path: &Path) -> bool {
        self.files.contains(path) || path.parent().is_some_and(|folder| self.folders.contains(folder))
    }
}

/// Whether a path from a folder stays within that folder.
fn leads_down(way: &Path) -> bool {
    way != Path::new("") && way.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Returns the location of a file or a link, by the canonical name of its folder.
fn stand(file: &Path) -> Option<PathBuf> {
    Some(file.parent()?.canonicalize().ok()?.join(file.file_name()?))
}

/// Returns the first folder that is missing on the way to a file, which can only be found once that folder is there.
fn missing(file: &Path) -> Option<PathBuf> {
    let folder = file.ancestors().skip(1).take_while(|folder| !folder.exists()).last()?;
    stand(folder)
}

/// Returns the links on the way to a file. Replacing such a link, as is done with whole folders, changes the file.
fn links(file: &Path) -> Vec<PathBuf> {
    let (mut file, mut links) = (file.to_path_buf(), Vec::new());
    while links.len() < MAX_LINKS {
        let mut on_the_way: Vec<&Path> = file.ancestors().collect();
        on_the_way.reverse();
        let Some(link) = on_the_way.into_iter().find(|path| path.is_symlink()) else { break };
        let (Some(standing), Ok(target)) = (stand(link), std::fs::read_link(link)) else { break };
        let rest = file.strip_prefix(link).unwrap_or(Path::new(""));
        let folder = link.parent().unwrap_or(Path::new("/"));
        // Joined by components: an empty rest would leave a trailing slash, which would follow the link.
        let led = folder.join(target).components().chain(rest.components()).collect();
        links.push(standing);
        file = led;
    }
    // The targets of the links, which may not exist yet.
    links.extend(stand(&file).filter(|_| !links.is_empty()));
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn watch(file: &Path) -> FileWatcher {
        let mut watch = FileWatcher::new();
        let home = file.parent().unwrap().into();
        let wanted = WatchedPaths { home, manifests: [file.to_path_buf()].into(), ..WatchedPaths::default() };
        follow(&mut watch, wanted);
        watch
    }

    /// Watches files at their present locations. Returns whether there are folders that were not watched before.
    fn follow(watch: &mut FileWatcher, mut wanted: WatchedPaths) -> bool {
        wanted.find();
        watch.follow(wanted)
    }

    #[tokio::test]
    async fn a_change_is_not_lost_by_another_event() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plugway.toml");
        let mut watch = watch(&file);
        std::fs::write(&file, "").unwrap();
        // The future has seen the change, and is dropped before the change has settled.
        tokio::select! {
            biased;
            () = watch.wait_for_change() => unreachable!("it had no time to settle"),
            () = tokio::task::yield_now() => {}
        }
        assert!(watch.unsettled.is_some());
        tokio::time::timeout(SOON, watch.wait_for_change()).await.unwrap();
        tokio::time::timeout(SETTLED * 2, watch.wait_for_change()).await.unwrap_err();
    }

    #[tokio::test]
    async fn constant_changes_are_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plugway.toml");
        let mut watch = watch(&file);
        let writing = async {
            loop {
                std::fs::write(&file, "").unwrap();
                tokio::time::sleep(SETTLED / 3).await;
            }
        };
        tokio::select! {
            () = writing => {}
            settled = tokio::time::timeout(SOON, watch.wait_for_change()) => settled.unwrap(),
        }
    }

    #[tokio::test]
    async fn only_what_was_not_watched_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = watch(&folder.path().join("plugway.toml"));
        let same = watch.wanted.clone();
        assert!(!follow(&mut watch, same.clone()));
        assert!(!follow(&mut watch, same.clone().and_tried(&[folder.path().join("site.toml")])));
        std::fs::create_dir(folder.path().join("sites")).unwrap();
        let more = same.and_tried(&[folder.path().join("sites/site.toml")]);
        assert!(follow(&mut watch, more.clone()));
        assert!(!follow(&mut watch, more));
    }

    #[tokio::test]
    async fn a_folder_on_the_way_may_be_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for version in ["..1", "..2"] {
            std::fs::create_dir(root.join(version)).unwrap();
            std::fs::write(root.join(version).join("plugway.toml"), version).unwrap();
        }
        // As Kubernetes mounts a ConfigMap.
        let (data, file) = (root.join("..data"), root.join("plugway.toml"));
        std::os::unix::fs::symlink("..1", &data).unwrap();
        std::os::unix::fs::symlink("..data/plugway.toml", &file).unwrap();
        assert_eq!(links(&file), [file.clone(), data.clone(), root.join("..1/plugway.toml")]);
        let mut watch = watch(&file);
        std::os::unix::fs::symlink("..2", root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), &data).unwrap();
        tokio::time::timeout(SOON, watch.wait_for_change()).await.unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"..2");
    }

    #[tokio::test]
    async fn a_folder_elsewhere_may_be_replaced_by_a_rename() {
        let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = elsewhere.path().canonicalize().unwrap();
        let [live, old, new] = ["live", "old", "new"].map(|name| root.join(name));
        for folder in [&live, &new] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("cert.pem"), "").unwrap();
        }
        let mut watch = watch(&home.path().join("plugway.toml"));
        let wanted = || {
            let (home, named) = (home.path().into(), [live.join("cert.pem")].into());
            WatchedPaths { home, named, ..WatchedPaths::default() }
        };
        follow(&mut watch, wanted());
        std::fs::rename(&live, &old).unwrap();
        tokio::time::timeout(SOON, watch.wait_for_change()).await.unwrap();
        // The file is missing for a while.
        follow(&mut watch, wanted());
        std::fs::rename(&new, &live).unwrap();
        tokio::time::timeout(SOON, watch.wait_for_change()).await.unwrap();
        follow(&mut watch, wanted());
        std::fs::write(live.join("cert.pem"), "renewed").unwrap();
        tokio::time::timeout(SOON, watch.wait_for_change()).await.unwrap();
    }

    #[test]
    fn a_link_that_leads_nowhere_yet_is_watched_where_it_leads() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("kept")).unwrap();
        std::os::unix::fs::symlink("kept/cert.pem", root.join("cert.pem")).unwrap();
        assert_eq!(links(&root.join("cert.pem")), [root.join("cert.pem"), root.join("kept/cert.pem")]);
    }

    #[test]
    fn links_that_lead_in_a_circle_end() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        std::os::unix::fs::symlink(&one, &other).unwrap();
        std::os::unix::fs::symlink(&other, &one).unwrap();
        assert_eq!(links(&one).len(), MAX_LINKS + 1);
    }
}
