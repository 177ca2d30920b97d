//! Compiled code, kept on disk so that the next start needs no compiler.
//!
//! Loading machine code means trusting it wholly, so a file counts only if it carries a MAC made with this machine's
//! own key: what someone else put there is compiled anew.
//!
//! Several processes may share the folder. A file appears whole, by a rename, and may be removed at any time: then the
//! component is compiled again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use wasmtime::Engine;
use wasmtime::component::Component;

/// A folder of compiled components, and the key that vouches for them.
pub struct Artifacts {
    folder: PathBuf,
    key: [u8; 32],
    /// Bytes of all files together.
    most: u64,
}

/// The name of the key's file, which is never removed.
const KEY: &str = "key";

/// Bytes of all files: room for some 50 components of JavaScript or Python, or thousands of Rust.
const MOST: u64 = 1 << 30;

/// Code for another engine is removed after so long without use: a process of another version may still run beside.
const OTHER_ENGINE: Duration = Duration::from_secs(24 * 3600);

/// A file that is being written is whole within seconds; one that is older was left by a process that was killed.
const UNFINISHED: Duration = Duration::from_secs(10 * 60);

impl Artifacts {
    /// Opens or makes the folder; it must belong to this user alone.
    pub fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let found = fs::metadata(folder)?;
        if found.mode() & 0o022 != 0 || found.uid() != fs::metadata("/proc/self")?.uid() {
            let why = format!("{} can be written by others; run `chmod 700` on it", folder.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(Artifacts { folder: folder.into(), key: key(&folder.join(KEY))?, most: MOST })
    }

    /// The compiled form of a component, if it is there and ours.
    pub fn load(&self, engine: &Engine, component: &[u8]) -> Option<Component> {
        let name = name(engine, component);
        let file = self.read(&name).ok()?;
        let (mac, code) = file.split_at_checked(blake3::OUT_LEN)?;
        // Comparing hashes takes the same time wherever they differ.
        if self.mac(&name, code) != *<&[u8; blake3::OUT_LEN]>::try_from(mac).ok()? {
            tracing::warn!(file = name, "compiled code with a wrong MAC is not used");
            return None;
        }
        #[expect(unsafe_code, reason = "the MAC says that this very program wrote these bytes from its own compiler")]
        // SAFETY: `deserialize` wants what `Component::serialize` gave. Only `store` below makes a MAC with our key,
        // over just that; the name holds the engine's settings and version.
        let loaded = unsafe { Component::deserialize(engine, code) };
        loaded.inspect_err(|error| tracing::warn!(%error, "compiled code is not used")).ok()
    }

    /// Reads a file, and marks it as used now.
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = File::open(self.folder.join(name))?;
        let length = file.metadata()?.len();
        if length > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // Without the mark the file is only removed earlier than others.
        let _ = file.set_modified(SystemTime::now());
        let mut bytes = Vec::with_capacity(length as usize);
        file.take(self.most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Keeps the compiled form; that it can't be is no reason not to serve.
    pub fn store(&self, engine: &Engine, component: &[u8], compiled: &Component) {
        let name = name(engine, component);
        let kept = compiled.serialize().map_err(io::Error::other).and_then(|code| self.write(&name, &code));
        if let Err(error) = kept {
            tracing::warn!(%error, "compiled code could not be kept");
        }
        if let Err(error) = self.prune(&settings(engine)) {
            tracing::warn!(%error, "compiled code could not be removed");
        }
    }

    fn write(&self, name: &str, code: &[u8]) -> io::Result<()> {
        // Two threads may write the same.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if code.len() as u64 > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let unfinished = format!("{name}.{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let unfinished = self.folder.join(unfinished);
        let written = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(self.mac(name, code).as_bytes())?;
            file.write_all(code)?;
            fs::rename(&unfinished, self.folder.join(name))
        };
        // On a full disk the part that was written goes.
        written().inspect_err(|_| drop(fs::remove_file(&unfinished)))
    }

    /// Removes code for other engines, leftovers of killed processes, and of the rest what was used longest ago, until
    /// the others are no more than they may be.
    fn prune(&self, settings: &str) -> io::Result<()> {
        let now = SystemTime::now();
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let Some(found) = Found::of(&entry?) else { continue };
            let age = now.duration_since(found.used).unwrap_or_default();
            let goes = match found.kind {
                Kind::Unfinished => age > UNFINISHED,
                Kind::Code if found.settings != settings => age > OTHER_ENGINE,
                Kind::Code => false,
            };
            if goes { remove(&found.path)? } else { kept.push(found) }
        }
        kept.sort_by_key(|found| std::cmp::Reverse(found.used));
        let mut bytes = 0u64;
        for found in kept {
            bytes = bytes.saturating_add(found.bytes);
            if bytes > self.most {
                remove(&found.path)?;
            }
        }
        Ok(())
    }

    fn mac(&self, name: &str, code: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.key).update(name.as_bytes()).update(code).finalize()
    }
}

