//! A client connection: the state that its exchanges share, independent of the HTTP version.

use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::UnixStream;
use tokio_rustls::server::TlsStream;

use crate::body::BodyError;
use crate::body::upload::{ClientContent, UploadProgress};
use crate::downstream::admission::Presence;
use crate::error::{Error, FailureKind};
use crate::exchange::record::ExchangeRecord;
use crate::exchange::respond::{self, Rejection};
use crate::exchange::response_body::ResponseBody;
use crate::exchange::{self, ConnectionInfo, Next, Timers};
use crate::generation::worker_state::WorkerState;
use crate::net::byte_counter::ByteCounter;
use crate::net::deadline::{Clock, Deadline, TICK};
use crate::net::tcp::{self, Tcp};

pub mod admission;
mod discard;
pub mod handshake;
pub mod http1;
pub mod http2;
mod tunnel;
mod write_timeout;

/// The maximum time of a lingering close, in which data of the client is still read after its last response. An
/// immediate close would reset the connection, and the client might never read that response (RFC 9112 §9.6, RFC 9113
/// §8.1).
const LINGER: Duration = Duration::from_secs(2);

/// The maximum time for which a request body is read and discarded after a response that did not wait for its end. A
/// client on a slow line has sent a window of its body before it receives the response.
const DISCARD_TIME: Duration = Duration::from_secs(10);

/// The maximum number of bytes that are read of a request body after a response that did not wait for its end. A client
/// that sends more has [`LINGER`] to read its response, but is no longer read.
const DISCARD_BYTES: usize = 16 << 20;

/// The socket or stream under a client connection.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + 'static {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Returns the next byte without consuming it; `None` if the client has closed its sending side.
    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<u8>>>;

    /// Whether bytes have arrived that were not read, also such as the runtime doesn't know of yet. Costs a system call.
    fn has_bytes(&self) -> bool;

    /// Returns how many bytes were sent on the connection.
    fn bytes_sent(&self) -> u64;

    /// Returns how many bytes the client's system has acknowledged. Costs a system call.
    fn bytes_taken(&self) -> u64;

    /// Makes the kernel drop unsent bytes once the socket is closed, instead of trying to send them.
    fn forget_unsent(&self);

    /// Whether the client has reset the connection. `true` too once both sides have closed it. Costs a system call.
    fn is_gone(&self) -> bool;

    /// Whether the client has reset the connection, as far as no read and no write has failed yet. Costs a system call.
    fn is_reset(&self) -> bool;

    /// Whether the client has closed its sending side or reset the connection, even if bytes from before were not read.
    /// Costs a system call.
    fn has_ended(&self) -> bool;
}

/// A client connection, as its exchanges see it.
pub struct ClientConnection {
    pub current: Rc<RefCell<Rc<WorkerState>>>,
    pub clock: Rc<Clock>,
    pub arrival: ConnectionInfo,
    /// Records whether the connection waits for a request: then it may be evicted.
    pub presence: Presence,
}

/// The body of a response to a client; its end is the end of the exchange.
struct ResponseStream {
    body: ResponseBody,
    /// The timeout of the exchange as a whole.
    total: Deadline,
    /// The record of the exchange; `None` once the body is dropped.
    record: Option<ExchangeRecord>,
}

impl ClientConnection {
    /// Returns the worker's state in the current generation.
    fn worker(&self) -> Rc<WorkerState> {
        self.current.borrow().clone()
    }

    /// Begins an exchange; the returned future resolves to the response. One that is there at once passes `admit` before any
    /// other request is read.
    fn exchange(
        &self,
        request: Request<ClientContent>,
        upload: UploadProgress,
        timers: Rc<Timers>,
        admit: &dyn Fn(Response<ResponseBody>) -> Response<ResponseBody>,
    ) -> impl Future<Output = Response<ResponseStream>> + use<> {
        let worker = self.worker();
        let mut record = ExchangeRecord::new(worker.clone(), upload);
        let next = exchange::receive(&worker, request, &self.arrival, &timers, &mut record);
        let next = match next {
            Next::Respond(response) => Next::Respond(admit(response)),
            forwarded @ Next::Forward(_) => forwarded,
        };
        // A response that is there has passed the plugins.
        let in_chain = next.route().map(|route_id| worker.enter_chain(route_id));
        async move {
            let response = match next {
                // Boxed: hyper moves the future of an exchange before it is polled, and this part of it is large.
                Next::Forward(mut forwarding) => Box::pin(forwarding.run(&worker, &timers, &mut record)).await,
                Next::Respond(response) => response,
            };
            drop(in_chain);
            response.map(|body| ResponseStream { body, total: timers.total.clone(), record: Some(record) })
        }
    }

    /// Returns the response to a request that is rejected before it is routed.
    fn refuse(&self, rejection: Rejection) -> Response<ResponseStream> {
        let worker = self.worker();
        let mut record = ExchangeRecord::new(worker.clone(), UploadProgress::over());
        let response = respond::reject(&worker, rejection, &self.arrival, &mut record);
        // The connection ends with the response, and nothing is known of its way.
        record.sent();
        let [total] = self.clock.deadlines();
        response.map(|body| ResponseStream { body, total, record: Some(record) })
    }
}

