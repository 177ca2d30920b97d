//! Content that is read by some while it still comes in: one writer, readers on any worker.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::object::{Content, Pieces};
use crate::passage::BodyError;

/// Content on its way into the store.
#[derive(Debug)]
pub struct Fill {
    /// As its head says.
    length: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// From the first that somebody may still want.
    pieces: VecDeque<Bytes>,
    /// How many were before those.
    gone: usize,
    bytes: u64,
    end: Option<End>,
    /// It will not be kept: what all readers have had goes.
    passing: bool,
    /// None for one that has left.
    readers: Vec<Option<Reader>>,
    /// Of the writer, while it waits for readers.
    writer: Option<Waker>,
}

#[derive(Debug)]
struct Reader {
    /// The next piece.
    next: usize,
    /// To be woken when there is one.
    waiting: Option<Waker>,
}

#[derive(Debug, Clone)]
enum End {
    Whole(Option<HeaderMap>),
    Broken,
}

/// Of what is not kept so many pieces may wait for a slow reader.
const AHEAD: usize = 16;

/// The longest content that is put into one allocation.
const WHOLE: u64 = 1 << 20;

/// Pieces of longer content.
const PIECE: usize = 256 << 10;

/// Why a writer has to stop.
#[derive(Debug, PartialEq, Eq)]
pub struct Abandoned;

impl Fill {
    pub fn new(length: Option<u64>) -> Arc<Self> {
        Arc::new(Fill { length, state: Mutex::default() })
    }

    /// As the head says.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a piece.
    pub fn push(&self, piece: Bytes) {
        let mut state = self.state();
        state.bytes += piece.len() as u64;
        if !piece.is_empty() {
            state.pieces.push_back(piece);
        }
        state.wake();
    }

    /// Ready when the writer may go on: it waits for readers of what isn't kept, and stops when there are none.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Abandoned>> {
        let mut state = self.state();
        if !state.passing {
            return Poll::Ready(Ok(()));
        }
        if state.readers.iter().all(Option::is_none) {
            return Poll::Ready(Err(Abandoned));
        }
        if state.pieces.len() < AHEAD {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// It will not be kept.
    pub fn pass(&self) {
        let mut state = self.state();
        state.passing = true;
        state.forget();
    }

    /// All has come; gives what is to be stored.
    pub fn finish(&self, trailers: Option<HeaderMap>) -> Content {
        let mut state = self.state();
        state.end = Some(End::Whole(trailers.clone()));
        state.wake();
        let pieces: Vec<Bytes> = state.pieces.iter().cloned().collect();
        let length = state.bytes;
        drop(state);
        if trailers.is_none() && length <= WHOLE {
            let mut whole = BytesMut::with_capacity(length as usize);
            pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            return Content::Whole(whole.freeze());
        }
        Content::Pieces(Arc::new(Pieces { list: repacked(pieces), length, trailers }))
    }

    /// No more will come of it, which readers learn as a failure.
    pub fn fail(&self) {
        let mut state = self.state();
        state.end.get_or_insert(End::Broken);
        state.wake();
    }

    /// A reader from the beginning; none if that is gone.
    pub fn reader(self: &Arc<Self>) -> Option<Reading> {
        let mut state = self.state();
        if state.gone > 0 || matches!(state.end, Some(End::Broken)) {
            return None;
        }
        state.readers.push(Some(Reader { next: 0, waiting: None }));
        Some(Reading { fill: self.clone(), place: state.readers.len() - 1 })
    }
}

impl State {
    fn wake(&mut self) {
        self.readers.iter_mut().flatten().filter_map(|reader| reader.waiting.take()).for_each(Waker::wake);
    }

