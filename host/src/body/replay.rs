//! The content of a request, kept for further attempts.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::body::backlog::Piece;
use crate::body::collected::CollectedBody;
use crate::body::joined_pieces::{JoinedPieces, PiecePlace};
use crate::body::upload::RequestBody;
use crate::body::{BodyError, longer};

/// The content of a request, for as many attempts as are made.
pub struct ReplayBuffer {
    /// The content for the next attempt, while no attempt has taken it.
    ready: Option<RequestBody>,
    buffered: Option<Rc<RefCell<Buffered>>>,
    /// The content, if it was collected, which can be sent again whatever its length.
    collected: Option<CollectedBody>,
    empty: bool,
    /// The length of the content; `None` if it isn't known.
    length: Option<u64>,
    /// The key of the limit for which nothing is kept.
    limit: Option<&'static str>,
}

/// Content of which the beginning is kept.
struct Buffered {
    rest: RequestBody,
    /// The pieces that were read; emptied once they are more than `max_bytes` bytes.
    read: JoinedPieces,
    bytes: usize,
    max_bytes: usize,
    /// The number of bytes for which the connection has granted a copy.
    granted: usize,
    is_lost: bool,
    /// The key of the limit for which the copy was dropped.
    limit: Option<&'static str>,
    /// The number of attempts so far. The rest of an earlier attempt must not read further.
    attempt: u32,
}

/// Content that is kept as it is sent: first the bytes that were read before, then the rest.
pub struct ReplayBody {
    buffered: Rc<RefCell<Buffered>>,
    turn: u32,
    place: PiecePlace,
}

/// The key of the limit on content that is kept for another attempt.
const BUFFER: &str = "retry.buffer";

/// The key of the limit on what is kept for a client connection.
const CONNECTION_BUFFER: &str = "limits.buffer";

impl ReplayBuffer {
    /// Content of which up to `max_bytes` bytes are kept to be sent again.
    pub fn new(content: RequestBody, max_bytes: usize) -> Self {
        let length = content.size_hint().exact();
        if let RequestBody::Collected(body) = &content {
            let collected = Some(body.again());
            return ReplayBuffer { ready: Some(content), buffered: None, collected, empty: false, length, limit: None };
        }
        let empty = content.is_end_stream();
        // Content that is still to come may be short: its copy is granted by pieces.
        let granted = length.map_or(0, |length| max_bytes.min(length as usize));
        if empty || max_bytes == 0 {
            return ReplayBuffer {
                ready: Some(content),
                buffered: None,
                collected: None,
                empty,
                length,
                limit: Some(BUFFER),
            };
        }
        if !content.grant_copy(granted) {
            let limit = Some(CONNECTION_BUFFER);
            return ReplayBuffer { ready: Some(content), buffered: None, collected: None, empty, length, limit };
        }
        let buffered = Buffered {
            rest: content,
            read: JoinedPieces::default(),
            bytes: 0,
            max_bytes,
            granted,
            is_lost: false,
            limit: None,
            attempt: 0,
        };
        let buffered = Some(Rc::new(RefCell::new(buffered)));
        let mut content = ReplayBuffer { ready: None, buffered, collected: None, empty, length, limit: None };
        content.rewind();
        content
    }

    /// Whether the request has no content.
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// Whether the content has more bytes than a number, or may have them.
    pub fn may_be_longer_than(&self, bytes: u64) -> bool {
        !self.empty && self.length.is_none_or(|length| length > bytes)
    }

    /// The content for an attempt; none if it can't be sent from its beginning any more.
    pub fn take(&mut self) -> Option<RequestBody> {
        self.rewind();
        self.ready.take()
    }

    /// Puts back content that no attempt has read.
    pub fn put_back(&mut self, content: RequestBody) {
        self.ready = Some(content);
    }

    /// Whether the content can be sent once more from its beginning.
    pub fn is_whole(&self) -> bool {
        self.empty
            || self.ready.is_some()
            || self.collected.is_some()
            || self.buffered.as_ref().is_some_and(|buffered| !buffered.borrow().is_lost)
    }

    /// Returns the key of the limit that keeps content which is partly sent from another attempt.
    pub fn limit(&self) -> Option<&'static str> {
        let dropped_for = || self.buffered.as_ref()?.borrow().limit;
        self.limit.filter(|_| !self.is_whole()).or_else(dropped_for)
    }

    fn rewind(&mut self) {
        if self.ready.is_some() || !self.is_whole() {
            return;
        }
        let collected = self.collected.as_ref().map(|body| RequestBody::Collected(Box::new(body.again())));
        let buffered = || self.buffered.as_ref().map_or(RequestBody::Empty, ReplayBody::begin);
        self.ready = Some(collected.unwrap_or_else(buffered));
    }
}

