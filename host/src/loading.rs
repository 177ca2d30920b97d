//! Loads components in a child process: a component may make the compiler, or whatever else looks at it, take any time
//! and memory, or crash. Such a child has limits and may die; the proxy only gets an error.
//!
//! [`Loader::start`] gives a component to a child ([`confined`] is what runs there), which compiles it and has it describe
//! itself. Then the child checks configurations, and hands the compiled code over under the seal of
//! [`crate::plugin::compiled_cache`]. [`crate::assemble`] and `plugway inspect` call this; nothing here touches a manifest.

mod child;
pub mod confined;
mod confinement;
mod failure;
mod messages;
pub mod schema_at;
mod verdict;

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use failure::LoadFailure;
pub use messages::{About, ConfigComplaint, ConfigVerdict};

use crate::plugin::compiled_cache::{MAX_SEALED_BYTES, Seal};
use crate::plugin::settings::PluginLimits as InstanceLimits;
use crate::system::files;
use child::Child;
use confined::Examiner;
use messages::{FileForm, LoadOrder, Setup};

/// Returns the version of a component, from the description in its artifact; `None` if there is no description.
pub fn version(about: &[u8]) -> Option<String> {
    messages::content::<About>(about).ok().map(|about| about.version)
}

/// Returns the schema of a component's configuration, from the description in its artifact; `None` if there is none.
pub fn config_schema(about: &[u8]) -> Option<String> {
    messages::content::<About>(about).ok().and_then(|about| about.schema)
}

/// The limits of one loading, as `[load]` sets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadLimits {
    /// The CPU time of all threads of the child.
    pub time: Duration,
    /// The memory that the child may write to, in bytes.
    pub memory: u64,
}

/// Starts children that load components.
#[derive(Clone)]
pub struct Loader {
    is_apart: bool,
    /// The order that ends all loading at once.
    stop: Stop,
    pub limits: LoadLimits,
}

/// An order to end loading at once, as the process ends. Clones share it.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

/// A component's bytes, which are not kept in memory if they are in a file.
pub struct Component {
    pub digest: blake3::Hash,
    bytes: Bytes,
}

enum Bytes {
    Stock(&'static [u8]),
    /// A file that is opened once, so that its digest and its code are of the same bytes.
    File(File),
}

/// A component under examination, until dropped.
pub struct Examination {
    place: LoadPlace,
    pub about: About,
    pub digest: blake3::Hash,
}

enum LoadPlace {
    Child(Child),
    Here(Box<Examiner>),
}

impl Default for LoadLimits {
    /// Returns limits that suffice for components of Python or JavaScript, of 12 to 20 MB.
    fn default() -> Self {
        LoadLimits { time: Duration::from_secs(60), memory: 1 << 30 }
    }
}

// === Loader ===

impl Loader {
    /// Loads in children of this program.
    pub fn in_children(stop: Stop) -> Self {
        Loader { is_apart: true, stop, limits: LoadLimits::default() }
    }

    /// Loads in this process, without any limit: for benchmarks and tests, which are not the program `plugway`.
    #[doc(hidden)]
    pub fn in_process() -> Self {
        Loader { is_apart: false, stop: Stop::default(), limits: LoadLimits::default() }
    }

    /// Loads a component, or its artifact if there is one, and asks it for its description.
    pub fn start(
        &self,
        component: &mut Component,
        artifact: Option<File>,
        seal: Seal,
    ) -> Result<Examination, LoadFailure> {
        let digest = component.digest;
        if !self.is_apart {
            let bytes = component.bytes()?;
            let (examiner, about) = Examiner::compile(seal, &bytes).map_err(LoadFailure::Refused)?;
            return Ok(Examination { place: LoadPlace::Here(Box::new(examiner)), about, digest });
        }
        let mut child = Child::start(self.limits, self.stop.clone())?;
        let about = match artifact {
            Some(mut file) => {
                let length = file.metadata()?.len();
                child.send(&self.setup(seal, FileForm::Artifact, length))?;
                let copied = files::pieces(&mut file, files::ARTIFACT, |piece| child.write(piece))?;
                ensure_whole(copied == length)?;
                child.receive()?
            }
            None => {
                child.send(&self.setup(seal, FileForm::Component, component.size()?))?;
                component.copy(&mut child)?;
                child.receive()?
            }
        };
        let about: Result<About, String> = about;
        Ok(Examination { about: about.map_err(LoadFailure::Refused)?, place: LoadPlace::Child(child), digest })
    }