    /// Drops what all readers have had, where it isn't kept.
    fn forget(&mut self) {
        if !self.passing {
            return;
        }
        let is_wanted = |gone: usize| self.readers.iter().flatten().any(|reader| reader.next <= gone);
        while !is_wanted(self.gone) && self.pieces.pop_front().is_some() {
            self.gone += 1;
        }
        let is_alone = || self.readers.iter().all(Option::is_none);
        if self.pieces.len() < AHEAD || is_alone() {
            self.writer.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// What was read from connections holds on to their buffers: this doesn't.
fn repacked(pieces: Vec<Bytes>) -> Vec<Bytes> {
    let (mut packed, mut piece) = (Vec::new(), BytesMut::with_capacity(PIECE));
    for mut old in pieces {
        while !old.is_empty() {
            let part = old.split_to(old.len().min(PIECE - piece.len()));
            piece.extend_from_slice(&part);
            if piece.len() == PIECE {
                packed.push(std::mem::replace(&mut piece, BytesMut::with_capacity(PIECE)).freeze());
            }
        }
    }
    if !piece.is_empty() {
        packed.push(Bytes::copy_from_slice(&piece));
    }
    packed
}

/// A reader's place in content that still comes in.
#[derive(Debug)]
pub struct Reading {
    fill: Arc<Fill>,
    place: usize,
}

impl Reading {
    fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut guard = self.fill.state();
        let state = &mut *guard;
        let Some(Some(reader)) = state.readers.get_mut(self.place) else { return Poll::Ready(None) };
        let next = reader.next;
        if let Some(piece) = next.checked_sub(state.gone).and_then(|at| state.pieces.get(at)).cloned() {
            reader.next += 1;
            state.forget();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match state.end.clone() {
            None => {
                reader.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(End::Broken) => Poll::Ready(Some(Err("the upstream gave up within its response".into()))),
            // Trailers stand where the next piece would, once.
            Some(End::Whole(Some(trailers))) if next == state.gone + state.pieces.len() => {
                reader.next += 1;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Some(End::Whole(_)) => Poll::Ready(None),
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.fill.state();
        if let Some(reader) = state.readers.get_mut(self.place) {
            *reader = None;
        }
        state.forget();
    }
}

/// Stored content, or a part of it, on its way to a client.
#[derive(Debug)]
pub struct Stored {
    source: Source,
    /// Bytes to leave out before the first.
    skip: u64,
    /// Bytes to send; none for all there is, and the trailers.
    left: Option<u64>,
}

#[derive(Debug)]
enum Source {
    Whole(Bytes),
    Pieces(Arc<Pieces>, usize),
    Filling(Reading),
}

impl Stored {
    /// All of it; none if its beginning is gone.
    pub fn all(content: &Content) -> Option<Self> {
        let source = match content {
            Content::Whole(content) => Source::Whole(content.clone()),
            Content::Pieces(pieces) => Source::Pieces(pieces.clone(), 0),
            Content::Filling(fill) => Source::Filling(fill.reader()?),
        };
        Some(Stored { source, skip: 0, left: None })
    }

    /// What stands between parts.
    pub fn text(text: String) -> Self {
        let left = Some(text.len() as u64);
        Stored { source: Source::Whole(text.into()), skip: 0, left }
    }

    /// The bytes that are still to come, of a part.
    pub fn left(&self) -> Option<u64> {
        self.left
    }

    /// From an offset on so many bytes; none as above.
    pub fn part(content: &Content, offset: u64, length: u64) -> Option<Self> {
        Some(Stored { skip: offset, left: Some(length), ..Stored::all(content)? })
    }

    fn is_over(&self) -> bool {
        if self.left == Some(0) {
            return true;
        }
        match &self.source {
            Source::Whole(content) => content.is_empty(),
            Source::Pieces(pieces, next) => *next == pieces.list.len() && pieces.trailers.is_none(),
            Source::Filling(_) => false,
        }
    }

    fn poll_source(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Whole(content) if content.is_empty() => Poll::Ready(None),
            Source::Whole(content) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(content))))),
            Source::Pieces(pieces, next) => {
                *next += 1;
                let trailers = || pieces.trailers.clone().filter(|_| *next == pieces.list.len() + 1);
                let frame = pieces.list.get(*next - 1).cloned().map(Frame::data);
                Poll::Ready(frame.or_else(|| trailers().map(Frame::trailers)).map(Ok))
            }
            Source::Filling(reading) => reading.poll_next(cx),
        }
    }
}

impl Body for Stored {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if this.left == Some(0) {
                return Poll::Ready(None);
            }
            let frame = std::task::ready!(this.poll_source(cx));
            let Some(left) = &mut this.left else { return Poll::Ready(frame) };
            let mut piece = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => piece,
                    Err(_) => return Poll::Ready(None),
                },
                other => return Poll::Ready(other),
            };
            let skipped = this.skip.min(piece.len() as u64);
            this.skip -= skipped;
            let part = piece.split_off(skipped as usize);
            let part = part.slice(..(part.len() as u64).min(*left) as usize);
            if !part.is_empty() {
                *left -= part.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(left) = self.left {
            return SizeHint::with_exact(left);
        }
        match &self.source {
            Source::Whole(content) => SizeHint::with_exact(content.len() as u64),
            Source::Pieces(pieces, 0) if pieces.trailers.is_none() => SizeHint::with_exact(pieces.length),
            Source::Filling(reading) => reading.fill.length.map_or_else(SizeHint::default, SizeHint::with_exact),
            Source::Pieces(..) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stored: &mut Stored) -> Vec<u8> {
        let (mut cx, mut all) = (Context::from_waker(Waker::noop()), Vec::new());
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut *stored).poll_frame(&mut cx) {
            all.extend(frame.into_data().unwrap_or_default());
        }
        all
    }

