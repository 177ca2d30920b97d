//! Content that clients read while it still arrives: one writer, and readers on any worker.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use tokio::task::{JoinHandle, spawn_blocking};

use super::memory_content::{MemoryContent, Pieces};
use crate::body::BodyError;
use crate::net::memfd_arena;

/// Content on its way into the store.
#[derive(Debug)]
pub struct SharedBody {
    /// The length that the head declares, in bytes.
    length: Option<u64>,
    state: Mutex<SharedBodyState>,
}

#[derive(Debug, Default)]
struct SharedBodyState {
    /// The pieces with their offsets, from the first that memory still holds.
    pieces: VecDeque<(u64, Bytes)>,
    /// The short pieces at the end that are not joined yet.
    short: usize,
    /// The number of bytes that have arrived.
    bytes: u64,
    end: Option<BodyEnd>,
    /// The way in which the beginning of the body is retained.
    keeping: Retention,
    /// The file that holds the beginning of the body; `None` if the body stays in memory.
    file: Option<Arc<File>>,
    /// The number of bytes in the file.
    written: u64,
    /// The readers; `None` at an index whose reader has left, until another reader takes it.
    readers: Vec<Option<Reader>>,
    /// The indices in `readers` that are free again.
    left: Vec<usize>,
    /// The number of readers.
    reading: usize,
    /// The waker of the writer, while it waits for readers.
    writer: Option<Waker>,
}

/// Whether more of a body will arrive while it is written to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteProgress {
    Arriving,
    /// The whole body has arrived.
    Whole,
}

/// The way in which received pieces are retained.
#[derive(Debug, Default, PartialEq, Eq)]
enum Retention {
    /// The whole body stays in memory.
    #[default]
    Memory,
    /// The body is written to a file, from which slow readers read.
    File,
    /// Pieces that all readers have read are dropped.
    Nothing,
}

#[derive(Debug)]
struct Reader {
    /// The offset of the next byte to read.
    at: u64,
    had_trailers: bool,
    /// The waker of the reader, while it waits for bytes.
    waiting: Option<Waker>,
}

#[derive(Debug, Clone)]
enum BodyEnd {
    Whole(Option<HeaderMap>),
    Broken,
}

/// The maximum number of pieces that wait for slow readers, if the body is not kept in memory.
const MAX_UNREAD_PIECES: usize = 16;

/// Pieces below this length are short, in bytes.
const SHORT: usize = 1 << 10;

/// The number of short pieces in a row that are joined into one.
const JOINED: usize = 64;

/// The longest content that is put into one allocation.
const WHOLE: u64 = 1 << 20;

/// The length of the pieces of longer content, in bytes.
const PIECE: usize = 256 << 10;

/// The error of a reader that was cut off.
const LEFT_BEHIND: &str = "the client took much less than others of a response that is too long for the store";

/// The error of a writer whose readers have all left, of a body that is not retained.
#[derive(Debug, PartialEq, Eq)]
pub struct Abandoned;

impl SharedBody {
    pub fn new(length: Option<u64>) -> Arc<Self> {
        Arc::new(SharedBody { length, state: Mutex::default() })
    }

    /// Returns the length that the head declares, in bytes.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    fn state(&self) -> MutexGuard<'_, SharedBodyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a piece.
    pub fn push(&self, piece: Bytes) {
        let mut state = self.state();
        let at = state.bytes;
        state.bytes += piece.len() as u64;
        if !piece.is_empty() {
            state.add(at, piece);
        }
        state.wake();
    }

