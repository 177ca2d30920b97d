//! The settings of the process in a manifest: workers, access log, store.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Assembly, beside, head_of};
use crate::config::diagnostic::Source;
use crate::config::load::ManifestFile;
use crate::config::manifest::{AccessLogFormat, CacheTable, DiskTable, Manifest};
use crate::config::spanned::Spanned;
use crate::config::spans;
use crate::loading;
use crate::store::index::PARTS;
use crate::store::{DiskLimits, Store, StoreLimits};
use crate::system::files;
use crate::telemetry::access_log::{AccessLog, LogFormat, LogTarget};

/// The minimum size of the store in memory, in bytes.
const MIN_MEMORY_BYTES: usize = 1 << 20;
const MIN_DISK_BYTES: usize = 16 << 20;
const MAX_OBJECT_BYTES_ON_DISK: usize = 1 << 30;

impl Assembly<'_> {
    /// Threads that serve, if the manifest says how many.
    pub(super) fn workers(&mut self, files: &[ManifestFile]) -> Option<usize> {
        let (source, workers) = files.iter().find_map(|file| Some((&file.source, file.manifest.workers.as_ref()?)))?;
        if !(1..=MAX_WORKERS).contains(workers.get_ref()) {
            let message = format!(
                "`workers` out of range: {}; expected 1 to {MAX_WORKERS}, or no `workers` for one per core",
                workers.get_ref()
            );
            self.problems.at(source, workers.span(), message);
        }
        Some(*workers.get_ref())
    }

    /// Returns the limits for the loading of a component.
    pub(super) fn load_limits(&mut self, files: &[ManifestFile]) -> loading::LoadLimits {
        let defaults = loading::LoadLimits::default();
        let named = files.iter().find_map(|file| Some((&file.source, file.manifest.load.as_ref()?)));
        let Some((source, load)) = named else { return defaults };
        let time = self.duration(source, load.time.as_ref(), defaults.time);
        if let Some(text) = load.time.as_ref().filter(|_| !LOAD_TIME.contains(&time)) {
            self.problems.at(
                source,
                text.span(),
                format!("`time` out of range: `{}`; expected `1s` to `1h`, such as `30s`", text.get_ref()),
            );
        }
        let memory = self.bytes(source, load.memory.as_ref(), defaults.memory as usize) as u64;
        if let Some(text) = load.memory.as_ref().filter(|_| !LOAD_MEMORY.contains(&memory)) {
            self.problems.at(
                source,
                text.span(),
                format!("`memory` out of range: `{}`; expected `256 MiB` to `64 GiB`, such as `1 GiB`", text.get_ref()),
            );
        }
        loading::LoadLimits { time, memory }
    }

    /// Builds the list of name servers.
    pub(super) fn name_servers(&mut self, files: &[ManifestFile]) -> Vec<SocketAddr> {
        let named = files.iter().find_map(|file| Some((&file.source, file.manifest.resolver.as_ref()?)));
        let Some((source, resolver)) = named else { return Vec::new() };
        if resolver.servers.is_empty() {
            let span = spans::key(&source.text, "resolver").unwrap_or(0..0);
            let message =
                "no name server: `servers` is empty; name one, such as \"127.0.0.1:53\", or remove `[resolver]`";
            self.problems.at(source, span, message);
        }
        let mut servers = Vec::new();
        for server in &resolver.servers {
            match server.get_ref().parse::<SocketAddr>() {
                Ok(server) if server.port() > 0 => servers.push(server),
                _ => {
                    let message = format!(
                        "invalid name server: `{}`; expected an address and a port, such as `127.0.0.1:53`",
                        server.get_ref()
                    );
                    self.problems.at(source, server.span(), message);
                }
            }
        }
        servers
    }

    /// Builds the limits of the store of the caches.
    pub(super) fn store_limits(&mut self, files: &[ManifestFile]) -> StoreLimits {
        let defaults = StoreLimits::default();
        let named = files.iter().find_map(|file| Some((&file.source, file.manifest.cache.as_ref()?)));
        let Some((source, cache)) = named else { return defaults };
        let memory = self.bytes(source, cache.get_ref().memory.as_ref(), defaults.memory as usize);
        if let Some(text) = cache.get_ref().memory.as_ref().filter(|_| memory < MIN_MEMORY_BYTES) {
            self.problems.at(
                source,
                text.span(),
                format!("`memory` too small: `{}`; expected at least `1 MiB`", text.get_ref()),
            );
        }
        let longest = cache.get_ref().max_object.as_ref();
        let object = self.longest_object(source, longest, defaults.object as usize, memory, "memory");
        let disk = cache.get_ref().disk.as_ref().map(|disk| self.disk_limits(source, disk.get_ref()));
        StoreLimits { memory: memory as u64, object, disk }
    }

    /// Returns the store for these limits: that of the last generation, or another one that is still in use at the same
    /// place.
    pub(super) fn store(&mut self, files: &[ManifestFile], limits: &StoreLimits) -> Arc<Store> {
        // A folder has one store, however the manifest spells it: this process has locked it already.
        let folder = || limits.disk.as_ref().map(|disk| whole(&disk.folder));
        let stores = &mut self.assembly.stores;
        stores.retain(|_, store| store.strong_count() > 0);
        if let Some(store) = stores.get(&folder()).and_then(Weak::upgrade) {
            return store;
        }
        let is_only_looked_at = self.assembly.check_time.is_some() || self.problems.count() > 0;
        let opened = match (self.among_compiled(limits), is_only_looked_at) {
            (Some(message), _) => Err(message),
            (None, true) => Store::check(limits).map(|()| Store::new(limits.memory)),
            (None, false) => Store::open(limits),
        };
        let store = opened.unwrap_or_else(|message| {
            let disk = |file: &Manifest| Some(file.cache.as_ref()?.get_ref().disk.as_ref()?.get_ref().path.span());
            let named = files.iter().find_map(|file| Some((&file.source, disk(&file.manifest)?)));
            if let Some((source, span)) = named {
                self.problems.at(source, span, message);
            }
            Store::new(limits.memory)
        });
        if is_only_looked_at {
            return store;
        }
        // The folder may exist only since it was opened.
        self.assembly.stores.insert(folder(), Arc::downgrade(&store));
        store
    }

    /// Returns the error of a new cache in the folder of compiled plugins, or in one that has it; `None` if the cache is
    /// elsewhere, such as in a folder of its own below.
    fn among_compiled(&self, limits: &StoreLimits) -> Option<String> {
        let compiled = self.assembly.compiled.as_deref()?;
        let folder = &limits.disk.as_ref()?.folder;
        let relation = relation(folder, compiled).filter(|_| !Store::has_begun(limits))?;
        let (shown, compiled) = (folder.display(), whole(compiled));
        let relation = match relation {
            Relation::Same => "it is the folder of compiled plugins".to_string(),
            Relation::Contains => format!("it contains the folder of compiled plugins, `{}`", compiled.display()),
        };
        Some(format!(
            "cannot use the folder `{shown}`: {relation} (`XDG_CACHE_HOME`); expected a folder for the cache alone, such as `{}`",
            compiled.join("responses").display()
        ))
    }

    fn disk_limits(&mut self, source: &Arc<Source>, disk: &DiskTable) -> DiskLimits {
        let size = self.bytes(source, Some(&disk.size), MIN_DISK_BYTES);
        if size < MIN_DISK_BYTES {
            self.problems.at(
                source,
                disk.size.span(),
                format!("`size` too small: `{}`; expected at least `16 MiB`", disk.size.get_ref()),
            );
        }
        let object =
            self.longest_object(source, disk.max_object.as_ref(), MAX_OBJECT_BYTES_ON_DISK, size, "disk's size");
        if disk.path.get_ref().is_empty() {
            let message =
                "empty path: a cache has a folder of its own; expected one such as `/var/cache/plugway/responses`";
            self.problems.at(source, disk.path.span(), message);
        }
        DiskLimits { folder: beside(source, disk.path.get_ref()), bytes: size as u64, object }
    }

    /// The longest content that is stored, within a part of a budget.
    fn longest_object(
        &mut self,
        source: &Arc<Source>,
        text: Option<&Spanned<String>>,
        default: usize,
        budget: usize,
        what: &str,
    ) -> u64 {
        let max = budget / PARTS;
        let object = self.bytes(source, text, max.min(default));
        if let Some(text) = text.filter(|_| object > max) {
            let message = format!(
                "`max-object` too large: `{}`; expected a sixteenth of the {what} at most, which is `{} KiB`",
                text.get_ref(),
                max >> 10
            );
            self.problems.at(source, text.span(), message);
        }
        object as u64
    }

    pub(super) fn access_log(&mut self, files: &[ManifestFile]) -> Option<AccessLog> {
        let named = files.iter().find_map(|file| Some((&file.source, file.manifest.access_log.as_ref()?)));
        let (source, wanted) = named?;
        let format = match wanted.get_ref().format {
            AccessLogFormat::Combined => LogFormat::Combined,
            AccessLogFormat::Json => LogFormat::Json,
            AccessLogFormat::Off => return None,
        };
        let file = wanted.get_ref().file.as_ref();
        let path = file.map(|file| beside(source, file.get_ref()));
        let target = path.clone().map_or(LogTarget::Stdout, LogTarget::File);
        if let (Some(path), Some(file)) = (&path, file)
            && let Some(other) = other_use(files, path)
        {
            let message = format!(
                "access log at a path of other use: `{}` is {other}; choose another, such as `access.log`",
                file.get_ref()
            );
            self.problems.at(source, file.span(), message);
            return None;
        }
        let wanted_log = (format, target);
        if let Some((known, log)) = &self.assembly.log
            && *known == wanted_log
        {
            return Some(log.clone());
        }
        let opened = match self.assembly.check_time.is_some() {
            true => AccessLog::check(&wanted_log.1).map(|()| None),
            false => AccessLog::start(wanted_log.0, wanted_log.1.clone()).map(Some),
        };
        match opened {
            Ok(None) => None,
            Ok(Some(log)) => {
                self.assembly.log = Some((wanted_log, log.clone()));
                Some(log)
            }
            Err(error) => {
                let shown = file.map_or("-", |file| file.get_ref().as_str());
                let reason = path.map_or_else(|| error.to_string(), |path| unopened(&path, &error));
                let place = file.map_or_else(|| head_of(&wanted.span()), Spanned::span);
                self.problems.at(source, place, format!("cannot open the access log `{shown}`: {reason}"));
                None
            }
        }
    }
}

