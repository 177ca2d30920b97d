//! Compiled code, kept on disk so that the next start needs no compiler.
//!
//! Loading machine code means trusting it wholly, so it counts only if it carries a MAC made with this machine's own
//! key: what someone else put there is compiled anew. The key is also given to the child process that compiles
//! (module `loading`), through a pipe.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

/// The compiled components of this machine, and the key that vouches for them.
pub struct Artifacts {
    /// `None` if they are not kept on disk.
    folder: Option<PathBuf>,
    key: [u8; 32],
}

/// The right to make and to trust the artifact of one component: a key, and the name that the MAC covers.
#[derive(Clone)]
pub struct Seal {
    pub key: [u8; 32],
    pub name: String,
}

/// The most bytes of a sealed artifact: an interpreter of 20 MB of wasm has some 60 MB of machine code and data.
pub const MOST_SEALED: usize = 128 << 20;

/// The configurations that are remembered of one component: more than routes have plugins in nearly all manifests.
const MOST_ACCEPTED: usize = 1_000;

impl Artifacts {
    /// Opens or makes the folder; it must belong to this user alone.
    pub fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let found = fs::metadata(folder)?;
        if found.mode() & 0o022 != 0 || found.uid() != fs::metadata("/proc/self")?.uid() {
            let why = format!("{} can be written by others; run `chmod 700` on it", folder.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(Artifacts { folder: Some(folder.into()), key: key(&folder.join("key"))? })
    }

    /// Keeps nothing; the key is good for this process and its children.
    pub fn unkept() -> io::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        Ok(Artifacts { folder: None, key })
    }

    /// The seal of a component, by its digest.
    pub fn seal(&self, engine: &Engine, component: &blake3::Hash) -> Seal {
        Seal { key: self.key, name: name(engine, component) }
    }

    /// The file of an artifact, if it is there; whether it is ours is for [`Seal::open`] to say.
    pub fn file(&self, seal: &Seal) -> Option<File> {
        let file = File::open(self.folder.as_ref()?.join(&seal.name)).ok()?;
        (file.metadata().ok()?.len() <= MOST_SEALED as u64).then_some(file)
    }

    /// An artifact that is there and ours: what it says of the component, and the component.
    pub fn load(&self, engine: &Engine, seal: &Seal) -> Option<(Vec<u8>, Component)> {
        let mut sealed = Vec::new();
        self.file(seal)?.take(MOST_SEALED as u64).read_to_end(&mut sealed).ok()?;
        seal.component(engine, &sealed)
    }

    /// Keeps a sealed artifact; that it can't be is no reason not to serve.
    pub fn store(&self, seal: &Seal, sealed: &[u8]) {
        self.write(&seal.name, sealed);
    }

    /// The digests of configurations that a component was found to accept.
    pub fn accepted(&self, seal: &Seal) -> HashSet<[u8; 32]> {
        let mut file = Vec::new();
        let path = self.folder.as_ref().map(|folder| folder.join(accepted(seal)));
        let read = path.and_then(|path| File::open(path).ok()).map(|found| {
            let most = (MOST_ACCEPTED + 1) * blake3::OUT_LEN;
            found.take(most as u64).read_to_end(&mut file)
        });
        let body = read.and_then(|_| Seal { key: self.key, name: accepted(seal) }.body(&file));
        body.map(|body| body.as_chunks().0.iter().copied().collect()).unwrap_or_default()
    }

    /// Remembers the digests of configurations that a component was found to accept.
    pub fn accept(&self, seal: &Seal, configurations: &HashSet<[u8; 32]>) {
        let body: Vec<u8> = configurations.iter().take(MOST_ACCEPTED).flatten().copied().collect();
        let name = accepted(seal);
        let sealed = [Seal { key: self.key, name: name.clone() }.mac(&body).as_bytes(), &*body].concat();
        self.write(&name, &sealed);
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let Some(folder) = &self.folder else { return };
        let new = folder.join(format!("{name}.{}", std::process::id()));
        let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
        let written = options.open(&new).and_then(|mut file| file.write_all(bytes));
        if let Err(error) = written.and_then(|()| fs::rename(&new, folder.join(name))) {
            let _ = fs::remove_file(new);
            tracing::warn!(%error, "compiled code could not be kept");
        }
    }
}

