//! Stored responses in a folder: one file for each, an index of them in memory, and a thread that writes and removes.
//! The files are found again at the next start, whatever has happened to the process; what isn't whole is removed.

pub mod format;
pub mod reading;
mod scan;
mod spill;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use tracing::{debug, warn};

use super::fill::one;
use super::index::{Found, Index, Variant};
use super::label::Label;
use super::now_ms;
use super::object::{Content, Object, Pieces};
use super::purges::{Moment, Purge, Purges};
use super::vary::Selectors;
use crate::error::is_of_this_machine;
use format::{Entry, Sums};
use reading::Opened;
pub use spill::Spill;

/// A folder of stored responses.
pub struct Disk {
    folder: Arc<Path>,
    /// Of this folder, to name keys by, and to tell its own records from others'.
    seed: u64,
    index: Index<Filed>,
    purges: Arc<Purges>,
    /// The number of the next file; newer ones have greater ones, over restarts too.
    next: AtomicU64,
    jobs: Sender<Job>,
    /// What waits to be written, in bytes.
    queued: AtomicU64,
    /// Nothing is written until then, in milliseconds of Unix time: a write has failed.
    rests_until_ms: AtomicU64,
    /// Whether all that was there at the start has been found.
    is_found: Mutex<bool>,
    found: Condvar,
    pub figures: Figures,
    /// Nobody else has the folder.
    _lock: File,
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
    lives_on: AtomicBool,
    jobs: Sender<Job>,
}

