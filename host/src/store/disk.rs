//! Stored responses in a directory: one file per response, an index of the files in memory, and a thread that writes
//! and removes files. The files are found again at the next start, even after a crash; incomplete files are removed.
#![expect(clippy::disallowed_methods, reason = "the shutdown waits off the workers")]

mod blocks;
mod directory;
pub mod reader;
pub mod record;
mod scan;
#[cfg(test)]
mod tests;
mod unfinished_file;
mod writer;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tracing::warn;

use super::index::{Index, IndexedVariant};
use super::memory_budget::ArrivingBytes;
use super::purge_log::{Purge, PurgeEpoch, PurgeLog};
use super::stored_response::{Content, StoredResponse};
use super::unix_time::now_ms;
use super::variant::VariantInfo;
use super::vary::VaryValue;
use crate::system::descriptor_shares::{CountedFile, DescriptorUse};
use crate::system::descriptors::is_of_this_machine;
use crate::system::files;
use directory::DirectoryLock;
pub use directory::{check, has_begun};
use reader::OpenFile;
use record::RecordEntry;
pub use unfinished_file::{UnfinishedFile, Unwritten, WrittenResponse};
use writer::Job;

/// The disk part of the store: a directory of stored responses.
pub struct Disk {
    claim: DirectoryLock,
    index: Index<DiskEntry>,
    purges: Arc<PurgeLog>,
    /// The number of the next file. Newer files have greater numbers, also across restarts.
    next: AtomicU64,
    jobs: Sender<Job>,
    /// The responses that are queued for writing, in bytes of memory.
    queued: AtomicU64,
    /// The responses that are written to disk while they arrive, in bytes.
    arriving: ArrivingBytes,
    /// The Unix time in milliseconds until which nothing is written, because a write has failed.
    rests_until_ms: AtomicU64,
    /// Whether the scan for the files of earlier processes has finished.
    is_found: Mutex<bool>,
    scanned: Condvar,
    pub figures: DiskCounters,
}

/// Counters of the disk since the start of the process.
#[derive(Debug, Default)]
pub struct DiskCounters {
    /// The number of responses that were read from disk.
    pub reads: AtomicU64,
    /// The number of responses that were written to disk.
    pub writes: AtomicU64,
    /// The number of responses that were not written because the write queue was full.
    pub skipped: AtomicU64,
    /// The number of files that couldn't be written or read.
    pub failures: AtomicU64,
}

/// A stored response on disk, as the index knows it.
#[derive(Debug)]
pub struct DiskEntry {
    variant_info: Arc<VariantInfo>,
    id: u128,
    number: u64,
    /// The size of the file, in bytes.
    size: u64,
    /// Whether another index entry has taken over the file, so that dropping this entry doesn't remove the file.
    is_taken_over: AtomicBool,
    jobs: Sender<Job>,
}

/// A file that is written to its end.
struct FinishedFile<'a> {
    id: u128,
    key: &'a [u8],
    variant_info: &'a Arc<VariantInfo>,
    /// The sequence number of the file.
    number: u64,
    /// The length of the file, in bytes.
    size: u64,
}

/// A response that was read from its file.
pub struct LoadedResponse {
    pub object: Arc<StoredResponse>,
    /// Whether the content was read into memory completely.
    pub is_whole: bool,
}

/// The limit of the write queue, in bytes. Responses beyond the limit are not written to disk.
const MAX_QUEUED_BYTES: u64 = 64 << 20;

/// The pause after a failed write, during which nothing is written.
const REST: Duration = Duration::from_secs(10);

/// The typical size of a stored response, in bytes; the index derives its number of shards from it.
const TYPICAL: u64 = 64 << 10;

/// The block size of the file system, in bytes. A file occupies whole blocks.
const CLUSTER: u64 = 4096;

/// The index uses at most this fraction of the budget in memory. A file with usual names and tags uses less: it occupies a
/// block, and some 500 bytes in the index.
const MEMORY_SHARE: usize = 8;

/// The limit for outdated records in a file, in bytes. A file is rewritten when its old records exceed the limit and
/// the size of its content.
const MAX_OUTDATED_BYTES: u64 = 64 << 10;

