//! The content of a request that was received before an endpoint was asked.

use std::any::Any;
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::BodyError;
use super::backlog::Piece;
use super::spill_file::FileReader;
use super::spool::SpooledContent;

/// The whole content of a request. It can be sent any number of times.
#[derive(Debug)]
pub struct CollectedContent {
    pub pieces: SpooledContent,
    pub length: u64,
    pub trailers: Option<HeaderMap>,
    /// The permit by which the content takes memory besides the room for bodies; `None` if it takes none.
    pub permit: Option<Box<dyn Any>>,
}

/// Collected content on its way to an endpoint.
pub struct CollectedBody {
    content: Rc<CollectedContent>,
    /// The bytes that were passed on, over all attempts.
    forwarded: Rc<Cell<u64>>,
    /// The number of pieces in memory, and of trailers, that were read.
    read: usize,
    /// The place in the file.
    reader: FileReader,
    left: u64,
}

impl CollectedBody {
    /// Returns the content from its beginning. `forwarded` counts the bytes that are passed on.
    pub fn new(content: Rc<CollectedContent>, forwarded: Rc<Cell<u64>>) -> Self {
        let left = content.length;
        CollectedBody { content, forwarded, read: 0, reader: FileReader::default(), left }
    }

    /// Returns the same content from its beginning.
    pub fn again(&self) -> Self {
        CollectedBody::new(self.content.clone(), self.forwarded.clone())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let SpooledContent { front, file, back, .. } = &self.content.pieces;
        if let Some(piece) = front.get(self.read) {
            self.read += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone().into()))));
        }
        if let Some((file, end)) = file
            && self.reader.at() < *end
        {
            let read = ready!(self.reader.poll_next(file, *end, cx));
            return Poll::Ready(Some(read.map(|piece| Frame::data(piece.into())).map_err(Into::into)));
        }
        let next = self.read - front.len();
        self.read += 1;
        if let Some(piece) = back.get(next) {
            return Poll::Ready(Some(Ok(Frame::data(piece.clone().into()))));
        }
        let trailers = self.content.trailers.clone().filter(|_| next == back.len());
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

impl Body for CollectedBody {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let frame = ready!(self.poll_piece(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(piece) = frame.data_ref()
        {
            let bytes = piece.content().len() as u64;
            self.left = self.left.saturating_sub(bytes);
            self.forwarded.set(self.forwarded.get() + bytes);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.content.trailers.is_none()
    }

    /// Returns the length of the content. It is unknown if trailers follow, because HTTP/1 has no trailers after content
    /// of a known length.
    fn size_hint(&self) -> SizeHint {
        match self.content.trailers {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.left),
        }
    }
}
