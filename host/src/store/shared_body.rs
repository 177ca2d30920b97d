//! Content that clients read while it still arrives: one writer, and readers on any worker.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use tokio::task::{JoinHandle, spawn_blocking};

use super::memory_content::{MemoryContent, Pieces, WHOLE};
use crate::body::BodyError;
use crate::body::spill_file::SpillFile;
use crate::net::memfd_arena;
use crate::system::descriptor_shares::CountedFile;

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
    /// The parts of the body that are in files, in order.
    parts: VecDeque<FilePart>,
    /// The readers; `None` at an index whose reader has left, until another reader takes it.
    readers: Vec<Option<Reader>>,
    /// The indices in `readers` that are free again.
    left: Vec<usize>,
    /// The number of readers.
    reading: usize,
    /// The waker of the writer, which learns that readers have read, and that none is left.
    writer: Option<Waker>,
    /// The bytes that may wait in memory for readers, if the body is not retained.
    window: u64,
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
    /// Pieces that all readers have read are dropped, and files whose parts they have read.
    Nothing,
}

/// A part of the body that is in a file, at the offsets that it has in the body.
#[derive(Clone, Debug)]
struct FilePart {
    start: u64,
    end: u64,
    file: PartFile,
}

/// The file of a part.
#[derive(Clone, Debug)]
enum PartFile {
    /// The file of a stored response, or of one that was to be stored.
    Stored(Arc<CountedFile>),
    /// A file of content that is not stored and waits for slow readers.
    Waiting(Arc<SpillFile>),
}

#[derive(Debug)]
struct Reader {
    /// The offset of the next byte to read.
    at: u64,
    /// The offset at which the progress of the reader was last measured.
    measured: u64,
    had_trailers: bool,
    /// The waker of the reader, while it waits for bytes.
    waiting: Option<Waker>,
}

#[derive(Debug, Clone)]
enum BodyEnd {
    Whole(Option<HeaderMap>),
    Broken,
}

/// The bytes that may always wait in memory for readers, if the body is not retained.
pub const MIN_WINDOW: u64 = 16 << 10;

/// The bytes in memory up to which pieces stay there that are in a file too, for readers that keep up.
const KEPT: u64 = 16 << 10;

/// Pieces below this length are short, in bytes.
const SHORT: usize = 1 << 10;

/// The length of pieces up to which they are copied for a client that takes little at a time, in bytes.
const COPIED: usize = 16 << 10;

/// The number of short pieces in a row that are joined into one.
const JOINED: usize = 64;

/// The length of the pieces of content that is longer than [`WHOLE`], in bytes.
const PIECE: usize = 256 << 10;

/// The bytes that go into a file at once.
const SPILLED: u64 = 1 << 20;

/// The error of a reader that was cut off.
const LEFT_BEHIND: &str = "client too slow for a shared fetch: it read less than 16 KiB a second while others waited, and was \
                           behind by all that may wait (`response-buffer`, `buffers.disk`)";

/// The error of a writer whose readers have all left, of a body that is not retained.
#[derive(Debug, PartialEq, Eq)]
pub struct Abandoned;

