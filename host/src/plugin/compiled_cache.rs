//! Compiled code, kept on disk so that the next start needs no compiler.
//!
//! Loading machine code means trusting it wholly, so it counts only if it carries a MAC made with this machine's own
//! key: what someone else put there is compiled anew. The key is also given to the child process that compiles
//! (module `loading`), through a pipe.
//!
//! Several processes may share the folder. A file appears whole, by a rename, and may be removed at any time: then the
//! component is compiled again.
#![expect(clippy::disallowed_methods, reason = "files are aged by wall-clock time, over restarts")]

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use wasmtime::Engine;
use wasmtime::component::Component;

use super::load_error::LoadError;
use crate::system::files;

/// The compiled components of this machine, and the key that authenticates them.
pub struct CompiledCache {
    /// The folder of the files; `None` if compiled components are not kept on disk.
    folder: Option<PathBuf>,
    key: [u8; 32],
    /// Bytes of all files together.
    max_bytes: u64,
}

/// The name of the key's file, which is never removed.
const KEY: &str = "key";

/// The maximum size of all files, in bytes: room for some 50 components of JavaScript or Python, or thousands of Rust.
const MAX_CACHE_BYTES: u64 = 1 << 30;

/// Code for another engine is removed after so long without use: a process of another version may still run beside.
const OTHER_ENGINE: Duration = Duration::from_secs(24 * 3600);

/// A file that is being written is whole within seconds; one that is older was left by a process that was killed.
const UNFINISHED: Duration = Duration::from_secs(10 * 60);

/// The right to create and to trust the artifact of one component: a key, and the name that the message authentication
/// code covers.
#[derive(Clone)]
pub struct Seal {
    pub key: [u8; 32],
    pub name: String,
}

/// The most bytes of a sealed artifact: an interpreter of 20 MB of wasm has some 60 MB of machine code and data.
pub const MAX_SEALED_BYTES: usize = 128 << 20;

/// The end of the names of files with configurations that a component accepts.
const ACCEPTED: &str = "accepted";

/// The maximum number of accepted configurations that are kept for one component: more than nearly all manifests have.
const MAX_ACCEPTED_CONFIGS: usize = 1_000;

