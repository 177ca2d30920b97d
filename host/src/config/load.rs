//! Reads a manifest and the files that it includes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::manifest::{EndpointFile, Manifest};
use super::problem::{Problem, Problems, Source};
use super::wording::worded;

/// A manifest and its includes; the first is the manifest itself.
pub type Files = Vec<(Arc<Source>, Manifest)>;

/// Reads `path` and its includes.
pub fn load(path: &Path) -> Result<Files, Problems> {
    let mut problems = Problems::default();
    let mut files = Vec::new();
    if let Some((source, manifest)) = read::<Manifest>(path, &mut problems) {
        let folder = path.parent().unwrap_or(Path::new("."));
        for pattern in &manifest.include {
            match matching(folder, pattern.get_ref()) {
                Ok(paths) => files.extend(paths.iter().filter_map(|path| {
                    let (included, manifest) = read::<Manifest>(path, &mut problems)?;
                    if let Some(further) = manifest.include.first() {
                        problems.at(
                            &included,
                            further.span(),
                            "an included file can't include others; name them in the manifest",
                        );
                    }
                    Some((included, manifest))
                })),
                Err(message) => {
                    problems.files.push(folder.join(pattern.get_ref()));
                    problems.at(&source, pattern.span(), message);
                }
            }
        }
        files.insert(0, (source, manifest));
    }
    if problems.list.is_empty() { Ok(files) } else { Err(problems) }
}

/// Takes a manifest that is no file.
pub fn parse(name: &str, text: String) -> Result<Files, Problems> {
    let source = Arc::new(Source { path: name.into(), text, is_file: false });
    match toml::from_str(&source.text) {
        Ok(manifest) => Ok(vec![(source, manifest)]),
        Err(error) => Err(Problems { list: vec![syntax(&source, &error)], files: Vec::new() }),
    }
}

/// Reads a file with endpoints.
pub fn endpoints(path: &Path, problems: &mut Problems) -> Option<(Arc<Source>, EndpointFile)> {
    read(path, problems)
}

fn read<T: DeserializeOwned>(path: &Path, problems: &mut Problems) -> Option<(Arc<Source>, T)> {
    problems.files.push(path.into());
    let text = std::fs::read_to_string(path);
    let content = text.as_deref().unwrap_or_default().into();
    let source = Arc::new(Source { path: path.into(), text: content, is_file: true });
    if let Err(error) = text {
        let message = format!("the manifest can't be read: {error}");
        problems.list.push(Problem { source, span: None, message });
        return None;
    }
    match toml::from_str(&source.text) {
        Ok(manifest) => Some((source, manifest)),
        Err(error) => {
            problems.list.push(syntax(&source, &error));
            None
        }
    }
}

fn syntax(source: &Arc<Source>, error: &toml::de::Error) -> Problem {
    Problem { source: source.clone(), span: error.span(), message: worded(error.message()) }
}

/// The files that a pattern stands for; one without `*` has to exist.
fn matching(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let whole = folder.join(pattern);
    let Some((before, after)) = pattern.rsplit('/').next().and_then(|last| last.split_once('*')) else {
        return if whole.is_file() { Ok(vec![whole]) } else { Err(format!("there is no file `{}`", whole.display())) };
    };
    let folder = whole.parent().unwrap_or(folder);
    let entries =
        std::fs::read_dir(folder).map_err(|error| format!("`{}` can't be listed: {error}", folder.display()))?;
    let fits = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(fits).collect();
    paths.sort();
    Ok(paths)
}
