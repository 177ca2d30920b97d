//! Stored responses in a folder: one file for each, an index of them in memory, and a thread that writes and removes.
//! The files are found again at the next start, whatever has happened to the process; what isn't whole is removed.

mod folder;
pub mod format;
pub mod reading;
mod scan;
mod spill;
mod writer;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tracing::warn;

use super::index::{Index, Variant};
use super::label::Label;
use super::now_ms;
use super::object::{Content, Object};
use super::purges::{Moment, Purge, Purges};
use super::vary::Selectors;
use crate::error::is_of_this_machine;
use crate::files;
use folder::Claim;
use format::Entry;
use reading::Opened;
pub use spill::Spill;
use writer::Job;

/// A folder of stored responses.
pub struct Disk {
    claim: Claim,
    index: Index<Filed>,
    purges: Arc<Purges>,
    /// The number of the next file; newer ones have greater ones, over restarts too.
    next: AtomicU64,
    jobs: Sender<Job>,
    /// What waits to be written, in bytes of memory.
    queued: AtomicU64,
    /// What is being written as it comes, in bytes.
    coming: Arc<AtomicU64>,
    /// Nothing is written until then, in milliseconds of Unix time: a write has failed.
    rests_until_ms: AtomicU64,
    /// Whether all that was there at the start has been found.
    is_found: Mutex<bool>,
    found: Condvar,
    pub figures: Figures,
}

/// Since the start.
#[derive(Debug, Default)]
pub struct Figures {
    /// Responses that were read.
    pub reads: AtomicU64,
    /// Responses that were written.
    pub writes: AtomicU64,
    /// Those that weren't, as more waited to be written than may.
    pub skipped: AtomicU64,
    /// Files that couldn't be written or read.
    pub failures: AtomicU64,
}

/// A file, as the index knows it.
#[derive(Debug)]
pub struct Filed {
    label: Arc<Label>,
    id: u128,
    number: u64,
    /// In bytes.
    size: u64,
    /// Another entry has taken the file over.
    is_taken_over: AtomicBool,
    jobs: Sender<Job>,
}

/// A response of a file.
pub struct Recalled {
    pub object: Arc<Object>,
    /// It has come into memory whole.
    pub is_whole: bool,
}

/// So much may wait to be written; what comes then isn't.
const MOST_QUEUED: u64 = 64 << 20;

/// After a failed write nothing is written for so long.
const REST: Duration = Duration::from_secs(10);

/// For the index to choose how finely it is sharded.
const TYPICAL: u64 = 64 << 10;

/// A file takes whole blocks of the file system.
const CLUSTER: u64 = 4096;

/// A file whose older records take more than this, and more than its content, is written anew.
const MOST_OLD: u64 = 64 << 10;

impl Disk {
    /// Opens a folder, or makes it, for so many bytes of files. The error says what to do.
    pub fn open(folder: &Path, bytes: u64, purges: &Arc<Purges>) -> Result<Arc<Self>, String> {
        let claim = Claim::new(folder)?;
        // What is removed and marked is bounded by what is there, and what is kept by `MOST_QUEUED`.
        let (jobs, queue) = mpsc::channel();
        let disk = Arc::new(Disk {
            claim,
            index: Index::new(bytes, TYPICAL),
            purges: purges.clone(),
            next: AtomicU64::new(now_ms() << 16),
            jobs,
            queued: AtomicU64::new(0),
            coming: Arc::default(),
            rests_until_ms: AtomicU64::new(0),
            is_found: Mutex::new(false),
            found: Condvar::new(),
            figures: Figures::default(),
        });
        // Both threads end by themselves when nobody has the disk any more.
        let (writer, scanner, place) = (Arc::downgrade(&disk), Arc::downgrade(&disk), disk.claim.folder.clone());
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let spawned = thread("cache-writer").spawn(move || writer::run(&writer, &place, queue));
        let spawned = spawned.and_then(|_| thread("cache-scan").spawn(move || scan::run(&scanner)));
        spawned.map_err(|error| format!("`{}` can't be served: {error}", folder.display()))?;
        Ok(disk)
    }

