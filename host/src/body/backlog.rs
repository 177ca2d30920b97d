//! The bytes that the streams of a client connection buffer, and the bound on them. `downstream/http2` makes a
//! [`Backlog`] per direction of a connection, and a [`StreamBacklog`] per body. A stream may always hold one short
//! piece, so that no stream waits for another. Longer pieces are granted from the connection's remaining bytes.

use std::io::IoSlice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};

/// The bound of a connection's buffered bytes.
pub struct Backlog {
    /// The bytes that are granted to no stream.
    left: ByteCount,
    /// The bytes that streams may be granted beyond [`SHORT`].
    growth: ByteCount,
    /// The bytes of responses that were made here.
    made: ByteCount,
    /// The bound of `made`.
    max: usize,
}

/// The bytes of a response that was made here, which a connection holds until this is dropped.
pub struct MadeShare {
    connection: Arc<Backlog>,
    bytes: usize,
}

/// The bytes that one stream buffers.
pub struct StreamBacklog {
    connection: Arc<Backlog>,
    /// The bytes that the stream may hold: a long piece, or short ones up to a quarter of that and a long one.
    piece: ByteCount,
    /// The bytes of `piece` that the connection has granted.
    granted: ByteCount,
    /// The bytes that were granted for copies.
    copies: ByteCount,
    held: ByteCount,
    taken: ByteCount,
    /// The waker of the stream's reader. One worker alone locks it, so the lock is never contended.
    waiting: Mutex<Option<Waker>>,
}

/// A piece of a body. Its bytes, and [`FRAME_OVERHEAD`], count as held by the stream until the piece is dropped.
pub struct Piece {
    content: Bytes,
    /// The bytes that count as held.
    length: usize,
    /// The stream that holds the piece; `None` if only the sender's own buffer bounds the body.
    stream: Option<Arc<StreamBacklog>>,
}

/// A number that one worker changes. Atomic only because hyper requires request bodies to be [`Send`].
struct ByteCount(AtomicUsize);

/// The length of the piece that a stream is always granted, in bytes: hyper's minimum for reading a response.
pub const SHORT: usize = 8 << 10;

/// The bytes that a piece counts besides its content: a part of the 340 that a frame takes in h2, so that the short pieces of
/// a stream that is not read take no more than a few KiB.
const FRAME_OVERHEAD: usize = 128;

/// The maximum length of a piece, in bytes: an endpoint's connection reads no longer ones.
const LONG: usize = 128 << 10;

impl ByteCount {
    fn new(number: usize) -> Self {
        ByteCount(AtomicUsize::new(number))
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, number: usize) {
        self.0.store(number, Ordering::Relaxed);
    }
}

impl Backlog {
    /// Returns a backlog of at most `max` bytes, or of [`SHORT`] for each stream if that is more.
    pub fn new(max: usize) -> Arc<Self> {
        // Half is reserved for streams that begin later.
        Arc::new(Backlog { left: ByteCount::new(max), growth: ByteCount::new(max / 2), made: ByteCount::new(0), max })
    }

    /// Counts a response that was made here; `None` if it and others would exceed the bound. A single response may be
    /// longer.
    pub fn count_made(self: &Arc<Self>, bytes: usize) -> Option<MadeShare> {
        let others = self.made.get();
        if others > 0 && others + bytes > self.max {
            return None;
        }
        self.made.set(others + bytes);
        Some(MadeShare { connection: self.clone(), bytes })
    }

    /// Grants up to `bytes`. Returns the number of bytes granted.
    fn grant(&self, bytes: usize) -> usize {
        let granted = bytes.min(self.left.get());
        self.left.set(self.left.get() - granted);
        granted
    }

    /// Grants all of `bytes`, or nothing. Returns whether the bytes were granted.
    fn grow(&self, bytes: usize) -> bool {
        if bytes > self.left.get().min(self.growth.get()) {
            return false;
        }
        self.growth.set(self.growth.get() - bytes);
        self.left.set(self.left.get() - bytes);
        true
    }

    /// Takes back bytes that [`Backlog::grow`] has granted.
    fn shrink(&self, bytes: usize) {
        self.growth.set(self.growth.get() + bytes);
        self.left.set(self.left.get() + bytes);
    }
}

impl StreamBacklog {
    /// Returns the backlog of a new stream.
    pub fn new(connection: &Arc<Backlog>) -> Arc<Self> {
        Arc::new(StreamBacklog {
            granted: ByteCount::new(connection.grant(SHORT)),
            connection: connection.clone(),
            piece: ByteCount::new(SHORT),
            copies: ByteCount::new(0),
            held: ByteCount::new(0),
            taken: ByteCount::new(0),
            waiting: Mutex::new(None),
        })
    }

    /// Waits until the stream may hold one more piece.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        // Short pieces are collected; a long piece waits until the one before was taken.
        if self.held.get() <= self.piece.get() / 4 {
            return Poll::Ready(());
        }
        *self.waiting() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Counts a piece as held.
    pub fn hold(self: &Arc<Self>, content: Bytes) -> Piece {
        let (bytes, piece) = (content.len(), self.piece.get());
        let length = bytes + FRAME_OVERHEAD;
        self.held.set(self.held.get() + length);
        if bytes >= piece / 2 && piece < LONG && self.connection.grow(piece) {
            self.piece.set(2 * piece);
            self.granted.set(self.granted.get() + piece);
        }
        Piece { content, length, stream: Some(self.clone()) }
    }

    /// Grants bytes for a copy of a body that is kept for a retry; `false` if there are too few left.
    pub fn grant_copy(&self, bytes: usize) -> bool {
        let is_granted = self.connection.grow(bytes);
        if is_granted {
            self.copies.set(self.copies.get() + bytes);
        }
        is_granted
    }

