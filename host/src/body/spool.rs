//! The bytes of a body that wait for a slower peer: in memory first, then in a file, in order. One task puts them in and
//! takes them out. A spool delays nothing: bytes can be taken as soon as they are in, and need not pass the file.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep};

use super::buffer_space::{BufferSpace, MemoryPurpose, MemoryShare};
use super::joined_pieces::JoinedPieces;
use super::spill_file::{FileReader, SpillFile};
use crate::net::waiting_bytes::WaitingBytes;

/// The bytes of a body that wait for a slower peer.
#[derive(Debug)]
pub struct Spool {
    /// The pieces before those in the file.
    front: JoinedPieces,
    /// The file with the bytes behind `front`; `None` while all bytes are in memory.
    disk: Option<Box<DiskPart>>,
    share: MemoryShare,
    /// The number of bytes that wait.
    bytes: u64,
    /// The number of bytes beyond which no further piece is put in.
    max: u64,
    overflow: Overflow,
    /// Whether no further piece will be put in.
    is_whole: bool,
    /// The wait before a file is begun; `None` while there is room in memory.
    patience: Option<Patience>,
}

/// The place of bytes that the memory has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The bytes go into a file.
    File,
    /// The bytes have no place: no further piece is put in.
    Refused,
}

/// The answer to the question whether a further piece may be put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Free,
    /// No room now; the waiting task is woken when there is.
    Awaited,
    /// No room until bytes are taken out; nothing wakes the task.
    Full,
}

/// The whole content of a spool, which can be read any number of times.
#[derive(Debug)]
pub struct SpooledContent {
    pub front: Vec<Bytes>,
    /// The file, and the number of bytes in it.
    pub file: Option<(Arc<SpillFile>, u64)>,
    pub back: Vec<Bytes>,
    /// The memory of the pieces.
    _share: MemoryShare,
}

/// The file of a spool, and the pieces behind its content.
#[derive(Debug)]
struct DiskPart {
    file: Arc<SpillFile>,
    reader: FileReader,
    /// The place behind the last byte that is written.
    written: u64,
    /// The length for which the disk has reserved room.
    reserved: u64,
    /// Whether the disk had no room for more at the last attempt.
    is_full: bool,
    /// Whether no further piece had room at the last attempt: then no piece waits in memory for a longer write.
    is_paused: bool,
    /// The write that is under way.
    write: Option<Write>,
    /// The pieces that are not written yet.
    back: JoinedPieces,
    back_bytes: u64,
}

/// Pieces that are being written behind the content of a file.
#[derive(Debug)]
struct Write {
    task: JoinHandle<io::Result<Duration>>,
    /// The pieces of the write that no reader has taken in the meantime.
    left: VecDeque<Bytes>,
    /// The number of all pieces of the write, which have `bytes` bytes.
    pieces: usize,
    bytes: u64,
}

/// The time for which the memory has had no room for a body.
#[derive(Debug)]
struct Patience {
    sleep: Pin<Box<Sleep>>,
    /// The number of bytes that were taken since the time began.
    taken: u64,
}

/// The time for which a body may fill its memory before a file is begun: a fast peer reads the whole body in this time.
const PATIENCE: Duration = Duration::from_millis(20);

/// The number of bytes that a peer reads within [`PATIENCE`] if the body needs no file: 100 MiB in a second.
const FAST: u64 = 2 << 20;

/// The minimum number of bytes of a write, except the last.
const BLOCK: u64 = 256 << 10;

/// The time after which a write is slow.
const SLOW_WRITE: Duration = Duration::from_secs(1);

impl Spool {
    /// Returns an empty spool of at most `max` bytes and one piece.
    pub fn new(space: &Rc<BufferSpace>, max: u64, overflow: Overflow) -> Self {
        let share = MemoryShare::new(space);
        Spool {
            front: JoinedPieces::default(),
            disk: None,
            share,
            bytes: 0,
            max,
            overflow,
            is_whole: false,
            patience: None,
        }
    }

    /// Counts the memory of the spool among the bytes that wait for a client. Requires that the spool is empty.
    pub fn for_client(mut self, client: &Arc<WaitingBytes>) -> Self {
        self.share.count_for(client);
        self
    }

