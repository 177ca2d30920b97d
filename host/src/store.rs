//! The store of cached responses for all workers: in memory and, if a directory is configured, on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use tokio::task::spawn_blocking;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::store::collapse::FetchesInProgress;
use super::store::disk::{Disk, DiskEntry};
use super::store::index::{Found, Index, hash_key};
use super::store::memory_budget::{ArrivingBytes, MemoryReservation};
use super::store::memory_content::HeldBytes;
use super::store::purge_log::{Purge, PurgeEpoch, PurgeLog};
use super::store::stored_response::{Content, StoredResponse};
use super::store::variant::VariantInfo;
use crate::store::vary::VaryValue;
use crate::system::descriptor_shares::DescriptorUse;

/// The stored responses, the fetches in progress, and the log of purges.
pub struct Store {
    memory: Index<StoredResponse>,
    /// The budget for responses in memory, in bytes.
    budget: AtomicU64,
    /// The bytes of that budget which responses hold after their content has left the index.
    held: HeldBytes,
    disk: Option<Arc<Disk>>,
    pub fetches: Arc<FetchesInProgress>,
    /// The secret seed for hashing cache keys. A client that doesn't know it can't construct keys that collide.
    seed: u64,
    purges: Arc<PurgeLog>,
    /// The number of responses that were removed or made stale by a purge or an invalidation.
    pub purged: AtomicU64,
    /// The bytes of memory reserved for responses that are still arriving.
    arriving: ArrivingBytes,
}

/// The limits of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// The memory budget, in bytes.
    pub memory: u64,
    /// The maximum length of content in memory, in bytes.
    pub object: u64,
    pub disk: Option<DiskLimits>,
}

/// The limits of the disk part of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    pub folder: PathBuf,
    /// The budget for files, in bytes.
    pub bytes: u64,
    /// The maximum length of content on disk, in bytes.
    pub object: u64,
}

impl Default for StoreLimits {
    /// Returns a budget that a small machine can spare, and a maximum size that fits a web page with all its resources.
    fn default() -> Self {
        StoreLimits { memory: 256 << 20, object: 16 << 20, disk: None }
    }
}

/// The time for which a key is hit-for-miss after a response couldn't be stored.
const PASSING: Duration = Duration::from_secs(10);

/// The maximum time that a purge waits for pending writes.
const WRITING: Duration = Duration::from_secs(60);

/// The typical size of a stored response, in bytes; the index derives its number of shards from it.
const TYPICAL: u64 = 16 << 10;

/// An entry of the disk that may serve a request.
#[derive(Clone)]
pub struct DiskCandidate {
    pub entry: Arc<DiskEntry>,
    /// The moment of the lookup.
    pub epoch: PurgeEpoch,
}

impl Store {
    /// Creates an empty store with a memory budget of `bytes`.
    pub fn new(bytes: u64) -> Arc<Self> {
        Store::with(bytes, None, Arc::default())
    }

    /// Creates a store with these limits and the responses already on disk. The error explains how to fix the problem.
    pub fn open(limits: &StoreLimits) -> Result<Arc<Self>, String> {
        let Some(disk) = &limits.disk else { return Ok(Store::new(limits.memory)) };
        let purges = Arc::default();
        let disk = Disk::open(&disk.folder, disk.bytes, &purges)?;
        Ok(Store::with(limits.memory, Some(disk), purges))
    }

    /// Checks whether a store with such limits could be opened, and changes nothing. The error explains how to fix the
    /// problem.
    pub fn check(limits: &StoreLimits) -> Result<(), String> {
        limits.disk.as_ref().map_or(Ok(()), |limits| disk::check(&limits.folder))
    }

    /// Whether a process has begun a store at the folder of these limits.
    pub fn has_begun(limits: &StoreLimits) -> bool {
        limits.disk.as_ref().is_some_and(|limits| disk::has_begun(&limits.folder))
    }

    fn with(bytes: u64, disk: Option<Arc<Disk>>, purges: Arc<PurgeLog>) -> Arc<Self> {
        let mut seed = [0; 8];
        // Keys are compared completely, so a seed that isn't random only costs speed.
        let _ = getrandom::fill(&mut seed);
        let seed = disk.as_ref().map_or(u64::from_ne_bytes(seed), |disk| disk.seed());
        Arc::new(Store {
            memory: Index::new(bytes, TYPICAL),
            budget: AtomicU64::new(bytes),
            held: HeldBytes::default(),
            disk,
            fetches: FetchesInProgress::new(),
            seed,
            purges,
            purged: AtomicU64::new(0),
            arriving: ArrivingBytes::default(),
        })
    }