    /// Waits until the writer may continue. If the body is not retained, it waits for readers, and stops without any.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Abandoned>> {
        let mut state = self.state();
        if state.keeping != Retention::Nothing {
            return Poll::Ready(Ok(()));
        }
        if state.is_unread() {
            return Poll::Ready(Err(Abandoned));
        }
        if state.pieces.len() < MAX_UNREAD_PIECES {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Cuts off the readers that the writer waits for, if other readers have read all that has arrived and would wait
    /// too.
    pub fn leave_behind(&self) {
        let mut state = self.state();
        let bytes = state.bytes;
        let Some(first) = state.pieces.front().map(|(at, piece)| at + piece.len() as u64) else { return };
        if state.keeping != Retention::Nothing || !state.readers.iter().flatten().any(|reader| reader.at == bytes) {
            return;
        }
        for index in 0..state.readers.len() {
            if state.readers[index].as_ref().is_some_and(|reader| reader.at < first) {
                state.take_reader(index);
            }
        }
        state.forget();
    }

    /// Stops retaining the body, which is then only passed to the current readers.
    pub fn pass(&self) {
        let mut state = self.state();
        state.keeping = Retention::Nothing;
        state.forget();
    }

    /// Retains the body in a file from now on, with the pieces received so far.
    pub fn spill(&self, file: Arc<File>) {
        let mut state = self.state();
        state.keeping = Retention::File;
        state.file = Some(file);
    }

    /// Returns the next bytes to write with their offset: a block of the given length, or less at the end of the body.
    pub fn next_block(&self, block: usize, progress: WriteProgress) -> Option<(u64, Bytes)> {
        let state = self.state();
        let left = (state.bytes - state.written) as usize;
        if left == 0 || left < block && progress == WriteProgress::Arriving {
            return None;
        }
        let mut bytes = BytesMut::with_capacity(left.min(block));
        let mut at = state.written;
        while bytes.len() < left.min(block) {
            let piece = state.piece(at)?;
            let part = piece.slice(..piece.len().min(block - bytes.len()));
            at += part.len() as u64;
            bytes.extend_from_slice(&part);
        }
        Some((state.written, bytes.freeze()))
    }

    /// Records the number of bytes in the file.
    pub fn set_written(&self, bytes: u64) {
        let mut state = self.state();
        state.written = bytes;
        state.forget();
    }

    /// Records that the whole body has arrived.
    pub fn finish(&self, trailers: Option<HeaderMap>) {
        let mut state = self.state();
        state.end = Some(BodyEnd::Whole(trailers));
        state.wake();
    }

    /// Returns the content to store, if it was kept in memory.
    pub fn content(&self, trailers: Option<HeaderMap>) -> MemoryContent {
        let state = self.state();
        let pieces: Vec<Bytes> = state.pieces.iter().map(|(_, piece)| piece.clone()).collect();
        let length = state.bytes;
        drop(state);
        if trailers.is_none() && length <= WHOLE {
            return MemoryContent::Whole(memfd_arena::join(&pieces));
        }
        MemoryContent::Pieces(Arc::new(Pieces { list: repacked(pieces), length, trailers }))
    }

    /// Records that no more of the body will arrive. Readers get an error.
    pub fn fail(&self) {
        let mut state = self.state();
        state.end.get_or_insert(BodyEnd::Broken);
        state.wake();
    }

    /// Returns a reader from the offset `at`; `None` if the bytes at that offset were dropped.
    pub fn reader(self: &Arc<Self>, at: u64) -> Option<SharedBodyReader> {
        let mut state = self.state();
        let is_gone = state.front() > state.written && at < state.front();
        if is_gone || matches!(state.end, Some(BodyEnd::Broken)) {
            return None;
        }
        let reader = Some(Reader { at, had_trailers: false, waiting: None });
        // Many may come and leave while the body arrives.
        let index = state.left.pop().unwrap_or(state.readers.len());
        match state.readers.get_mut(index) {
            Some(place) => *place = reader,
            None => state.readers.push(reader),
        }
        state.reading += 1;
        Some(SharedBodyReader { fill: self.clone(), index, from_file: None })
    }
}

impl SharedBodyState {
    fn wake(&mut self) {
        self.readers.iter_mut().flatten().filter_map(|reader| reader.waiting.take()).for_each(Waker::wake);
    }

    /// Adds a piece, and joins short pieces: each takes forty bytes besides its own, and the endpoint decides how short
    /// they are. Readers are at offsets of the content, so that joining pieces does not affect them.
    fn add(&mut self, at: u64, piece: Bytes) {
        self.short = if piece.len() < SHORT { self.short + 1 } else { 0 };
        self.pieces.push_back((at, piece));
        if self.short < JOINED {
            return;
        }
        self.short = 0;
        // Pieces that all readers have read may be gone.
        let first = self.pieces.len().saturating_sub(JOINED);
        let Some((start, _)) = self.pieces.get(first) else { return };
        let start = *start;
        let mut joined = BytesMut::with_capacity(self.pieces.range(first..).map(|(_, piece)| piece.len()).sum());
        self.pieces.drain(first..).for_each(|(_, piece)| joined.extend_from_slice(&piece));
        self.pieces.push_back((start, joined.freeze()));
    }

    /// Removes a reader. Its index is free for another reader once the reader is dropped.
    fn take_reader(&mut self, index: usize) {
        if self.readers.get_mut(index).and_then(Option::take).is_some() {
            self.reading -= 1;
        }
    }

    /// Whether no reader is left.
    fn is_unread(&self) -> bool {
        self.reading == 0
    }