impl Buffered {
    /// Has the connection grant a copy of all that was read. Returns `false` if the connection holds too many bytes.
    fn grant(&mut self) -> bool {
        let more = self.bytes.saturating_sub(self.granted);
        self.granted += more;
        more == 0 || self.rest.grant_copy(more)
    }

    fn buffer(&mut self, piece: &Bytes) {
        if self.is_lost {
            return;
        }
        self.bytes += piece.len();
        self.limit = match self.bytes <= self.max_bytes {
            true => (!self.grant()).then_some(CONNECTION_BUFFER),
            false => Some(BUFFER),
        };
        match self.limit {
            None => drop(self.read.push(piece.clone())),
            Some(_) => self.discard(),
        }
    }

    fn discard(&mut self) {
        self.is_lost = true;
        self.read = JoinedPieces::default();
        self.rest.release_copies();
    }
}

impl ReplayBody {
    fn begin(buffered: &Rc<RefCell<Buffered>>) -> RequestBody {
        let turn = buffered.borrow().attempt + 1;
        buffered.borrow_mut().attempt = turn;
        RequestBody::Stream(
            Box::pin(ReplayBody { buffered: buffered.clone(), turn, place: PiecePlace::default() }),
            None,
        )
    }
}

impl Body for ReplayBody {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let ReplayBody { buffered, turn, place } = &mut *self;
        let mut buffered = buffered.borrow_mut();
        if buffered.attempt != *turn {
            return Poll::Ready(Some(Err("the request has gone out once more".into())));
        }
        if let Some(piece) = buffered.read.read(place) {
            return Poll::Ready(Some(Ok(Frame::data(piece.into()))));
        }
        let frame = Pin::new(&mut buffered.rest).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                match frame.data_ref() {
                    Some(piece) => buffered.buffer(piece.content()),
                    // Trailers come but once.
                    None => buffered.discard(),
                }
                *place = buffered.read.end();
            }
            // Content that broke off has an end that looks like any other when it is read again.
            Poll::Ready(Some(Err(_))) => buffered.discard(),
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        let buffered = self.buffered.borrow();
        buffered.attempt == self.turn && buffered.read.bytes_behind(self.place) == 0 && buffered.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let buffered = self.buffered.borrow();
        longer(buffered.rest.size_hint(), buffered.read.bytes_behind(self.place) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &mut RequestBody, pieces: usize) -> Vec<Bytes> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut frame = || match Pin::new(&mut *body).poll_frame(&mut context) {
            Poll::Ready(Some(Ok(frame))) => Some(frame.into_data().ok()?.content().clone()),
            _ => None,
        };
        (0..pieces).map_while(|_| frame()).collect()
    }

    fn content(max_bytes: usize) -> ReplayBuffer {
        ReplayBuffer::new(RequestBody::Whole(Bytes::from_static(b"0123456789")), max_bytes)
    }

    #[test]
    fn content_that_was_read_is_sent_again() {
        let mut content = content(10);
        for _ in 0..3 {
            let mut body = content.take().unwrap();
            assert_eq!(body.size_hint().exact(), Some(10));
            assert_eq!(read(&mut body, 9), [Bytes::from_static(b"0123456789")]);
            assert!(body.is_end_stream());
        }
    }

    #[test]
    fn an_earlier_attempt_takes_nothing_from_a_later_one() {
        let mut content = content(10);
        let mut first = content.take().unwrap();
        let mut second = content.take().unwrap();
        assert!(read(&mut first, 1).is_empty() && !first.is_end_stream());
        assert_eq!(read(&mut second, 9).concat(), b"0123456789");
    }

    #[test]
    fn content_longer_than_the_buffer_is_sent_once() {
        let mut content = content(9);
        let untouched = content.take().unwrap();
        drop(untouched);
        assert!(content.is_whole(), "nothing was read of it");
        let mut body = content.take().unwrap();
        assert_eq!(read(&mut body, 9).concat(), b"0123456789");
        assert!(!content.is_whole() && content.take().is_none());
    }

    #[test]
    fn unkept_content_is_put_back_only_unread() {
        let mut content = content(0);
        let body = content.take().unwrap();
        assert!(!content.is_whole());
        content.put_back(body);
        assert!(content.is_whole() && content.take().is_some() && content.take().is_none());
        let mut empty = ReplayBuffer::new(RequestBody::Empty, 0);
        assert!(empty.take().is_some() && empty.take().is_some());
    }
}