impl SharedBody {
    pub fn new(length: Option<u64>) -> Arc<Self> {
        let state = SharedBodyState { window: MIN_WINDOW, ..SharedBodyState::default() };
        Arc::new(SharedBody { length, state: Mutex::new(state) })
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
    /// The writer is woken once no reader is left.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Abandoned>> {
        let mut state = self.state();
        match &mut state.writer {
            Some(writer) => writer.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        if state.keeping != Retention::Nothing {
            return Poll::Ready(Ok(()));
        }
        if state.is_unread() {
            return Poll::Ready(Err(Abandoned));
        }
        if state.has_room() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Whether no reader is left.
    pub fn is_unread(&self) -> bool {
        self.state().is_unread()
    }

    /// Returns the number of bytes that are in memory.
    pub fn in_memory(&self) -> u64 {
        self.state().in_memory()
    }

    /// Sets the bytes that may wait in memory for readers, if the body is not retained.
    pub fn set_window(&self, bytes: u64) {
        self.state().window = bytes;
    }

    /// Whether a reader has read all that has arrived, and waits for more.
    pub fn has_waiting_reader(&self) -> bool {
        let state = self.state();
        state.readers.iter().flatten().any(|reader| reader.at == state.bytes)
    }

    /// Whether content that is not stored waits in a file for a reader.
    pub fn is_behind(&self) -> bool {
        let state = self.state();
        state.keeping == Retention::Nothing && state.parts.iter().any(|part| matches!(part.file, PartFile::Waiting(_)))
    }

    /// Cuts off the readers that have not read all that has arrived, and less than `least` bytes since the last call, if
    /// other readers wait for more.
    pub fn leave_behind(&self, least: u64) {
        let mut state = self.state();
        let bytes = state.bytes;
        let has_waiting = state.readers.iter().flatten().any(|reader| reader.at == bytes);
        let is_held_up = state.keeping == Retention::Nothing && has_waiting;
        for index in 0..state.readers.len() {
            let Some(reader) = &mut state.readers[index] else { continue };
            let took = reader.at - std::mem::replace(&mut reader.measured, reader.at);
            if is_held_up && reader.at < bytes && took < least {
                state.take_reader(index);
            }
        }
        state.forget();
    }

    /// Returns the next pieces to write into a file because a reader has not read them, with their offset; `None` if too
    /// few wait, or a reader is behind by `max` bytes. For a single reader only those wait in a file that arrived while the
    /// body was retained.
    pub fn next_to_spill(&self, max: u64) -> Option<(u64, Vec<Bytes>)> {
        let state = self.state();
        let is_due = match state.reading {
            0 => false,
            1 => state.in_memory() > 2 * state.window,
            _ => !state.has_room(),
        };
        if state.keeping != Retention::Nothing || !is_due || state.bytes - state.slowest() >= max {
            return None;
        }
        let (start, _) = state.pieces.front()?;
        let mut bytes = 0;
        let pieces = state.pieces.iter().map(|(_, piece)| piece.clone());
        let pieces = pieces.take_while(|piece| {
            let is_first = bytes == 0;
            bytes += piece.len() as u64;
            is_first || bytes <= SPILLED
        });
        Some((*start, pieces.collect()))
    }

    /// Records a part of the body that was written into a file for slow readers.
    pub fn set_spilled(&self, start: u64, end: u64, file: Arc<SpillFile>) {
        let mut state = self.state();
        match state.parts.back_mut() {
            Some(FilePart { end: last, file: PartFile::Waiting(known), .. })
                if *last == start && Arc::ptr_eq(known, &file) =>
            {
                *last = end;
            }
            _ => state.parts.push_back(FilePart { start, end, file: PartFile::Waiting(file) }),
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
    pub fn spill(&self, file: Arc<CountedFile>) {
        let mut state = self.state();
        state.keeping = Retention::File;
        state.parts = [FilePart { start: 0, end: 0, file: PartFile::Stored(file) }].into();
    }

    /// Returns the next bytes to write with their offset: a block of the given length, or less at the end of the body.
    pub fn next_block(&self, block: usize, progress: WriteProgress) -> Option<(u64, Bytes)> {
        let state = self.state();
        let written = state.written();
        let left = (state.bytes - written) as usize;
        if left == 0 || left < block && progress == WriteProgress::Arriving {
            return None;
        }
        let mut bytes = BytesMut::with_capacity(left.min(block));
        let mut at = written;
        while bytes.len() < left.min(block) {
            let piece = state.piece(at)?;
            let part = piece.slice(..piece.len().min(block - bytes.len()));
            at += part.len() as u64;
            bytes.extend_from_slice(&part);
        }
        Some((written, bytes.freeze()))
    }

    /// Records the number of bytes in the file.
    pub fn set_written(&self, bytes: u64) {
        let mut state = self.state();
        state.parts.iter_mut().for_each(|part| part.end = bytes);
        state.forget();
    }

    /// Records that the whole body has arrived.
    pub fn finish(&self, trailers: Option<HeaderMap>) {
        let mut state = self.state();
        state.end = Some(BodyEnd::Whole(trailers));
        state.wake();
    }

    /// Returns the content to store, if it was kept in memory. The readers have the same memory from now on, which counts as
    /// stored, or as held once it has left the index.
    pub fn content(&self, trailers: Option<HeaderMap>) -> MemoryContent {
        let state = self.state();
        let pieces: Vec<Bytes> = state.pieces.iter().map(|(_, piece)| piece.clone()).collect();
        let length = state.bytes;
        drop(state);
        let content = if trailers.is_none() && length <= WHOLE {
            MemoryContent::Whole(memfd_arena::join(&pieces))
        } else {
            MemoryContent::Pieces(Pieces::new(repacked(pieces), length, trailers))
        };
        self.state().pieces = match &content {
            MemoryContent::Whole(whole) => VecDeque::from([(0, whole.clone())]),
            MemoryContent::Pieces(pieces) => {
                let mut next = 0;
                let placed = |piece: Bytes| {
                    let at = next;
                    next += piece.len() as u64;
                    (at, piece)
                };
                (0..pieces.list.len()).filter_map(|index| pieces.piece(index)).map(placed).collect()
            }
        };
        content
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
        if !state.holds(at) || matches!(state.end, Some(BodyEnd::Broken)) {
            return None;
        }
        let reader = Some(Reader { at, measured: at, had_trailers: false, waiting: None });
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
            if self.is_unread() {
                self.writer.take().into_iter().for_each(Waker::wake);
            }
        }
    }

    /// Returns the number of bytes that are in memory.
    fn in_memory(&self) -> u64 {
        self.bytes - self.front()
    }

    /// Whether more bytes may wait in memory, if the body is not retained.
    fn has_room(&self) -> bool {
        self.in_memory() < self.window
    }

    /// Whether no reader is left.
    fn is_unread(&self) -> bool {
        self.reading == 0
    }

    /// The place of the first byte in memory.
    fn front(&self) -> u64 {
        self.pieces.front().map_or(self.bytes, |(at, _)| *at)
    }

    /// Returns the offset behind the bytes that are in files.
    fn written(&self) -> u64 {
        self.parts.back().map_or(0, |part| part.end)
    }

    /// Returns the offset of the slowest reader.
    fn slowest(&self) -> u64 {
        self.readers.iter().flatten().map(|reader| reader.at).min().unwrap_or(self.bytes)
    }

    /// Whether all bytes from an offset on are there, in files or in memory.
    fn holds(&self, mut at: u64) -> bool {
        for part in &self.parts {
            if (part.start..part.end).contains(&at) {
                at = part.end;
            }
        }
        at >= self.front()
    }

    /// Returns the part of the files that has the byte at an offset.
    fn part(&self, at: u64) -> Option<&FilePart> {
        self.parts.iter().find(|part| (part.start..part.end).contains(&at))
    }

    /// Returns the bytes at an offset, as far as they are in one piece in memory.
    fn piece(&self, at: u64) -> Option<Bytes> {
        let next = self.pieces.partition_point(|(start, _)| *start <= at);
        let (start, piece) = self.pieces.get(next.checked_sub(1)?)?;
        let from = (at - start) as usize;
        (from < piece.len()).then(|| piece.slice(from..))
    }

    /// Closes the files of content that is not stored and that all readers have read.
    fn forget_files(&mut self) {
        if self.keeping != Retention::Nothing || self.parts.is_empty() {
            return;
        }
        let slowest = self.slowest();
        let is_read = |part: &FilePart| matches!(part.file, PartFile::Waiting(_)) && part.end <= slowest;
        while let Some(index) = self.parts.iter().position(is_read)
            && let Some(FilePart { file: PartFile::Waiting(file), .. }) = self.parts.remove(index)
        {
            file.close();
        }
    }

    /// Drops the pieces that are not needed in memory any more.
    fn forget(&mut self) {
        let written = self.written();
        let is_wanted = |state: &SharedBodyState, end: u64| match state.keeping {
            Retention::Memory => true,
            // Those who keep up needn't read the file.
            Retention::File => end > written || state.in_memory() <= KEPT,
            Retention::Nothing => end > written && state.readers.iter().flatten().any(|reader| reader.at < end),
        };
        while let Some((at, piece)) = self.pieces.front()
            && !is_wanted(self, at + piece.len() as u64)
        {
            self.pieces.pop_front();
        }
        self.forget_files();
        if self.keeping == Retention::Nothing && (self.has_room() || self.is_unread()) {
            self.writer.take().into_iter().for_each(Waker::wake);
        }
    }
}

impl PartFile {
    fn read(self, mut block: BytesMut, at: u64) -> std::io::Result<Bytes> {
        match self {
            PartFile::Stored(file) => {
                file.read_exact_at(&mut block, at)?;
                Ok(block.freeze())
            }
            PartFile::Waiting(file) => file.read(block, at),
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
    /// Returns the next frame, of at most `max` bytes.
    pub fn poll_next(&mut self, max: usize, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
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
            if let Some(mut piece) = state.piece(at) {
                drop(guard);
                if piece.len() > max {
                    piece.truncate(max);
                    if max <= COPIED {
                        // A slow client would hold all of the memory that a short piece is a part of.
                        piece = Bytes::copy_from_slice(&piece);
                    }
                }
                return Poll::Ready(Some(Ok(self.had(piece))));
            }
            if let Some(part) = state.part(at).cloned() {
                drop(guard);
                // Not there, for it is freed here.
                let block = BytesMut::zeroed((part.end - at).min(max.min(PIECE) as u64) as usize);
                self.from_file = Some(spawn_blocking(move || part.file.read(block, at)));
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