impl CompiledCache {
    /// Opens or makes the folder; it must belong to this user alone.
    pub fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let metadata = fs::metadata(folder)?;
        let refused =
            |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} {why}", folder.display())));
        if metadata.uid() != fs::metadata("/proc/self")?.uid() {
            return refused("belongs to another user; run `chown` on it, with all files in it");
        }
        if metadata.mode() & 0o022 != 0 {
            return refused("can be written by others; run `chmod 700` on it");
        }
        Ok(CompiledCache { folder: Some(folder.into()), key: key(&folder.join(KEY))?, max_bytes: MAX_CACHE_BYTES })
    }

    /// Returns a cache that keeps nothing on disk. Its key is valid for this process and its children.
    pub fn unkept() -> io::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        Ok(CompiledCache { folder: None, key, max_bytes: MAX_CACHE_BYTES })
    }

    /// The folder of the files; `None` if compiled components are not kept on disk.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Returns the seal of a component, by its digest.
    pub fn seal(&self, engine: &Engine, component: &blake3::Hash) -> Seal {
        Seal { key: self.key, name: name(engine, component) }
    }

    /// Returns the file of an artifact, if it exists; [`Seal::component`] checks its message authentication code.
    pub fn file(&self, seal: &Seal) -> Option<File> {
        let file = files::open(&self.folder.as_ref()?.join(&seal.name), files::ARTIFACT).ok()?;
        // Without the mark of its use, the file is only removed earlier than others.
        let _ = file.set_modified(SystemTime::now());
        (file.metadata().ok()?.len() <= MAX_SEALED_BYTES as u64).then_some(file)
    }

    /// Loads an artifact that exists and that this key has sealed. Returns the component with its description.
    pub fn load(&self, engine: &Engine, seal: &Seal) -> Option<(Vec<u8>, Component)> {
        let mut sealed = Vec::new();
        self.file(seal)?.take(MAX_SEALED_BYTES as u64).read_to_end(&mut sealed).ok()?;
        let opened = seal.component(engine, &sealed);
        opened.inspect_err(|error| tracing::warn!(file = seal.name, %error, "compiled code is not used")).ok()
    }

    /// Keeps a sealed artifact. A failure is only logged, because the proxy can serve without the file.
    pub fn store(&self, seal: &Seal, sealed: &[u8]) {
        self.write(&seal.name, sealed);
        let settings = seal.name.split_once('-').map_or("", |(_, settings)| settings);
        if let Err(error) = self.prune(settings) {
            tracing::warn!(%error, "compiled code could not be removed");
        }
    }

    /// The digests of configurations that a component was found to accept.
    pub fn accepted_configs(&self, seal: &Seal) -> HashSet<[u8; 32]> {
        let mut file = Vec::new();
        let path = self.folder.as_ref().map(|folder| folder.join(accepted_name(seal)));
        let read = path.and_then(|path| files::open(&path, files::ARTIFACT).ok()).map(|opened| {
            let max_bytes = (MAX_ACCEPTED_CONFIGS + 1) * blake3::OUT_LEN;
            opened.take(max_bytes as u64).read_to_end(&mut file)
        });
        let body = read.and_then(|_| Seal { key: self.key, name: accepted_name(seal) }.body(&file));
        body.map(|body| body.as_chunks().0.iter().copied().collect()).unwrap_or_default()
    }

    /// Remembers the digests of configurations that a component was found to accept.
    pub fn accept(&self, seal: &Seal, configurations: &HashSet<[u8; 32]>) {
        let body: Vec<u8> = configurations.iter().take(MAX_ACCEPTED_CONFIGS).flatten().copied().collect();
        let name = accepted_name(seal);
        let sealed = [Seal { key: self.key, name: name.clone() }.mac(&body).as_bytes(), &*body].concat();
        self.write(&name, &sealed);
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        // Two threads may write the same.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(folder) = &self.folder else { return };
        let unfinished = format!("{name}.{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let unfinished = folder.join(unfinished);
        let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
        let written = options.open(&unfinished).and_then(|mut file| file.write_all(bytes));
        if let Err(error) = written.and_then(|()| fs::rename(&unfinished, folder.join(name))) {
            // On a full disk the part that was written goes.
            let _ = fs::remove_file(unfinished);
            tracing::warn!(%error, "compiled code could not be kept");
        }
    }

    /// Removes code for other engines and leftovers of killed processes. Then removes the files that were used longest
    /// ago, until the others are within [`MAX_CACHE_BYTES`].
    fn prune(&self, settings: &str) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let now = SystemTime::now();
        let mut remaining = Vec::new();
        for entry in fs::read_dir(folder)? {
            let Some(artifact) = FoundArtifact::of(&entry?) else { continue };
            let age = now.duration_since(artifact.used).unwrap_or_default();
            let goes = match artifact.kind {
                ArtifactKind::Unfinished => age > UNFINISHED,
                ArtifactKind::Code if artifact.settings != settings => age > OTHER_ENGINE,
                ArtifactKind::Code => false,
            };
            if goes { remove(&artifact.path)? } else { remaining.push(artifact) }
        }
        remaining.sort_by_key(|artifact| std::cmp::Reverse(artifact.used));
        let mut bytes = 0u64;
        for artifact in remaining {
            bytes = bytes.saturating_add(artifact.bytes);
            if bytes > self.max_bytes {
                remove(&artifact.path)?;
            }
        }
        Ok(())
    }
}

/// An artifact that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("its MAC is wrong")]
    Mac,
    #[error("{0:#}")]
    Engine(wasmtime::Error),
    #[error("{0}")]
    Exports(#[from] LoadError),
}

impl Seal {
    /// Seals compiled code with the component's description.
    pub fn close(&self, about: &[u8], code: &[u8]) -> Vec<u8> {
        let length = (about.len() as u32).to_le_bytes();
        let mut sealed = Vec::with_capacity(blake3::OUT_LEN + length.len() + about.len() + code.len());
        sealed.extend([0; blake3::OUT_LEN]);
        [&length, about, code].into_iter().for_each(|part| sealed.extend_from_slice(part));
        let mac = self.mac(&sealed[blake3::OUT_LEN..]);
        sealed[..blake3::OUT_LEN].copy_from_slice(mac.as_bytes());
        sealed
    }

