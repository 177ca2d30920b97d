//! Writing a response to a file while it arrives, because it is too long for the memory.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use tokio::task::spawn_blocking;

use super::Disk;
use super::blocks::{self, BLOCK, Sums};
use super::record::{self, WrittenContent};
use super::writer::Job;
use crate::store::memory_budget::{ArrivingBytes, MemoryReservation};
use crate::store::purge_log::PurgeEpoch;
use crate::store::shared_body::{SharedBody, WriteProgress};
use crate::store::stored_response::StoredResponse;
use crate::system::descriptor_shares::{CountedFile, DescriptorUse};

/// A file that is being written. The file is removed if it is dropped before it is finished.
pub struct UnfinishedFile {
    disk: Arc<Disk>,
    file: Arc<CountedFile>,
    number: u64,
    sums: Vec<u64>,
    room: MemoryReservation,
    is_finished: bool,
}

/// The reason for which content was not written to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// The arriving responses take too much of the disk's budget.
    NoRoom,
    /// A write failed, which is logged.
    Failed,
}

/// A response whose content is in a file.
pub struct WrittenResponse {
    pub id: u128,
    pub key: Vec<u8>,
    pub epoch: PurgeEpoch,
    pub object: Arc<StoredResponse>,
    /// The length of the content, in bytes.
    pub length: u64,
    pub trailers: Option<HeaderMap>,
}

impl UnfinishedFile {
    /// Starts a file for an arriving response of a route. `None` if nothing can be written; the reason is logged.
    pub async fn begin(
        disk: &Arc<Disk>,
        fill: &SharedBody,
        number: u64,
        route: &ArrivingBytes,
        descriptor: DescriptorUse,
    ) -> Option<Self> {
        if disk.rests() {
            return None;
        }
        let at = disk.claim.folder.temporary(number);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let made = spawn_blocking(move || options.open(at)).await.map_err(io::Error::other).and_then(|made| made);
        let file = made.inspect_err(|error| disk.write_failed(error)).ok()?;
        let file = Arc::new(CountedFile::new(file, descriptor));
        fill.spill(file.clone());
        let room = MemoryReservation::new(&disk.arriving, route);
        Some(UnfinishedFile { disk: disk.clone(), file, number, sums: Vec::new(), room, is_finished: false })
    }

    /// Writes the blocks that have arrived and, at the end, the rest.
    pub async fn write(&mut self, fill: &SharedBody, progress: WriteProgress) -> Result<(), Unwritten> {
        while let Some((at, block)) = fill.next_block(BLOCK, progress) {
            let (file, length) = (self.file.clone(), block.len() as u64);
            if !self.room.take(length, self.disk.capacity()) {
                return Err(Unwritten::NoRoom);
            }
            // This thread keeps a reference of its own, so that the block is freed on the thread that allocated it.
            let here = block.clone();
            let written = spawn_blocking(move || write(&file, at, &block)).await;
            drop(here);
            match written.map_err(io::Error::other).and_then(|written| written) {
                Ok(sum) => self.sums.push(sum),
                Err(error) => {
                    self.disk.write_failed(&error);
                    return Err(Unwritten::Failed);
                }
            }
            fill.set_written(at + length);
        }
        Ok(())
    }

    /// Finishes the file, after which requests can find it. Returns whether it was written.
    pub async fn finish(mut self, written: WrittenResponse) -> bool {
        let WrittenResponse { id, key, epoch, object, length, trailers } = written;
        let finished = spawn_blocking(move || {
            let sums = Sums::from_blocks(std::mem::take(&mut self.sums));
            let tail = record::tail(
                &key,
                &object,
                trailers.as_ref(),
                WrittenContent { length, sums: &sums },
                self.disk.claim.seed,
            );
            let size = tail.and_then(|tail| {
                self.file.write_all_at(&tail, length)?;
                let folder = &self.disk.claim.folder;
                std::fs::rename(folder.temporary(self.number), folder.file(self.number))?;
                Ok(length + tail.len() as u64)
            });
            self.is_finished = size.is_ok();
            self.disk.finish_write(id, &key, &object, size, &epoch)
        });
        // The task doesn't panic, and at the end of the process its result isn't needed.
        finished.await.unwrap_or(false)
    }
}

impl Drop for UnfinishedFile {
    fn drop(&mut self) {
        if !self.is_finished {
            // Not on this thread, because freeing the blocks of a long file takes time.
            let _ = self.disk.jobs.send(Job::Discard(self.number));
        }
    }
}

fn write(file: &File, at: u64, block: &Bytes) -> io::Result<u64> {
    file.write_all_at(block, at)?;
    Ok(blocks::sum(block))
}