/// Returns the reason why the file of the access log can't be opened, with a remedy.
fn unopened(path: &Path, error: &io::Error) -> String {
    let is_stream = ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2", "/proc/self/fd/1", "/proc/self/fd/2"]
        .iter()
        .any(|stream| path == Path::new(stream));
    // A socket has a path there, but can't be opened by it.
    match error.raw_os_error() {
        Some(libc::ENXIO) if is_stream => {
            "it is a socket here, as under systemd; leave `file` out, and the log is written to standard output".into()
        }
        _ => files::unwritable(path, error),
    }
}

/// Returns the other use of the access log's path in a manifest, which log lines would damage; `None` if there is none.
fn other_use(files: &[ManifestFile], log: &Path) -> Option<&'static str> {
    let log = whole(log);
    let is_log = |source: &Source, name: &str| whole(&beside(source, name)) == log;
    let is_of_cache = |source: &Source, cache: &Spanned<CacheTable>| {
        let disk = cache.get_ref().disk.as_ref();
        disk.is_some_and(|disk| log.starts_with(whole(&beside(source, disk.get_ref().path.get_ref()))))
    };
    files.iter().find_map(|ManifestFile { source, manifest }| match manifest {
        _ if source.is_file && whole(&source.path) == log => Some("a manifest"),
        _ if manifest.files().any(|name| is_log(source, name)) => Some("a file that the manifest reads"),
        _ if manifest.plugin.values().any(|plugin| is_log(source, plugin.r#use.get_ref())) => Some("a plugin"),
        _ if manifest.cache.as_ref().is_some_and(|cache| is_of_cache(source, cache)) => {
            Some("in the folder of the cache")
        }
        _ => None,
    })
}

/// The relation of a folder to that of compiled plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Same,
    Contains,
}