    pub fn folder(&self) -> &Path {
        self.claim.folder.path()
    }

    pub fn seed(&self) -> u64 {
        self.claim.seed
    }

    /// The file of a response that fits a request.
    pub fn find(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap) -> Option<Arc<Filed>> {
        self.index.variant(id, key, scope, request)
    }

    /// As [`Index::selectors`].
    pub fn selectors(&self, id: u128, scope: u64, request: &HeaderMap) -> Option<Selectors> {
        self.index.selectors(id, scope, request)
    }

    /// The number of a file to be.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Has a response written in the background, in place of another.
    pub fn keep(&self, id: u128, key: &[u8], object: &Arc<Object>, asked: Moment) {
        // At once, for a write may fail: then there is none, but never one that doesn't hold any more.
        self.index.remove_if(id, |filed| filed.label.is_for_the_same(&object.label) && filed.number != object.number);
        let (queued, weight) = (self.queued.load(Ordering::Relaxed), weight(object));
        // One alone may be as long as it is.
        if self.rests() || queued > 0 && queued + weight > MOST_QUEUED {
            self.figures.skipped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.queued.fetch_add(weight, Ordering::Relaxed);
        let _ = self.jobs.send(Job::Keep { id, key: key.into(), object: object.clone(), asked });
    }

    /// Takes out what is there for the same requests as something.
    pub fn remove(&self, id: u128, label: &Label) {
        self.index.remove_if(id, |filed| filed.label.is_for_the_same(label));
    }

    /// Takes out all under a key; gives how many those were.
    pub fn change(&self, id: u128) -> usize {
        self.index.remove_all(id)
    }

    /// Purges; gives how many of them nobody has counted. What hasn't been found yet is waited for.
    pub fn purge(&self, purge: &Purge) -> usize {
        let is_found = self.is_found.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.found.wait_while(is_found, |is_found| !*is_found).unwrap_or_else(PoisonError::into_inner));
        self.index.purge(purge)
    }

