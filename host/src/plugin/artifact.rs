//! Compiled code, kept on disk so that the next start needs no compiler.
//!
//! Loading machine code means trusting it wholly, so a file counts only if it carries a MAC made with this machine's
//! own key: what someone else put there is compiled anew.

use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

/// A folder of compiled components, and the key that vouches for them.
pub struct Artifacts {
    folder: PathBuf,
    key: [u8; 32],
}

impl Artifacts {
    /// Opens or makes the folder; it must belong to this user alone.
    pub fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let found = fs::metadata(folder)?;
        if found.mode() & 0o022 != 0 || found.uid() != fs::metadata("/proc/self")?.uid() {
            let why = format!("{} can be written by others; run `chmod 700` on it", folder.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(Artifacts { folder: folder.into(), key: key(&folder.join("key"))? })
    }

    /// The compiled form of a component, if it is there and ours.
    pub fn load(&self, engine: &Engine, component: &[u8]) -> Option<Component> {
        let name = name(engine, component);
        let file = fs::read(self.folder.join(&name)).ok()?;
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

    /// Keeps the compiled form; that it can't be is no reason not to serve.
    pub fn store(&self, engine: &Engine, component: &[u8], compiled: &Component) {
        let name = name(engine, component);
        let kept = compiled.serialize().map_err(io::Error::other).and_then(|code| {
            let new = self.folder.join(format!("{name}.{}", std::process::id()));
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(self.mac(&name, &code).as_bytes())?;
            file.write_all(&code)?;
            fs::rename(new, self.folder.join(&name))
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "compiled code could not be kept");
        }
    }

    fn mac(&self, name: &str, code: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.key).update(name.as_bytes()).update(code).finalize()
    }
}

/// What the code was compiled from, and for which engine.
fn name(engine: &Engine, component: &[u8]) -> String {
    let mut settings = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut settings);
    format!("{}-{:016x}", blake3::hash(component).to_hex(), settings.finish())
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
}
