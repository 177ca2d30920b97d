//! A response that goes into a file as it comes, being too long for the memory.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use tokio::task::spawn_blocking;

use super::Disk;
use super::format::{self, BLOCK, Sums};
use super::writer::Job;
use crate::cache::fill::Fill;
use crate::cache::object::Object;
use crate::cache::purges::Moment;
use crate::cache::room::Room;

/// A file that is being written; removed if it isn't finished.
pub struct Spill {
    disk: Arc<Disk>,
    file: Arc<File>,
    number: u64,
    sums: Vec<u64>,
    room: Room,
    is_finished: bool,
}

impl Spill {
    /// Begins; none if nothing can be written, of which the log tells.
    pub async fn begin(disk: &Arc<Disk>, fill: &Fill, number: u64) -> Option<Self> {
        if disk.rests() {
            return None;
        }
        let at = disk.claim.folder.temporary(number);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let made = spawn_blocking(move || options.open(at)).await.map_err(io::Error::other).and_then(|made| made);
        let file = Arc::new(made.inspect_err(|error| disk.write_failed(error)).ok()?);
        fill.spill(file.clone());
        let room = Room::new(&disk.coming);
        Some(Spill { disk: disk.clone(), file, number, sums: Vec::new(), room, is_finished: false })
    }

    /// Writes the blocks that have come, and at the end what is left; false if that can't be, or there is no room for it.
    pub async fn write(&mut self, fill: &Fill, is_last: bool) -> bool {
        while let Some((at, block)) = fill.next_block(BLOCK, is_last) {
            let (file, length) = (self.file.clone(), block.len() as u64);
            if !self.room.take(length, self.disk.capacity()) {
                return false;
            }
            // A copy that comes back, to be freed where it was made.
            let here = block.clone();
            let written = spawn_blocking(move || write(&file, at, &block)).await;
            drop(here);
            match written.map_err(io::Error::other).and_then(|written| written) {
                Ok(sum) => self.sums.push(sum),
                Err(error) => {
                    self.disk.write_failed(&error);
                    return false;
                }
            }
            fill.stands_in_file(at + length);
        }
        true
    }

    /// All is written: from now on it is found.
    pub async fn finish(
        mut self,
        (id, key, asked): (u128, Vec<u8>, Moment),
        object: Arc<Object>,
        (length, trailers): (u64, Option<HeaderMap>),
    ) {
        let finished = spawn_blocking(move || {
            let sums = Sums::from_blocks(std::mem::take(&mut self.sums));
            let tail = format::tail(&key, &object, trailers.as_ref(), (length, &sums), self.disk.claim.seed);
            let size = tail.and_then(|tail| {
                self.file.write_all_at(&tail, length)?;
                let folder = &self.disk.claim.folder;
                std::fs::rename(folder.temporary(self.number), folder.file(self.number))?;
                Ok(length + tail.len() as u64)
            });
            self.is_finished = size.is_ok();
            self.disk.written(id, &key, &object, size, asked);
        });
        // It doesn't panic, and where the process ends nobody needs it.
        let _ = finished.await;
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        if !self.is_finished {
            // Not here: to give back the blocks of a long file takes its time.
            let _ = self.disk.jobs.send(Job::Discard(self.number));
        }
    }
}

fn write(file: &File, at: u64, block: &Bytes) -> io::Result<u64> {
    file.write_all_at(block, at)?;
    Ok(format::sum(block))
}
