//! The bytes that the server sends. The client of Redis keeps an answer as it arrives, however long it gets, so that the
//! connection ends once more bytes are there than the answers of the commands under way can have.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;

use super::command_places::{CommandLoad, CommandPlaces};
use crate::context::bounds;
use crate::net::counted_transport::TransportCounter;

/// The count of the bytes that have arrived since the last whole answer.
pub(super) struct ReceivedBytes {
    places: Arc<CommandPlaces>,
    bytes: AtomicUsize,
    /// Whether the present connection has exceeded the bound.
    is_exceeded: AtomicBool,
}

/// The bytes of an answer besides its value: its code, and the lengths.
const OVERHEAD: usize = 1 << 10;

/// The bytes beyond those that commands are expected to have: a list of keys has some more than it counts with.
const MARGIN: usize = 1 << 20;

impl ReceivedBytes {
    pub(super) fn new(places: Arc<CommandPlaces>) -> Self {
        ReceivedBytes { places, bytes: AtomicUsize::new(0), is_exceeded: AtomicBool::new(false) }
    }

    /// Begins to count for a new connection.
    pub(super) fn restart(&self) {
        self.is_exceeded.store(false, Ordering::Relaxed);
        self.settle();
    }

    /// Records that an answer has arrived whole.
    pub(super) fn settle(&self) {
        self.bytes.store(0, Ordering::Relaxed);
    }

    /// Whether the present connection has exceeded the bound.
    pub(super) fn is_exceeded(&self) -> bool {
        self.is_exceeded.load(Ordering::Relaxed)
    }

    /// Counts bytes, and notes whether they are more than the answers of all commands under way.
    fn count(&self, bytes: usize) {
        let all = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // The lock is taken beyond that alone.
        if all <= MARGIN {
            return;
        }
        let CommandLoad { commands, bytes } = self.places.under_way();
        if all > MARGIN + bytes + commands * (bounds::SHARED_VALUE + OVERHEAD) {
            self.is_exceeded.store(true, Ordering::Relaxed);
        }
    }
}

/// The error of a connection that has exceeded the bound.
pub(super) const TOO_LONG: &str = "an answer of the server is longer than the state of plugins has: over 1 MiB, besides \
                                   what the commands under way count with and 65 KiB for each; check what `[shared] redis` names";

impl TransportCounter for Arc<ReceivedBytes> {
    fn count_received(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
    }

    fn count_sent(&mut self, _: &[u8]) {}

    fn end_of_reads(&self) -> Option<Poll<io::Result<()>>> {
        self.is_exceeded().then(|| Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, TOO_LONG))))
    }
}