    /// Returns the component of a sealed artifact, with its description.
    pub fn component(&self, engine: &Engine, sealed: &[u8]) -> Result<(Vec<u8>, Component), Unusable> {
        let body = self.body(sealed).ok_or(Unusable::Mac)?;
        let (length, rest) = body.split_first_chunk().ok_or(Unusable::Mac)?;
        let (about, code) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(Unusable::Mac)?;
        #[expect(unsafe_code, reason = "the MAC says that this very program wrote these bytes from its own compiler")]
        // SAFETY: `deserialize` wants what `Component::serialize` gave. Only `close` above makes a MAC with our key, over
        // just that; the name holds the engine's settings and version.
        let loaded = unsafe { Component::deserialize(engine, code) };
        Ok((about.to_vec(), loaded.map_err(Unusable::Engine)?))
    }

    fn body<'a>(&self, sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (mac, body) = sealed.split_first_chunk::<{ blake3::OUT_LEN }>()?;
        // Comparing hashes takes the same time wherever they differ.
        (self.mac(body) == *mac).then_some(body)
    }

    fn mac(&self, body: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.key).update(self.name.as_bytes()).update(body).finalize()
    }
}

/// A file of the folder, other than the key and what isn't ours.
struct FoundArtifact {
    path: PathBuf,
    kind: ArtifactKind,
    /// The part of the file's name that stands for the engine.
    settings: String,
    bytes: u64,
    used: SystemTime,
}

enum ArtifactKind {
    /// Compiled code, or the configurations that a component accepts.
    Code,
    Unfinished,
}

impl FoundArtifact {
    /// Reads an entry of the folder. `None` if its name is not one that we give, or another process has removed it.
    fn of(entry: &fs::DirEntry) -> Option<Self> {
        let name = entry.file_name().into_string().ok()?;
        let (code, kind) = match name.split_once('.') {
            None => (&*name, ArtifactKind::Code),
            Some((code, ACCEPTED)) => (code, ArtifactKind::Code),
            Some((code, _)) => (code, ArtifactKind::Unfinished),
        };
        let (digest, settings) = code.split_once('-')?;
        let is_hex = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let metadata = entry.metadata().ok()?;
        if !is_hex(digest, 2 * blake3::OUT_LEN) || !is_hex(settings, 16) || !metadata.is_file() {
            return None;
        }
        let (settings, used) = (settings.into(), metadata.modified().ok()?);
        Some(FoundArtifact { path: entry.path(), kind, settings, bytes: metadata.len(), used })
    }
}

/// Removes a file, which another process may just have done.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the name of the file beside an artifact with the configurations that the component accepts.
fn accepted_name(seal: &Seal) -> String {
    format!("{}.{ACCEPTED}", seal.name)
}

/// Computes the name of an artifact: by the component, and by the engine that compiled it.
fn name(engine: &Engine, component: &blake3::Hash) -> String {
    let mut settings = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut settings);
    // The form of the file, and the checks that a component has passed before it was compiled.
    4_u8.hash(&mut settings);
    format!("{}-{:016x}", component.to_hex(), settings.finish())
}