impl Disk {
    /// Opens or creates a directory that may hold `bytes` of files. The error explains how to fix the problem.
    pub fn open(folder: &Path, bytes: u64, purges: &Arc<PurgeLog>) -> Result<Arc<Self>, String> {
        let claim = DirectoryLock::new(folder)?;
        #[expect(
            clippy::disallowed_methods,
            reason = "removals and marks are bounded by the number of entries, and writes by `MAX_QUEUED_BYTES`"
        )]
        let (jobs, queue) = mpsc::channel();
        let disk = Arc::new(Disk {
            claim,
            index: Index::new(bytes, TYPICAL),
            purges: purges.clone(),
            next: AtomicU64::new(now_ms() << 16),
            jobs,
            queued: AtomicU64::new(0),
            arriving: ArrivingBytes::default(),
            rests_until_ms: AtomicU64::new(0),
            is_found: Mutex::new(false),
            scanned: Condvar::new(),
            figures: DiskCounters::default(),
        });
        // Before the first request, which may invalidate a response that is not found yet.
        let scan = purges.begin_scan();
        // Both threads end by themselves when the last reference to the disk is dropped.
        let (writer, scanner, directory) = (Arc::downgrade(&disk), Arc::downgrade(&disk), disk.claim.folder.clone());
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let spawned = thread("cache-writer").spawn(move || writer::run(&writer, &directory, queue));
        let spawned = spawned.and_then(|_| thread("cache-scan").spawn(move || scan::run(&scanner, scan)));
        spawned.map_err(|error| format!("`{}` can't be served: {error}", folder.display()))?;
        Ok(disk)
    }

    pub fn folder(&self) -> &Path {
        self.claim.folder.path()
    }

    pub fn seed(&self) -> u64 {
        self.claim.seed
    }

    /// Returns the index entry of a stored response that matches the request; `None` if there is none.
    pub fn find(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap) -> Option<Arc<DiskEntry>> {
        self.index.variant(id, key, scope, request)
    }

    /// Returns the `Vary` values of a request; see [`Index::selectors`].
    pub fn selectors(&self, id: u128, scope: u64, request: &HeaderMap) -> Option<VaryValue> {
        self.index.selectors(id, scope, request)
    }

    /// Returns a new number for a file.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Queues a response for writing in the background. The response replaces an older one for the same requests.
    pub fn keep(&self, id: u128, key: &[u8], object: &Arc<StoredResponse>, epoch: &PurgeEpoch) {
        // The old response is removed now, because the write may fail: no response on disk is better than an outdated
        // one.
        self.index
            .remove_if(id, |filed| filed.variant_info.replaces(&object.variant) && filed.number != object.sequence);
        let (queued, weight) = (self.queued.load(Ordering::Relaxed), weight(object));
        // A single response may exceed the limit.
        if self.rests() || queued > 0 && queued + weight > MAX_QUEUED_BYTES {
            self.figures.skipped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.queued.fetch_add(weight, Ordering::Relaxed);
        let _ = self.jobs.send(Job::Keep { id, key: key.into(), object: object.clone(), epoch: epoch.clone() });
    }

    /// Removes the stored response that has the same scope and `Vary` values as `variant_info`.
    pub fn remove(&self, id: u128, variant_info: &VariantInfo) {
        self.index.remove_if(id, |filed| filed.variant_info.replaces(variant_info));
    }

    /// Removes all responses under a cache key. Returns how many of them were not counted as purged before.
    pub fn change(&self, id: u128) -> usize {
        self.index.remove_all(id)
    }

    /// Purges responses, after the initial scan has finished. Returns how many of them were not counted as purged
    /// before.
    pub fn purge(&self, purge: &Purge) -> usize {
        let is_found = self.is_found.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.scanned.wait_while(is_found, |is_found| !*is_found).unwrap_or_else(PoisonError::into_inner));
        self.index.purge(purge)
    }

    /// Waits until all queued writes and removals are done, but no longer than `within`.
    pub fn flush(&self, within: Duration) {
        let deadline = Instant::now() + within;
        // Two rounds, because a response that was just written may have to be removed.
        for _ in 0..2 {
            let (done, is_done) = mpsc::sync_channel(1);
            let _ = self.jobs.send(Job::Flush(done));
            let _ = is_done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// Reads a stored response from its file, with its content if that has at most `max` bytes. Blocks the thread.
    pub fn recall(
        self: &Arc<Self>,
        filed: &Arc<DiskEntry>,
        key: &[u8],
        max: u64,
        descriptor: DescriptorUse,
    ) -> Option<LoadedResponse> {
        let recalled = self.read(filed, key, max, descriptor);
        match &recalled {
            Ok(_) => drop(self.figures.reads.fetch_add(1, Ordering::Relaxed)),
            Err(error) => self.read_failed(filed, error),
        }
        recalled.ok()
    }

    fn read(
        self: &Arc<Self>,
        filed: &Arc<DiskEntry>,
        key: &[u8],
        max: u64,
        descriptor: DescriptorUse,
    ) -> io::Result<LoadedResponse> {
        let (file, record) = self.open_record(filed)?;
        let RecordEntry { key: known, object, trailers, sums, length, .. } = record;
        if *known != *key || !object.variant.replaces(&filed.variant_info) {
            return Err(blocks::broken());
        }
        let is_whole = length <= max;
        let content = if is_whole {
            reader::read_whole(&file, &sums, length, trailers)?.into()
        } else {
            let (filed, disk) = (filed.clone(), Arc::downgrade(self));
            let file = CountedFile::new(file, descriptor);
            Content::File(Arc::new(OpenFile { file, sums, length, trailers, filed, disk }))
        };
        let object = Arc::new(object.with_variant(filed.variant_info.clone(), filed.number).with_content(content));
        Ok(LoadedResponse { object, is_whole })
    }

    /// Opens the file of a response, and reads the record that an index entry stands for. A file that was replaced by a new one
    /// meanwhile has a record at its end.
    fn open_record(&self, filed: &DiskEntry) -> io::Result<(File, RecordEntry)> {
        let file = files::open(&self.claim.folder.file(filed.number), files::STORED)?;
        let record = record::read_at(&file, self.claim.seed, filed.size);
        let record = record.or_else(|_| record::read(&file, self.claim.seed))?;
        Ok((file, record))
    }

    /// Handles a file that can't be read. The entry is removed, unless the cause is this machine and not the file.
    fn read_failed(&self, filed: &DiskEntry, error: &io::Error) {
        // A file that was removed a moment ago is not a failure.
        if error.kind() != io::ErrorKind::NotFound {
            self.figures.failures.fetch_add(1, Ordering::Relaxed);
            let path = self.claim.folder.file(filed.number);
            if is_of_this_machine(error) {
                warn!(path = %path.display(), %error, "a stored response can't be read");
                return;
            }
            warn!(path = %path.display(), %error, "a stored response can't be read, and is removed");
        }
        self.index.remove_if(filed.id, |known| std::ptr::eq(known, filed));
    }

    pub fn rests(&self) -> bool {
        self.rests_until_ms.load(Ordering::Relaxed) > now_ms()
    }

    /// Suspends writing for a while.
    fn write_failed(&self, error: &io::Error) {
        self.figures.failures.fetch_add(1, Ordering::Relaxed);
        if self.rests() {
            return;
        }
        self.rests_until_ms.store(now_ms() + REST.as_millis() as u64, Ordering::Relaxed);
        let folder = self.folder().display();
        warn!(%folder, %error, "responses can't be stored on disk: short ones are kept in memory alone, and those longer than `[cache] max-object` are not stored; the next try is in {REST:?}");
    }

    /// Records the result of writing a file or of appending to one; `size` is the new size of the file in bytes.
    /// Returns whether the response may be served from it.
    fn finish_write(
        &self,
        id: u128,
        key: &[u8],
        object: &StoredResponse,
        size: io::Result<u64>,
        epoch: &PurgeEpoch,
    ) -> bool {
        match size {
            Ok(size) => {
                self.figures.writes.fetch_add(1, Ordering::Relaxed);
                let file = FinishedFile { id, key, variant_info: &object.variant, number: object.sequence, size };
                self.enter(file, epoch)
            }
            Err(error) => {
                self.write_failed(&error);
                false
            }
        }
    }

    /// Adds a finished file to the index and replaces an older entry, unless the response was purged meanwhile. Returns
    /// whether it was added.
    fn enter(&self, file: FinishedFile<'_>, epoch: &PurgeEpoch) -> bool {
        let FinishedFile { id, key, variant_info, number, size } = file;
        let filed = Arc::new(DiskEntry {
            variant_info: variant_info.clone(),
            id,
            number,
            size,
            is_taken_over: AtomicBool::new(false),
            jobs: self.jobs.clone(),
        });
        // The entry for an older record of this file. The newer record may be for other requests.
        let known = self.index.find_numbered(id, number);
        known.iter().for_each(|known| known.is_taken_over.store(true, Ordering::Relaxed));
        let is_inserted = self.index.insert_unless_purged(id, key, filed, &self.purges, epoch);
        if let Some(known) = known {
            self.index.remove_if(id, |other| std::ptr::eq(other, &*known));
        }
        is_inserted
    }
}

/// Returns the memory that a response occupies while it waits to be written, in bytes.
fn weight(object: &StoredResponse) -> u64 {
    if let Content::File(_) = object.content { 0 } else { object.weight() as u64 }
}

/// Methods for configuration and for metrics.
impl Disk {
    pub fn resize(&self, bytes: u64) {
        self.index.resize(bytes);
    }

    pub fn capacity(&self) -> u64 {
        self.index.capacity()
    }

    pub fn max_entry_bytes(&self) -> u64 {
        self.index.max_entry_bytes().saturating_sub(MAX_OUTDATED_BYTES)
    }

    pub fn bytes(&self) -> u64 {
        self.index.bytes()
    }

    pub fn keys(&self) -> usize {
        self.index.keys()
    }

    /// Returns whether the scan for the files of earlier processes has finished.
    pub fn is_found(&self) -> bool {
        *self.is_found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskEntry {
    /// Returns the size of the file, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the name under which concurrent reads of the file are collapsed.
    pub fn fetch_id(&self) -> u128 {
        u128::from(self.number)
    }
}

impl IndexedVariant for DiskEntry {
    fn variant_info(&self) -> &VariantInfo {
        &self.variant_info
    }

    fn weight(&self) -> usize {
        (self.size as usize).max(self.variant_info.weight() * MEMORY_SHARE).next_multiple_of(CLUSTER as usize)
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn on_removed(&self) {
        if !self.is_taken_over.load(Ordering::Relaxed) {
            let _ = self.jobs.send(Job::Remove { id: self.id, number: self.number });
        }
    }

    fn on_purged(&self) {
        let _ = self.jobs.send(Job::Mark(self.number));
    }
}
