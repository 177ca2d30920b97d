//! Content on its way from a file to a client, block by block. Each block is checked before a byte of it is sent.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use tokio::task::{JoinHandle, spawn_blocking};

use super::blocks::{BLOCK, Sums, broken};
use super::{Disk, DiskEntry};
use crate::body::BodyError;
use crate::net::memfd_arena;
use crate::store::memory_content::{MemoryContent, Pieces, WHOLE};
use crate::system::descriptor_shares::CountedFile;
use crate::system::files;

/// A file that is being read; it may be removed meanwhile.
#[derive(Debug)]
pub struct OpenFile {
    pub(super) file: CountedFile,
    pub(super) sums: Sums,
    pub(super) length: u64,
    pub(super) trailers: Option<HeaderMap>,
    pub(super) filed: Arc<DiskEntry>,
    pub(super) disk: Weak<Disk>,
}

/// A reader of the blocks of an open file.
#[derive(Debug)]
pub struct BlockReader {
    opened: Arc<OpenFile>,
    /// The index of the next block.
    next: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    had_trailers: bool,
}

impl OpenFile {
    /// Returns the length of the content, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Returns a buffer for a block.
    fn room(&self, block_index: u64) -> BytesMut {
        BytesMut::zeroed((self.length - block_index * BLOCK as u64).min(BLOCK as u64) as usize)
    }

    fn block(&self, block_index: u64, mut block: BytesMut) -> io::Result<Bytes> {
        let read = self.file.read_exact_at(&mut block, block_index * BLOCK as u64);
        self.check_block(block_index, block, read)
    }

    fn check_block(&self, block_index: u64, block: BytesMut, read: io::Result<()>) -> io::Result<Bytes> {
        let read =
            read.and_then(|()| if self.sums.holds(block_index as usize, &block) { Ok(()) } else { Err(broken()) });
        if let (Err(error), Some(disk)) = (&read, self.disk.upgrade()) {
            disk.read_failed(&self.filed, error);
        }
        read.map(|()| block.freeze())
    }
}

/// Reads content into memory, checked.
pub fn read_whole(file: &File, sums: &Sums, length: u64, trailers: Option<HeaderMap>) -> io::Result<MemoryContent> {
    let mut list = Vec::new();
    let mut at = 0;
    while at < length {
        let mut block = vec![0; (length - at).min(BLOCK as u64) as usize];
        file.read_exact_at(&mut block, at)?;
        if !sums.holds(list.len(), &block) {
            return Err(broken());
        }
        at += block.len() as u64;
        list.push(memfd_arena::join(&[block.into()]));
    }
    if trailers.is_none() && list.len() <= 1 && length <= WHOLE {
        return Ok(MemoryContent::Whole(list.pop().unwrap_or_default()));
    }
    Ok(MemoryContent::Pieces(Pieces::new(list, length, trailers)))
}

impl BlockReader {
    /// Returns a reader from the offset `at`, and the number of bytes of the first block before it.
    pub fn new(opened: &Arc<OpenFile>, at: u64) -> (Self, u64) {
        let blocks =
            BlockReader { opened: opened.clone(), next: at / BLOCK as u64, reading: None, had_trailers: false };
        (blocks, at % BLOCK as u64)
    }

    /// The bytes from the next block on.
    pub fn remaining(&self) -> u64 {
        self.opened.length.saturating_sub(self.next * BLOCK as u64)
    }

    pub fn has_trailers(&self) -> bool {
        self.opened.trailers.is_some()
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.reading.is_none() && self.remaining() == 0 {
            let trailers = self.opened.trailers.clone().filter(|_| !self.had_trailers);
            self.had_trailers = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let read = match &mut self.reading {
            Some(reading) => ready!(Pin::new(reading).poll(cx)).map_err(io::Error::other).and_then(|read| read),
            None => {
                let (opened, block_index) = (self.opened.clone(), self.next);
                // What is allocated here is freed here: memory that goes from thread to thread is given back late.
                let mut room = opened.room(block_index);
                if !files::read_cached(&opened.file, &mut room, block_index * BLOCK as u64) {
                    self.reading = Some(spawn_blocking(move || opened.block(block_index, room)));
                    return self.poll_next(cx);
                }
                opened.check_block(block_index, room, Ok(()))
            }
        };
        self.reading = None;
        self.next += 1;
        Poll::Ready(Some(read.map(Frame::data).map_err(Into::into)))
    }
}
