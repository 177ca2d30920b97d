//! Reads a manifest and the files that it includes.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::diagnostic::{Diagnostics, Source};
use super::foreign;
use super::manifest::{EndpointValue, Manifest};
use super::references::Environment;
use super::spanned::Spanned;
use super::structure::{self, LeftOut, Structure, StructureError};
use crate::system::files;

/// A file of the manifest, as text and as parsed.
pub struct ManifestFile {
    pub source: Arc<Source>,
    pub manifest: Manifest,
}

/// A manifest and its includes, as far as they could be understood.
#[derive(Default)]
pub struct Files {
    /// The files of the manifest. The first is the manifest itself.
    pub list: Vec<ManifestFile>,
    /// The errors that were found so far.
    pub problems: Diagnostics,
    /// The tables that are not in the list.
    pub left_out: LeftOut,
    /// The files whose texts replace references in files of endpoints.
    values: Vec<PathBuf>,
}

/// Reads `path` and its includes. The error is that nothing could be parsed; other errors are among the files.
pub fn load(path: &Path, environment: &Environment) -> Result<Files, Diagnostics> {
    let mut files = Files::new(environment);
    let Some((source, manifest)) = files.read::<Manifest>(path, files::MANIFEST, None) else {
        return Err(files.problems);
    };
    let patterns = manifest.include.clone();
    files.list.push(ManifestFile { source: source.clone(), manifest });
    files.include(path, &source, &patterns);
    files.find_values_of_endpoints();
    Ok(files)
}

/// The files that one manifest may include: more than any that is written by hand.
const MAX_INCLUDED_FILES: usize = 1_000;

/// The bytes that a manifest and its includes may have together.
const MAX_MANIFEST_BYTES: usize = 32 << 20;

impl Files {
    fn new(environment: &Environment) -> Self {
        Files { problems: Diagnostics::new(environment), ..Files::default() }
    }

    /// Finds the files that references in files of endpoints name, so that they are watched. The endpoints are parsed once,
    /// when their upstream is made.
    fn find_values_of_endpoints(&mut self) {
        let mut values = Vec::new();
        for ManifestFile { source, manifest } in &self.list {
            let folder = source.path.parent().unwrap_or(Path::new(""));
            let named = manifest.upstream.values().flat_map(|upstream| &upstream.endpoints);
            for file in named.filter_map(|endpoint| endpoint.get_ref().file()) {
                let path = folder.join(file.get_ref());
                if let Ok(text) = files::read_text(&path, files::ENDPOINTS) {
                    let folder = path.parent().unwrap_or(Path::new(""));
                    values.extend(self.problems.references.files_named_in(&text, folder));
                }
            }
        }
        self.values = values;
    }

    /// Returns the files whose texts replace references, whether they exist or not.
    pub fn files_of_values(&self) -> impl Iterator<Item = &PathBuf> {
        self.problems.files_of_values().chain(&self.values)
    }

    fn include(&mut self, path: &Path, source: &Arc<Source>, patterns: &[Spanned<String>]) {
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut known = HashSet::from([identity(path)]);
        let mut bytes = source.text.len();
        for pattern in patterns {
            let paths = matching(folder, pattern.get_ref()).unwrap_or_else(|message| {
                self.problems.files.push(folder.join(pattern.get_ref()));
                self.problems.at(source, pattern.span(), message);
                self.left_out.add_file();
                Vec::new()
            });
            for path in paths {
                if self.list.len() > MAX_INCLUDED_FILES || bytes > MAX_MANIFEST_BYTES {
                    let max = MAX_MANIFEST_BYTES >> 20;
                    let message = format!(
                        "too much included by `{}`; expected {MAX_INCLUDED_FILES} files at most, of {max} MiB together",
                        pattern.get_ref()
                    );
                    self.problems.at(source, pattern.span(), message);
                    self.left_out.add_file();
                    return;
                }
                if !known.insert(identity(&path)) {
                    let message = included_twice(&path, &source.path);
                    self.problems.at(source, pattern.span(), message);
                    continue;
                }
                let named_at = Some((source, pattern.span()));
                let Some((included, manifest)) = self.read::<Manifest>(&path, files::MANIFEST, named_at) else {
                    continue;
                };
                if let Some(further) = manifest.include.first() {
                    let message = format!(
                        "`include` in an included file: found {:?}; only the manifest itself includes files, so name it there",
                        further.get_ref()
                    );
                    self.problems.at(&included, further.span(), message);
                }
                bytes += included.text.len();
                self.list.push(ManifestFile { source: included, manifest });
            }
        }
    }

