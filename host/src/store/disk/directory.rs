//! The directory of a disk cache: its lock, so that one process uses it at a time, its file names and its seed.
#![expect(clippy::disallowed_methods, reason = "a start waits for the process before it, off the workers")]

use std::fs::{DirBuilder, DirEntry, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::system::files;

/// The paths of the files in a cache directory.
#[derive(Clone, Debug)]
pub struct Directory(Arc<Path>);

/// A lock on a cache directory that belongs to this process until it is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    pub folder: Directory,
    /// The random seed of this directory. Cache keys are hashed with it, and records of other directories are
    /// recognised.
    pub seed: u64,
    _lock: File,
}

/// The time that a previous process has to release the directory.
const TURN: Duration = Duration::from_secs(1);

/// The name of the marker file at the top of the directory, which holds the format version and the seed.
pub const MARKER: &str = "plugway-cache";
const FORMAT: &str = "1";
const LOCK: &str = "lock";
const TEMPORARY: &str = "tmp";

/// The folder that ext4 and others make at the top of a file system, which a cache may have for itself.
const RECOVERED: &str = "lost+found";

impl DirectoryLock {
    /// Locks a directory for this process, and creates or prepares it if necessary. The error explains how to fix the
    /// problem.
    pub fn new(path: &Path) -> Result<Self, String> {
        check(path)?;
        let failed = |what: &str, error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull => {
                unwritable(path, &error)
            }
            _ => format!("the folder `{}` can't be {what}: {error}", path.display()),
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(|error| failed("made", error))?;
        // Nothing is created in a directory that does not belong to a cache.
        known_seed(path).map_err(|error| failed("used", error))?;
        let lock = files::open_lock(&path.join(LOCK)).map_err(|error| failed("locked", named(LOCK, error)))?;
        let deadline = Instant::now() + TURN;
        while lock.try_lock().is_err() {
            if Instant::now() > deadline {
                return Err(format!("folder used by another process: `{}`; name another", path.display()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let seed = known_seed(path).and_then(|known| known.map_or_else(|| begin_anew(path), Ok));
        let seed = seed.map_err(|error| failed("used", error))?;
        // Files of writes that never finished.
        clear(&path.join(TEMPORARY)).map_err(|error| failed("cleared", error))?;
        for name in subfolders().chain([TEMPORARY.into()]) {
            builder.create(path.join(name)).map_err(|error| failed("written to", error))?;
        }
        Ok(DirectoryLock { folder: Directory::at(path), seed, _lock: lock })
    }
}

/// Explains why a folder can't be a cache's, and what to do.
fn unwritable(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied if path.exists() => format!(
            "no permission to use the folder `{shown}`: allow it to the user that runs plugway, with all files in it, such \
             as by `chown -R`, or name another"
        ),
        _ => format!("cannot use the folder `{shown}`: {}", files::unwritable(path, error)),
    }
}

/// Checks whether a folder could be that of a cache, without changing it. The error explains how to fix the problem.
pub fn check(path: &Path) -> Result<(), String> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = path.ancestors().skip(1);
            let mut above = above.map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
            let existing = above.find(|folder| folder.exists());
            existing.map_or(Ok(()), files::check_writable).map_err(|error| unwritable(path, &error))
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(unwritable(path, &error)),
        Err(error) => Err(format!(
            "cannot use the folder `{shown}`: {error}; name another, such as `/var/cache/plugway/responses`"
        )),
        Ok(metadata) if !metadata.is_dir() => Err(format!(
            "not a folder: `{shown}`; expected an empty folder, or a new one such as `/var/cache/plugway/responses`"
        )),
        Ok(_) => {
            known_seed(path).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => unwritable(path, &error),
                _ => format!("cannot use the folder `{shown}`: {error}"),
            })?;
            files::check_writable(path).and_then(|()| check_lock(path)).map_err(|error| unwritable(path, &error))
        }
    }
}

/// Whether a folder is marked as that of a cache.
pub fn has_begun(path: &Path) -> bool {
    path.join(MARKER).exists()
}

/// Checks whether the lock file can be opened, if there is one: another user may have run a proxy here before.
fn check_lock(path: &Path) -> io::Result<()> {
    let lock = path.join(LOCK);
    let found = std::fs::symlink_metadata(&lock);
    if found.is_ok_and(|found| found.is_file()) { files::open_lock(&lock).map(drop) } else { Ok(()) }
}

impl Directory {
    pub fn at(path: &Path) -> Self {
        Directory(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the path of a finished file.
    pub fn file(&self, number: u64) -> PathBuf {
        self.0.join(format!("{:02x}", number & 0xff)).join(format!("{number:016x}"))
    }

    /// Returns the path of a file that is still being written.
    pub fn temporary(&self, number: u64) -> PathBuf {
        self.0.join(TEMPORARY).join(format!("{number:016x}"))
    }

    /// Returns the numbers of all finished files.
    pub fn numbers(&self) -> Vec<u64> {
        subfolders().flat_map(|name| numbers(&self.0.join(name))).collect()
    }
}

/// Removes a file if it exists.
pub fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "a stored response can't be removed");
    }
}

/// Removes a directory with its content if it exists.
fn clear(folder: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(folder)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Returns the names of the subdirectories: enough of them to keep each one short.
fn subfolders() -> impl Iterator<Item = String> {
    (0..=u8::MAX).map(|number| format!("{number:02x}"))
}

fn numbers(subfolder: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(subfolder);
    if let Err(error) = &entries {
        warn!(folder = %subfolder.display(), %error, "a part of the cache can't be read");
    }
    let number = |entry: DirEntry| u64::from_str_radix(entry.file_name().to_str()?, 16).ok();
    entries.into_iter().flatten().flatten().filter_map(number).collect()
}

/// Reads the seed of a directory. `None` if the directory is empty or has another format version.
fn known_seed(path: &Path) -> io::Result<Option<u64>> {
    let text = match files::read_text(&path.join(MARKER), files::MARKER) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let is_other = |entry: io::Result<DirEntry>| {
                entry.is_ok_and(|entry| entry.file_name() != LOCK && entry.file_name() != RECOVERED)
            };
            if std::fs::read_dir(path)?.any(is_other) {
                return Err(io::Error::other("it holds other files; expected an empty folder, or a new one"));
            }
            return Ok(None);
        }
        Err(error) => return Err(named(MARKER, error)),
    };
    let seed = text.split_once(' ').filter(|(format, _)| *format == FORMAT).map(|(_, seed)| seed.trim());
    Ok(seed.and_then(|seed| u64::from_str_radix(seed, 16).ok()))
}

/// Adds the name of the file in the cache directory to an error.
fn named(file: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{file}` in it: {error}"))
}

/// Empties a directory and writes a new seed.
fn begin_anew(path: &Path) -> io::Result<u64> {
    subfolders().try_for_each(|name| clear(&path.join(name)))?;
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let seed = u64::from_ne_bytes(seed);
    std::fs::write(path.join(MARKER), format!("{FORMAT} {seed:016x}\n"))?;
    Ok(seed)
}