fn key(path: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => file.write_all(&key).map(|()| key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut bytes = Vec::new();
            files::open(path, files::ARTIFACT)?.take(64).read_to_end(&mut bytes)?;
            bytes.try_into().map_err(|_| io::Error::other(format!("{} is no key; remove it", path.display())))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_with_our_mac_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let (engine, bytes) = (Engine::default(), plugway_plugins::STOCK[1].1);
        let folder = folder.path().join("cache");
        let artifacts = CompiledCache::open(&folder).unwrap();
        let seal = artifacts.seal(&engine, &blake3::hash(bytes));
        assert!(artifacts.load(&engine, &seal).is_none());
        let code = Component::from_binary(&engine, bytes).unwrap().serialize().unwrap();
        artifacts.store(&seal, &seal.close(b"about", &code));
        assert_eq!(artifacts.load(&engine, &seal).unwrap().0, b"about");
        let again = CompiledCache::open(&folder).unwrap();
        assert!(again.load(&engine, &again.seal(&engine, &blake3::hash(bytes))).is_some(), "the key is kept");

        let file = folder.join(&seal.name);
        let whole = fs::read(&file).unwrap();
        let mut bent = whole.clone();
        bent[5000] ^= 1;
        for bad in [bent, whole[..whole.len() - 1].to_vec(), whole[..7].to_vec(), Vec::new()] {
            fs::write(&file, bad).unwrap();
            assert!(artifacts.load(&engine, &seal).is_none());
        }
        fs::write(&file, whole).unwrap();
        fs::remove_file(folder.join("key")).unwrap();
        let other = CompiledCache::open(&folder).unwrap();
        assert!(other.load(&engine, &other.seal(&engine, &blake3::hash(bytes))).is_none(), "another key");
    }

    #[test]
    fn only_what_we_found_accepted_counts_as_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cache");
        let artifacts = CompiledCache::open(&folder).unwrap();
        let seal = artifacts.seal(&Engine::default(), &blake3::hash(b"component"));
        let configurations = HashSet::from([[1; 32], [2; 32]]);
        artifacts.accept(&seal, &configurations);
        assert_eq!(artifacts.accepted_configs(&seal), configurations);
        let file = folder.join(accepted_name(&seal));
        let mut bent = fs::read(&file).unwrap();
        *bent.last_mut().unwrap() ^= 1;
        fs::write(&file, bent).unwrap();
        assert!(artifacts.accepted_configs(&seal).is_empty());
    }

    /// Creates a file of a name that the folder may have, as if it was last used this many seconds ago.
    fn leave(folder: &Path, name: &str, bytes: usize, age: u64) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, vec![0; bytes]).unwrap();
        let used = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(&path).unwrap().set_modified(used).unwrap();
        path
    }

    #[test]
    fn least_recently_used_artifacts_are_removed_first() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cache");
        let artifacts = CompiledCache { max_bytes: 300, ..CompiledCache::open(&folder).unwrap() };
        let (own, other) = ("0123456789abcdef", "fedcba9876543210");
        let code = |digit: char, engine: &str| format!("{}-{engine}", digit.to_string().repeat(64));
        let old = leave(&folder, &code('a', own), 100, 3000);
        let remaining: Vec<PathBuf> = ('b'..='d').map(|digit| leave(&folder, &code(digit, own), 100, 60)).collect();
        let other_old = leave(&folder, &code('e', other), 1, 25 * 3600);
        let killed = leave(&folder, &format!("{}.4711-0", code('f', own)), 1, 3600);
        let writing = leave(&folder, &format!("{}.4711", code('f', own)), 0, 60);
        let (key, foreign) = (folder.join("key"), leave(&folder, "notes.txt", 5000, 48 * 3600));
        artifacts.prune(own).unwrap();
        for gone in [old, other_old, killed] {
            assert!(!gone.exists(), "{}", gone.display());
        }
        for stays in remaining.into_iter().chain([writing, key, foreign]) {
            assert!(stays.exists(), "{}", stays.display());
        }
    }

    #[test]
    fn code_that_is_used_stays() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cache");
        let (engine, artifacts) = (Engine::default(), CompiledCache::open(&folder).unwrap());
        let seals = [b"a", b"b"].map(|component| artifacts.seal(&engine, &blake3::hash(component)));
        for seal in &seals {
            artifacts.store(seal, &seal.close(b"", b"code"));
            let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
            File::options().write(true).open(folder.join(&seal.name)).unwrap().set_modified(an_hour_ago).unwrap();
        }
        let max_bytes = artifacts.file(&seals[0]).unwrap().metadata().unwrap().len();
        let settings = seals[0].name.split_once('-').unwrap().1;
        CompiledCache { max_bytes, ..artifacts }.prune(settings).unwrap();
        assert!(folder.join(&seals[0].name).exists() && !folder.join(&seals[1].name).exists());
    }
}
