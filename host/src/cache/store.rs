//! Stored responses, for all workers: in memory, and where there is a folder for that, on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use tokio::task::spawn_blocking;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::disk::{Disk, Filed};
use super::flight::Flights;
use super::index::{Found, Index, name_of};
use super::label::Label;
use super::object::{Content, Object};
use super::purges::{Moment, Purge, Purges};
use super::room::Room;

/// Stored responses, and what is known of those to come.
pub struct Store {
    memory: Index<Object>,
    disk: Option<Arc<Disk>>,
    pub flights: Arc<Flights>,
    /// Nobody who doesn't know it can make two keys fall together.
    seed: u64,
    purges: Arc<Purges>,
    /// Responses that were taken out or made stale by a purge or a change.
    pub purged: AtomicU64,
    /// What responses on their way into the store take, in bytes.
    coming: Arc<AtomicU64>,
}

/// What the store may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the memory, in bytes.
    pub memory: u64,
    /// The longest content there, in bytes.
    pub object: u64,
    pub disk: Option<DiskLimits>,
}

/// What it may take of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    pub folder: PathBuf,
    /// Of files, in bytes.
    pub bytes: u64,
    /// The longest content, in bytes.
    pub object: u64,
}

impl Default for Limits {
    /// What a small machine can spare, and a page with all that belongs to it.
    fn default() -> Self {
        Limits { memory: 256 << 20, object: 16 << 20, disk: None }
    }
}

/// For so long a response that couldn't be stored is a reason not to wait for another.
const PASSING: Duration = Duration::from_secs(10);

/// A purge waits so long at most for what is being written.
const WRITING: Duration = Duration::from_secs(60);

/// For the index to choose how finely it is sharded.
const TYPICAL: u64 = 16 << 10;

impl Store {
    /// An empty store for so many bytes of memory.
    pub fn new(bytes: u64) -> Arc<Self> {
        Store::with(bytes, None, Arc::default())
    }

    /// A store of such limits, with what is on disk already; the error says what to do.
    pub fn open(limits: &Limits) -> Result<Arc<Self>, String> {
        let Some(disk) = &limits.disk else { return Ok(Store::new(limits.memory)) };
        let purges = Arc::default();
        let disk = Disk::open(&disk.folder, disk.bytes, &purges)?;
        Ok(Store::with(limits.memory, Some(disk), purges))
    }

    fn with(bytes: u64, disk: Option<Arc<Disk>>, purges: Arc<Purges>) -> Arc<Self> {
        let mut seed = [0; 8];
        // Keys are compared whole, so without random numbers only the speed is at stake.
        let _ = getrandom::fill(&mut seed);
        let seed = disk.as_ref().map_or(u64::from_ne_bytes(seed), |disk| disk.seed());
        Arc::new(Store {
            memory: Index::new(bytes, TYPICAL),
            disk,
            flights: Flights::new(),
            seed,
            purges,
            purged: AtomicU64::new(0),
            coming: Arc::default(),
        })
    }

    /// The name of a key in the index.
    pub fn id(&self, key: &[u8]) -> u128 {
        name_of(key, self.seed)
    }

    /// The name of a fetch: of all for the same response, as far as can be told before it.
    pub fn flight(&self, id: u128, scope: u64, request: &HeaderMap) -> u128 {
        let on_disk = || self.disk.as_ref()?.selectors(id, scope, request);
        let selectors = self.memory.selectors(id, scope, request).or_else(on_disk);
        let mut name = selectors.map_or_else(Vec::new, |selectors| selectors.bytes());
        name.extend(id.to_ne_bytes());
        name.extend(scope.to_ne_bytes());
        xxh3_128_with_seed(&name, self.seed)
    }

    /// The name of a route's responses from an upstream.
    pub fn scope(&self, route: &str, upstream: &str) -> u64 {
        xxh3_64_with_seed(route.as_bytes(), xxh3_64_with_seed(upstream.as_bytes(), self.seed))
    }

    /// What fits a request; `now_ms` is Unix time in milliseconds.
    pub fn find(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap, now_ms: u64) -> Found<Object> {
        self.memory.find(id, key, scope, request, now_ms)
    }

    /// What fits a request on disk, and the moment at which it was there.
    pub fn filed(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap) -> Option<(Arc<Filed>, Moment)> {
        let (disk, now) = (self.disk.as_ref()?, self.moment());
        Some((disk.find(id, key, scope, request)?, now))
    }

