//! The thread that writes and removes the files of the disk cache, one at a time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tracing::warn;

use super::blocks::Sums;
use super::directory::{Directory, remove};
use super::record::{self, RecordEntry, WrittenContent};
use super::{Disk, DiskEntry, MAX_OUTDATED_BYTES, weight};
use crate::store::purge_log::PurgeEpoch;
use crate::store::stored_response::{Content, StoredResponse};
use crate::system::supervise::{Task, guard};

/// A job for the writer thread.
#[derive(Debug)]
pub enum Job {
    Keep {
        id: u128,
        key: Box<[u8]>,
        object: Arc<StoredResponse>,
        epoch: PurgeEpoch,
    },
    /// An entry has left the index, and its file is to be removed.
    Remove {
        id: u128,
        number: u64,
    },
    /// The file was not finished and is to be removed.
    Discard(u64),
    /// The response was soft-purged, so that its file has to be marked stale.
    Mark(u64),
    /// The sender waits until all earlier jobs are finished.
    Flush(SyncSender<()>),
}

/// Runs jobs until every reference to the disk is dropped.
pub fn run(disk: &Weak<Disk>, folder: &Directory, queue: Receiver<Job>) {
    for job in queue {
        let queued = if let Job::Keep { object, .. } = &job { weight(object) } else { 0 };
        // A panic loses the current job, but not the thread.
        let _ = guard(Task::CacheWriter, || work(disk, folder, job));
        if let Some(disk) = disk.upgrade().filter(|_| queued > 0) {
            disk.queued.fetch_sub(queued, Ordering::Relaxed);
        }
    }
}

fn work(disk: &Weak<Disk>, folder: &Directory, job: Job) {
    match job {
        Job::Keep { id, key, object, epoch } => {
            let Some(disk) = disk.upgrade() else { return };
            keep(&disk, id, &key, &object, &epoch);
        }
        Job::Remove { id, number } => {
            // A newer entry may have the file meanwhile.
            let is_used = |disk: Arc<Disk>| disk.index.find_numbered(id, number).is_some();
            if !disk.upgrade().is_some_and(is_used) {
                remove(&folder.file(number));
            }
        }
        Job::Discard(number) => remove(&folder.temporary(number)),
        Job::Mark(number) => {
            if let Err(error) = mark(&folder.file(number)) {
                warn!(path = %folder.file(number).display(), %error, "a purged response can't be marked: it may be served again");
            }
        }
        Job::Flush(done) => drop(done.send(())),
    }
}

/// Marks a file as purged softly. A file that doesn't exist, because it was evicted since, needs no mark.
fn mark(path: &Path) -> io::Result<()> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        file => record::mark(&file?),
    }
}

fn keep(disk: &Disk, id: u128, key: &[u8], object: &StoredResponse, epoch: &PurgeEpoch) {
    if disk.rests() {
        return;
    }
    let known = disk.index.find_numbered(id, object.sequence);
    match (write(disk, known.as_deref(), key, object).transpose(), known) {
        // Its file is gone, which is no failure of the disk.
        (Some(Err(error)), Some(known)) if error.kind() == io::ErrorKind::NotFound => {
            disk.index.remove_if(id, |filed| filed.number == known.number);
        }
        (Some(size), _) => drop(disk.finish_write(id, key, object, size, epoch)),
        // Content that is only in its file can't be rewritten. If the file has too many records, the response is
        // dropped.
        (None, Some(known)) => disk.index.remove_if(id, |filed| filed.number == known.number),
        (None, None) => {}
    }
}

/// Writes a response, or appends the changes if it has a file. Returns the size of the file; `None` if neither is
/// possible.
fn write(disk: &Disk, known: Option<&DiskEntry>, key: &[u8], object: &StoredResponse) -> io::Result<Option<u64>> {
    if let Some(filed) = known
        && let Some(size) = append_record(disk, filed, key, object)?
    {
        return Ok(Some(size));
    }
    write_whole(disk, key, object)
}

/// Appends the changes of a response to its file. Returns the size of the file; `None` if the file has grown too long.
fn append_record(disk: &Disk, filed: &DiskEntry, key: &[u8], object: &StoredResponse) -> io::Result<Option<u64>> {
    let (folder, seed) = (&disk.claim.folder, disk.claim.seed);
    let mut file = OpenOptions::new().read(true).append(true).open(folder.file(filed.number))?;
    let RecordEntry { trailers, sums, length, size, .. } = record::read(&file, seed)?;
    if size - length > length.max(MAX_OUTDATED_BYTES) {
        return Ok(None);
    }
    let record = record::record(key, object, trailers.as_ref(), WrittenContent { length, sums: &sums }, seed)?;
    file.write_all(&record)?;
    Ok(Some(size + record.len() as u64))
}

/// Writes a file with the whole response. Returns the size of the file; `None` if the content isn't in memory.
fn write_whole(disk: &Disk, key: &[u8], object: &StoredResponse) -> io::Result<Option<u64>> {
    let pieces: Vec<Bytes> = match &object.content {
        Content::Whole(content) => vec![content.clone()],
        Content::Pieces(pieces) => pieces.list.clone(),
        Content::File(_) | Content::Filling(_) => return Ok(None),
    };
    let length = pieces.iter().map(|piece| piece.len() as u64).sum();
    let sums = Sums::of(pieces.iter().map(|piece| &piece[..]));
    let tail =
        record::tail(key, object, object.content.trailers(), WrittenContent { length, sums: &sums }, disk.claim.seed)?;
    let (folder, number) = (&disk.claim.folder, object.sequence);
    let temporary = folder.temporary(number);
    let written = File::create(&temporary).and_then(|mut file| {
        pieces.iter().try_for_each(|piece| file.write_all(piece))?;
        file.write_all(&tail)?;
        std::fs::rename(&temporary, folder.file(number))
    });
    if written.is_err() {
        remove(&temporary);
    }
    written.map(|()| Some(length + tail.len() as u64))
}