    fn read<T: DeserializeOwned>(
        &mut self,
        path: &Path,
        kind: files::FileKind,
        named_at: Option<NamedAt<'_>>,
    ) -> Option<(Arc<Source>, T)> {
        let (file, left_out) = read(path, kind, named_at, &mut self.problems);
        self.left_out.extend(left_out);
        file
    }
}

/// Parses a manifest that is no file.
pub fn parse(name: &str, text: String, environment: &Environment) -> Result<Files, Diagnostics> {
    let source = Arc::new(Source { path: name.into(), text, is_file: false });
    let mut files = Files::new(environment);
    let (manifest, left_out) = understood(&source, &mut files.problems);
    files.left_out.extend(left_out);
    let Some(manifest) = manifest else { return Err(files.problems) };
    files.list.push(ManifestFile { source, manifest });
    Ok(files)
}

/// Reads a file with endpoints, which a manifest names.
pub fn endpoints(
    path: &Path,
    named_at: NamedAt<'_>,
    problems: &mut Diagnostics,
) -> Option<(Arc<Source>, EndpointValue)> {
    read(path, files::ENDPOINTS, Some(named_at), problems).0
}

/// The place where a manifest names a file.
type NamedAt<'a> = (&'a Arc<Source>, Range<usize>);

fn read<T: DeserializeOwned>(
    path: &Path,
    kind: files::FileKind,
    named_at: Option<NamedAt<'_>>,
    problems: &mut Diagnostics,
) -> (Option<(Arc<Source>, T)>, LeftOut) {
    problems.files.push(path.into());
    let bytes = files::read(path, kind);
    let source = |text: String| Arc::new(Source { path: path.into(), text, is_file: true });
    let unread = match bytes.map(String::from_utf8) {
        Ok(Ok(text)) => {
            let source = source(text);
            if let Some((span, message)) = foreign_list(&source.text).filter(|_| kind == files::ENDPOINTS) {
                problems.at(&source, span, message);
                return (None, LeftOut::default());
            }
            let (content, left_out) = understood(&source, problems);
            return (content.map(|content| (source, content)), left_out);
        }
        Ok(Err(error)) => {
            let Encoding { span, message } = encoding(error.as_bytes(), error.utf8_error().valid_up_to());
            problems.at(&source(String::from_utf8_lossy(error.as_bytes()).into_owned()), span, message);
            None
        }
        Err(error) => Some(unreadable(path, &error, named_at.is_some())),
    };
    match (unread, named_at) {
        (Some(message), Some((source, span))) => problems.at(source, span, message),
        (Some(message), None) => problems.of_file(&source(String::new()), message),
        (None, _) => {}
    }
    let mut left_out = LeftOut::default();
    left_out.add_file();
    (None, left_out)
}

/// Returns the reason why a file can't be read, with a remedy.
fn unreadable(path: &Path, error: &io::Error, is_named_in_a_manifest: bool) -> String {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::NotFound if is_named_in_a_manifest => {
            format!("no such file: `{shown}`; paths are relative to the file that names them")
        }
        io::ErrorKind::NotFound => format!(
            "no manifest: there is no file `{shown}`; create it, or name another, such as `plugway run FILE.toml` (`plugway \
             proxy --to 127.0.0.1:8000` needs none)"
        ),
        io::ErrorKind::PermissionDenied => files::no_permission(path),
        _ if path.is_dir() => {
            format!(
                "cannot read `{shown}`: it is a folder; expected a file, such as `{}`",
                path.join("plugway.toml").display()
            )
        }
        _ => format!("cannot read `{shown}`: {error}"),
    }
}

/// A file in another encoding than UTF-8.
struct Encoding {
    /// The place in the text that is made of the file, with a character in place of what is none.
    span: Range<usize>,
    message: String,
}

fn encoding(bytes: &[u8], valid: usize) -> Encoding {
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Encoding { span: 0..0, message: "unsupported encoding: found UTF-16; save the file as UTF-8".into() };
    }
    if let Some(kind) = foreign::binary_kind(bytes) {
        return Encoding { span: 0..0, message: format!("not a manifest: this looks like {kind}") };
    }
    let byte = bytes.get(valid).copied().unwrap_or_default();
    let message = format!("invalid UTF-8: found the byte 0x{byte:02X}; save the file as UTF-8");
    Encoding { span: valid..valid + char::REPLACEMENT_CHARACTER.len_utf8(), message }
}

