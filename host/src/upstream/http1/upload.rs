//! A request on its way to an endpoint: its head, and its content as it arrives, in one write if possible.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http_body::{Body, Frame};
use tokio::io::AsyncWrite;

use super::request_head::{self, RequestFraming};
use crate::body::BodyError;
use crate::body::backlog::Piece;
use crate::body::upload::RequestBody;
use crate::error::causes;
use crate::upstream::request_head::RequestHead;

/// A request that is being sent; over from the beginning.
#[derive(Default)]
pub struct Upload {
    /// The bytes before the piece: the head, or the line of a chunk.
    before: BytesMut,
    piece: Option<Piece>,
    /// The bytes behind the piece.
    after: &'static [u8],
    /// The content that is not read yet; `None` once it is over.
    content: Option<RequestBody>,
    /// The framing of the content that is left.
    framing: RequestFraming,
    /// Whether written bytes may still wait in the transport.
    is_unflushed: bool,
    /// Whether the endpoint reads nothing any more. It may have answered before it has read all of a request, and
    /// closed: the response can still be read.
    is_refused: bool,
    /// The number of bytes that the transport has accepted, over all requests.
    sent: u64,
}

/// The reason for which a request can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("{}", causes(&**.0))]
    Content(BodyError),
    #[error("the content of the request is not as long as its Content-Length")]
    Length,
    #[error("the connection to the endpoint failed while the request was sent")]
    Io(#[source] io::Error),
}

impl Upload {
    /// Writes the head of a request, which is sent once [`Upload::begin`] has the content.
    pub fn write_head(&mut self, head: &RequestHead<'_>) {
        self.framing = request_head::write(&mut self.before, head);
    }

    /// Begins to send a request whose head is written.
    pub fn begin(&mut self, content: RequestBody) {
        self.content = Some(content).filter(|_| self.framing != RequestFraming::None);
        (self.is_unflushed, self.is_refused) = (true, false);
    }

    /// Whether everything is sent, or nothing more can be.
    pub fn is_over(&self) -> bool {
        self.is_refused || self.content.is_none() && !self.has_bytes() && !self.is_unflushed
    }

    /// Whether the endpoint accepts further bytes.
    pub fn is_open(&self) -> bool {
        !self.is_refused
    }

    /// The number of bytes that were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Drops the rest of the request. The connection can serve no further request.
    pub fn give_up(&mut self) {
        (self.is_refused, self.piece, self.after, self.content) = (true, None, b"", None);
        self.before.clear();
    }

