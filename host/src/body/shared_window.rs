//! The window that the uploads of a client connection share over HTTP/2, and the time in which those that nothing reads
//! shut it: no client is slow for that time.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::net::deadline::Clock;
use crate::net::waiting_bytes::WaitingBytes;

/// The window that the uploads of a client connection share.
pub struct SharedWindow {
    /// The bytes of uploads that were read early, and that wait in memory.
    pub waiting: Arc<WaitingBytes>,
    /// The bytes of uploads that were read early, in memory and in files.
    early: Cell<u64>,
    /// The number of uploads that can shut the window by themselves.
    enough: usize,
    /// The number of uploads that are not read, for want of room.
    unread: Cell<usize>,
    /// The time since which the window may be shut; `None` while it is open.
    shut_since: Cell<Option<Instant>>,
    /// The time for which the window was shut before.
    shut: Cell<Duration>,
    clock: Rc<Clock>,
}

/// Counts an upload that is not read, until dropped.
pub struct UnreadUpload {
    window: Rc<SharedWindow>,
}

/// The bytes of one upload that were read early. Dropping it returns them.
pub struct EarlyShare {
    window: Rc<SharedWindow>,
    bytes: u64,
}

impl EarlyShare {
    /// Returns an empty share.
    pub fn new(window: &Rc<SharedWindow>) -> Self {
        EarlyShare { window: window.clone(), bytes: 0 }
    }

    /// Sets the number of bytes of the upload.
    pub fn set(&mut self, bytes: u64) {
        let early = &self.window.early;
        early.set(early.get() - self.bytes + bytes);
        self.bytes = bytes;
    }

    /// Whether all uploads of the connection have fewer than `max` bytes.
    pub fn has_room(&self, max: u64) -> bool {
        self.window.early.get() < max
    }
}

impl Drop for EarlyShare {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl SharedWindow {
    /// Returns the window of a connection, of which each stream may fill `stream_bytes`.
    pub fn new(bytes: usize, stream_bytes: usize, clock: Rc<Clock>) -> Rc<Self> {
        Rc::new(SharedWindow {
            waiting: Arc::new(WaitingBytes::new(bytes as u64)),
            early: Cell::new(0),
            enough: bytes.div_ceil(stream_bytes.max(1)),
            unread: Cell::new(0),
            shut_since: Cell::new(None),
            shut: Cell::new(Duration::ZERO),
            clock,
        })
    }

    /// Counts an upload that is not read from now on.
    pub fn leave_unread(self: &Rc<Self>) -> UnreadUpload {
        self.set_unread(self.unread.get() + 1);
        UnreadUpload { window: self.clone() }
    }

    /// Returns the time for which uploads that were not read have shut the window so far.
    pub fn time_shut(&self) -> Duration {
        let now = self.clock.now();
        self.shut.get() + self.shut_since.get().map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn set_unread(&self, unread: usize) {
        self.shut.set(self.time_shut());
        self.unread.set(unread);
        self.shut_since.set((unread >= self.enough).then(|| self.clock.now()));
    }
}

impl Drop for UnreadUpload {
    fn drop(&mut self) {
        self.window.set_unread(self.window.unread.get() - 1);
    }
}
