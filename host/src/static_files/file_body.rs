//! The content of a file, or parts of it, as the body of a response.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::task::spawn_blocking;

use super::blocking_turns::BlockingTurns;
use super::find::SiteFile;
use crate::body::BodyError;
use crate::error::{Error, FailureKind};
use crate::net::deadline::Deadline;

/// A body that is read from a file as its client reads it.
pub struct FileBody {
    /// The file; `None` if no part of it is left to be read.
    file: Option<Arc<SiteFile>>,
    /// The turns of the file's site; `None` if nothing is read.
    turns: Option<BlockingTurns>,
    /// The segments that are still to be sent.
    segments: VecDeque<Segment>,
    /// The read that waits for its turn or runs on a thread for blocking work; `None` if there is none.
    reading: Option<Pin<Box<dyn Future<Output = io::Result<Bytes>>>>>,
    /// The maximum number of bytes of a read.
    max_read: Cell<usize>,
    /// The number of bytes that were read since other tasks have had their turn.
    in_turn: usize,
    /// The deadline for the next piece.
    step: Deadline,
}

/// A piece of a body.
#[derive(Debug)]
pub enum Segment {
    /// A text between two parts of the file.
    Text(Bytes),
    /// The bytes of the file from `next` up to `end`, which is not included.
    Part { next: u64, end: u64 },
}

/// The number of bytes that are read from a file at once, unless the client's connection bounds them otherwise: the
/// same as from an endpoint.
const READ: usize = 128 << 10;

/// The number of bytes that are read before other tasks have their turn. A quick client takes megabytes otherwise, until its
/// socket is full.
const MAX_TURN: usize = 2 * READ;

/// The time for a read, which only a network or a broken disk exceeds.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

impl FileBody {
    /// Returns a body of these segments of a file.
    pub fn new(file: SiteFile, turns: BlockingTurns, segments: VecDeque<Segment>, step: Deadline) -> Self {
        let (file, turns) = (Some(Arc::new(file)), Some(turns));
        FileBody { file, turns, segments, ..FileBody::of_content(Bytes::new(), step) }
    }

    /// Returns a body of content that was read already.
    pub fn of_content(content: Bytes, step: Deadline) -> Self {
        let segments = VecDeque::from([Segment::Text(content)]);
        FileBody { file: None, turns: None, segments, reading: None, max_read: Cell::new(READ), in_turn: 0, step }
    }

    /// Limits the number of bytes that are read at once.
    pub fn limit_reads(&self, bytes: usize) {
        self.max_read.set(bytes.clamp(1, READ));
    }

    /// Returns the next bytes of the part that is sent.
    fn poll_read(&mut self, next: u64, length: usize, cx: &mut Context<'_>) -> Poll<Result<Bytes, BodyError>> {
        let (Some(file), Some(turns)) = (&self.file, &self.turns) else { return Poll::Ready(Ok(Bytes::new())) };
        let read = match &mut self.reading {
            Some(reading) => match reading.as_mut().poll(cx) {
                Poll::Ready(read) => read,
                Poll::Pending if self.step.is_late(READ_TIMEOUT, cx) => {
                    let late = Error::new(FailureKind::ResponseTimeout, "the file system did not read a file in 30 s");
                    return Poll::Ready(Err(late.into()));
                }
                Poll::Pending => return Poll::Pending,
            },
            None => match file.read_now(next, length) {
                Some(bytes) => Ok(bytes),
                None => {
                    self.reading = Some(Box::pin(read(file.clone(), turns.clone(), next, length)));
                    return self.poll_read(next, length, cx);
                }
            },
        };
        self.reading = None;
        self.step.clear();
        Poll::Ready(read.map_err(|error| Error::new(FailureKind::InternalError, error).into()))
    }
}

/// Reads bytes on a thread for blocking work, once the site has a turn for it.
async fn read(file: Arc<SiteFile>, turns: BlockingTurns, next: u64, length: usize) -> io::Result<Bytes> {
    let turn = turns.begin().await;
    let reading = spawn_blocking(move || {
        let _turn = turn;
        file.read(next, length)
    });
    reading.await.map_err(io::Error::other)?
}

impl SiteFile {
    /// Reads bytes if the system has some of them in memory, which needs no other thread. Returns the available bytes,
    /// at least one; `None` if none are in memory.
    #[cfg(target_os = "linux")]
    pub fn read_now(&self, at: u64, length: usize) -> Option<Bytes> {
        use rustix::io::{ReadWriteFlags, preadv2};

        let mut room = BytesMut::zeroed(length);
        let read = preadv2(&self.file, &mut [io::IoSliceMut::new(&mut room)], at, ReadWriteFlags::NOWAIT).ok()?;
        room.truncate(read);
        (read > 0).then(|| room.freeze())
    }

    #[cfg(not(target_os = "linux"))]
    pub fn read_now(&self, _: u64, _: usize) -> Option<Bytes> {
        None
    }

    /// Reads bytes, and waits for them. Returns all of them; an error if the file is shorter than the response's head
    /// says.
    fn read(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let mut room = BytesMut::zeroed(length);
        self.file.read_exact_at(&mut room, at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                let cause = "the file became shorter while it was served: write another, and rename it in its place";
                io::Error::new(io::ErrorKind::UnexpectedEof, cause)
            }
            _ => error,
        })?;
        Ok(room.freeze())
    }
}

impl Segment {
    /// Returns the number of bytes.
    fn length(&self) -> u64 {
        match self {
            Segment::Text(text) => text.len() as u64,
            Segment::Part { next, end } => end.saturating_sub(*next),
        }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            let (next, length) = match this.segments.front_mut() {
                None => return Poll::Ready(None),
                Some(segment) if segment.length() == 0 => {
                    this.segments.pop_front();
                    continue;
                }
                Some(Segment::Text(text)) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
                Some(Segment::Part { next, end }) => (*next, (*end - *next).min(this.max_read.get() as u64) as usize),
            };
            if this.in_turn >= MAX_TURN {
                this.in_turn = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let bytes = match ready!(this.poll_read(next, length, cx)) {
                Ok(bytes) => bytes,
                Err(error) => {
                    // Nothing follows an error.
                    this.segments.clear();
                    return Poll::Ready(Some(Err(error)));
                }
            };
            if let Some(Segment::Part { next, .. }) = this.segments.front_mut() {
                *next += bytes.len() as u64;
            }
            this.in_turn += bytes.len();
            if this.segments.iter().all(|segment| matches!(segment, Segment::Text(_)) || segment.length() == 0) {
                // A slow client keeps no file open for what is read already.
                this.file = None;
            }
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.segments.iter().all(|segment| segment.length() == 0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.segments.iter().map(Segment::length).sum())
    }
}