#[derive(Debug)]
enum Job {
    Keep { id: u128, key: Box<[u8]>, object: Arc<Object>, asked: Moment },
    Remove(u64),
    Mark(u64),
    Flush(SyncSender<()>),
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

/// Whoever had the folder before may take so long to leave it.
const TURN: Duration = Duration::from_secs(1);

/// For the index to choose how finely it is sharded.
const TYPICAL: u64 = 64 << 10;

/// A file takes whole blocks of the file system.
const CLUSTER: u64 = 4096;

/// A file whose older records take more than this, and more than its content, is written anew.
const MOST_OLD: u64 = 64 << 10;

/// At the top of the folder: the format and the seed.
const MARKER: &str = "plugway-cache";
const FORMAT: &str = "1";
const LOCK: &str = "lock";
const TEMPORARY: &str = "tmp";

impl Disk {
    /// Opens a folder, or makes it, for so many bytes of files. The error says what to do.
    pub fn open(folder: &Path, bytes: u64, purges: &Arc<Purges>) -> Result<Arc<Self>, String> {
        let failed = |what: &str, error: io::Error| format!("`{}` can't be {what}: {error}", folder.display());
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder).map_err(|error| failed("made", error))?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).open(folder.join(LOCK));
        let lock = lock.map_err(|error| failed("written to", error))?;
        let deadline = Instant::now() + TURN;
        while lock.try_lock().is_err() {
            if Instant::now() > deadline {
                return Err(format!("`{}` is in use by another process; name another folder", folder.display()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let seed = seed(folder).map_err(|error| failed("used", error))?;
        // What nobody has finished.
        match std::fs::remove_dir_all(folder.join(TEMPORARY)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("cleared", error)),
            _ => {}
        }
        let places = (0..=u8::MAX).map(|place| format!("{place:02x}")).chain([TEMPORARY.into()]);
        for place in places {
            builder.create(folder.join(place)).map_err(|error| failed("written to", error))?;
        }
        let (jobs, queue) = mpsc::channel();
        let disk = Arc::new(Disk {
            folder: folder.into(),
            seed,
            index: Index::new(bytes, TYPICAL),
            purges: purges.clone(),
            next: AtomicU64::new(now_ms() << 16),
            jobs,
            queued: AtomicU64::new(0),
            rests_until_ms: AtomicU64::new(0),
            is_found: Mutex::new(false),
            found: Condvar::new(),
            figures: Figures::default(),
            _lock: lock,
        });
        let (writer, scanner, place) = (Arc::downgrade(&disk), Arc::downgrade(&disk), disk.folder.clone());
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let spawned = thread("cache-writer").spawn(move || work(&writer, &place, queue));
        let spawned = spawned.and_then(|_| thread("cache-scan").spawn(move || scan::run(&scanner)));
        spawned.map_err(|error| failed("served", error))?;
        Ok(disk)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The file of a response that fits a request.
    pub fn find(&self, id: u128, key: &[u8], scope: u64, request: &HeaderMap) -> Option<Arc<Filed>> {
        match self.index.find(id, key, scope, request, u64::MAX) {
            Found::Variant(filed) => Some(filed),
            _ => None,
        }
    }

    /// As [`Index::selectors`].
    pub fn selectors(&self, id: u128, scope: u64, request: &HeaderMap) -> Option<Selectors> {
        self.index.selectors(id, scope, request)
    }

    /// The number of a file to be.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Has a response written in the background, in place of an older one.
    pub fn keep(&self, id: u128, key: &[u8], object: &Arc<Object>, asked: Moment) {
        let is_older = |filed: &Filed| filed.number != object.number;
        self.index.remove_if(id, |filed| filed.label.is_for_the_same(&object.label) && is_older(filed));
        let weight = object.weight() as u64;
        if self.rests() || self.queued.load(Ordering::Relaxed) + weight > MOST_QUEUED {
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

    /// Waits until all is written that was given to be, or the time is over.
    pub fn flush(&self, within: Duration) {
        let (done, is_done) = mpsc::sync_channel(1);
        let _ = self.jobs.send(Job::Flush(done));
        let _ = is_done.recv_timeout(within);
    }

    /// Reads a response from its file; its content too, where that is no longer than `most`. Blocks.
    pub fn recall(self: &Arc<Self>, filed: &Arc<Filed>, key: &[u8], most: u64) -> Option<Recalled> {
        let recalled = self.read(filed, key, most);
        match &recalled {
            Ok(_) => drop(self.figures.reads.fetch_add(1, Ordering::Relaxed)),
            Err(error) => self.lost(filed, error),
        }
        recalled.ok()
    }

    fn read(self: &Arc<Self>, filed: &Arc<Filed>, key: &[u8], most: u64) -> io::Result<Recalled> {
        let file = File::open(path(&self.folder, filed.number))?;
        let Entry { key: known, object, trailers, sums, length, .. } = format::read(&file, self.seed)?;
        if *known != *key || !object.label.is_for_the_same(&filed.label) {
            return Err(format::broken());
        }
        let is_whole = length <= most;
        let content = if is_whole {
            whole(&file, &sums, length, trailers)?
        } else {
            Content::File(Arc::new(Opened::new(file, sums, length, trailers, filed.clone(), Arc::downgrade(self))))
        };
        let object = Arc::new(object.labelled(filed.label.clone(), filed.number).with(content));
        Ok(Recalled { object, is_whole })
    }

    /// Whoever needed a file that can't be read goes without. It is of no use, unless it isn't at fault.
    fn lost(&self, filed: &Filed, error: &io::Error) {
        // One that has just been removed is no failure.
        if error.kind() != io::ErrorKind::NotFound {
            self.figures.failures.fetch_add(1, Ordering::Relaxed);
            let path = path(&self.folder, filed.number);
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
    fn unwritten(&self, error: &io::Error) {
        self.figures.failures.fetch_add(1, Ordering::Relaxed);
        if self.rests() {
            return;
        }
        self.rests_until_ms.store(now_ms() + REST.as_millis() as u64, Ordering::Relaxed);
        let folder = self.folder.display();
        warn!(%folder, %error, "responses can't be stored on disk, and are kept in memory alone; the next try is in {REST:?}");
    }

    /// Puts a finished file into the index, unless the response was purged meanwhile.
    fn place(&self, id: u128, key: &[u8], label: &Arc<Label>, (number, size): (u64, u64), asked: Moment) {
        let filed = Arc::new(Filed {
            label: label.clone(),
            id,
            number,
            size,
            lives_on: AtomicBool::new(false),
            jobs: self.jobs.clone(),
        });
        if self.purges.since(asked, id, key, label) == Some(false) {
            return filed.left();
        }
        self.index.offer(id, key, filed.clone(), |known| {
            // The same file, with a newer record.
            known.lives_on.store(known.number == number, Ordering::Relaxed);
            known.number > number
        });
        match self.purges.since(asked, id, key, label) {
            Some(false) => self.index.remove_if(id, |known| known.number == number),
            Some(true) => {
                label.purge(true);
                filed.mark();
            }
            None => {}
        }
    }
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
    /// The name of the flight of those who want it read.
    pub fn flight(&self) -> u128 {
        u128::from(self.number)
    }

    fn mark(&self) {
        let _ = self.jobs.send(Job::Mark(self.number));
    }
}

impl Variant for Filed {
    fn label(&self) -> &Label {
        &self.label
    }

    fn weight(&self) -> usize {
        self.size.next_multiple_of(CLUSTER) as usize
    }

    fn left(&self) {
        if !self.lives_on.load(Ordering::Relaxed) {
            let _ = self.jobs.send(Job::Remove(self.number));
        }
    }

    fn purged(&self) {
        self.mark();
    }
}

/// Does what is to be done, one after the other, until nobody has anything to do any more.
fn work(disk: &Weak<Disk>, folder: &Path, queue: Receiver<Job>) {
    for job in queue {
        match job {
            Job::Keep { id, key, object, asked } => {
                let Some(disk) = disk.upgrade() else { continue };
                match write(&disk, id, &key, &object) {
                    Ok(Some(size)) => {
                        disk.figures.writes.fetch_add(1, Ordering::Relaxed);
                        disk.place(id, &key, &object.label, (object.number, size), asked);
                    }
                    Ok(None) => {}
                    Err(error) => disk.unwritten(&error),
                }
                disk.queued.fetch_sub(object.weight() as u64, Ordering::Relaxed);
            }
            Job::Remove(number) => remove(&path(folder, number)),
            Job::Mark(number) => {
                let file = OpenOptions::new().read(true).write(true).open(path(folder, number));
                // One that isn't there needs no mark.
                if let Err(error) = file.and_then(|file| format::mark(&file)) {
                    debug!(%error, "mark of a purge");
                }
            }
            Job::Flush(done) => drop(done.send(())),
        }
    }
}

/// Writes a response, or what is new about one that is there; gives the size of its file.
fn write(disk: &Disk, id: u128, key: &[u8], object: &Object) -> io::Result<Option<u64>> {
    if disk.rests() {
        return Ok(None);
    }
    let known = disk.index.same(id, &object.label).filter(|filed| filed.number == object.number);
    let place = path(&disk.folder, object.number);
    if known.is_some() {
        let file = OpenOptions::new().read(true).append(true).open(&place)?;
        let entry = format::read(&file, disk.seed)?;
        if entry.size - entry.length <= entry.length.max(MOST_OLD) {
            let record = format::record(key, object, entry.trailers.as_ref(), (entry.length, &entry.sums), disk.seed)?;
            (&file).write_all(&record)?;
            return Ok(Some(entry.size + record.len() as u64));
        }
    }
    let pieces: Vec<Bytes> = match &object.content {
        Content::Whole(content) => vec![content.clone()],
        Content::Pieces(pieces) => pieces.list.clone(),
        // It stands in a file already, or will; one with too many records is given up.
        Content::File(_) | Content::Filling(_) => {
            if let Some(known) = known {
                disk.index.remove_if(id, |filed| filed.number == known.number);
            }
            return Ok(None);
        }
    };
    let length = pieces.iter().map(|piece| piece.len() as u64).sum();
    let sums = Sums::of(pieces.iter().map(|piece| &piece[..]));
    let tail = format::tail(key, object, object.content.trailers(), (length, &sums), disk.seed)?;
    let temporary = temporary(&disk.folder, object.number);
    let written = File::create(&temporary).and_then(|mut file| {
        pieces.iter().try_for_each(|piece| file.write_all(piece))?;
        file.write_all(&tail)?;
        std::fs::rename(&temporary, &place)
    });
    if written.is_err() {
        remove(&temporary);
    }
    written.map(|()| Some(length + tail.len() as u64))
}

fn whole(file: &File, sums: &Sums, length: u64, trailers: Option<HeaderMap>) -> io::Result<Content> {
    let mut list = Vec::new();
    let mut at = 0;
    while at < length {
        let mut block = vec![0; (length - at).min(format::BLOCK as u64) as usize];
        file.read_exact_at(&mut block, at)?;
        if !sums.holds(list.len(), &block) {
            return Err(format::broken());
        }
        at += block.len() as u64;
        let block = Bytes::from(block);
        let length = block.len();
        list.push(one(&[block], length));
    }
    if trailers.is_none() && list.len() <= 1 {
        return Ok(Content::Whole(list.pop().unwrap_or_default()));
    }
    Ok(Content::Pieces(Arc::new(Pieces { list, length, trailers })))
}

/// Where a file is.
fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{:02x}", number & 0xff)).join(format!("{number:016x}"))
}

/// Where it is before it is whole.
fn temporary(folder: &Path, number: u64) -> PathBuf {
    folder.join(TEMPORARY).join(format!("{number:016x}"))
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "a stored response can't be removed");
    }
}

/// The seed of a folder, which is made ready for this format if it has another or none.
fn seed(folder: &Path) -> io::Result<u64> {
    let marker = folder.join(MARKER);
    let text = match std::fs::read_to_string(&marker) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let is_other = |entry: io::Result<std::fs::DirEntry>| entry.is_ok_and(|entry| entry.file_name() != LOCK);
            if std::fs::read_dir(folder)?.any(is_other) {
                return Err(io::Error::other("there is something else in it; name an empty folder, or a new one"));
            }
            String::new()
        }
        Err(error) => return Err(error),
    };
    let known = text.split_once(' ').filter(|(format, _)| *format == FORMAT);
    if let Some(seed) = known.and_then(|(_, seed)| u64::from_str_radix(seed.trim(), 16).ok()) {
        return Ok(seed);
    }
    let began = Instant::now();
    let is_place = |name: &str| name.len() == 2 && u8::from_str_radix(name, 16).is_ok();
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name == TEMPORARY || is_place(name)) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let seed = u64::from_ne_bytes(seed);
    std::fs::write(&marker, format!("{FORMAT} {seed:016x}\n"))?;
    debug!(folder = %folder.display(), took = ?began.elapsed(), "a new cache");
    Ok(seed)
}

#[cfg(test)]
mod tests;