/// Returns the first line of a list of endpoints in another format, with an error; `None` if the list looks like TOML.
fn foreign_list(text: &str) -> Option<(Range<usize>, String)> {
    let is_noise = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
    let line = text.lines().find(|line| !is_noise(line))?.trim();
    let is_toml = foreign::kind(text).is_none() && (line.contains('=') || line.starts_with('['));
    if is_toml {
        return None;
    }
    let mut words = line.split(|letter: char| letter.is_whitespace() || "\",;".contains(letter));
    let address = words.find(|word| word.parse::<SocketAddr>().is_ok()).unwrap_or("127.0.0.1:8000");
    let start = text.find(line)?;
    let message = format!("not a list of endpoints in TOML; expected one such as `endpoints = [\"{address}\"]`");
    Some((start..start + line.len(), message))
}

/// Returns the file that a path leads to, through links and `..`.
fn identity(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.into())
}

fn included_twice(path: &Path, manifest: &Path) -> String {
    let shown = path.display();
    if identity(path) == identity(manifest) {
        format!("`{shown}` includes itself: keep included files in a folder of their own, such as `sites/*.toml`")
    } else {
        format!("file included twice: `{shown}`; name it once")
    }
}

fn understood<T: DeserializeOwned>(source: &Arc<Source>, problems: &mut Diagnostics) -> (Option<T>, LeftOut) {
    let folder = source.path.parent().unwrap_or(Path::new(""));
    let Structure { content, mistakes, left_out, damaged, replaced } =
        structure::parse(&source.text, folder, &mut problems.references);
    problems.note_replaced(source, replaced);
    mistakes.into_iter().for_each(|StructureError { span, message }| problems.push(source, span, message));
    problems.excuse(source, damaged);
    (content, left_out)
}

/// Returns the files that match a pattern. A pattern without `*` has to name an existing file.
fn matching(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let full_pattern = folder.join(pattern);
    let Some((before, after)) = pattern.rsplit('/').next().and_then(|last| last.split_once('*')) else {
        // Something else than a file is read in vain, with an error that says so.
        let is_folder_pattern = pattern.contains('*');
        return match full_pattern.metadata() {
            Ok(_) => Ok(vec![full_pattern]),
            Err(_) if is_folder_pattern => Err(format!(
                "`*` in a folder's name: found `{pattern}`; it stands in the last part only, such as `sites/*.toml`"
            )),
            Err(error) => Err(files::unreadable(&full_pattern, &error)),
        };
    };
    let folder = full_pattern.parent().unwrap_or(folder);
    // The folder of a file that is named without one.
    let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = std::fs::read_dir(listed).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => files::no_permission(listed),
        io::ErrorKind::NotFound => format!(
            "no such folder: `{}`; create it, or correct the pattern, which is relative to the manifest",
            listed.display()
        ),
        _ => format!("cannot list the folder `{}`: {error}", listed.display()),
    })?;
    let fits = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // As in shells. Emacs locks `a.toml` by the link `.#a.toml`, which leads nowhere, and macOS adds `._a.toml`.
        let is_hidden = name.starts_with('.') && !before.starts_with('.');
        !is_hidden && name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
    };
    let paths = entries.filter_map(|entry| Some(folder.join(entry.ok()?.file_name()))).filter(fits);
    let mut paths: Vec<PathBuf> = paths.take(MAX_INCLUDED_FILES + 1).collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_leaves_out_hidden_files_unless_it_begins_with_a_dot() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.toml", "a.toml", ".toml", "._a.toml", "a.toml~"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("user@host.1:2", folder.path().join(".#a.toml")).unwrap();
        let names = |pattern| {
            let paths = matching(folder.path(), pattern).unwrap();
            paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names("*.toml"), ["a.toml", "b.toml"]);
        assert_eq!(names("*"), ["a.toml", "a.toml~", "b.toml"]);
        assert_eq!(names("._*.toml"), ["._a.toml"]);
        let missing = matching(folder.path(), "sites/*.toml").unwrap_err();
        assert!(missing.starts_with("no such folder: `") && missing.contains("sites`; create it"), "{missing}");
    }
}