    /// Reads a response from disk, and keeps it in memory where its content is no longer than `most`.
    pub async fn recall(
        &self,
        id: u128,
        key: &[u8],
        (filed, asked): (&Arc<Filed>, Moment),
        most: u64,
    ) -> Option<Arc<Object>> {
        let (disk, filed, owned, mut room) = (self.disk.clone()?, filed.clone(), key.to_vec(), self.room());
        // Where as much is on its way into the memory already, it streams.
        let most = if room.take(filed.size().min(most), self.capacity()) { most } else { 0 };
        let recalled = spawn_blocking(move || disk.recall(&filed, &owned, most)).await.ok().flatten()?;
        if recalled.is_whole {
            self.memory.offer(id, key, recalled.object.clone(), &self.purges, asked);
        }
        Some(recalled.object)
    }

    /// The number of a file to be, where there are files.
    pub fn number(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.number())
    }

    /// Where what is too long for the memory goes.
    pub fn disk(&self) -> Option<&Arc<Disk>> {
        self.disk.as_ref()
    }

    /// Stores a response that was asked for at a moment, in place of the one that it takes the place of.
    pub fn insert(&self, id: u128, key: &[u8], object: Arc<Object>, asked: Moment) {
        if let Some(disk) = &self.disk {
            disk.keep(id, key, &object, asked);
        }
        if !matches!(object.content, Content::File(_)) {
            self.memory.offer(id, key, object, &self.purges, asked);
        }
    }

    /// A response was stored on disk alone: what it takes the place of leaves the memory.
    pub fn outgrown(&self, id: u128, object: &Object) {
        self.memory.remove_if(id, |known| known.label.is_for_the_same(&object.label) && known.number < object.number);
    }

    /// Takes a response out.
    pub fn remove(&self, id: u128, object: &Object) {
        self.memory.remove_if(id, |known| known.label.is_for_the_same(&object.label));
        if let Some(disk) = &self.disk {
            disk.remove(id, &object.label);
        }
    }

    /// Remembers for a while that a response couldn't be stored.
    pub fn pass(&self, id: u128, key: &[u8], now_ms: u64) {
        self.memory.pass(id, key, now_ms + PASSING.as_millis() as u64);
    }

    /// For a response on its way.
    pub fn room(&self) -> Room {
        Room::new(&self.coming)
    }
}

/// Of purges.
impl Store {
    /// This moment.
    pub fn moment(&self) -> Moment {
        self.purges.moment()
    }

    /// Purges; gives how many responses that were.
    pub fn purge(&self, purge: &Purge) -> usize {
        // Before it looks, for those that are on their way.
        self.purges.purge(purge);
        let mut purged = self.memory.purge(purge);
        if let Some(disk) = &self.disk {
            purged += disk.purge(purge);
            // What was read from there just before that.
            purged += self.memory.purge(purge);
            disk.flush(WRITING);
        }
        self.purged.fetch_add(purged as u64, Ordering::Relaxed);
        purged
    }

    /// What is stored under a key holds no more.
    pub fn change(&self, id: u128) {
        self.purges.change(id);
        // Memory last, as with a purge.
        let on_disk = self.disk.as_ref().map_or(0, |disk| disk.change(id));
        let changed = on_disk + self.memory.remove_all(id);
        self.purged.fetch_add(changed as u64, Ordering::Relaxed);
    }

    /// Whether a response was purged since a moment, however softly.
    pub fn was_purged(&self, asked: Moment, id: u128, key: &[u8], label: &Label) -> bool {
        self.purges.since(asked, id, key, label).is_some()
    }
}

/// For people.
impl Store {
    /// Other budgets; what is beyond them goes.
    pub fn resize(&self, limits: &Limits) {
        self.memory.resize(limits.memory);
        if let (Some(disk), Some(limits)) = (&self.disk, &limits.disk) {
            disk.resize(limits.bytes);
        }
    }

    /// Whether it is in such a folder, or in none.
    pub fn is_in(&self, folder: Option<&Path>) -> bool {
        self.disk.as_ref().map(|disk| disk.folder()) == folder
    }

    /// Waits until what is stored stands on disk, so long at most.
    pub fn flush(&self, within: Duration) {
        if let Some(disk) = &self.disk {
            disk.flush(within);
        }
    }

    /// The budget, in bytes.
    pub fn capacity(&self) -> u64 {
        self.memory.capacity()
    }

    /// The longest content that fits in, with a head of some size, in bytes.
    pub fn most(&self) -> u64 {
        self.memory.most().saturating_sub(HEAD)
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.memory.keys()
    }

    /// What they take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.memory.bytes()
    }
}

/// What a head with a key takes, if it is a long one.
const HEAD: u64 = 16 << 10;

#[cfg(test)]
mod tests;