/// A file of the folder, other than the key and what isn't ours.
struct Found {
    path: PathBuf,
    kind: Kind,
    /// The part of its name that stands for the engine.
    settings: String,
    bytes: u64,
    used: SystemTime,
}

enum Kind {
    Code,
    Unfinished,
}

impl Found {
    /// Reads an entry of the folder. `None` if its name is not one that we give, or another process has removed it.
    fn of(entry: &fs::DirEntry) -> Option<Self> {
        let name = entry.file_name().into_string().ok()?;
        let (code, kind) = name.split_once('.').map_or((&*name, Kind::Code), |(code, _)| (code, Kind::Unfinished));
        let (digest, settings) = code.split_once('-')?;
        let is_hex = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let found = entry.metadata().ok()?;
        if !is_hex(digest, 2 * blake3::OUT_LEN) || !is_hex(settings, 16) || !found.is_file() {
            return None;
        }
        let (settings, used) = (settings.into(), found.modified().ok()?);
        Some(Found { path: entry.path(), kind, settings, bytes: found.len(), used })
    }
}

/// Removes a file, which another process may just have done.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The name of compiled code: of its component, and of the engine that it is for.
fn name(engine: &Engine, component: &[u8]) -> String {
    format!("{}-{}", blake3::hash(component).to_hex(), settings(engine))
}

/// The engine's version and settings, as a part of a name.
fn settings(engine: &Engine) -> String {
    let mut settings = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut settings);
    format!("{:016x}", settings.finish())
}

fn key(path: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => file.write_all(&key).map(|()| key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let bytes = fs::read(path)?;
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
        let artifacts = Artifacts::open(&folder).unwrap();
        assert!(artifacts.load(&engine, bytes).is_none());
        artifacts.store(&engine, bytes, &Component::from_binary(&engine, bytes).unwrap());
        assert!(artifacts.load(&engine, bytes).is_some());
        assert!(Artifacts::open(&folder).unwrap().load(&engine, bytes).is_some(), "the key is kept");

        let file = folder.join(name(&engine, bytes));
        let whole = fs::read(&file).unwrap();
        let mut bent = whole.clone();
        bent[5000] ^= 1;
        for bad in [bent, whole[..whole.len() - 1].to_vec(), whole[..7].to_vec(), Vec::new()] {
            fs::write(&file, bad).unwrap();
            assert!(artifacts.load(&engine, bytes).is_none());
        }
        fs::write(&file, whole).unwrap();
        fs::remove_file(folder.join("key")).unwrap();
        assert!(Artifacts::open(&folder).unwrap().load(&engine, bytes).is_none(), "another key");
    }

    /// A file of a name that the folder may have, so many seconds after its last use.
    fn leave(folder: &Path, name: &str, bytes: usize, age: u64) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, vec![0; bytes]).unwrap();
        let used = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(&path).unwrap().set_modified(used).unwrap();
        path
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cache");
        let artifacts = Artifacts { most: 300, ..Artifacts::open(&folder).unwrap() };
        let (own, other) = ("0123456789abcdef", "fedcba9876543210");
        let code = |digit: char, engine: &str| format!("{}-{engine}", digit.to_string().repeat(64));
        let old = leave(&folder, &code('a', own), 100, 3000);
        let kept: Vec<PathBuf> = ('b'..='d').map(|digit| leave(&folder, &code(digit, own), 100, 60)).collect();
        let other_old = leave(&folder, &code('e', other), 1, 25 * 3600);
        let killed = leave(&folder, &format!("{}.4711-0", code('f', own)), 1, 3600);
        let writing = leave(&folder, &format!("{}.4711", code('f', own)), 0, 60);
        let (key, foreign) = (folder.join("key"), leave(&folder, "notes.txt", 5000, 48 * 3600));
        artifacts.prune(own).unwrap();
        for gone in [old, other_old, killed] {
            assert!(!gone.exists(), "{}", gone.display());
        }
        for stays in kept.into_iter().chain([writing, key, foreign]) {
            assert!(stays.exists(), "{}", stays.display());
        }
    }

    #[test]
    fn code_that_is_used_stays() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cache");
        let (engine, artifacts) = (Engine::default(), Artifacts::open(&folder).unwrap());
        let components = [plugway_plugins::STOCK[0].1, plugway_plugins::STOCK[1].1];
        let compiled = components.map(|bytes| Component::from_binary(&engine, bytes).unwrap());
        let file = |bytes: &[u8]| folder.join(name(&engine, bytes));
        for (bytes, compiled) in components.iter().zip(&compiled) {
            artifacts.store(&engine, bytes, compiled);
            let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
            File::options().write(true).open(file(bytes)).unwrap().set_modified(an_hour_ago).unwrap();
        }
        assert!(artifacts.load(&engine, components[0]).is_some());
        let most = fs::metadata(file(components[0])).unwrap().len();
        Artifacts { most, ..artifacts }.prune(&settings(&engine)).unwrap();
        assert!(file(components[0]).exists() && !file(components[1]).exists());
    }
}