    /// Gives back all bytes that were granted for copies.
    pub fn release_copies(&self) {
        let copies = self.copies.get();
        self.copies.set(0);
        self.connection.shrink(copies);
    }

    /// Returns the maximum number of bytes to read at once for this stream: one less than a full buffer to hyper, which
    /// would double it.
    pub fn read_limit(&self) -> usize {
        self.piece.get() / 4 * 3 - 1
    }

    /// Whether no bytes wait to be read.
    pub fn is_empty(&self) -> bool {
        self.held.get() == 0
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of bytes that were read so far.
    pub fn bytes_taken(&self) -> u64 {
        self.taken.get() as u64
    }
}

impl Drop for MadeShare {
    fn drop(&mut self) {
        let made = &self.connection.made;
        made.set(made.get() - self.bytes);
    }
}

impl Drop for StreamBacklog {
    fn drop(&mut self) {
        self.release_copies();
        let (left, growth) = (&self.connection.left, &self.connection.growth);
        left.set(left.get() + self.granted.get());
        growth.set(growth.get() + (self.piece.get() - SHORT));
    }
}

// === Piece ===

impl Piece {
    /// Whether a stream holds the piece.
    pub fn is_counted(&self) -> bool {
        self.stream.is_some()
    }

    /// Returns the bytes of the piece that are left.
    pub fn content(&self) -> &Bytes {
        &self.content
    }
}

impl From<Bytes> for Piece {
    fn from(content: Bytes) -> Self {
        Piece { length: content.len(), content, stream: None }
    }
}

impl From<Piece> for Bytes {
    /// Returns the content alone, which counts as held by no stream.
    fn from(piece: Piece) -> Self {
        piece.content.clone()
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.content.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.content
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.content.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.content.advance(count);
        if let Some(stream) = &self.stream {
            stream.taken.set(stream.taken.get() + count);
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let Some(stream) = &self.stream else { return };
        stream.held.set(stream.held.get() - self.length);
        let waiting = stream.waiting().take();
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_hold(stream: &StreamBacklog) -> bool {
        stream.poll_room(&Context::from_waker(Waker::noop())).is_ready()
    }

    /// Fills a stream up to its bound, as an endpoint does that sends without end.
    fn fill(stream: &Arc<StreamBacklog>) -> Vec<Piece> {
        let mut held = Vec::new();
        while may_hold(stream) {
            held.push(stream.hold(Bytes::from(vec![0; stream.read_limit()])));
        }
        held
    }

    fn held(streams: &[Arc<StreamBacklog>]) -> usize {
        streams.iter().map(|stream| stream.held.get()).sum()
    }

    #[test]
    fn a_stream_gets_longer_pieces_as_the_client_takes_them() {
        let stream = StreamBacklog::new(&Backlog::new(1 << 20));
        let mut lengths = Vec::new();
        for _ in 0..5 {
            let pieces = fill(&stream);
            assert_eq!(pieces.len(), 1);
            lengths.push(pieces[0].remaining() + 1);
        }
        assert_eq!(lengths, [6 << 10, 12 << 10, 24 << 10, 48 << 10, 96 << 10]);
    }

    #[test]
    fn streams_together_hold_no_more_than_the_connection_may() {
        for (max, streams) in [(1 << 20, 1), (1 << 20, 8), (1 << 20, 64), (256 << 10, 32), (64 << 10, 4)] {
            let backlog = Backlog::new(max);
            let streams: Vec<_> = (0..streams).map(|_| StreamBacklog::new(&backlog)).collect();
            let mut pieces = Vec::new();
            for _ in 0..5 {
                drop(std::mem::take(&mut pieces));
                pieces = streams.iter().map(fill).collect();
            }
            assert!(held(&streams) <= max, "{} of {max}", held(&streams));
        }
    }

    #[test]
    fn one_short_piece_is_always_granted() {
        let backlog = Backlog::new(64 << 10);
        let streams: Vec<_> = (0..100).map(|_| StreamBacklog::new(&backlog)).collect();
        let pieces: Vec<_> = streams.iter().map(fill).collect();
        assert!(pieces.iter().all(|pieces| pieces.len() == 1));
        assert!(held(&streams) <= 100 * SHORT);
        drop((pieces, streams));
        assert_eq!((backlog.left.get(), backlog.growth.get()), (64 << 10, 32 << 10), "all of it is given back");
    }

    #[test]
    fn responses_that_are_made_are_bounded_together() {
        let backlog = Backlog::new(1 << 20);
        let long = backlog.count_made(4 << 20).expect("a single one may be longer");
        assert!(backlog.count_made(1).is_none());
        drop(long);
        let made: Vec<MadeShare> = std::iter::from_fn(|| backlog.count_made(300 << 10)).collect();
        assert_eq!(made.len(), 3);
        drop(made);
        assert!(backlog.count_made(1 << 20).is_some());
    }

    #[test]
    fn short_pieces_are_put_together() {
        let stream = StreamBacklog::new(&Backlog::new(1 << 20));
        let mut pieces = Vec::new();
        while may_hold(&stream) {
            pieces.push(stream.hold(Bytes::from_static(&[0; 100])));
        }
        assert_eq!(pieces.len(), SHORT / 4 / (100 + FRAME_OVERHEAD) + 1);
        pieces[0].advance(60);
        assert_eq!((stream.bytes_taken(), may_hold(&stream)), (60, false), "the rest of it is still held");
        pieces.truncate(1);
        assert!(may_hold(&stream) && !stream.is_empty());
    }
}
