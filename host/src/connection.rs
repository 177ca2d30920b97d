//! A client's connection: what its exchanges share, whichever version of HTTP it speaks.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::UnixStream;
use tokio_rustls::server::TlsStream;

use crate::admission::Presence;
use crate::body::ResponseBody;
use crate::clock::{Clock, Deadline};
use crate::ending::Ending;
use crate::error::{Error, Kind};
use crate::exchange::{self, Arrival, Begun, Timers};
use crate::generation::Running;
use crate::metered::Metered;
use crate::passage::BodyError;
use crate::tcp::{self, Tcp};
use crate::upload::{ClientContent, Upload};

mod aborted;
mod client_frames;
mod client_io;
mod discard;
mod gathered;
pub mod http1;
pub mod http2;
mod patient;
mod session;
mod stalled;
mod tunnel;

/// The longest wait for more of what a client still sends after its last response. Closed at once, the connection would be
/// reset, and the client might never read that response (RFC 9112 §9.6, RFC 9113 §8.1).
const LINGER: Duration = Duration::from_secs(2);

/// The longest time for which content is read on and discarded after a response that did not wait for its end: a client
/// that is a slow line away has sent a window of content before it hears of the response.
const DISCARD_TIME: Duration = Duration::from_secs(10);

/// The bytes of such content that are read at most. A client that sends more has time to read its response, for
/// [`LINGER`], but is no longer read.
const DISCARD_BYTES: usize = 16 << 20;

/// What carries a client's connection.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Returns the next byte and leaves it to be read; `None` if the client has ended what it sends.
    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<u8>>>;

    /// How many bytes have departed from it.
    fn departed(&self) -> u64;

    /// How many bytes the client's system has taken. Asks the kernel.
    fn taken(&self) -> u64;

    /// Has the kernel drop what it still holds once the socket is closed, instead of sending it for as long as that takes.
    fn forget_unsent(&self);

    /// Whether the client has reset the connection. Asks the kernel.
    fn is_gone(&self) -> bool;
}

/// Who is served, and by what.
pub struct Client {
    pub current: Rc<RefCell<Rc<Running>>>,
    pub clock: Rc<Clock>,
    pub arrival: Arrival,
    /// Notes whether the connection waits for a request: then it may be evicted.
    pub presence: Presence,
}

/// The content of a response, and with its end that of the exchange.
struct Outgoing {
    body: ResponseBody,
    /// For the exchange as a whole.
    total: Deadline,
    /// There until the body is dropped.
    ending: Option<Ending>,
}

impl Client {
    /// Takes a request on its way; the future goes on from there to the response.
    fn exchange(
        &self,
        request: Request<ClientContent>,
        upload: Upload,
        timers: Rc<Timers>,
    ) -> impl Future<Output = Response<Outgoing>> + use<> {
        let running = self.current.borrow().clone();
        let in_chain = running.enter_chain();
        let mut ending = Ending::new(running.clone(), upload);
        let begun = exchange::begin(&running, request, &self.arrival, &timers, &mut ending);
        async move {
            let response = match begun {
                // Boxed: hyper moves the future of an exchange about before it is polled, and this part of it is large.
                Begun::Onward(mut onward) => Box::pin(onward.run(&running, &timers, &mut ending)).await,
                Begun::Answered(response) => response,
            };
            drop(in_chain);
            response.map(|body| Outgoing { body, total: timers.total.clone(), ending: Some(ending) })
        }
    }

    /// The response to what never became a request.
    fn refuse(&self, error: Error, status: StatusCode) -> Response<Outgoing> {
        let running = self.current.borrow().clone();
        let mut ending = Ending::new(running.clone(), Upload::over());
        let response = exchange::refuse(&running, error, status, &self.arrival, &mut ending);
        let [total] = self.clock.deadlines();
        response.map(|body| Outgoing { body, total, ending: Some(ending) })
    }
}

// === Transport ===

impl Transport for Metered<Tcp> {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.0.poll_read_ready(cx)
    }

    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        loop {
            ready!(self.socket.0.poll_read_ready(cx))?;
            match self.socket.0.try_io(Interest::READABLE, || tcp::peek(&self.socket.0)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                peeked => return Poll::Ready(peeked),
            }
        }
    }

    fn departed(&self) -> u64 {
        self.departed
    }

    fn taken(&self) -> u64 {
        self.departed.saturating_sub(self.socket.waiting())
    }

    fn forget_unsent(&self) {
        self.socket.forget_unsent();
    }

    fn is_gone(&self) -> bool {
        tcp::is_gone(&self.socket.0)
    }
}

impl Transport for Metered<UnixStream> {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(cx)
    }

    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_io(Interest::READABLE, || tcp::peek(&self.socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                peeked => return Poll::Ready(peeked),
            }
        }
    }

    fn departed(&self) -> u64 {
        self.departed
    }

    fn taken(&self) -> u64 {
        self.departed.saturating_sub(tcp::waiting(&self.socket))
    }

    /// Does nothing: what waits is the client's, and none of it is in the kernel once that closes.
    fn forget_unsent(&self) {}

    fn is_gone(&self) -> bool {
        tcp::is_gone(&self.socket)
    }
}

/// What rustls has deciphered has been read by the time that a connection rests.
impl<T: Transport> Transport for Box<TlsStream<T>> {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_ref().0.poll_read_ready(cx)
    }

    /// Returns the next byte of the records, which are enciphered.
    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        self.get_ref().0.poll_peek(cx)
    }

    fn departed(&self) -> u64 {
        self.get_ref().0.departed()
    }

    fn taken(&self) -> u64 {
        self.get_ref().0.taken()
    }

    fn forget_unsent(&self) {
        self.get_ref().0.forget_unsent();
    }

    fn is_gone(&self) -> bool {
        self.get_ref().0.is_gone()
    }
}

// === Outgoing ===

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(ending)) = (&frame, &mut this.ending) {
            ending.response_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        let frame = match frame {
            Poll::Ready(_) | Poll::Pending if this.total.is_met() => {
                let late = Error::new(Kind::ResponseTimeout, "the route's timeout has passed").met("timeout");
                Poll::Ready(Some(Err(late.into())))
            }
            frame => frame,
        };
        if let (Poll::Ready(Some(Err(error))), Some(ending)) = (&frame, &mut this.ending) {
            ending.cut(error);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