/// Returns the relation of a folder to that of compiled plugins; `None` if there is none.
fn relation(folder: &Path, compiled: &Path) -> Option<Relation> {
    let (folder, compiled) = (whole(folder), whole(compiled));
    match folder == compiled {
        true => Some(Relation::Same),
        false => compiled.starts_with(&folder).then_some(Relation::Contains),
    }
}

/// Whether the disk cache of a manifest is in the folder of compiled plugins, or in one that has it.
pub fn has_cache_among_compiled(files: &[ManifestFile], compiled: &Path) -> bool {
    let folder = files.iter().find_map(|file| {
        let disk = file.manifest.cache.as_ref()?.get_ref().disk.as_ref()?;
        Some(beside(&file.source, disk.get_ref().path.get_ref()))
    });
    folder.is_some_and(|folder| relation(&folder, compiled).is_some())
}

/// Returns a path in one spelling, as far as its folders exist.
fn whole(path: &Path) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().or_else(|_| std::path::absolute(folder)).unwrap_or_else(|_| folder.into());
    path.file_name().map_or(folder.clone(), |name| folder.join(name))
}

/// The range of `time` in `[load]`: a shorter time would end before a child has begun, and a longer one would let a
/// compiler bomb run for hours.
const LOAD_TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);
/// The range of `memory` in `[load]`, in bytes. The program itself and one instance need some 100 MiB.
const LOAD_MEMORY: RangeInclusive<u64> = 256 << 20..=64 << 30;

/// The maximum number of workers, more than the cores of any machine.
pub(super) const MAX_WORKERS: usize = 1024;
