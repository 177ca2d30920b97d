//! Content of a request that is read before its reader wants it, so that its connection stands still for no other stream.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};

use super::BodyError;
use super::buffer_space::BufferSpace;
use super::content_end::ContentEnd;
use super::spool::{Overflow, Room, Spool};
use crate::net::waiting_bytes::WaitingBytes;

/// The content that arrives next.
pub enum NextContent {
    Piece(Bytes),
    End(Option<HeaderMap>),
    /// The spool has no room for another piece.
    Full,
}

/// The beginning of content that was read early. The source has the rest.
pub struct EarlyContent {
    beginning: Spool,
    /// The end of the content behind the beginning; `None` if it was not read yet.
    end: Option<ContentEnd>,
}

/// Content of which a reader that waits for something else may read the beginning.
pub trait ReadEarly {
    /// Reads what has arrived, as far as there is room, if unread content holds up others.
    fn read_early(&mut self, cx: &mut Context<'_>);
}

/// The room that a piece needs, in bytes: as much as hyper reads at once of a client that sends slowly.
const PIECE: usize = 16 << 10;

/// The maximum number of bytes that are read of a request before its reader wants them.
const MAX_READ_EARLY: u64 = 64 << 20;

/// Reads the next content, if a spool has room for it. The caller puts pieces into the spool.
pub fn poll_next_content<B>(
    body: &mut B,
    spool: &mut Spool,
    cx: &mut Context<'_>,
) -> Poll<Result<NextContent, BodyError>>
where
    B: Body<Data: Into<Bytes>, Error: Into<BodyError>> + Unpin,
{
    match spool.room(PIECE, cx) {
        Room::Free => {}
        Room::Awaited => return Poll::Pending,
        Room::Full => return Poll::Ready(Ok(NextContent::Full)),
    }
    let frame = ready!(Pin::new(body).poll_frame(cx)).transpose().map_err(Into::into)?;
    Poll::Ready(Ok(match frame.map(Frame::into_data) {
        None => NextContent::End(None),
        Some(Ok(piece)) => NextContent::Piece(piece.into()),
        Some(Err(frame)) => NextContent::End(frame.into_trailers().ok()),
    }))
}

/// Waits for a future. Calls `read` after each poll that is pending.
pub async fn read_while<T>(future: impl Future<Output = T>, mut read: impl FnMut(&mut Context<'_>)) -> T {
    let mut future = pin!(future);
    let poll = |cx: &mut Context<'_>| {
        let output = future.as_mut().poll(cx);
        if output.is_pending() {
            read(cx);
        }
        output
    };
    poll_fn(poll).await
}

impl EarlyContent {
    /// Returns the empty beginning of content, of which at most `max` bytes are read early. `waiting` bounds those in memory.
    pub fn new(space: &Rc<BufferSpace>, max: u64, waiting: &Arc<WaitingBytes>) -> Self {
        Spool::new(space, max.min(MAX_READ_EARLY), Overflow::File).for_client(waiting).into()
    }

    /// Returns the number of bytes that were read.
    pub fn bytes(&self) -> u64 {
        self.beginning.bytes()
    }

    /// Returns the end of the content; `None` if it was not read yet.
    pub fn end(&self) -> Option<&ContentEnd> {
        self.end.as_ref()
    }

    /// Reads what has arrived of the source. Returns whether there is room for more.
    pub fn read<B>(&mut self, source: &mut B, cx: &mut Context<'_>) -> bool
    where
        B: Body<Data: Into<Bytes>, Error: Into<BodyError>> + Unpin,
    {
        while self.end.is_none() {
            match poll_next_content(source, &mut self.beginning, cx) {
                Poll::Pending | Poll::Ready(Ok(NextContent::Full)) => {
                    return self.beginning.room(PIECE, cx) == Room::Free;
                }
                Poll::Ready(Ok(NextContent::Piece(piece))) => {
                    self.beginning.push(piece);
                    self.end = source.is_end_stream().then_some(ContentEnd::Whole);
                }
                Poll::Ready(Ok(NextContent::End(trailers))) => {
                    self.end = Some(trailers.map_or(ContentEnd::Whole, ContentEnd::Trailers));
                }
                Poll::Ready(Err(error)) => self.end = Some(ContentEnd::Failed(error)),
            }
        }
        self.beginning.finish();
        true
    }

    /// Returns the next frame; `None` if the source has the next one, or if the content ends without trailers.
    pub fn poll_frame<D: From<Bytes>>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<D>, BodyError>>> {
        if let Some(piece) = ready!(self.beginning.poll_next(cx)) {
            return Poll::Ready(Some(piece.map(|piece| Frame::data(piece.into())).map_err(Into::into)));
        }
        let end = self.end.as_mut().map(|end| std::mem::replace(end, ContentEnd::Whole));
        Poll::Ready(end.and_then(ContentEnd::into_frame))
    }

    /// Whether no bytes, trailers or error are left of what was read.
    pub fn is_taken(&self) -> bool {
        self.bytes() == 0 && matches!(self.end, None | Some(ContentEnd::Whole))
    }
}

impl From<Spool> for EarlyContent {
    fn from(beginning: Spool) -> Self {
        EarlyContent { beginning, end: None }
    }
}
