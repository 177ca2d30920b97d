//! Receiving the content of a request before an endpoint is asked, so that a slow client holds no endpoint.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::body::BodyError;
use crate::body::backlog::Piece;
use crate::body::buffer_space::BufferSpace;
use crate::body::collected::{CollectedBody, CollectedContent};
use crate::body::content_end::ContentEnd;
use crate::body::replay::ReplayBuffer;
use crate::body::spool::{Overflow, Room, Spool};
use crate::body::upload::{RequestBody, UploadProgress};
use crate::error::{Error, FailureKind, causes};
use crate::generation::{BufferedContent, RequestBuffer};

/// The content that arrives next.
enum NextContent {
    Piece(Bytes),
    End(Option<HeaderMap>),
    /// The spool has no room for another piece.
    Full,
}

/// Content of which the beginning was read before an endpoint takes it, and the rest.
pub struct BegunBody {
    beginning: Spool,
    rest: RequestBody,
    /// The end of the content behind the beginning; `None` if it was not read yet.
    end: Option<ContentEnd>,
}

/// The room that a piece needs, in bytes: as much as hyper reads at once of a client that sends slowly.
const PIECE: usize = 16 << 10;

/// The maximum number of bytes that are read of a request while it waits for a connection to an endpoint.
const MAX_READ_WHILE_WAITING: u64 = 64 << 20;

/// Returns the rule for the content of a request; `None` if it is sent as it arrives. `length` is declared by the
/// head.
pub fn rule(buffer: Option<RequestBuffer>, length: Option<u64>) -> Option<RequestBuffer> {
    let rule = buffer?;
    match length {
        Some(length) => (length <= rule.max).then_some(rule),
        None => (rule.which == BufferedContent::AnyLength).then_some(rule),
    }
}

/// Receives content to its end. If there is too little room, the rest is sent as it arrives. Dropping the future discards
/// what was received.
pub async fn collect(
    mut body: RequestBody,
    upload: &UploadProgress,
    rule: RequestBuffer,
    space: &Rc<BufferSpace>,
) -> Result<RequestBody, Error> {
    let overflow = match rule.which {
        BufferedContent::KnownLength => Overflow::Refused,
        BufferedContent::AnyLength => Overflow::File,
    };
    // The content may have exactly the length of the rule, and its end may still be to come.
    let mut spool = Spool::new(space, rule.max.saturating_add(1), overflow);
    let trailers = loop {
        match poll_fn(|cx| poll_next_content(&mut body, &mut spool, cx)).await {
            Ok(NextContent::Piece(piece)) => {
                spool.push(piece);
                if body.is_end_stream() {
                    break None;
                }
            }
            Ok(NextContent::End(trailers)) => break trailers,
            Ok(NextContent::Full) => return Ok(BegunBody::new(spool, body).into_body(upload)),
            Err(error) => return Err(failure(upload, &error)),
        }
    };
    spool.finish();
    poll_fn(|cx| spool.poll_settled(cx)).await;
    let length = spool.bytes();
    let content = Rc::new(CollectedContent { pieces: spool.into_content(), length, trailers, permit: None });
    Ok(RequestBody::Collected(Box::new(CollectedBody::new(content, upload.forwarded()))))
}

/// Waits for a future, and reads the content of a request meanwhile, if its connection has other streams: content that
/// nothing reads fills the window of the connection, and all its streams stand still (RFC 9113 §5.2).
pub async fn read_while<T>(
    mut future: Pin<Box<dyn Future<Output = T> + '_>>,
    content: &RefCell<ReplayBuffer>,
    upload: &UploadProgress,
    space: &Rc<BufferSpace>,
) -> T {
    let unread = if upload.shares_connection() { content.borrow_mut().take_unread() } else { None };
    let Some(unread) = unread else { return future.await };
    let spool = Spool::new(space, MAX_READ_WHILE_WAITING, Overflow::File);
    let mut begun = Box::new(BegunBody::new(spool, unread));
    let output = poll_fn(|cx| {
        let output = future.as_mut().poll(cx);
        if output.is_pending() {
            begun.read(cx);
        }
        output
    });
    let output = output.await;
    content.borrow_mut().put_back(begun.into_body(upload));
    output
}

