//! A file without a name for the bytes of one body. Threads for blocking work write and read it, never a worker.
#![expect(clippy::disallowed_methods, reason = "a write is measured off the workers")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};

use super::buffer_space::{BufferSpace, FileShare};
use crate::system::descriptor_shares::DescriptorUse;
use crate::system::files;

/// A file for the bytes of one body, which is created by its first write.
#[derive(Debug)]
pub struct SpillFile {
    file: OnceLock<File>,
    share: FileShare,
    _descriptor: DescriptorUse,
}

/// A reader's place in a file.
#[derive(Debug, Default)]
pub struct FileReader {
    /// The place of the next byte.
    at: u64,
    /// The read that is under way.
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

/// The maximum number of bytes that are read at once.
const PIECE: u64 = 128 << 10;

impl SpillFile {
    /// Returns a file that is not created yet; `None` if there is no descriptor for it.
    pub fn new(space: &BufferSpace) -> Option<Arc<Self>> {
        let descriptor = space.descriptor()?;
        Some(Arc::new(SpillFile { file: OnceLock::new(), share: FileShare::new(space), _descriptor: descriptor }))
    }

    /// Reserves room for more bytes. Returns whether that was possible.
    pub fn grow(&self, bytes: u64, space: &BufferSpace) -> bool {
        self.share.grow(bytes, &space.limits)
    }

    /// Begins to write pieces at a place; the result has the time that the write took.
    pub fn write(
        self: &Arc<Self>,
        at: u64,
        pieces: Vec<Bytes>,
        space: &BufferSpace,
    ) -> JoinHandle<io::Result<Duration>> {
        let (spilled, folder) = (self.clone(), space.limits.folder.clone());
        spawn_blocking(move || {
            let began = Instant::now();
            let file = match spilled.file.get() {
                Some(file) => file,
                None => {
                    let created = files::unlinked(&folder)?;
                    spilled.file.get_or_init(|| created)
                }
            };
            let mut at = at;
            for piece in &pieces {
                file.write_all_at(piece, at)?;
                at += piece.len() as u64;
            }
            Ok(began.elapsed())
        })
    }

    /// Closes the file if nothing else uses it. Another thread does so, because freeing the blocks of a long file takes
    /// time.
    pub fn close(self: Arc<Self>) {
        if self.file.get().is_some()
            && let Ok(runtime) = Handle::try_current()
        {
            // The end of the process does not wait for it.
            drop(runtime.spawn_blocking(move || drop(self)));
        }
    }

    /// Fills a block with the bytes at a place, which are written.
    pub fn read(&self, mut block: BytesMut, at: u64) -> io::Result<Bytes> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        self.file.get().ok_or_else(gone)?.read_exact_at(&mut block, at)?;
        Ok(block.freeze())
    }
}

impl FileReader {
    /// Returns the place of the next byte.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Moves the reader to another place.
    pub fn go_to(&mut self, at: u64) {
        self.at = at;
    }

    /// Returns the next bytes before `end`, which are written; there has to be one.
    pub fn poll_next(&mut self, file: &Arc<SpillFile>, end: u64, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if self.reading.is_none() {
            // The block is allocated here, since it is freed here.
            let (at, mut block) = (self.at, BytesMut::zeroed((end - self.at).min(PIECE) as usize));
            if file.file.get().is_some_and(|file| files::read_cached(file, &mut block, at)) {
                self.at += block.len() as u64;
                return Poll::Ready(Ok(block.freeze()));
            }
            let file = file.clone();
            self.reading = Some(spawn_blocking(move || file.read(block, at)));
        }
        let Some(reading) = &mut self.reading else { return Poll::Pending };
        let read = ready!(Pin::new(reading).poll(cx)).map_err(io::Error::other).and_then(|read| read);
        self.reading = None;
        if let Ok(piece) = &read {
            self.at += piece.len() as u64;
        }
        Poll::Ready(read)
    }
}