    fn setup(&self, seal: Seal, form: FileForm, length: u64) -> Setup {
        let cpu_seconds = self.limits.time.as_millis().div_ceil(1000) as u64;
        let (key, name) = (seal.key, seal.name);
        Setup { parent: std::process::id(), memory: self.limits.memory, cpu_seconds, key, name, form, length }
    }
}

impl Stop {
    /// Ends all loading that is under way.
    pub fn order(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_ordered(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

// === Component ===

impl Component {
    /// A component that is part of the program.
    pub fn stock(bytes: &'static [u8]) -> Self {
        Component { digest: blake3::hash(bytes), bytes: Bytes::Stock(bytes) }
    }

    /// Opens a file, and computes its digest.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = files::open(path, files::COMPONENT)?;
        let digest = digest(&mut file)?;
        Ok(Component { digest, bytes: Bytes::File(file) })
    }

    /// The number of bytes.
    pub fn size(&self) -> io::Result<u64> {
        match &self.bytes {
            Bytes::Stock(bytes) => Ok(bytes.len() as u64),
            Bytes::File(file) => Ok(file.metadata()?.len()),
        }
    }

    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        match &mut self.bytes {
            Bytes::Stock(bytes) => all.extend_from_slice(bytes),
            Bytes::File(file) => {
                file.rewind()?;
                files::pieces(file, files::COMPONENT, |piece| {
                    all.extend_from_slice(piece);
                    Ok(())
                })?;
            }
        }
        ensure_whole(blake3::hash(&all) == self.digest)?;
        Ok(all)
    }

    fn copy(&mut self, child: &mut Child) -> io::Result<()> {
        let file = match &mut self.bytes {
            Bytes::Stock(bytes) => return child.write(bytes),
            Bytes::File(file) => file,
        };
        file.rewind()?;
        let mut digest = blake3::Hasher::new();
        files::pieces(file, files::COMPONENT, |piece| {
            digest.update(piece);
            child.write(piece)
        })?;
        ensure_whole(digest.finalize() == self.digest)
    }
}

fn digest(file: &mut File) -> io::Result<blake3::Hash> {
    let mut digest = blake3::Hasher::new();
    files::pieces(file, files::COMPONENT, |piece| {
        digest.update(piece);
        Ok(())
    })?;
    Ok(digest.finalize())
}

fn ensure_whole(is_whole: bool) -> io::Result<()> {
    if is_whole { Ok(()) } else { Err(io::Error::other("it was changed while it was read")) }
}

// === Examination ===

impl Examination {
    /// Checks a configuration by the component's schema, and has the component take it, where it sees these variables of
    /// the environment.
    pub fn check(
        &mut self,
        config: &str,
        limits: InstanceLimits,
        env: &[(String, String)],
    ) -> Result<ConfigVerdict, LoadFailure> {
        let child = match &mut self.place {
            LoadPlace::Here(examiner) => return Ok(examiner.check(config, limits, env)),
            LoadPlace::Child(child) => child,
        };
        let cpu_us = limits.cpu.as_micros() as u64;
        let (config, memory, env) = (config.into(), limits.memory as u64, env.to_vec());
        child.send(&LoadOrder::Check { config, memory, cpu_us, env })?;
        child.receive()
    }

    /// Returns the compiled code with the component's description, sealed.
    pub fn sealed(&mut self) -> Result<Vec<u8>, LoadFailure> {
        let child = match &mut self.place {
            LoadPlace::Here(examiner) => return examiner.sealed().map_err(LoadFailure::Refused),
            LoadPlace::Child(child) => child,
        };
        child.send(&LoadOrder::Seal)?;
        let sealed: Result<u64, String> = child.receive()?;
        let length = sealed.map_err(LoadFailure::Refused)?;
        if length > MAX_SEALED_BYTES as u64 {
            return Err(LoadFailure::Refused(confined::too_much_code(length)));
        }
        child.read(length as usize)
    }
}