    /// Returns the number of bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether a further piece of at most `piece` bytes may be put in.
    pub fn room(&mut self, piece: usize, cx: &mut Context<'_>) -> Room {
        self.drive(cx);
        if self.bytes >= self.max {
            return Room::Full;
        }
        if self.disk.is_some() && self.overflow == Overflow::File {
            return self.room_in_file(piece, cx);
        }
        if self.share.has_room(piece, MemoryPurpose::Wait) {
            return Room::Free;
        }
        if self.overflow == Overflow::Refused || !self.share.space().may_spill() {
            return Room::Full;
        }
        // Others have all the memory, even that on the way into files.
        if self.front.is_empty() && !self.share.has_room(piece, MemoryPurpose::Pass) {
            return Room::Full;
        }
        let patience = self.patience.get_or_insert_with(Patience::new);
        if patience.sleep.as_mut().poll(cx).is_pending() {
            return Room::Awaited;
        }
        self.patience = None;
        if !self.begin_file() {
            self.overflow = Overflow::Refused;
            return Room::Full;
        }
        self.room(piece, cx)
    }

    /// Returns whether a further piece may be put in, which will pass to the file.
    fn room_in_file(&mut self, piece: usize, cx: &mut Context<'_>) -> Room {
        let Some(disk) = &mut self.disk else { return Room::Full };
        let may_pass = self.share.has_room(piece, MemoryPurpose::Pass) && disk.end() < self.max;
        disk.is_paused = !(may_pass && disk.reserve(piece as u64, self.share.space()));
        if !disk.is_paused {
            return Room::Free;
        }
        self.drive(cx);
        match self.disk.as_ref().is_some_and(|disk| disk.write.is_some()) {
            true => Room::Awaited,
            false => Room::Full,
        }
    }

    /// Puts a piece behind the others.
    pub fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        let length = piece.len();
        self.bytes += length as u64;
        let is_joined = match &mut self.disk {
            Some(disk) => disk.push(piece),
            None => self.front.push(piece),
        };
        match is_joined {
            true => self.share.extend(length),
            false => self.share.add(length),
        }
    }

    /// Records that no further piece will be put in.
    pub fn finish(&mut self) {
        self.is_whole = true;
    }

    /// Takes the next piece out; `None` if no bytes wait. The error means that bytes in the file are lost.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.drive(cx);
        let piece = match self.front.pop() {
            Some(piece) => {
                self.share.remove(piece.len());
                piece
            }
            None => match &mut self.disk {
                None => return Poll::Ready(None),
                Some(disk) => match ready!(disk.poll_next(&mut self.share, cx)) {
                    None => return Poll::Ready(None),
                    Some(Ok(piece)) => piece,
                    Some(Err(error)) => {
                        self.share.space().record_failure(&error);
                        return Poll::Ready(Some(Err(error)));
                    }
                },
            },
        };
        self.bytes -= piece.len() as u64;
        if let Some(patience) = &mut self.patience {
            patience.taken += piece.len() as u64;
        }
        self.leave_empty_file();
        Poll::Ready(Some(Ok(piece)))
    }

    /// Puts a piece that was taken out too early in front of the others.
    pub fn put_back(&mut self, piece: Bytes) {
        self.share.add(piece.len());
        self.bytes += piece.len() as u64;
        self.front.push_front(piece);
    }

    /// Waits until no write is under way.
    pub fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.drive(cx);
        match self.disk.as_ref().is_some_and(|disk| disk.write.is_some()) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }

    /// Returns the whole spool as content. Requires that nothing was taken out and that no write is under way.
    pub fn into_content(mut self) -> SpooledContent {
        let front = std::mem::take(&mut self.front).into_pieces().into();
        let empty = MemoryShare::new(self.share.space());
        let share = std::mem::replace(&mut self.share, empty);
        let (file, back) = match self.disk.take() {
            Some(disk) => (Some((disk.file, disk.written)), disk.back.into_pieces().into()),
            None => (None, Vec::new()),
        };
        SpooledContent { front, file, back, _share: share }
    }

    /// Begins a file for all bytes. They can be taken out of memory until they are written. Returns `false` if the disk has
    /// no room for them, or there is no descriptor.
    fn begin_file(&mut self) -> bool {
        let space = self.share.space();
        let Some(file) = SpillFile::new(space) else { return false };
        let mut disk = Box::new(DiskPart {
            file,
            reader: FileReader::default(),
            written: 0,
            reserved: 0,
            is_full: false,
            is_paused: false,
            write: None,
            back: JoinedPieces::default(),
            back_bytes: 0,
        });
        if !disk.reserve(self.bytes, space) {
            return false;
        }
        space.record_spill();
        (disk.back, disk.back_bytes) = (std::mem::take(&mut self.front), self.bytes);
        self.disk = Some(disk);
        true
    }

    /// Records finished writes, and begins the next one.
    fn drive(&mut self, cx: &mut Context<'_>) {
        let Some(patience) = &mut self.patience else { return self.drive_writes(cx) };
        // A peer that takes this much needs no file.
        if patience.taken >= FAST {
            *patience = Patience::new();
        }
    }

    fn drive_writes(&mut self, cx: &mut Context<'_>) {
        let Some(disk) = &mut self.disk else { return };
        loop {
            if let Some(write) = &mut disk.write {
                let Poll::Ready(done) = Pin::new(&mut write.task).poll(cx) else { return };
                let done = done.map_err(io::Error::other).and_then(|done| done);
                let space = self.share.space();
                match done {
                    Ok(took) if took >= SLOW_WRITE => space.record_slow_write(took),
                    Ok(_) => {}
                    Err(error) => {
                        space.record_failure(&error);
                        self.overflow = Overflow::Refused;
                        disk.take_back(&mut self.share);
                        return;
                    }
                }
                disk.finish_write(&mut self.share);
            }
            // No more arrives until bytes are taken, which may be long.
            let is_last = self.is_whole || disk.is_paused || disk.end() >= self.max;
            let enough = if is_last { 1 } else { BLOCK };
            if self.overflow == Overflow::Refused || disk.back_bytes < enough {
                return;
            }
            disk.begin_write(self.share.space());
        }
    }

    /// Closes a file of which all was read, so that the next bytes wait in memory again.
    fn leave_empty_file(&mut self) {
        let is_over = |disk: &mut Box<DiskPart>| disk.write.is_none() && disk.reader.at() == disk.written;
        if let Some(disk) = self.disk.take_if(is_over) {
            self.front.append(disk.back);
            disk.file.close();
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(disk) = self.disk.take() {
            disk.file.close();
        }
    }
}