    fn filled(pieces: &[&'static str]) -> (Arc<Fill>, Content) {
        let fill = Fill::new(None);
        pieces.iter().for_each(|piece| fill.push(Bytes::from_static(piece.as_bytes())));
        (fill.clone(), Content::Filling(fill))
    }

    #[test]
    fn readers_get_all_whenever_they_come() {
        let (fill, content) = filled(&["abc", "def"]);
        let mut early = Stored::all(&content).unwrap();
        assert_eq!(read(&mut early), b"abcdef");
        fill.push(Bytes::from_static(b"ghi"));
        let whole = fill.finish(None);
        let mut late = Stored::all(&content).unwrap();
        assert_eq!((read(&mut early), read(&mut late)), (b"ghi".to_vec(), b"abcdefghi".to_vec()));
        assert_eq!(read(&mut Stored::all(&whole).unwrap()), b"abcdefghi");
        assert_eq!(whole.length(), Some(9));
    }

    #[test]
    fn a_part_is_what_was_asked_for() {
        let (fill, content) = filled(&["abc", "def", "ghi"]);
        let pieces = Content::Pieces(Arc::new(Pieces {
            list: vec![Bytes::from_static(b"abcd"), Bytes::from_static(b"efghi")],
            length: 9,
            trailers: None,
        }));
        let whole = fill.finish(None);
        for content in [content, whole, pieces] {
            for (offset, length) in [(0, 9), (0, 1), (2, 3), (8, 1), (4, 5)] {
                let part = read(&mut Stored::part(&content, offset, length).unwrap());
                assert_eq!(part, &b"abcdefghi"[offset as usize..][..length as usize]);
            }
        }
    }

    #[test]
    fn trailers_come_last_and_once() {
        let (fill, content) = filled(&["abc"]);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("1"));
        let stored = fill.finish(Some(trailers));
        for content in [content, stored] {
            let (mut cx, mut body) = (Context::from_waker(Waker::noop()), Stored::all(&content).unwrap());
            let mut next = || match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => Some(frame.is_trailers()),
                _ => None,
            };
            assert_eq!([next(), next(), next()], [Some(false), Some(true), None]);
        }
    }

    #[test]
    fn what_is_not_kept_waits_for_its_slowest_reader_and_ends_with_the_last() {
        let (fill, content) = filled(&["abc"]);
        let mut cx = Context::from_waker(Waker::noop());
        let (mut quick, slow) = (Stored::all(&content).unwrap(), Stored::all(&content).unwrap());
        fill.pass();
        for _ in 1..AHEAD {
            assert_eq!(fill.poll_ready(&mut cx), Poll::Ready(Ok(())));
            fill.push(Bytes::from_static(b"d"));
        }
        read(&mut quick);
        assert!(fill.poll_ready(&mut cx).is_pending());
        drop(slow);
        assert_eq!(fill.poll_ready(&mut cx), Poll::Ready(Ok(())));
        assert!(Stored::all(&content).is_none(), "its beginning is gone");
        drop(quick);
        assert_eq!(fill.poll_ready(&mut cx), Poll::Ready(Err(Abandoned)));
    }

    #[test]
    fn broken_content_has_no_end_that_looks_like_one() {
        let (fill, content) = filled(&["abc"]);
        let mut body = Stored::all(&content).unwrap();
        read(&mut body);
        fill.fail();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(Pin::new(&mut body).poll_frame(&mut cx), Poll::Ready(Some(Err(_)))));
    }

    #[test]
    fn long_content_is_repacked() {
        let fill = Fill::new(None);
        for _ in 0..3 {
            fill.push(Bytes::from(vec![7; 700 << 10]));
        }
        let Content::Pieces(pieces) = fill.finish(None) else { panic!("2.1 MiB in one allocation") };
        assert_eq!(pieces.length, 3 * (700 << 10));
        assert!(pieces.list[..pieces.list.len() - 1].iter().all(|piece| piece.len() == PIECE));
        assert_eq!(pieces.list.iter().map(Bytes::len).sum::<usize>(), 3 * (700 << 10));
    }
}
