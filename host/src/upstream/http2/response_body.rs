//! The content of responses over HTTP/2. h2 keeps each piece of content apart until it is read, with some 300 bytes beside
//! it, and windows bound the content alone. Where many short pieces wait on a connection, they are joined.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;

use crate::body::{self, BodyError};
use crate::error::{Error, FailureKind};
use crate::protocol::http2_frames::SHORT_DATA;
use crate::system::supervise::{Task, spawn};

/// The content of a response, read by its exchange.
pub struct Http2ResponseBody {
    reading: Rc<RefCell<Reading>>,
    pieces: Rc<ShortPieces>,
}

/// The short pieces of content that wait on a connection.
#[derive(Debug, Default)]
pub struct ShortPieces {
    /// The number of short pieces that were received, and were not read. Those of responses that were given up count until
    /// the next relief.
    waiting: Cell<usize>,
    /// The content of the connection's responses.
    bodies: RefCell<Vec<Weak<RefCell<Reading>>>>,
}

/// Spawns hyper's tasks of a connection on the worker that they begin on. Short pieces are joined before each turn of one.
#[derive(Clone)]
pub struct JoiningExecutor(Rc<ShortPieces>);

#[derive(Debug)]
struct Reading {
    /// The content that is left in h2; `None` once it was given up.
    incoming: Option<Incoming>,
    /// The pieces that were joined.
    joined: BytesMut,
    /// The end or the trailers behind the joined pieces; `None` if more content may follow.
    next: Option<Result<Frame<Bytes>, BodyError>>,
    /// The waker of the exchange, while it waits for content.
    reader: Option<Waker>,
}

/// The length from which content is long, in bytes: a tenth of what the responses of a connection may take of the memory of an
/// endpoint with node.
const LONG: u64 = 1 << 20;

/// The number of waiting short pieces beyond which all that wait on the connection are joined.
const MAX_WAITING: usize = 1 << 10;

/// The number of bytes up to which the pieces of a response are joined before its client reads them: another window.
const MAX_JOINED: usize = 64 << 10;

/// The number of waiting short pieces beyond which the responses fail that have no room for joined pieces: some 10 MiB.
const MAX_UNJOINED: usize = 32 << 10;

impl ShortPieces {
    /// Counts a short piece that was received.
    pub fn count_received(&self) {
        self.waiting.set(self.waiting.get() + 1);
    }

    fn count_read(&self, piece: &Bytes) {
        if piece.len() < SHORT_DATA {
            self.waiting.set(self.waiting.get().saturating_sub(1));
        }
    }

    /// Whether the content of one of the connection's responses is long.
    pub fn have_long_body(&self) -> bool {
        self.bodies.borrow().iter().filter_map(Weak::upgrade).any(|reading| reading.borrow().is_long())
    }

    /// Joins the pieces that wait, if there are too many. Must not be called while h2 polls its connection.
    fn relieve(&self) {
        if self.waiting.get() <= MAX_WAITING {
            return;
        }
        let mut bodies = self.bodies.borrow_mut();
        bodies.retain(|body| body.strong_count() > 0);
        let mut full = Vec::new();
        for reading in bodies.iter().filter_map(Weak::upgrade) {
            if !reading.borrow_mut().join(self) {
                full.push(reading);
            }
        }
        if full.is_empty() {
            self.waiting.set(0);
        } else if self.waiting.get() > MAX_UNJOINED {
            full.iter().for_each(|reading| reading.borrow_mut().give_up());
            self.waiting.set(0);
        }
    }
}

impl JoiningExecutor {
    pub fn new(pieces: Rc<ShortPieces>) -> Self {
        JoiningExecutor(pieces)
    }
}

impl<F: Future + 'static> Executor<F> for JoiningExecutor
where
    F::Output: 'static,
{
    fn execute(&self, task: F) {
        let (pieces, mut task) = (self.0.clone(), Box::pin(task));
        let joining = poll_fn(move |cx| {
            pieces.relieve();
            task.as_mut().poll(cx)
        });
        spawn(Task::Stream, joining);
    }
}

impl Http2ResponseBody {
    /// Returns the content of a response on the connection whose short pieces are counted there.
    pub fn new(incoming: Incoming, pieces: Rc<ShortPieces>) -> Self {
        let has_content = !incoming.is_end_stream();
        let reading = Reading { incoming: Some(incoming), joined: BytesMut::new(), next: None, reader: None };
        let reading = Rc::new(RefCell::new(reading));
        if has_content {
            let mut bodies = pieces.bodies.borrow_mut();
            if bodies.len() == bodies.capacity() {
                bodies.retain(|body| body.strong_count() > 0);
            }
            bodies.push(Rc::downgrade(&reading));
        }
        Http2ResponseBody { reading, pieces }
    }

    /// Returns the next frame; `None` at the end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut reading = self.reading.borrow_mut();
        if !reading.joined.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(reading.joined.split().freeze()))));
        }
        if let Some(next) = reading.next.take() {
            return Poll::Ready(Some(next));
        }
        let polled = reading.poll_incoming(cx, &self.pieces);
        if polled.is_pending() {
            reading.await_by(cx.waker());
        }
        polled
    }

    /// Whether all of the content has been returned.
    pub fn is_end_stream(&self) -> bool {
        let reading = self.reading.borrow();
        let is_over = reading.incoming.as_ref().is_none_or(Body::is_end_stream);
        is_over && reading.joined.is_empty() && reading.next.is_none()
    }

    /// Returns the length of the rest of the content, as far as it is known.
    pub fn size_hint(&self) -> SizeHint {
        let reading = self.reading.borrow();
        let rest = reading.incoming.as_ref().map_or_else(SizeHint::default, Body::size_hint);
        body::longer(rest, reading.joined.len() as u64)
    }
}

impl Reading {
    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &ShortPieces,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let polled = Pin::new(incoming).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(piece) = frame.data_ref()
        {
            pieces.count_read(piece);
        }
        polled.map_err(Into::into)
    }

    /// Whether long content is announced that has not arrived yet.
    fn is_long(&self) -> bool {
        self.incoming.as_ref().is_some_and(|incoming| incoming.size_hint().lower() >= LONG)
    }

    fn await_by(&mut self, waker: &Waker) {
        if !self.reader.as_ref().is_some_and(|reader| reader.will_wake(waker)) {
            self.reader = Some(waker.clone());
        }
    }

    /// Joins the pieces that have arrived. Returns whether no other has to wait in h2 for now.
    fn join(&mut self, pieces: &ShortPieces) -> bool {
        let waker = self.reader.clone().unwrap_or_else(|| Waker::noop().clone());
        let mut cx = Context::from_waker(&waker);
        while self.next.is_none() {
            if self.joined.len() >= MAX_JOINED {
                return false;
            }
            match self.poll_incoming(&mut cx, pieces) {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    self.incoming = None;
                    break;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(piece) => self.joined.extend_from_slice(&piece),
                    Err(trailers) => self.next = Some(Ok(trailers)),
                },
                Poll::Ready(Some(Err(error))) => self.next = Some(Err(error)),
            }
        }
        waker.wake();
        true
    }

    /// Ends the content with an error, behind the pieces that were joined.
    fn give_up(&mut self) {
        self.incoming = None;
        let why = "the endpoint sends content in pieces of less than 256 bytes, and the client does not take them";
        self.next = Some(Err(Error::new(FailureKind::ProtocolError, why).into()));
        self.reader.take().into_iter().for_each(Waker::wake);
    }
}