impl SpooledContent {
    /// Returns content that is in memory already, and that takes nothing of the space.
    pub fn in_memory(content: Bytes, space: &Rc<BufferSpace>) -> Self {
        SpooledContent { front: vec![content], file: None, back: Vec::new(), _share: MemoryShare::new(space) }
    }
}

impl Drop for SpooledContent {
    fn drop(&mut self) {
        if let Some((file, _)) = self.file.take() {
            file.close();
        }
    }
}

impl Patience {
    fn new() -> Self {
        Patience { sleep: Box::pin(sleep(PATIENCE)), taken: 0 }
    }
}

impl DiskPart {
    /// Adds a piece. Returns whether it was joined with the piece before.
    fn push(&mut self, piece: Bytes) -> bool {
        self.back_bytes += piece.len() as u64;
        self.back.push(piece)
    }

    /// Returns the length that the file will have once all is written.
    fn end(&self) -> u64 {
        self.written + self.write.as_ref().map_or(0, |write| write.bytes) + self.back_bytes
    }

    /// Reserves room on disk for more bytes behind all others. Returns whether there is room.
    fn reserve(&mut self, bytes: u64, space: &BufferSpace) -> bool {
        let end = self.end() + bytes;
        if end > self.reserved {
            let more = (end - self.reserved).max(BLOCK);
            if !self.file.grow(more, space) {
                if !std::mem::replace(&mut self.is_full, true) {
                    space.record_full();
                }
                return false;
            }
            self.reserved += more;
        }
        self.is_full = false;
        true
    }

    /// Begins to write all pieces that are not in the file yet.
    fn begin_write(&mut self, space: &BufferSpace) {
        let left = std::mem::take(&mut self.back).into_pieces();
        let bytes = std::mem::take(&mut self.back_bytes);
        let pieces: Vec<Bytes> = left.iter().cloned().collect();
        let count = pieces.len();
        let task = self.file.write(self.written, pieces, space);
        self.write = Some(Write { task, left, pieces: count, bytes });
    }

