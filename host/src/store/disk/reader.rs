//! Content on its way from a file to a client, block by block. Each block is checked before a byte of it is sent.
#![expect(
    clippy::disallowed_methods,
    reason = "the time of a block is measured exactly: it counts for the turn of the worker"
)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use tokio::task::{JoinHandle, spawn_blocking};

use super::blocks::{BLOCK, Sums, broken};
use super::{Disk, DiskEntry};
use crate::body::BodyError;
use crate::net::memfd_arena;
use crate::net::turn::{ComputationKind, TurnClaim, TurnOwner};
use crate::net::waiting_bytes::WaitingBytes;
use crate::store::memory_content::{MemoryContent, Pieces, WHOLE};
use crate::system::descriptor_shares::CountedFile;
use crate::system::files;
use crate::system::holder_counts::Holder;

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
    /// The offset of the next byte.
    at: u64,
    /// The rest of the block that was read last; empty if there is none in memory.
    rest: Bytes,
    /// The index of the block whose checksum was right, of which further parts are read alone; `None` if there is none.
    checked: Option<u64>,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    /// The bytes that wait for the client; `None` if there is no client.
    client: Option<Arc<WaitingBytes>>,
    /// The claim to the time of the worker, for reading blocks on it.
    claim: TurnClaim,
    had_trailers: bool,
}

/// A block that counts among the bytes that wait for a client.
struct CountedBlock {
    block: Bytes,
    client: Arc<WaitingBytes>,
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
    /// Returns a reader from the offset `at`.
    pub fn new(opened: &Arc<OpenFile>, at: u64) -> Self {
        BlockReader {
            opened: opened.clone(),
            at,
            rest: Bytes::new(),
            checked: None,
            reading: None,
            client: None,
            claim: claim(Holder::UNKNOWN),
            had_trailers: false,
        }
    }

    /// Reads for a client: in its turn, and blocks of which a part waits count among the bytes that wait for the client's
    /// connection.
    pub fn read_for(&mut self, client: Holder, waiting: Arc<WaitingBytes>) {
        self.client = Some(waiting);
        self.claim = claim(client);
    }

    /// Returns the number of bytes that are left.
    pub fn remaining(&self) -> u64 {
        self.opened.length.saturating_sub(self.at)
    }

    pub fn has_trailers(&self) -> bool {
        self.opened.trailers.is_some()
    }

    /// Returns the next frame, of at most `max` bytes.
    pub fn poll_next(&mut self, max: usize, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.rest.is_empty() {
            let piece = self.rest.split_to(self.rest.len().min(max));
            self.at += piece.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if self.reading.is_none() && self.remaining() == 0 {
            let trailers = self.opened.trailers.clone().filter(|_| !self.had_trailers);
            self.had_trailers = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let block_index = self.at / BLOCK as u64;
        if self.checked == Some(block_index)
            && self.reading.is_none()
            && let Some(part) = self.part_of_checked(max)
        {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        let read = match &mut self.reading {
            Some(reading) => ready!(Pin::new(reading).poll(cx)).map_err(io::Error::other).and_then(|read| read),
            None => {
                // A request for a few bytes of many blocks takes as long as one for all of them.
                ready!(self.claim.poll(cx));
                let (opened, began) = (self.opened.clone(), Instant::now());
                // What is allocated here is freed here: memory that goes from thread to thread is given back late.
                let mut room = opened.room(block_index);
                if !files::read_cached(&opened.file, &mut room, block_index * BLOCK as u64) {
                    self.reading = Some(spawn_blocking(move || opened.block(block_index, room)));
                    return self.poll_next(max, cx);
                }
                let read = opened.check_block(block_index, room, Ok(()));
                self.claim.spend(began.elapsed());
                read
            }
        };
        self.reading = None;
        self.checked = read.is_ok().then_some(block_index);
        Poll::Ready(Some(read.map(|block| Frame::data(self.part_of(block, max))).map_err(Into::into)))
    }

    /// Returns the next part of a block that was read before, and was right then; `None` if the system doesn't have it in
    /// memory.
    fn part_of_checked(&mut self, max: usize) -> Option<Bytes> {
        let left_of_block = BLOCK as u64 - self.at % BLOCK as u64;
        let mut part = BytesMut::zeroed(self.remaining().min(left_of_block).min(max as u64) as usize);
        if !files::read_cached(&self.opened.file, &mut part, self.at) {
            return None;
        }
        self.at += part.len() as u64;
        Some(part.freeze())
    }

    /// Returns the next part of a block that was read. The rest is kept if it may wait for the client, and is read again
    /// otherwise: a slow client would hold a block for each of its responses.
    fn part_of(&mut self, mut block: Bytes, max: usize) -> Bytes {
        block.advance((self.at % BLOCK as u64) as usize);
        if block.len() > max {
            match self.client.as_ref().filter(|client| client.has_room(BLOCK as u64)) {
                Some(client) => {
                    client.add(BLOCK as u64);
                    let client = client.clone();
                    self.rest = Bytes::from_owner(CountedBlock { block, client });
                    block = self.rest.split_to(max);
                }
                None => block = Bytes::copy_from_slice(&block[..max]),
            }
        }
        self.at += block.len() as u64;
        block
    }
}

/// Returns the claim of a reader for a client to the time of the worker.
fn claim(client: Holder) -> TurnClaim {
    TurnClaim::new(TurnOwner { kind: ComputationKind::StoredBlocks, client }, true)
}

impl AsRef<[u8]> for CountedBlock {
    fn as_ref(&self) -> &[u8] {
        &self.block
    }
}

impl Drop for CountedBlock {
    fn drop(&mut self) {
        self.client.remove(BLOCK as u64);
    }
}
