//! Stored content, or a part of it, as the body of a response.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::disk::reader::BlockReader;
use super::memory_content::Pieces;
use super::shared_body::SharedBodyReader;
use super::stored_response::Content;
use crate::body::BodyError;
use crate::net::waiting_bytes::WaitingBytes;
use crate::system::holder_counts::Holder;

/// The body of a response from the store: the whole content or a part of it.
#[derive(Debug)]
pub struct StoredBody {
    source: BodySource,
    /// The number of bytes to skip before the first one.
    skip: u64,
    /// The number of bytes left to send; `None` to send all of them and the trailers.
    left: Option<u64>,
    /// The maximum number of bytes of a piece that is not in the store's memory.
    max_read: Cell<usize>,
}

#[derive(Debug)]
enum BodySource {
    Whole(Bytes),
    Pieces(Arc<Pieces>, usize),
    File(Box<BlockReader>),
    Filling(SharedBodyReader),
}

impl StoredBody {
    /// Returns a body with the whole content; `None` if its beginning is gone.
    pub fn all(content: &Content) -> Option<Self> {
        StoredBody::from(content, 0)
    }

    fn from(content: &Content, at: u64) -> Option<Self> {
        let (source, skip) = match content {
            Content::Whole(content) => (BodySource::Whole(content.slice(content.len().min(at as usize)..)), 0),
            Content::Pieces(pieces) => {
                let (mut index, mut skip) = (0, at);
                while let Some(piece) = pieces.list.get(index).filter(|piece| piece.len() as u64 <= skip) {
                    skip -= piece.len() as u64;
                    index += 1;
                }
                (BodySource::Pieces(pieces.clone(), index), skip)
            }
            Content::File(file) => (BodySource::File(Box::new(BlockReader::new(file, at))), 0),
            Content::Filling(fill) => (BodySource::Filling(fill.reader(at)?), 0),
        };
        Some(StoredBody { source, skip, left: None, max_read: Cell::new(usize::MAX) })
    }

    /// Returns a body with the text between two parts of a `multipart/byteranges` response.
    pub fn text(text: String) -> Self {
        let left = Some(text.len() as u64);
        StoredBody { source: BodySource::Whole(text.into()), skip: 0, left, max_read: Cell::new(usize::MAX) }
    }

    /// Limits the bytes of the next pieces, unless they are in the store's memory.
    pub fn limit_reads(&self, bytes: usize) {
        self.max_read.set(bytes.max(1));
    }

    /// Reads content of a file in the turns of a client, and counts its memory among the bytes that wait for the client's
    /// connection.
    pub fn for_client(mut self, client: Holder, waiting: &Arc<WaitingBytes>) -> Self {
        if let BodySource::File(blocks) = &mut self.source {
            blocks.read_for(client, waiting.clone());
        }
        self
    }

    /// Returns the number of bytes left to send; `None` if the body isn't a part with a known length.
    pub fn remaining(&self) -> Option<u64> {
        self.left
    }

    /// Returns a body with `length` bytes from `offset` on; `None` if the beginning of that part is gone.
    pub fn part(content: &Content, offset: u64, length: u64) -> Option<Self> {
        Some(StoredBody { left: Some(length), ..StoredBody::from(content, offset)? })
    }

    fn is_over(&self) -> bool {
        if self.left == Some(0) {
            return true;
        }
        match &self.source {
            BodySource::Whole(content) => content.is_empty(),
            BodySource::Pieces(pieces, next) => *next == pieces.list.len() && pieces.trailers.is_none(),
            BodySource::File(blocks) => blocks.remaining() == 0 && !blocks.has_trailers(),
            BodySource::Filling(_) => false,
        }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            BodySource::Whole(content) if content.is_empty() => Poll::Ready(None),
            BodySource::Whole(content) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(content))))),
            BodySource::Pieces(pieces, next) => {
                *next += 1;
                let trailers = || pieces.trailers.clone().filter(|_| *next == pieces.list.len() + 1);
                let frame = pieces.piece(*next - 1).map(Frame::data);
                Poll::Ready(frame.or_else(|| trailers().map(Frame::trailers)).map(Ok))
            }
            BodySource::File(blocks) => {
                let left = self.left.map_or(usize::MAX, |left| left.min(usize::MAX as u64) as usize);
                blocks.poll_next(self.max_read.get().min(left), cx)
            }
            BodySource::Filling(reading) => reading.poll_next(self.max_read.get(), cx),
        }
    }
}

impl Body for StoredBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if this.left == Some(0) {
                return Poll::Ready(None);
            }
            let frame = ready!(this.poll_source(cx));
            let Some(left) = &mut this.left else { return Poll::Ready(frame) };
            let mut piece = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => piece,
                    Err(_) => return Poll::Ready(None),
                },
                other => return Poll::Ready(other),
            };
            let skipped = this.skip.min(piece.len() as u64);
            this.skip -= skipped;
            let part = piece.split_off(skipped as usize);
            let part = part.slice(..(part.len() as u64).min(*left) as usize);
            if !part.is_empty() {
                *left -= part.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(left) = self.left {
            return SizeHint::with_exact(left);
        }
        match &self.source {
            BodySource::Whole(content) => SizeHint::with_exact(content.len() as u64),
            BodySource::Pieces(pieces, 0) if pieces.trailers.is_none() => SizeHint::with_exact(pieces.length),
            BodySource::File(blocks) if !blocks.has_trailers() => SizeHint::with_exact(blocks.remaining()),
            BodySource::Filling(reading) => reading.length().map_or_else(SizeHint::default, SizeHint::with_exact),
            BodySource::Pieces(..) | BodySource::File(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::store::shared_body::tests::{filled, read};

    #[test]
    fn a_part_is_what_was_asked_for() {
        let (fill, content) = filled(&["abc", "def", "ghi"]);
        let pieces = Content::Pieces(Pieces::new(vec!["abcd".into(), "efghi".into()], 9, None));
        fill.finish(None);
        let whole = fill.content(None).into();
        for content in [content, whole, pieces] {
            for (offset, length) in [(0, 9), (0, 1), (2, 3), (8, 1), (4, 5)] {
                let part = read(&mut StoredBody::part(&content, offset, length).unwrap());
                assert_eq!(part, &b"abcdefghi"[offset as usize..][..length as usize]);
            }
        }
    }

    #[test]
    fn trailers_come_last_and_once() {
        let (fill, content) = filled(&["abc"]);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        fill.finish(Some(trailers.clone()));
        let stored = fill.content(Some(trailers)).into();
        for content in [content, stored] {
            let (mut cx, mut body) = (Context::from_waker(Waker::noop()), StoredBody::all(&content).unwrap());
            let mut next = || match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => Some(frame.is_trailers()),
                _ => None,
            };
            assert_eq!([next(), next(), next()], [Some(false), Some(true), None]);
        }
    }
}
