//! The informational responses of endpoints (RFC 9110 §15.2), on their way to a client.

use std::io;
use std::mem::take;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::response::Parts;
use http::{StatusCode, header};

use crate::protocol::hop_by_hop;

/// The informational responses that wait to be written to the client of one HTTP/1.1 connection. Their bytes are
/// bounded by the limit of the endpoint's connection, for each attempt.
#[derive(Debug, Default)]
pub struct InformationalQueue {
    /// The bytes to be written. Only one worker locks them, so the lock is never contended.
    waiting: Mutex<BytesMut>,
    has_any: AtomicBool,
}

impl InformationalQueue {
    /// Adds a response. 100 is not added: the connection of the client sends its own when the content is wanted.
    pub fn push(&self, mut head: Parts) {
        if head.status == StatusCode::CONTINUE {
            return;
        }
        hop_by_hop::response(&mut head);
        // They would say something of content that an informational response does not have (RFC 9110 §8.6).
        head.headers.remove(header::CONTENT_LENGTH);
        let reason = head.status.canonical_reason().unwrap_or_default();
        let mut waiting = self.waiting();
        waiting.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", head.status.as_str()).as_bytes());
        for (name, value) in &head.headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                waiting.extend_from_slice(part);
            }
        }
        waiting.extend_from_slice(b"\r\n");
        self.has_any.store(true, Ordering::Relaxed);
    }

    /// Whether bytes wait to be written.
    pub fn has_any(&self) -> bool {
        self.has_any.load(Ordering::Relaxed)
    }

    /// Writes all waiting bytes by a function that returns how many of them it has written.
    pub fn poll_write(&self, mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<()>> {
        let mut waiting = self.waiting();
        while !waiting.is_empty() {
            match ready!(write(&waiting))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => waiting.advance(written),
            }
        }
        *waiting = BytesMut::new();
        self.has_any.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    /// Takes the rest of the waiting bytes.
    pub fn take(&self) -> Bytes {
        self.has_any.store(false, Ordering::Relaxed);
        take(&mut *self.waiting()).freeze()
    }

    fn waiting(&self) -> MutexGuard<'_, BytesMut> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_written_in_order_without_fields_of_the_connection() {
        let queue = InformationalQueue::default();
        let head = |status: u16| http::Response::builder().status(status);
        let (hints, ()) = head(103)
            .header("link", "</a.css>")
            .header("connection", "x-a")
            .header("x-a", "1")
            .header("content-length", "3")
            .body(())
            .unwrap()
            .into_parts();
        queue.push(head(100).body(()).unwrap().into_parts().0);
        assert!(!queue.has_any(), "a client's connection sends its own 100");
        queue.push(hints);
        queue.push(head(102).body(()).unwrap().into_parts().0);
        let mut written = Vec::new();
        let mut is_blocked = false;
        while queue.has_any() {
            // A byte at a time, and every second time none.
            let _ = queue.poll_write(|bytes| {
                is_blocked = !is_blocked;
                if is_blocked {
                    return Poll::Pending;
                }
                written.extend_from_slice(&bytes[..1]);
                Poll::Ready(Ok(1))
            });
        }
        let expected = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
        assert_eq!(String::from_utf8(written).unwrap(), expected);
    }
}
