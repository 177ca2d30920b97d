//! Notices when a file of the manifest, or one that it names (a plugin, a certificate, a page), has changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[cfg(not(target_os = "linux"))]
use elsewhere::Folders;
#[cfg(target_os = "linux")]
use linux::Folders;

use crate::config::manifest::{Manifest, PluginRef};
use crate::config::problem::Source;

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

/// Editors and builds write in bursts: a change counts once nothing has followed it for so long.
const SETTLED: Duration = Duration::from_millis(150);

/// Watches the folders of the files in question.
pub struct Watch {
    /// None where the system can't watch; then only SIGHUP and the admin listener reload.
    folders: Option<Folders>,
    wanted: Wanted,
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
    /// Watches nothing yet. Within a runtime.
    pub fn new() -> Self {
        let folders = Folders::new().inspect_err(|error| tracing::warn!(%error, "files are not watched"));
        Watch { folders: folders.ok(), wanted: Wanted::default(), seen: None }
    }

    /// Watches these files, and those that they name, from now on.
    pub fn follow(&mut self, files: &[(Arc<Source>, Manifest)]) {
        self.wanted = Wanted::of(files);
        if let Some(folders) = &mut self.folders {
            let parents = self.wanted.files.iter().filter_map(|file| file.parent().map(Path::to_path_buf));
            folders.keep(&parents.chain(self.wanted.folders.iter().cloned()).collect());
        }
    }

    /// Whether the contents are others than at the last call: a file that was touched, or that a command has already
    /// told of, is no change.
    pub fn differs(&mut self, files: &[(Arc<Source>, Manifest)]) -> bool {
        let mut digest = blake3::Hasher::new();
        files.iter().for_each(|(source, _)| {
            digest.update(source.text.as_bytes()).update(&[0]);
        });
        for named in &self.wanted.named {
            digest.update(&std::fs::read(named).unwrap_or_default()).update(&[0]);
        }
        let digest = Some(digest.finalize());
        std::mem::replace(&mut self.seen, digest) != digest
    }

    /// Waits for a change that has settled. May be dropped at any time; no change is lost by that but one that
    /// has just begun to settle, and what follows in its burst brings it back.
    pub async fn changed(&mut self) {
        let Watch { folders: Some(folders), wanted, .. } = self else { return std::future::pending().await };
        if let Err(error) = folders.changed(|path| wanted.concerns(path)).await {
            tracing::warn!(%error, "files are no longer watched");
            self.folders = None;
            return std::future::pending().await;
        }
        while tokio::time::timeout(SETTLED, folders.changed(|path| wanted.concerns(path)))
            .await
            .is_ok_and(|more| more.is_ok())
        {}
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

    fn concerns(&self, path: &Path) -> bool {
        self.files.contains(path) || path.parent().is_some_and(|folder| self.folders.contains(folder))
    }
}