impl Seal {
    /// Seals compiled code with what the component says of itself.
    pub fn close(&self, about: &[u8], code: &[u8]) -> Vec<u8> {
        let length = (about.len() as u32).to_le_bytes();
        let mut sealed = Vec::with_capacity(blake3::OUT_LEN + length.len() + about.len() + code.len());
        sealed.extend([0; blake3::OUT_LEN]);
        [&length, about, code].into_iter().for_each(|part| sealed.extend_from_slice(part));
        let mac = self.mac(&sealed[blake3::OUT_LEN..]);
        sealed[..blake3::OUT_LEN].copy_from_slice(mac.as_bytes());
        sealed
    }

    /// The component of a sealed artifact and what it says of itself; `None` if the MAC is another.
    pub fn component(&self, engine: &Engine, sealed: &[u8]) -> Option<(Vec<u8>, Component)> {
        let Some(body) = self.body(sealed) else {
            tracing::warn!(file = self.name, "compiled code with a wrong MAC is not used");
            return None;
        };
        let (length, rest) = body.split_first_chunk()?;
        let (about, code) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        #[expect(unsafe_code, reason = "the MAC says that this very program wrote these bytes from its own compiler")]
        // SAFETY: `deserialize` wants what `Component::serialize` gave. Only `close` above makes a MAC with our key, over
        // just that; the name holds the engine's settings and version.
        let loaded = unsafe { Component::deserialize(engine, code) };
        let component = loaded.inspect_err(|error| tracing::warn!(%error, "compiled code is not used")).ok()?;
        Some((about.to_vec(), component))
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

/// The file beside an artifact with what it accepts.
fn accepted(seal: &Seal) -> String {
    format!("{}.accepted", seal.name)
}

/// What the code was compiled from, and for which engine.
fn name(engine: &Engine, component: &blake3::Hash) -> String {
    let mut settings = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut settings);
    // The form of the file.
    2_u8.hash(&mut settings);
    format!("{}-{:016x}", component.to_hex(), settings.finish())
}

fn key(path: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => file.write_all(&key).map(|()| key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut bytes = Vec::new();
            File::open(path)?.take(64).read_to_end(&mut bytes)?;
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
        let seal = artifacts.seal(&engine, &blake3::hash(bytes));
        assert!(artifacts.load(&engine, &seal).is_none());
        let code = Component::from_binary(&engine, bytes).unwrap().serialize().unwrap();
        artifacts.store(&seal, &seal.close(b"about", &code));
        assert_eq!(artifacts.load(&engine, &seal).unwrap().0, b"about");
        let again = Artifacts::open(&folder).unwrap();
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
        let other = Artifacts::open(&folder).unwrap();
        assert!(other.load(&engine, &other.seal(&engine, &blake3::hash(bytes))).is_none(), "another key");
    }

    #[test]
    fn only_what_we_found_accepted_counts_as_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cache");
        let artifacts = Artifacts::open(&folder).unwrap();
        let seal = artifacts.seal(&Engine::default(), &blake3::hash(b"component"));
        let configurations = HashSet::from([[1; 32], [2; 32]]);
        artifacts.accept(&seal, &configurations);
        assert_eq!(artifacts.accepted(&seal), configurations);
        let file = folder.join(accepted(&seal));
        let mut bent = fs::read(&file).unwrap();
        *bent.last_mut().unwrap() ^= 1;
        fs::write(&file, bent).unwrap();
        assert!(artifacts.accepted(&seal).is_empty());
    }
}