    /// Sends the bytes that are available; ready once everything is sent. After an error, the endpoint has a part of a
    /// request, and would read another request as the rest of it.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        transport: Pin<&mut (impl AsyncWrite + ?Sized)>,
    ) -> Poll<Result<(), UploadError>> {
        let polled = self.poll_all(cx, transport);
        if matches!(polled, Poll::Ready(Err(_))) {
            self.give_up();
        }
        polled
    }

    fn poll_all(
        &mut self,
        cx: &mut Context<'_>,
        mut transport: Pin<&mut (impl AsyncWrite + ?Sized)>,
    ) -> Poll<Result<(), UploadError>> {
        while !self.is_over() {
            // The first piece goes out together with the head, if it is there.
            if self.piece.is_none() && self.content.is_some() && self.after.is_empty() {
                match self.poll_content(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if self.has_bytes() => {}
                    Poll::Pending if self.is_unflushed => {
                        let flushed = ready!(transport.as_mut().poll_flush(cx));
                        self.flushed(flushed)?;
                        return Poll::Pending;
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.has_bytes() {
                let written = ready!(self.poll_write(cx, transport.as_mut()));
                self.written(written)?;
            } else if self.content.is_none() {
                let flushed = ready!(transport.as_mut().poll_flush(cx));
                self.flushed(flushed)?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn has_bytes(&self) -> bool {
        !self.before.is_empty() || self.piece.is_some() || !self.after.is_empty()
    }

    /// Reads the next piece of the content, and frames it.
    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        let Some(content) = &mut self.content else { return Poll::Ready(Ok(())) };
        let frame = match ready!(Pin::new(&mut *content).poll_frame(cx)) {
            Some(Ok(frame)) => Some(frame),
            Some(Err(error)) => return Poll::Ready(Err(UploadError::Content(error))),
            None => None,
        };
        let is_last = frame.is_none() || content.is_end_stream();
        let outcome = self.frame(frame, is_last);
        if is_last {
            self.content = None;
        }
        Poll::Ready(outcome)
    }

    fn frame(&mut self, frame: Option<Frame<Piece>>, is_last: bool) -> Result<(), UploadError> {
        let (piece, trailers) = match frame.map(Frame::into_data) {
            Some(Ok(piece)) => (Some(piece).filter(Piece::has_remaining), None),
            Some(Err(frame)) => (None, frame.into_trailers().ok()),
            None => (None, None),
        };
        let length = piece.as_ref().map_or(0, Piece::remaining);
        match &mut self.framing {
            RequestFraming::None => {}
            RequestFraming::Length(left) => {
                *left = left.checked_sub(length as u64).ok_or(UploadError::Length)?;
                if is_last && *left > 0 {
                    return Err(UploadError::Length);
                }
            }
            RequestFraming::Chunked => {
                if length > 0 {
                    self.before.extend_from_slice(format!("{length:x}\r\n").as_bytes());
                }
                self.after = match (length, is_last, &trailers) {
                    (_, false, None) if length > 0 => b"\r\n",
                    (_, false, None) => b"",
                    (0, _, None) => b"0\r\n\r\n",
                    (_, _, None) => b"\r\n0\r\n\r\n",
                    (_, _, Some(fields)) => {
                        self.before.extend_from_slice(b"0\r\n");
                        for (name, value) in fields {
                            request_head::write_field(&mut self.before, name, value);
                        }
                        self.content = None;
                        b"\r\n"
                    }
                };
            }
        }
        self.piece = piece;
        Ok(())
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        mut transport: Pin<&mut (impl AsyncWrite + ?Sized)>,
    ) -> Poll<io::Result<usize>> {
        let piece = self.piece.as_ref().map_or(&[][..], Piece::chunk);
        let parts = [&self.before[..], piece, self.after];
        if transport.is_write_vectored() {
            let slices = parts.map(IoSlice::new);
            let first = parts.iter().position(|part| !part.is_empty()).unwrap_or(0);
            let last = parts.iter().rposition(|part| !part.is_empty()).unwrap_or(0);
            if first < last {
                return transport.poll_write_vectored(cx, &slices[first..=last]);
            }
        }
        let first = parts.into_iter().find(|part| !part.is_empty()).unwrap_or_default();
        transport.as_mut().poll_write(cx, first)
    }

    fn written(&mut self, written: io::Result<usize>) -> Result<(), UploadError> {
        let mut written = match written {
            Ok(0) => return self.refused(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) => return self.refused(error),
        };
        self.sent += written as u64;
        let before = written.min(self.before.len());
        self.before.advance(before);
        written -= before;
        if let Some(piece) = &mut self.piece {
            let length = written.min(piece.remaining());
            piece.advance(length);
            written -= length;
            self.piece.take_if(|piece| !piece.has_remaining());
        }
        self.after = self.after.get(written..).unwrap_or_default();
        self.is_unflushed = true;
        Ok(())
    }

    fn flushed(&mut self, flushed: io::Result<()>) -> Result<(), UploadError> {
        self.is_unflushed = false;
        flushed.or_else(|error| self.refused(error))
    }

    /// An endpoint that has closed the connection may have responded before; another failure ends the exchange.
    fn refused(&mut self, error: io::Error) -> Result<(), UploadError> {
        if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
            return Err(UploadError::Io(error));
        }
        self.give_up();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Method, Uri};

    use smallvec::SmallVec;

    use super::*;

    #[test]
    fn a_request_that_is_cut_short_leaves_its_connection_closed() {
        for length in ["2", "4"] {
            let mut fields = HeaderMap::new();
            fields.insert("content-length", HeaderValue::from_static(length));
            let further = SmallVec::new();
            let mut upload = Upload::default();
            upload.write_head(&RequestHead { method: &Method::POST, uri: Uri::default(), fields: &fields, further });
            upload.begin(RequestBody::Whole(Bytes::from_static(b"abc")));
            let mut written = Vec::new();
            let mut cx = Context::from_waker(Waker::noop());
            let polled = upload.poll(&mut cx, Pin::new(&mut written));
            assert!(matches!(polled, Poll::Ready(Err(UploadError::Length))), "{polled:?}");
            assert!(upload.is_over() && !upload.is_open(), "a length of {length}");
        }
    }
}
