//! A tunnel, after a protocol switch: copies bytes both ways until either side ends or no byte has passed for long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes};

use crate::context::ExchangeContext;
use crate::error::{Error, FailureKind};
use crate::exchange::record::ExchangeRecord;
use crate::exchange::response_body::SwitchedProtocol;
use crate::net::deadline::Deadline;
use crate::telemetry::failure_log::{self, Topic};

/// The buffer size per direction, in bytes, as long as the tunnel lives: WebSocket frames are mostly shorter.
const BUFFER: usize = 8 << 10;

/// The client's side of a tunnel.
pub struct TunnelClient<T> {
    pub socket: T,
    /// The client's bytes that were read already.
    pub ahead: Bytes,
    /// The maximum time for which no byte passes.
    pub idle: Duration,
    pub deadline: Deadline,
}

/// Copies bytes between a client and the endpoint that switched protocols.
pub async fn run<T: AsyncRead + AsyncWrite + Unpin>(
    client: TunnelClient<T>,
    switched: SwitchedProtocol,
    mut record: Option<ExchangeRecord>,
) {
    let TunnelClient { socket, ahead, idle, deadline } = client;
    let SwitchedProtocol { mut stream, in_flight_guard, .. } = switched;
    let (deadline_of_client, has_failed, is_shut) = (deadline.clone(), false, false);
    let mut client = WatchedSocket { io: socket, idle, deadline: deadline_of_client, written: 0, has_failed, is_shut };
    deadline.set(idle);
    // Both are parts of buffers that hyper has read into, and are dropped once they are written.
    let behind = std::mem::take(&mut stream.ahead);
    let carrying = async {
        stream.transport.write_all(&ahead).await?;
        drop(ahead);
        client.write_all(&behind).await?;
        drop(behind);
        copy_bidirectional_with_sizes(&mut client, &mut stream.transport, BUFFER, BUFFER).await
    };
    let endpoint = in_flight_guard.endpoint_view().name.clone();
    let failure = match deadline.until_met(carrying).await {
        Ok(Ok(_)) => None,
        // Clients may close tunnels at any time. An endpoint that has ended its side may refuse what the client still sends.
        Ok(Err(error)) if client.has_failed || client.is_shut => {
            tracing::debug!(%error, "tunnel");
            None
        }
        Ok(Err(error)) => Some(Error::new(FailureKind::ConnectionTerminated, error)),
        Err(_) => {
            let error = Error::new(FailureKind::ResponseTimeout, format!("nothing passed for {idle:?}"));
            Some(error.with_limit("limits.tunnel-timeout"))
        }
    };
    if let Some(error) = &failure {
        log(&endpoint, record.as_ref(), error);
    }
    if let Some(record) = &mut record {
        failure.iter().for_each(|error| record.fail(error.kind));
        record.response_bytes += client.written;
        record.sent();
    }
    drop((in_flight_guard, stream.permit));
}

fn log(endpoint: &str, record: Option<&ExchangeRecord>, error: &Error) {
    if !failure_log::admits(Topic::Tunnel, endpoint) {
        return;
    }
    let context = record.and_then(|record| record.context.as_deref());
    let (request_id, route) = (context.map(ExchangeContext::request_id), context.map(|context| &*context.route));
    let (cause, limit) = (error.causes(), error.limit);
    tracing::warn!(request_id, route, endpoint, cause, limit, "tunnel ended");
}

/// The client's side, which records whether bytes pass.
struct WatchedSocket<T> {
    io: T,
    idle: Duration,
    deadline: Deadline,
    written: u64,
    /// Whether the client's side has failed.
    has_failed: bool,
    /// Whether the client was told that the endpoint has ended its side.
    is_shut: bool,
}

impl<T: AsyncRead + Unpin> AsyncRead for WatchedSocket<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Poll::Ready(read) = &read {
            self.has_failed |= read.is_err();
            self.deadline.set(self.idle);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WatchedSocket<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        match written {
            Poll::Ready(Ok(length)) => {
                self.written += length as u64;
                self.deadline.set(self.idle);
            }
            Poll::Ready(Err(_)) => self.has_failed = true,
            Poll::Pending => {}
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.has_failed |= matches!(flushed, Poll::Ready(Err(_)));
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.has_failed |= matches!(shut, Poll::Ready(Err(_)));
        self.is_shut |= matches!(shut, Poll::Ready(Ok(())));
        shut
    }
}