    /// The place of the first byte in memory.
    fn front(&self) -> u64 {
        self.pieces.front().map_or(self.bytes, |(at, _)| *at)
    }

    /// Returns the bytes at an offset, as far as they are in one piece in memory.
    fn piece(&self, at: u64) -> Option<Bytes> {
        let next = self.pieces.partition_point(|(start, _)| *start <= at);
        let (start, piece) = self.pieces.get(next.checked_sub(1)?)?;
        let from = (at - start) as usize;
        (from < piece.len()).then(|| piece.slice(from..))
    }

    /// Drops the pieces that are not needed in memory any more.
    fn forget(&mut self) {
        let is_wanted = |state: &SharedBodyState, end: u64| match state.keeping {
            Retention::Memory => true,
            // Those who keep up needn't read the file.
            Retention::File => end > state.written || state.pieces.len() <= MAX_UNREAD_PIECES,
            Retention::Nothing => state.readers.iter().flatten().any(|reader| reader.at < end),
        };
        while let Some((at, piece)) = self.pieces.front()
            && !is_wanted(self, at + piece.len() as u64)
        {
            self.pieces.pop_front();
        }
        if self.pieces.len() < MAX_UNREAD_PIECES || self.is_unread() {
            self.writer.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// Copies pieces out of the buffers of connections, which they would keep alive.
fn repacked(pieces: Vec<Bytes>) -> Vec<Bytes> {
    let (mut packed, mut parts, mut length) = (Vec::new(), Vec::new(), 0);
    for mut old in pieces {
        while !old.is_empty() {
            let part = old.split_to(old.len().min(PIECE - length));
            length += part.len();
            parts.push(part);
            if length == PIECE {
                packed.push(memfd_arena::join(&parts));
                parts.clear();
                length = 0;
            }
        }
    }
    if length > 0 {
        packed.push(memfd_arena::join(&parts));
    }
    packed
}

/// A reader of content that still arrives, with its offset.
#[derive(Debug)]
pub struct SharedBodyReader {
    fill: Arc<SharedBody>,
    index: usize,
    /// The read from the file that is under way.
    from_file: Option<JoinHandle<std::io::Result<Bytes>>>,
}

impl SharedBodyReader {
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if let Some(reading) = &mut self.from_file {
                let read = ready!(Pin::new(reading).poll(cx));
                self.from_file = None;
                let read = read.map_err(std::io::Error::other).and_then(|read| read);
                return Poll::Ready(Some(read.map(|piece| self.had(piece)).map_err(Into::into)));
            }
            let mut guard = self.fill.state();
            let state = &mut *guard;
            let Some(Some(reader)) = state.readers.get(self.index) else {
                return Poll::Ready(Some(Err(LEFT_BEHIND.into())));
            };
            let at = reader.at;
            if let Some(piece) = state.piece(at) {
                drop(guard);
                return Poll::Ready(Some(Ok(self.had(piece))));
            }
            if at < state.written
                && let Some(file) = state.file.clone()
            {
                let length = (state.written - at).min(PIECE as u64) as usize;
                drop(guard);
                // Not there, for it is freed here.
                let mut block = BytesMut::zeroed(length);
                self.from_file = Some(spawn_blocking(move || {
                    file.read_exact_at(&mut block, at)?;
                    Ok(block.freeze())
                }));
                continue;
            }
            let end = state.end.clone();
            let Some(Some(reader)) = state.readers.get_mut(self.index) else { return Poll::Pending };
            return match end {
                None => {
                    reader.waiting = Some(cx.waker().clone());
                    Poll::Pending
                }
                Some(BodyEnd::Broken) => Poll::Ready(Some(Err("the upstream gave up within its response".into()))),
                Some(BodyEnd::Whole(Some(trailers))) if !reader.had_trailers => {
                    reader.had_trailers = true;
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                }
                Some(BodyEnd::Whole(_)) => Poll::Ready(None),
            };
        }
    }

    /// Moves the reader behind a piece.
    fn had(&self, piece: Bytes) -> Frame<Bytes> {
        let mut state = self.fill.state();
        if let Some(Some(reader)) = state.readers.get_mut(self.index) {
            reader.at += piece.len() as u64;
        }
        state.forget();
        Frame::data(piece)
    }

    /// Returns the length that the head declares, in bytes.
    pub fn length(&self) -> Option<u64> {
        self.fill.length
    }
}

impl Drop for SharedBodyReader {
    fn drop(&mut self) {
        let mut state = self.fill.state();
        state.take_reader(self.index);
        state.left.push(self.index);
        state.forget();
    }
}

#[cfg(test)]
pub mod tests;
