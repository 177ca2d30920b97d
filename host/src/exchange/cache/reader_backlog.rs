//! Content of a response that is too long for the store, while it waits for the slower of the clients that share its
//! fetch: a little of it in memory, more in files of `[buffers]`, so that clients of about the same rate hold each other
//! up no more than clients with fetches of their own.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use crate::body::buffer_space::BufferSpace;
use crate::body::spill_file::SpillFile;
use crate::net::waiting_bytes::WaitingBytes;
use crate::store::shared_body::{MIN_WINDOW, SharedBody};
use crate::system::descriptor_shares::DescriptorUse;

/// The content that waits for the slower readers of a shared body.
pub struct ReaderBacklog {
    space: Rc<BufferSpace>,
    /// The number of bytes by which a reader may be behind: the route's `response-buffer`.
    max: u64,
    /// The file that is written, with the number of its bytes; `None` if the next piece begins a file.
    file: Option<(Arc<SpillFile>, u64)>,
    /// Whether the disk had no room for more at the last attempt.
    is_full: bool,
    /// The time that readers have waited for slower ones since progress was last measured.
    waited: Duration,
    window: ReadWindow,
}

/// The bytes of content that is not stored that may wait in memory for readers. They grow as long as the readers keep up,
/// within the bytes that may wait for the client that the content is fetched for.
struct ReadWindow {
    client: Arc<WaitingBytes>,
    bytes: u64,
}

impl ReaderBacklog {
    pub fn new(space: Rc<BufferSpace>, max: u64, client: Arc<WaitingBytes>) -> Self {
        let window = ReadWindow { client, bytes: MIN_WINDOW };
        ReaderBacklog { space, max, file: None, is_full: false, waited: Duration::ZERO, window }
    }

    /// Returns the number of bytes of the next piece.
    pub fn next_read(&self) -> usize {
        (self.window.bytes / 2) as usize
    }

    /// Returns a piece in memory of its own if it is short: it would keep all of the memory that it was read into.
    pub fn own(&self, piece: Bytes) -> Bytes {
        if piece.len() as u64 <= MIN_WINDOW / 2 { Bytes::copy_from_slice(&piece) } else { piece }
    }

    /// Waits until there is room for the next piece, and lets more wait if the readers had read all.
    pub async fn make_room(&mut self, body: &SharedBody) {
        self.wait_for_room(body).await;
        if body.in_memory() == 0 && self.window.grow() {
            body.set_window(self.window.bytes);
        }
    }

    /// Waits until there is room for the next piece: the slower readers have made it, or a file has taken their pieces.
    /// A reader that makes too little progress is cut off if others wait for more: a slow client must not decide what
    /// the others get.
    async fn wait_for_room(&mut self, body: &SharedBody) {
        if !body.is_behind()
            && let Some((file, _)) = self.file.take()
        {
            file.close();
        }
        let mut ready = pin!(poll_fn(|cx| body.poll_ready(cx).map(drop)));
        loop {
            // Clients read in bursts: a first wait begins no file, and each later one continues it at once.
            if body.is_behind() {
                self.spill(body).await;
            }
            if timeout(STEP, &mut ready).await.is_ok() {
                return;
            }
            if self.spill(body).await || !body.has_waiting_reader() {
                continue;
            }
            self.waited += STEP;
            if self.waited >= WINDOW {
                self.waited = Duration::ZERO;
                body.leave_behind(MIN_RATE * WINDOW.as_secs());
            }
        }
    }

    /// Writes the pieces that slower readers have not read into a file, as far as there is room. Returns whether any were
    /// written.
    async fn spill(&mut self, body: &SharedBody) -> bool {
        if !self.space.may_spill() {
            return false;
        }
        let mut has_written = false;
        while let Some((at, pieces)) = body.next_to_spill(self.max) {
            let bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
            let Some(file) = self.file_for(bytes) else { return has_written };
            let written = file.write(at, pieces, &self.space).await;
            match written.map_err(std::io::Error::other).and_then(|written| written) {
                Ok(_) => body.set_spilled(at, at + bytes, file),
                Err(error) => {
                    self.file = None;
                    self.space.record_failure(&error);
                    return has_written;
                }
            }
            has_written = true;
        }
        has_written
    }

