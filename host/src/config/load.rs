//! Reads a manifest and the files that it includes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::manifest::{EndpointFile, Manifest};
use super::problem::{Problems, Source};
use super::wording::worded;
use crate::files;

/// A manifest and its includes; the first is the manifest itself.
pub type Files = Vec<(Arc<Source>, Manifest)>;

/// Reads `path` and its includes.
pub fn load(path: &Path) -> Result<Files, Problems> {
    let mut problems = Problems::default();
    let mut files = Vec::new();
    if let Some((source, manifest)) = read(path, files::MANIFEST, &mut problems) {
        let included = include(path, &source, &manifest, &mut problems);
        files.push((source, manifest));
        files.extend(included);
    }
    if problems.count() == 0 { Ok(files) } else { Err(problems) }
}

/// The files that one manifest may include: more than any that is written by hand.
const MOST_INCLUDED: usize = 1_000;

/// The bytes that a manifest and its includes may have together.
const MOST_BYTES: usize = 32 << 20;

fn include(path: &Path, source: &Arc<Source>, manifest: &Manifest, problems: &mut Problems) -> Files {
    let folder = path.parent().unwrap_or(Path::new("."));
    let (mut files, mut bytes) = (Files::new(), source.text.len());
    for pattern in &manifest.include {
        let paths = matching(folder, pattern.get_ref()).unwrap_or_else(|message| {
            problems.files.push(folder.join(pattern.get_ref()));
            problems.at(source, pattern.span(), message);
            Vec::new()
        });
        for path in paths {
            if files.len() == MOST_INCLUDED || bytes > MOST_BYTES {
                let most = MOST_BYTES >> 20;
                let message =
                    format!("this includes too much: {MOST_INCLUDED} files at most, of {most} MiB at most together");
                problems.at(source, pattern.span(), message);
                return files;
            }
            let Some((included, manifest)) = read::<Manifest>(&path, files::MANIFEST, problems) else { continue };
            if let Some(further) = manifest.include.first() {
                let message = "an included file can't include others; name them in the manifest";
                problems.at(&included, further.span(), message);
            }
            bytes += included.text.len();
            files.push((included, manifest));
        }
    }
    files
}

/// Takes a manifest that is no file.
pub fn parse(name: &str, text: String) -> Result<Files, Problems> {
    let source = Arc::new(Source { path: name.into(), text, is_file: false });
    match toml::from_str(&source.text) {
        Ok(manifest) => Ok(vec![(source, manifest)]),
        Err(error) => {
            let mut problems = Problems::default();
            problems.push(&source, error.span(), worded(error.message()));
            Err(problems)
        }
    }
}

/// Reads a file with endpoints.
pub fn endpoints(path: &Path, problems: &mut Problems) -> Option<(Arc<Source>, EndpointFile)> {
    read(path, files::ENDPOINTS, problems)
}

fn read<T: DeserializeOwned>(path: &Path, kind: files::Kind, problems: &mut Problems) -> Option<(Arc<Source>, T)> {
    problems.files.push(path.into());
    let text = files::read_text(path, kind);
    let content = text.as_deref().unwrap_or_default().into();
    let source = Arc::new(Source { path: path.into(), text: content, is_file: true });
    if let Err(error) = text {
        problems.of_file(&source, format!("the manifest can't be read: {error}"));
        return None;
    }
    match toml::from_str(&source.text) {
        Ok(manifest) => Some((source, manifest)),
        Err(error) => {
            problems.push(&source, error.span(), worded(error.message()));
            None
        }
    }
}

/// The files that a pattern stands for; one without `*` has to exist.
fn matching(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let whole = folder.join(pattern);
    let Some((before, after)) = pattern.rsplit('/').next().and_then(|last| last.split_once('*')) else {
        // Something else than a file is read in vain, with an error that says so.
        return if whole.exists() { Ok(vec![whole]) } else { Err(format!("there is no file `{}`", whole.display())) };
    };
    let folder = whole.parent().unwrap_or(folder);
    let entries =
        std::fs::read_dir(folder).map_err(|error| format!("`{}` can't be listed: {error}", folder.display()))?;
    let fits = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(fits);
    let mut paths: Vec<PathBuf> = paths.take(MOST_INCLUDED + 1).collect();
    paths.sort();
    Ok(paths)
}