    /// Returns the hash of a cache key in the index.
    pub fn id(&self, key: &[u8]) -> u128 {
        hash_key(key, self.seed)
    }

    /// Returns the name of the fetch that a request joins. Requests that will probably get the same response share a
    /// name.
    pub fn fetch_id(&self, id: u128, scope: u64, request: &HeaderMap) -> u128 {
        let on_disk = || self.disk.as_ref()?.selectors(id, scope, request);
        self.fetch_id_of(id, scope, self.memory.selectors(id, scope, request).or_else(on_disk).as_ref())
    }

    /// Returns the name of the fetch of a request with these values of the fields that responses depend on.
    pub fn fetch_id_of(&self, id: u128, scope: u64, selectors: Option<&VaryValue>) -> u128 {
        let mut name = selectors.map_or_else(Vec::new, VaryValue::bytes);
        name.extend(id.to_ne_bytes());
        name.extend(scope.to_ne_bytes());
        xxh3_128_with_seed(&name, self.seed)
    }

    /// Returns the scope of a route's responses from an upstream.
    pub fn scope(&self, route: &str, upstream: &str) -> u64 {
        xxh3_64_with_seed(route.as_bytes(), xxh3_64_with_seed(upstream.as_bytes(), self.seed))
    }

    /// Looks up a stored response in memory; `now_ms` is Unix time in milliseconds.
    pub fn find(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap, now_ms: u64) -> Found<StoredResponse> {
        self.memory.find(id, key, scope, request, now_ms)
    }

    /// Looks up a stored response on disk; returns `None` if there is none.
    pub fn find_on_disk(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap) -> Option<DiskCandidate> {
        let disk = self.disk.as_ref()?;
        // Most keys are not on disk, and are not worth a moment.
        disk.find(id, key, scope, request)?;
        let epoch = self.purge_epoch(id);
        Some(DiskCandidate { entry: disk.find(id, key, scope, request)?, epoch })
    }

    /// Reads a response from disk with a descriptor, and keeps it in memory if its content has at max `max` bytes.
    pub async fn load(
        &self,
        id: u128,
        key: &[u8],
        candidate: &DiskCandidate,
        max: u64,
        descriptor: DescriptorUse,
    ) -> Option<Arc<StoredResponse>> {
        let (disk, filed, owned) = (self.disk.clone()?, candidate.entry.clone(), key.to_vec());
        // A file is read at once, for whichever route.
        let mut room = self.reserve(&ArrivingBytes::default());
        // If too many bytes are already arriving in memory, the content is streamed from the file.
        let max = if room.take(filed.size().min(max), self.room()) { max } else { 0 };
        let recalled = spawn_blocking(move || disk.recall(&filed, &owned, max, descriptor)).await.ok().flatten()?;
        if recalled.is_whole {
            self.keep(id, key, recalled.object.clone(), &candidate.epoch);
        }
        Some(recalled.object)
    }

    /// Returns a number for a new file; 0 without a disk.
    pub fn number(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.number())
    }

    /// Returns the disk part, for responses that are too long for the memory; `None` if no directory is configured.
    pub fn disk(&self) -> Option<&Arc<Disk>> {
        self.disk.as_ref()
    }

    /// Stores a response that was requested at `epoch`, and replaces the older response for the same requests. Returns
    /// whether it may be served: it was not purged meanwhile, and no newer one is stored.
    pub fn insert(&self, id: u128, key: &[u8], object: Arc<StoredResponse>, epoch: &PurgeEpoch) -> bool {
        if let Some(disk) = &self.disk {
            disk.keep(id, key, &object, epoch);
        }
        // A response whose content is in a file has its place already.
        matches!(object.content, Content::File(_)) || self.keep(id, key, object, epoch)
    }

    /// Puts a response into the index, unless it was purged meanwhile. Returns whether it was inserted.
    fn keep(&self, id: u128, key: &[u8], object: Arc<StoredResponse>, epoch: &PurgeEpoch) -> bool {
        self.make_room();
        let pieces = if let Content::Pieces(pieces) = &object.content { Some(pieces.clone()) } else { None };
        pieces.iter().for_each(|pieces| pieces.enter(&self.held));
        let is_inserted = self.memory.insert_unless_purged(id, key, object, &self.purges, epoch);
        // Readers may have the content all the same.
        pieces.filter(|_| !is_inserted).into_iter().for_each(|pieces| pieces.leave());
        is_inserted
    }

    /// Returns the memory that stored and arriving responses may have beside the content that responses still hold, in bytes.
    pub fn room(&self) -> u64 {
        self.capacity().saturating_sub(self.held.bytes())
    }

    /// Leaves the index what the budget has beside the content that responses still hold.
    fn make_room(&self) {
        self.memory.resize(self.room().max(MIN_INDEX));
    }

    /// Removes the older response from memory, after a newer one was stored on disk only.
    pub fn drop_older_in_memory(&self, id: u128, object: &StoredResponse) {
        self.memory.remove_if(id, |known| known.variant.replaces(&object.variant) && known.sequence < object.sequence);
    }

    /// Removes a response from memory and disk.
    pub fn remove(&self, id: u128, object: &StoredResponse) {
        self.memory.remove_if(id, |known| known.variant.replaces(&object.variant));
        if let Some(disk) = &self.disk {
            disk.remove(id, &object.variant);
        }
    }

    /// Marks a cache key as hit-for-miss for a while, because a response couldn't be stored.
    pub fn mark_hit_for_miss(&self, id: u128, key: &[u8], now_ms: u64) {
        self.memory.pass(id, key, now_ms + PASSING.as_millis() as u64);
    }

    /// Returns an empty memory reservation for an arriving response of a route.
    pub fn reserve(&self, route: &ArrivingBytes) -> MemoryReservation {
        self.make_room();
        MemoryReservation::new(&self.arriving, route)
    }
}