    /// Waits until all is written and removed that was to be, or the time is over.
    pub fn flush(&self, within: Duration) {
        let deadline = Instant::now() + within;
        // Twice, for what has been written may have to be removed.
        for _ in 0..2 {
            let (done, is_done) = mpsc::sync_channel(1);
            let _ = self.jobs.send(Job::Flush(done));
            let _ = is_done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// Reads a response from its file; its content too, where that is no longer than `most`. Blocks.
    pub fn recall(self: &Arc<Self>, filed: &Arc<Filed>, key: &[u8], most: u64) -> Option<Recalled> {
        let recalled = self.read(filed, key, most);
        match &recalled {
            Ok(_) => drop(self.figures.reads.fetch_add(1, Ordering::Relaxed)),
            Err(error) => self.read_failed(filed, error),
        }
        recalled.ok()
    }

    fn read(self: &Arc<Self>, filed: &Arc<Filed>, key: &[u8], most: u64) -> io::Result<Recalled> {
        let file = files::open(&self.claim.folder.file(filed.number), files::STORED)?;
        let Entry { key: known, object, trailers, sums, length, .. } = format::read(&file, self.claim.seed)?;
        if *known != *key || !object.label.is_for_the_same(&filed.label) {
            return Err(format::broken());
        }
        let is_whole = length <= most;
        let content = if is_whole {
            reading::whole(&file, &sums, length, trailers)?
        } else {
            Content::File(Arc::new(Opened::new(file, sums, length, trailers, filed.clone(), Arc::downgrade(self))))
        };
        let object = Arc::new(object.labelled(filed.label.clone(), filed.number).with(content));
        Ok(Recalled { object, is_whole })
    }

    /// Whoever needed a file that can't be read goes without. It is of no use, unless it isn't at fault.
    fn read_failed(&self, filed: &Filed, error: &io::Error) {
        // One that has just been removed is no failure.
        if error.kind() != io::ErrorKind::NotFound {
            self.figures.failures.fetch_add(1, Ordering::Relaxed);
            let path = self.claim.folder.file(filed.number);
            if is_of_this_machine(error) {
                warn!(path = %path.display(), %error, "a stored response can't be read");
                return;
            }
            warn!(path = %path.display(), %error, "a stored response can't be read, and is removed");
        }
        self.index.remove_if(filed.id, |known| known.number == filed.number);
    }

    fn rests(&self) -> bool {
        self.rests_until_ms.load(Ordering::Relaxed) > now_ms()
    }

    /// Nothing is written for a while.
    fn write_failed(&self, error: &io::Error) {
        self.figures.failures.fetch_add(1, Ordering::Relaxed);
        if self.rests() {
            return;
        }
        self.rests_until_ms.store(now_ms() + REST.as_millis() as u64, Ordering::Relaxed);
        let folder = self.folder().display();
        warn!(%folder, %error, "responses can't be stored on disk, and are kept in memory alone; the next try is in {REST:?}");
    }

    /// Takes note of what came of writing a file, or of adding to it: its size.
    fn written(&self, id: u128, key: &[u8], object: &Object, size: io::Result<u64>, asked: Moment) {
        match size {
            Ok(size) => {
                self.figures.writes.fetch_add(1, Ordering::Relaxed);
                self.enter(id, key, &object.label, (object.number, size), asked);
            }
            Err(error) => self.write_failed(&error),
        }
    }

    /// Puts a finished file into the index, in place of an older one, unless the response was purged meanwhile.
    fn enter(&self, id: u128, key: &[u8], label: &Arc<Label>, (number, size): (u64, u64), asked: Moment) {
        let filed = Arc::new(Filed {
            label: label.clone(),
            id,
            number,
            size,
            is_taken_over: AtomicBool::new(false),
            jobs: self.jobs.clone(),
        });
        // The same file, with a newer record, which may be for other requests.
        let known = self.index.numbered(id, number);
        known.iter().for_each(|known| known.is_taken_over.store(true, Ordering::Relaxed));
        self.index.offer(id, key, filed, &self.purges, asked);
        if let Some(known) = known {
            self.index.remove_if(id, |other| std::ptr::eq(other, &*known));
        }
    }
}

/// What an object takes of the memory while it waits to be written.
fn weight(object: &Object) -> u64 {
    if let Content::File(_) = object.content { 0 } else { object.weight() as u64 }
}

/// For people.
impl Disk {
    pub fn resize(&self, bytes: u64) {
        self.index.resize(bytes);
    }

    pub fn capacity(&self) -> u64 {
        self.index.capacity()
    }

    pub fn most(&self) -> u64 {
        self.index.most().saturating_sub(MOST_OLD)
    }

    pub fn bytes(&self) -> u64 {
        self.index.bytes()
    }

    pub fn keys(&self) -> usize {
        self.index.keys()
    }

    /// Whether all is found that was there at the start.
    pub fn is_found(&self) -> bool {
        *self.is_found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filed {
    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The name of the flight of those who want it read.
    pub fn flight(&self) -> u128 {
        u128::from(self.number)
    }
}

impl Variant for Filed {
    fn label(&self) -> &Label {
        &self.label
    }

    fn weight(&self) -> usize {
        self.size.next_multiple_of(CLUSTER) as usize
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn left(&self) {
        if !self.is_taken_over.load(Ordering::Relaxed) {
            let _ = self.jobs.send(Job::Remove(self.number));
        }
    }

    fn purged(&self) {
        let _ = self.jobs.send(Job::Mark(self.number));
    }
}

#[cfg(test)]
mod tests;