/// Whether the client's system has acknowledged all that was sent on a connection, or has reset it.
fn is_settled(socket: &impl Transport) -> bool {
    socket.is_reset() || socket.bytes_taken() >= socket.bytes_sent()
}

/// Waits until a connection [is settled](is_settled), at most for the time that a client has to read its last response.
async fn wait_until(is_settled: impl Fn() -> bool, deadline: &Deadline) {
    let until = deadline.clock().now() + LINGER;
    while !is_settled() && deadline.clock().now() < until {
        let _ = deadline.limit(TICK, pending::<()>()).await;
    }
}

// === Transport ===

impl Transport for ByteCounter<Tcp> {
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

    fn has_bytes(&self) -> bool {
        tcp::has_bytes(&self.socket.0)
    }

    fn bytes_sent(&self) -> u64 {
        self.departed
    }

    fn bytes_taken(&self) -> u64 {
        self.departed.saturating_sub(self.socket.waiting())
    }

    fn forget_unsent(&self) {
        self.socket.forget_unsent();
    }

    fn is_gone(&self) -> bool {
        tcp::is_gone(&self.socket.0)
    }

    fn is_reset(&self) -> bool {
        tcp::is_reset(&self.socket.0)
    }

    fn has_ended(&self) -> bool {
        tcp::has_ended(&self.socket.0)
    }
}

impl Transport for ByteCounter<UnixStream> {
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

    fn has_bytes(&self) -> bool {
        tcp::has_bytes(&self.socket)
    }

    fn bytes_sent(&self) -> u64 {
        self.departed
    }

    fn bytes_taken(&self) -> u64 {
        self.departed.saturating_sub(tcp::waiting(&self.socket))
    }

    /// Does nothing: unsent bytes belong to the client, and none of them is in the kernel once that closes.
    fn forget_unsent(&self) {}

    fn is_gone(&self) -> bool {
        tcp::is_gone(&self.socket)
    }

    fn is_reset(&self) -> bool {
        tcp::is_reset(&self.socket)
    }

    fn has_ended(&self) -> bool {
        tcp::has_ended(&self.socket)
    }
}

/// A TLS connection. By the time that it is idle, all bytes that rustls has deciphered are read.
impl<T: Transport> Transport for Box<TlsStream<T>> {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_ref().0.poll_read_ready(cx)
    }

    /// Returns the next byte of the records, which are enciphered.
    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        self.get_ref().0.poll_peek(cx)
    }

    fn has_bytes(&self) -> bool {
        self.get_ref().0.has_bytes()
    }

    fn bytes_sent(&self) -> u64 {
        self.get_ref().0.bytes_sent()
    }

    fn bytes_taken(&self) -> u64 {
        self.get_ref().0.bytes_taken()
    }

    fn forget_unsent(&self) {
        self.get_ref().0.forget_unsent();
    }

    fn is_gone(&self) -> bool {
        self.get_ref().0.is_gone()
    }

    fn is_reset(&self) -> bool {
        self.get_ref().0.is_reset()
    }

    fn has_ended(&self) -> bool {
        self.get_ref().0.has_ended()
    }
}

// === Outgoing ===

impl ResponseStream {
    /// Counts content that is sent without this body being read.
    fn count(&mut self, bytes: usize) {
        if let Some(record) = &mut self.record {
            record.response_bytes += bytes as u64;
        }
    }

    /// Records that the response is cut off by an error, which is returned for the client's connection.
    fn cut(&mut self, error: Error) -> BodyError {
        let error = error.into();
        self.record.iter_mut().for_each(|record| record.record_cut(&error));
        error
    }
}

impl Body for ResponseStream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(record)) = (&frame, &mut this.record) {
            record.response_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        let frame = match frame {
            Poll::Ready(_) | Poll::Pending if this.total.is_met() => {
                let late =
                    Error::new(FailureKind::ResponseTimeout, "the route's timeout has passed").with_limit("timeout");
                Poll::Ready(Some(Err(late.into())))
            }
            frame => frame,
        };
        if let (Poll::Ready(Some(Err(error))), Some(record)) = (&frame, &mut this.record) {
            record.record_cut(error);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::boxed::size_of_future;

    /// The future of an exchange that needs no upstream is moved by hyper for each request.
    #[test]
    fn exchange_that_is_not_forwarded_has_a_small_future() {
        struct Arguments {
            client: &'static ClientConnection,
            request: Request<ClientContent>,
            upload: UploadProgress,
            timers: Rc<Timers>,
        }
        let size = size_of_future(|arguments: Arguments| {
            arguments.client.exchange(arguments.request, arguments.upload, arguments.timers, &|response| response)
        });
        assert!(size <= 512, "{size} bytes");
    }
}