    fn finish_write(&mut self, share: &mut MemoryShare) {
        let Some(write) = self.write.take() else { return };
        share.remove_all(write.pieces, write.bytes);
        self.written += write.bytes;
    }

    /// Takes back the pieces of a write that has failed.
    fn take_back(&mut self, share: &mut MemoryShare) {
        let Some(write) = self.write.take() else { return };
        let left: u64 = write.left.iter().map(|piece| piece.len() as u64).sum();
        share.remove_all(write.pieces - write.left.len(), write.bytes - left);
        self.back_bytes += left;
        write.left.into_iter().rev().for_each(|piece| self.back.push_front(piece));
        self.reader.go_to(self.reader.at().min(self.written));
    }

    /// Returns the next bytes: those in the file, then those of the write that is under way.
    fn poll_next(&mut self, share: &mut MemoryShare, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.reader.at() < self.written {
            return self.reader.poll_next(&self.file, self.written, cx).map(Some);
        }
        if let Some(write) = &mut self.write
            && let Some(piece) = write.left.pop_front()
        {
            self.reader.go_to(self.reader.at() + piece.len() as u64);
            return Poll::Ready(Some(Ok(piece)));
        }
        let Some(piece) = self.back.pop() else { return Poll::Ready(None) };
        self.back_bytes -= piece.len() as u64;
        share.remove(piece.len());
        Poll::Ready(Some(Ok(piece)))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::body::buffer_space::BufferUse;
    use crate::body::buffer_space::tests::space;

    /// A piece whose bytes tell its place in the body.
    fn piece(number: u64) -> Bytes {
        Bytes::from(
            (0..PIECE / 8)
                .flat_map(|place| (number * PIECE as u64 + 8 * place as u64).to_le_bytes())
                .collect::<Vec<u8>>(),
        )
    }

    const PIECE: usize = 64 << 10;

    fn spool(folder: &Path, max: u64, overflow: Overflow) -> (Arc<BufferUse>, Spool) {
        let (usage, space) = space(folder);
        (usage, Spool::new(&space, max, overflow))
    }

    /// Puts pieces in for as long as there is room; returns how many.
    async fn fill(spool: &mut Spool, first: u64) -> u64 {
        let mut number = first;
        loop {
            let room = poll_fn(|cx| match spool.room(PIECE, cx) {
                Room::Awaited => Poll::Pending,
                room => Poll::Ready(room),
            });
            if room.await == Room::Full {
                return number - first;
            }
            spool.push(piece(number));
            number += 1;
        }
    }

    /// Takes out `pieces` pieces of bytes, and checks that they follow each other.
    async fn take(spool: &mut Spool, mut place: u64, pieces: u64) -> u64 {
        let end = place + pieces * PIECE as u64;
        while place < end {
            let Some(taken) = poll_fn(|cx| spool.poll_next(cx)).await else { return place };
            let taken = taken.unwrap();
            for word in taken.chunks(8) {
                assert_eq!(word, place.to_le_bytes());
                place += 8;
            }
        }
        place
    }

    async fn until_closed(usage: &BufferUse) {
        while (usage.memory(), usage.files()) != (0, 0) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn bytes_beyond_the_memory_go_into_a_file_and_are_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (usage, mut spool) = spool(folder.path(), 8 << 20, Overflow::File);
        let pieces = fill(&mut spool, 0).await;
        assert!((8 << 20..9 << 20).contains(&(pieces * PIECE as u64)), "{pieces}");
        assert!(usage.files() > 6 << 20 && usage.memory() < 2 << 20 && usage.spills() == 1);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
        let place = take(&mut spool, 0, pieces / 2).await;
        // Pieces that arrive meanwhile follow the others.
        let more = fill(&mut spool, pieces).await;
        let end = take(&mut spool, place, pieces + more).await;
        assert_eq!((end, spool.bytes()), ((pieces + more) * PIECE as u64, 0));
        until_closed(&usage).await;
        assert_eq!((fill(&mut spool, 0).await * PIECE as u64) >> 20, 8, "the spool is as new");
        drop(spool);
        until_closed(&usage).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn bodies_that_fill_the_disk_hold_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let (usage, space) = space(folder.path());
        let mut spools: Vec<Spool> = (0..4).map(|_| Spool::new(&space, 6 << 20, Overflow::File)).collect();
        let mut pieces = Vec::new();
        for spool in &mut spools[..3] {
            pieces.push(fill(spool, 0).await);
            poll_fn(|cx| spool.poll_settled(cx)).await;
        }
        assert!(usage.files() <= 16 << 20 && usage.files() > 15 << 20, "{}", usage.files());
        assert_eq!((usage.memory(), usage.refusals()), (0, 1));
        // The last finds no room for a file of its own.
        pieces.push(fill(&mut spools[3], 0).await);
        assert_eq!((pieces[3], usage.refusals()), (15, 2));
        for (spool, pieces) in spools.iter_mut().zip(pieces) {
            assert_eq!(take(spool, 0, 999).await, pieces * PIECE as u64);
        }
        until_closed(&usage).await;
        assert_eq!((fill(&mut spools[2], 0).await * PIECE as u64) >> 20, 6, "there is room again");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_body_that_finds_the_memory_full_writes_all_that_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let (usage, space) = space(folder.path());
        let (mut spool, mut others) = (Spool::new(&space, 8 << 20, Overflow::File), MemoryShare::new(&space));
        others.add(13 << 20);
        let room = poll_fn(|cx| match spool.room(PIECE, cx) {
            Room::Awaited => Poll::Pending,
            room => Poll::Ready(room),
        });
        assert_eq!(room.await, Room::Free, "it may pass into its file");
        spool.push(piece(0));
        others.add((16 << 20) - usage.memory() as usize - 64);
        let few = fill(&mut spool, 1).await;
        poll_fn(|cx| spool.poll_settled(cx)).await;
        drop(others);
        assert_eq!((usage.memory(), spool.bytes()), (0, (1 + few) * PIECE as u64));
        let more = fill(&mut spool, 1 + few).await;
        assert_eq!(take(&mut spool, 0, 999).await, (1 + few + more) * PIECE as u64);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn bodies_for_one_client_share_its_memory() {
        let (usage, space) = space(Path::new("/"));
        let client = Arc::new(WaitingBytes::new(1 << 20));
        let spool = || Spool::new(&space, 8 << 20, Overflow::Refused).for_client(&client);
        let (mut one, mut other) = (spool(), spool());
        assert_eq!((fill(&mut one, 0).await, fill(&mut other, 0).await), (15, 0));
        assert_eq!(take(&mut one, 0, 99).await, 15 * PIECE as u64);
        assert_eq!(fill(&mut other, 0).await, 15);
        drop(other);
        assert_eq!(fill(&mut one, 0).await, 15);
        drop(one);
        assert_eq!(usage.memory(), 0);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn without_a_file_the_memory_is_the_bound() {
        let (usage, mut spool) = spool(Path::new("/"), 8 << 20, Overflow::Refused);
        assert_eq!(fill(&mut spool, 0).await, 15, "a sixteenth of the memory");
        assert_eq!(take(&mut spool, 0, 99).await, 15 * PIECE as u64);
        assert_eq!((usage.memory(), usage.spills()), (0, 0));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_folder_that_cannot_be_written_loses_nothing() {
        let (usage, mut spool) = spool(Path::new("/nonexistent"), 8 << 20, Overflow::File);
        let pieces = fill(&mut spool, 0).await;
        assert!((10..40).contains(&pieces), "{pieces}");
        assert_eq!(take(&mut spool, 0, 99).await, pieces * PIECE as u64);
        assert_eq!((usage.memory(), usage.files(), usage.refusals()), (0, 0, 1));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn all_that_was_put_in_can_be_had_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (usage, mut spool) = spool(folder.path(), 8 << 20, Overflow::File);
        let pieces = fill(&mut spool, 0).await;
        poll_fn(|cx| spool.poll_settled(cx)).await;
        let content = spool.into_content();
        let (_, in_file) = content.file.as_ref().unwrap();
        let in_memory: usize = content.front.iter().chain(&content.back).map(Bytes::len).sum();
        assert_eq!(in_memory as u64 + in_file, pieces * PIECE as u64);
        drop(content);
        until_closed(&usage).await;
    }
}
