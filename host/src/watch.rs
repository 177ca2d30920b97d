//! Notices when a file of the manifest, or one that it names (a plugin, a certificate, a page), has changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::config::manifest::{Manifest, PluginRef};
use crate::config::problem::Source;

/// Editors and builds write in bursts: a change counts once nothing has followed it for so long.
const SETTLED: Duration = Duration::from_millis(150);

/// Watches the folders of the files in question.
pub struct Watch {
    /// None where the system can't watch; then only SIGHUP and the admin listener reload.
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    wanted: Arc<Mutex<Wanted>>,
    events: mpsc::Receiver<()>,
    seen: Option<blake3::Hash>,
}

#[derive(Default)]
struct Wanted {
    /// Those that the manifest names.
    named: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
    /// Any file here counts: a pattern may match it.
    folders: BTreeSet<PathBuf>,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> Self {
        let (sender, events) = mpsc::channel(1);
        let wanted = Arc::<Mutex<Wanted>>::default();
        let known = wanted.clone();
        let notice = move |event: notify::Result<Event>| {
            let Ok(event) = event else { return };
            let changes = matches!(event.kind, EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_));
            if changes && known.lock().unwrap_or_else(PoisonError::into_inner).concerns(&event.paths) {
                // A full channel already says that something has changed.
                let _ = sender.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(notice).inspect_err(|error| {
            tracing::warn!(%error, "files are not watched");
        });
        Watch { watcher: watcher.ok(), folders: BTreeSet::new(), wanted, events, seen: None }
    }

    /// Watches these files, and those that they name, from now on.
    pub fn follow(&mut self, files: &[(Arc<Source>, Manifest)]) {
        let Some(watcher) = &mut self.watcher else { return };
        let wanted = Wanted::of(files);
        let parents = wanted.files.iter().filter_map(|file| file.parent().map(Path::to_path_buf));
        let folders: BTreeSet<PathBuf> = parents.chain(wanted.folders.iter().cloned()).collect();
        for gone in self.folders.difference(&folders) {
            let _ = watcher.unwatch(gone);
        }
        for new in folders.difference(&self.folders) {
            if let Err(error) = watcher.watch(new, RecursiveMode::NonRecursive) {
                tracing::warn!(%error, folder = %new.display(), "not watched");
            }
        }
        self.folders = folders;
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
    }

    /// Whether the contents are others than at the last call: a file that was touched, or that a command has already
    /// told of, is no change.
    pub fn differs(&mut self, files: &[(Arc<Source>, Manifest)]) -> bool {
        let mut digest = blake3::Hasher::new();
        files.iter().for_each(|(source, _)| {
            digest.update(source.text.as_bytes()).update(&[0]);
        });
        for named in &self.wanted.lock().unwrap_or_else(PoisonError::into_inner).named {
            digest.update(&std::fs::read(named).unwrap_or_default()).update(&[0]);
        }
        let digest = Some(digest.finalize());
        std::mem::replace(&mut self.seen, digest) != digest
    }

    /// Waits for a change that has settled. May be dropped at any time; no change is lost by that but one that
    /// has just begun to settle, and what follows in its burst brings it back.
    pub async fn changed(&mut self) {
        if self.events.recv().await.is_none() {
            return std::future::pending().await;
        }
        while tokio::time::timeout(SETTLED, self.events.recv()).await.is_ok_and(|event| event.is_some()) {}
    }
}

impl Wanted {
    fn of(files: &[(Arc<Source>, Manifest)]) -> Self {
        let mut wanted = Wanted::default();
        for (source, manifest) in files {
            let Ok(path) = std::path::absolute(&source.path) else { continue };
            let Some(folder) = path.parent().filter(|_| path.is_file()) else { continue };
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
                .folders
                .extend(patterns.filter_map(|pattern| Some(folder.join(pattern.get_ref()).parent()?.to_path_buf())));
            wanted.named.extend(named);
            wanted.files.insert(path.clone());
        }
        wanted.files.extend(wanted.named.iter().cloned());
        // A folder has one name, or its events come under the other; a link is watched where it stands and leads.
        let stands = |file: &PathBuf| Some(file.parent()?.canonicalize().ok()?.join(file.file_name()?));
        let standing: Vec<PathBuf> = wanted.files.iter().filter_map(stands).collect();
        let leading = wanted.files.iter().filter_map(|file| file.canonicalize().ok());
        wanted.files = leading.chain(standing).collect();
        wanted.folders = wanted.folders.iter().filter_map(|folder| folder.canonicalize().ok()).collect();
        wanted
    }

    fn concerns(&self, paths: &[PathBuf]) -> bool {
        let is_known = |path: &PathBuf| self.files.contains(path);
        let may_match = |path: &PathBuf| path.parent().is_some_and(|folder| self.folders.contains(folder));
        paths.iter().any(|path| is_known(path) || may_match(path))
    }
}
