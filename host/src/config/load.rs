//! Reads a manifest and the files that it includes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use toml::Spanned;

use super::manifest::{EndpointFile, Manifest};
use super::problem::{Problems, Source};
use super::structure::{self, LeftOut, Mistake, Structure};
use crate::files;

/// A manifest and its includes, as far as they could be understood.
#[derive(Default)]
pub struct Files {
    /// The first is the manifest itself.
    pub list: Vec<(Arc<Source>, Manifest)>,
    /// The mistakes that were found so far.
    pub problems: Problems,
    /// The tables that are not in the list.
    pub left_out: LeftOut,
}

/// Reads `path` and its includes. The error is that nothing could be understood; other mistakes stand among the files.
pub fn load(path: &Path) -> Result<Files, Problems> {
    let mut files = Files::default();
    let Some((source, manifest)) = files.read::<Manifest>(path, files::MANIFEST) else { return Err(files.problems) };
    let patterns = manifest.include.clone();
    files.list.push((source.clone(), manifest));
    files.include(path, &source, &patterns);
    Ok(files)
}

/// The files that one manifest may include: more than any that is written by hand.
const MOST_INCLUDED: usize = 1_000;

/// The bytes that a manifest and its includes may have together.
const MOST_BYTES: usize = 32 << 20;

impl Files {
    fn include(&mut self, path: &Path, source: &Arc<Source>, patterns: &[Spanned<String>]) {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut bytes = source.text.len();
        for pattern in patterns {
            let paths = matching(folder, pattern.get_ref()).unwrap_or_else(|message| {
                self.problems.files.push(folder.join(pattern.get_ref()));
                self.problems.at(source, pattern.span(), message);
                self.left_out.add_file();
                Vec::new()
            });
            for path in paths {
                if self.list.len() > MOST_INCLUDED || bytes > MOST_BYTES {
                    let most = MOST_BYTES >> 20;
                    let message = format!(
                        "this includes too much: {MOST_INCLUDED} files at most, of {most} MiB at most together"
                    );
                    self.problems.at(source, pattern.span(), message);
                    self.left_out.add_file();
                    return;
                }
                let Some((included, manifest)) = self.read::<Manifest>(&path, files::MANIFEST) else { continue };
                if let Some(further) = manifest.include.first() {
                    let message = "an included file can't include others; name them in the manifest";
                    self.problems.at(&included, further.span(), message);
                }
                bytes += included.text.len();
                self.list.push((included, manifest));
            }
        }
    }

    fn read<T: DeserializeOwned>(&mut self, path: &Path, kind: files::Kind) -> Option<(Arc<Source>, T)> {
        let (file, left_out) = read(path, kind, &mut self.problems);
        self.left_out.extend(left_out);
        file
    }
}

/// Takes a manifest that is no file.
pub fn parse(name: &str, text: String) -> Result<Files, Problems> {
    let source = Arc::new(Source { path: name.into(), text, is_file: false });
    let mut files = Files::default();
    let (manifest, left_out) = understood(&source, &mut files.problems);
    files.left_out.extend(left_out);
    let Some(manifest) = manifest else { return Err(files.problems) };
    files.list.push((source, manifest));
    Ok(files)
}

/// Reads a file with endpoints.
pub fn endpoints(path: &Path, problems: &mut Problems) -> Option<(Arc<Source>, EndpointFile)> {
    read(path, files::ENDPOINTS, problems).0
}

fn read<T: DeserializeOwned>(
    path: &Path,
    kind: files::Kind,
    problems: &mut Problems,
) -> (Option<(Arc<Source>, T)>, LeftOut) {
    problems.files.push(path.into());
    let text = files::read_text(path, kind);
    let content = text.as_deref().unwrap_or_default().into();
    let source = Arc::new(Source { path: path.into(), text: content, is_file: true });
    if let Err(error) = text {
        problems.of_file(&source, format!("the manifest can't be read: {error}"));
        let mut left_out = LeftOut::default();
        left_out.add_file();
        return (None, left_out);
    }
    let (content, left_out) = understood(&source, problems);
    (content.map(|content| (source, content)), left_out)
}

fn understood<T: DeserializeOwned>(source: &Arc<Source>, problems: &mut Problems) -> (Option<T>, LeftOut) {
    let Structure { content, mistakes, left_out, damaged } = structure::parse(&source.text);
    mistakes.into_iter().for_each(|Mistake { span, message }| problems.push(source, span, message));
    problems.excuse(source, damaged);
    (content, left_out)
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