    /// Waits until little of a body that has arrived waits in memory: its readers have read it, or a file has taken it.
    pub async fn drain(&mut self, body: &SharedBody, mut drained: impl FnMut(u64)) {
        loop {
            while self.spill(body).await {}
            drained(body.in_memory());
            if body.in_memory() <= 2 * self.window.bytes || body.is_unread() {
                return;
            }
            sleep(STEP).await;
        }
    }

    /// Takes the descriptor of a file; `None` if there is none for files of bodies.
    pub fn descriptor(&self) -> Option<DescriptorUse> {
        self.space.descriptor()
    }

    /// Returns the file for more bytes; `None` if the disk has no room, or there is no descriptor.
    fn file_for(&mut self, bytes: u64) -> Option<Arc<SpillFile>> {
        if self.file.as_ref().is_none_or(|(_, length)| *length >= FILE) {
            let file = SpillFile::new(&self.space)?;
            if self.file.is_none() {
                self.space.record_spill();
            }
            self.file = Some((file, 0));
        }
        let (file, length) = self.file.as_mut()?;
        if !file.grow(bytes, &self.space) {
            if !std::mem::replace(&mut self.is_full, true) {
                self.space.record_full();
            }
            return None;
        }
        self.is_full = false;
        *length += bytes;
        Some(file.clone())
    }
}

impl ReadWindow {
    /// Doubles the window, unless it is long enough or the client has no room. Returns whether it has grown.
    fn grow(&mut self) -> bool {
        let may_grow = self.bytes < MAX_WINDOW && self.client.has_room(self.bytes);
        if may_grow {
            self.client.add(self.bytes);
            self.bytes *= 2;
        }
        may_grow
    }
}

impl Drop for ReadWindow {
    fn drop(&mut self) {
        self.client.remove(self.bytes - MIN_WINDOW);
    }
}

/// The largest window, in bytes: two pieces of the usual length.
const MAX_WINDOW: u64 = 256 << 10;

/// The length of a file after which another is begun, in bytes: the room of those that all readers have passed is free.
const FILE: u64 = 16 << 20;

/// The shortest wait that counts. A reader that takes a piece in less time is fast enough.
const STEP: Duration = Duration::from_millis(100);

/// The time that readers wait for slower ones until the progress of those is measured.
const WINDOW: Duration = Duration::from_secs(10);

/// The least bytes per second that a reader has to take while others wait for it. A client that is slower than any
/// usual network, and has fallen behind by all that may wait, costs the others more than it gains.
const MIN_RATE: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Waker};

    use http_body::Body;

    use super::*;
    use crate::body::buffer_space::tests::space;
    use crate::store::stored_body::StoredBody;
    use crate::store::stored_response::Content;

    /// Writes as long as there is room, then lets the reader read all if it does read; returns the length of the last piece.
    async fn written(reads: bool, max: u64) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let (_, space) = space(folder.path());
        let client = Arc::new(WaitingBytes::new(max));
        let (body, mut backlog) = (SharedBody::new(None), ReaderBacklog::new(space, 1 << 30, client.clone()));
        let mut reader = StoredBody::all(&Content::Filling(body.clone())).unwrap();
        body.push("begun".into());
        body.pass();
        let mut length = 0;
        for _ in 0..40 {
            let Ok(()) = timeout(STEP * 2, backlog.make_room(&body)).await else { break };
            length = backlog.next_read();
            body.push(vec![7; length].into());
            let mut cx = Context::from_waker(Waker::noop());
            while reads && Pin::new(&mut reader).poll_frame(&mut cx).is_ready() {}
        }
        drop(backlog);
        assert!(client.has_room(max), "all is given back");
        length
    }

    #[tokio::test]
    async fn pieces_become_longer_as_long_as_the_readers_keep_up() {
        assert_eq!(written(true, 1 << 20).await, 128 << 10);
        assert_eq!(written(true, 40 << 10).await, 16 << 10, "the client has no more room");
        assert_eq!(written(false, 1 << 20).await, 8 << 10);
    }
}