fn poll_next_content(
    body: &mut RequestBody,
    spool: &mut Spool,
    cx: &mut Context<'_>,
) -> Poll<Result<NextContent, BodyError>> {
    match spool.room(PIECE, cx) {
        Room::Free => {}
        Room::Awaited => return Poll::Pending,
        Room::Full => return Poll::Ready(Ok(NextContent::Full)),
    }
    let frame = ready!(Pin::new(body).poll_frame(cx)).transpose()?;
    Poll::Ready(Ok(match frame.map(Frame::into_data) {
        None => NextContent::End(None),
        // The piece itself counts as held by the client's connection, which would have no room for the next one.
        Some(Ok(piece)) => NextContent::Piece(Piece::content(&piece).clone()),
        Some(Err(frame)) => NextContent::End(frame.into_trailers().ok()),
    }))
}

/// Returns the error of the exchange for content that has failed.
fn failure(upload: &UploadProgress, error: &BodyError) -> Error {
    let cause = causes(&**error);
    match upload.fault() {
        Some(fault) => fault.error(cause),
        None => Error::new(FailureKind::RequestError, cause),
    }
}

impl BegunBody {
    fn new(beginning: Spool, rest: RequestBody) -> Self {
        BegunBody { beginning, rest, end: None }
    }

    /// Returns the content as the body of a request, from the pieces of the beginning on.
    fn into_body(self, upload: &UploadProgress) -> RequestBody {
        match self.end {
            None if self.beginning.bytes() == 0 => self.rest,
            _ => RequestBody::Stream(Box::pin(self), Some(upload.clone())),
        }
    }

    /// Reads what has arrived of the rest, as far as there is room.
    fn read(&mut self, cx: &mut Context<'_>) {
        while self.end.is_none() {
            match poll_next_content(&mut self.rest, &mut self.beginning, cx) {
                Poll::Pending | Poll::Ready(Ok(NextContent::Full)) => return,
                Poll::Ready(Ok(NextContent::Piece(piece))) => {
                    self.beginning.push(piece);
                    self.end = self.rest.is_end_stream().then_some(ContentEnd::Whole);
                }
                Poll::Ready(Ok(NextContent::End(trailers))) => {
                    self.end = Some(trailers.map_or(ContentEnd::Whole, ContentEnd::Trailers));
                }
                Poll::Ready(Err(error)) => self.end = Some(ContentEnd::Failed(error)),
            }
        }
        self.beginning.finish();
    }
}

impl Body for BegunBody {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        match ready!(self.beginning.poll_next(cx)) {
            Some(piece) => Poll::Ready(Some(piece.map(|piece| Frame::data(piece.into())).map_err(Into::into))),
            None => match self.end.take() {
                Some(end) => {
                    self.end = Some(ContentEnd::Whole);
                    Poll::Ready(end.into_frame())
                }
                None => Pin::new(&mut self.rest).poll_frame(cx),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_over = match &self.end {
            Some(end) => matches!(end, ContentEnd::Whole),
            None => self.rest.is_end_stream(),
        };
        self.beginning.bytes() == 0 && is_over
    }

    fn size_hint(&self) -> SizeHint {
        let (waiting, rest) = (self.beginning.bytes(), self.rest.size_hint());
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(waiting));
        }
        hint.set_lower(rest.lower().saturating_add(waiting));
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_received_first_as_the_route_says() {
        let known = RequestBuffer { max: 10, which: BufferedContent::KnownLength };
        let any = RequestBuffer { which: BufferedContent::AnyLength, ..known };
        assert_eq!(
            (rule(Some(known), Some(10)), rule(Some(known), Some(11)), rule(Some(known), None)),
            (Some(known), None, None)
        );
        assert_eq!(
            (rule(Some(any), Some(10)), rule(Some(any), Some(11)), rule(Some(any), None)),
            (Some(any), None, Some(any))
        );
        assert_eq!(rule(None, Some(1)), None);
    }
}