/// Methods for purges and invalidations.
impl Store {
    /// Returns the current moment for a response under a key, after which purges are found.
    pub fn purge_epoch(&self, id: u128) -> PurgeEpoch {
        self.purges.moment(id)
    }

    /// Purges responses and returns how many.
    pub fn purge(&self, purge: &Purge) -> usize {
        // Recorded before the search, so that responses which are still arriving are covered.
        self.purges.purge(purge);
        let mut purged = self.memory.purge(purge);
        if let Some(disk) = &self.disk {
            purged += disk.purge(purge);
            // Again, for responses that were read from disk just before.
            purged += self.memory.purge(purge);
            disk.flush(WRITING);
        }
        self.purged.fetch_add(purged as u64, Ordering::Relaxed);
        purged
    }

    /// Invalidates all responses under a cache key.
    pub fn invalidate(&self, id: u128) {
        self.purges.change(id);
        // Memory last, as with a purge.
        let on_disk = self.disk.as_ref().map_or(0, |disk| disk.change(id));
        let changed = on_disk + self.memory.remove_all(id);
        self.purged.fetch_add(changed as u64, Ordering::Relaxed);
    }

    /// Returns whether a response was purged after `epoch`, by a soft or a hard purge.
    pub fn was_purged(&self, epoch: &PurgeEpoch, key: &[u8], variant_info: &VariantInfo) -> bool {
        self.purges.since(epoch, key, variant_info).is_some()
    }
}

/// Methods for configuration and for metrics.
impl Store {
    /// Sets new limits and evicts what exceeds them.
    pub fn resize(&self, limits: &StoreLimits) {
        self.budget.store(limits.memory, Ordering::Relaxed);
        self.make_room();
        if let (Some(disk), Some(limits)) = (&self.disk, &limits.disk) {
            disk.resize(limits.bytes);
        }
    }

    /// Returns whether the store uses this directory; `None` stands for memory only.
    pub fn is_in(&self, folder: Option<&Path>) -> bool {
        self.disk.as_ref().map(|disk| disk.folder()) == folder
    }

    /// Waits until pending responses are written to disk, but no longer than `within`.
    pub fn flush(&self, within: Duration) {
        if let Some(disk) = &self.disk {
            disk.flush(within);
        }
    }

    /// Returns the memory budget, in bytes.
    pub fn capacity(&self) -> u64 {
        self.budget.load(Ordering::Relaxed)
    }

    /// Returns the maximum length of content that fits in memory together with a head, in bytes.
    pub fn max_entry_bytes(&self) -> u64 {
        self.memory.max_entry_bytes().saturating_sub(HEAD)
    }

    /// Returns the number of cache keys.
    pub fn keys(&self) -> usize {
        self.memory.keys()
    }

    /// Returns the size of the stored responses, in bytes.
    pub fn bytes(&self) -> u64 {
        self.memory.bytes()
    }
}

/// The least budget of the index, in bytes: it stores nothing.
const MIN_INDEX: u64 = 1 << 10;

/// The size of a long head with its cache key, in bytes.
const HEAD: u64 = 16 << 10;

pub mod collapse;
pub mod disk;
pub mod index;
pub mod memory_budget;
pub mod memory_content;
pub mod purge_log;
pub mod shared_body;
pub mod stored_body;
pub mod stored_response;
#[cfg(test)]
mod tests;
pub mod unix_time;
pub mod variant;
pub mod vary;
