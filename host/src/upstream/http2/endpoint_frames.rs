//! The frames of an endpoint that speaks HTTP/2. Its connection ends if it sends far more of them than its responses
//! explain: h2 handles PINGs, SETTINGS and the like without end, on a worker that has others to serve.
#![expect(
    clippy::disallowed_methods,
    reason = "h2 gives its sockets no clock of a worker, and allowances grow with time"
)]

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::informational;
use super::response_body::ShortPieces;
use crate::net::counted_transport::TransportCounter;
use crate::protocol::http2_frames::budget::{FrameBudget, FrameKind};
use crate::protocol::http2_frames::turn::FrameTurn;
use crate::protocol::http2_frames::{
    CONTINUATION, DATA, END_STREAM, ENHANCE_YOUR_CALM, FIRST_WINDOW, FrameHead, FrameScanner, FrameValue, HEADERS,
    MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE, PREFACE, RST_STREAM, SETTING_LENGTH, SETTINGS, SHORT_DATA,
};

/// The counter of an endpoint's frames. Reads fail once a kind of frame is beyond its allowance.
pub struct EndpointFrames {
    incoming: FrameScanner,
    outgoing: FrameScanner,
    budget: FrameBudget,
    turn: FrameTurn,
    heads: Heads,
    reports: Rc<FrameReports>,
    /// Whether the endpoint has sent something.
    has_begun: bool,
    /// The number of settings that are left in the endpoint's first frame of them; `None` before that frame.
    settings_left: Cell<Option<usize>>,
    flood: Option<Flood>,
}

/// The facts about a connection that its frames show, and that h2 doesn't report.
#[derive(Debug)]
pub struct FrameReports {
    /// The longest list of fields that the endpoint says it accepts, in bytes.
    pub max_request_head: Cell<u32>,
    /// The number of streams that the endpoint says it accepts at a time; `u32::MAX` as long as it names none.
    announced_streams: Cell<u32>,
    /// Whether the endpoint's first settings are read.
    is_settled: Cell<bool>,
    /// Notified when the endpoint's first settings are read, or can't come any more.
    pub settled: Notify,
    /// Notified when an exchange has left the connection; unset as long as none is shared.
    pub freed: OnceCell<Rc<Notify>>,
    /// The short pieces of content that wait for their exchanges.
    pub short_pieces: Rc<ShortPieces>,
    /// The number of frames that were received.
    pub received: Cell<usize>,
    /// The last stream of which the transport has accepted the request's head.
    pub last_sent: Cell<u32>,
    /// The number of streams that this side has reset.
    pub resets: Cell<usize>,
    /// The bytes of content that the endpoint accepts on the connection before it extends the window (RFC 9113 §6.9).
    window: Cell<i64>,
    /// The time since which the endpoint accepts no content; `None` while it accepts some.
    shut_since: Cell<Option<Instant>>,
    /// Whether the endpoint has reset a stream because the connection takes too much of its resources.
    pub is_overloaded: Cell<bool>,
    /// The protocol in which the endpoint has begun.
    pub beginning: Cell<Beginning>,
    /// The kind of frames of which the endpoint has sent too many; `None` if it has not.
    pub flood: Cell<Option<&'static str>>,
}

/// The protocol of the first bytes that an endpoint sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beginning {
    /// The bytes may be frames, or there are none yet.
    #[default]
    Http2,
    /// The bytes are a response of HTTP/1.
    Http1,
    /// The bytes are of another protocol.
    Other,
}

/// The heads that an endpoint sends.
struct Heads {
    /// The limit of the heads before a response's own, in bytes.
    limit: usize,
    /// Heads and trailers that the endpoint may send on all streams.
    left: usize,
    /// The bytes of heads on each stream that has not ended.
    streams: HashMap<u32, usize>,
}

/// The frames that are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    Kind(&'static str),
    /// Heads before a response's own.
    Interim,
}

/// The minimum number of bytes that a head counts: the memory that it takes once it is decoded.
const MIN_HEAD_BYTES: usize = 1 << 10;

/// The bytes of a response's head and its trailers, as they count beside those of informational responses.
const OWN_HEADS: usize = 3 * MIN_HEAD_BYTES;

/// The time without a window after which an endpoint is no longer about to extend it: some round trips within a site. An
/// endpoint that is farther away may get another connection, which costs less than a wait for one that never reads.
const SHUT: Duration = Duration::from_millis(20);

/// Streams whose heads are counted: more than any endpoint serves at a time.
const MAX_STREAMS: usize = 1 << 16;

impl EndpointFrames {
    /// Returns the counter of a connection whose preface hasn't been sent yet. The limit of a response's head, in bytes,
    /// holds for informational responses before it too. What the frames show is written to `reports`.
    pub fn new(limit: usize, reports: Rc<FrameReports>) -> Self {
        let (incoming, outgoing) = (FrameScanner::after(0), FrameScanner::after(PREFACE.len()));
        let heads = Heads { limit, left: 0, streams: HashMap::new() };
        EndpointFrames {
            incoming,
            outgoing,
            budget: FrameBudget::new(Instant::now()),
            turn: FrameTurn::default(),
            heads,
            reports,
            has_begun: false,
            settings_left: Cell::default(),
            flood: None,
        }
    }
}

impl Default for FrameReports {
    /// Returns the reports of a connection on which no frame was sent or received.
    fn default() -> Self {
        FrameReports {
            max_request_head: Cell::new(u32::MAX),
            announced_streams: Cell::new(u32::MAX),
            is_settled: Cell::default(),
            settled: Notify::new(),
            freed: OnceCell::new(),
            short_pieces: Rc::default(),
            received: Cell::default(),
            last_sent: Cell::default(),
            resets: Cell::default(),
            window: Cell::new(FIRST_WINDOW.into()),
            shut_since: Cell::default(),
            is_overloaded: Cell::default(),
            beginning: Cell::default(),
            flood: Cell::default(),
        }
    }
}

impl FrameReports {
    /// Returns the number of streams that may be open at a time. Before the endpoint's settings are read it is one: an
    /// endpoint may reset all streams beyond its number, and take them for an attack.
    pub fn max_streams(&self) -> usize {
        if self.is_settled.get() { self.announced_streams.get().max(1) as usize } else { 1 }
    }

    /// Whether the endpoint's first settings are read.
    pub fn is_settled(&self) -> bool {
        self.is_settled.get()
    }

    /// Whether the window of the connection is open.
    pub fn has_window(&self) -> bool {
        self.window.get() > 0
    }

    /// Whether the endpoint has accepted no content for some time, because it doesn't read what it has got: an upload that
    /// it leaves unread can use up the window of all.
    pub fn is_shut(&self, now: Instant) -> bool {
        self.shut_since.get().is_some_and(|since| now.saturating_duration_since(since) >= SHUT)
    }

    fn use_window(&self, length: usize) {
        self.window.set(self.window.get() - length as i64);
        if self.window.get() <= 0 && self.shut_since.get().is_none() {
            self.shut_since.set(Some(Instant::now()));
        }
    }

    fn extend_window(&self, more: u32) {
        self.window.set(self.window.get() + i64::from(more));
        if self.window.get() > 0 {
            self.shut_since.set(None);
        }
    }

    /// Records that the first settings are read, if none is left in their frame.
    fn settle_without(&self, left: usize) {
        if left == 0 {
            self.is_settled.set(true);
            self.settled.notify_one();
        }
    }
}

impl TransportCounter for EndpointFrames {
    fn count_received(&mut self, bytes: &[u8]) {
        self.budget.pass(Instant::now());
        // The first byte alone shows it, as an alert of TLS is shorter than the head of a frame. The first frame is one of
        // SETTINGS (RFC 9113 §3.4), whose length has a zero in front.
        if !self.has_begun && bytes.first().is_some_and(|first| *first != 0) {
            self.reports.beginning.set(Beginning::Other);
        }
        self.has_begun |= !bytes.is_empty();
        let EndpointFrames { incoming, budget, turn, heads, reports, settings_left, flood, .. } = self;
        turn.begin_read();
        let each = |head: FrameHead| {
            turn.count_received(head);
            if reports.received.get() == 0 && begins_http1(head) {
                reports.beginning.set(Beginning::Http1);
            }
            reports.received.set(reports.received.get().wrapping_add(1));
            if head.kind == DATA && (1..SHORT_DATA).contains(&head.length) {
                reports.short_pieces.count_received();
            }
            if head.kind == SETTINGS && settings_left.get().is_none() {
                let number = head.length / SETTING_LENGTH;
                settings_left.set(Some(number));
                reports.settle_without(number);
            }
            let counted = heads.count_received(head).and_then(|()| {
                let kind = |kind: FrameKind| Flood::Kind(kind.name());
                budget.count_received(head).map_err(kind)
            });
            if let Err(name) = counted {
                if let Flood::Kind(kind) = name {
                    reports.flood.set(Some(kind));
                }
                flood.get_or_insert(name);
            }
        };
        incoming.scan_with_values(bytes, each, |value| match value {
            FrameValue::Setting { identifier, value } => {
                match identifier {
                    MAX_HEADER_LIST_SIZE => reports.max_request_head.set(value),
                    MAX_CONCURRENT_STREAMS => reports.announced_streams.set(value),
                    _ => {}
                }
                if let Some(left @ 1..) = settings_left.get() {
                    settings_left.set(Some(left - 1));
                    reports.settle_without(left - 1);
                }
            }
            FrameValue::Window(more) => reports.extend_window(more),
            FrameValue::ResetCode(ENHANCE_YOUR_CALM) => reports.is_overloaded.set(true),
            FrameValue::ResetCode(_) => {}
        });
    }

    fn count_sent(&mut self, bytes: &[u8]) {
        let EndpointFrames { outgoing, budget, heads, reports, .. } = self;
        outgoing.scan(bytes, |head| {
            match head.kind {
                HEADERS => reports.last_sent.set(reports.last_sent.get().max(head.stream)),
                RST_STREAM => reports.resets.set(reports.resets.get() + 1),
                DATA => reports.use_window(head.length),
                _ => {}
            }
            heads.count_sent(head);
            budget.count_sent(head);
        });
    }

    fn heads(&self) -> Option<usize> {
        self.turn.heads()
    }

    fn read_limit(&self) -> Option<usize> {
        self.turn.read_limit()
    }

    fn end_turn(&mut self) -> bool {
        self.turn.end_if_long()
    }

    fn end_of_reads(&self) -> Option<Poll<io::Result<()>>> {
        let error = match self.flood? {
            Flood::Kind(kind) => io::Error::other(too_many(kind)),
            Flood::Interim => informational::refused(self.heads.limit),
        };
        Some(Poll::Ready(Err(error)))
    }
}

/// Returns the cause of a connection that has ended for too many frames of a kind.
pub fn too_many(kind: &str) -> String {
    format!("the endpoint sends too many frames ({kind})")
}

/// Whether the head of the first frame is the beginning of a response of HTTP/1, `HTTP/`.
fn begins_http1(head: FrameHead) -> bool {
    head.length == 0x48_54_54 && head.kind == b'P' && head.flags == b'/'
}

impl Heads {
    fn count_sent(&mut self, head: FrameHead) {
        match head.kind {
            HEADERS => self.left += self.limit.saturating_add(OWN_HEADS) / MIN_HEAD_BYTES,
            RST_STREAM => drop(self.streams.remove(&head.stream)),
            _ => {}
        }
    }

    fn count_received(&mut self, head: FrameHead) -> Result<(), Flood> {
        let ends = head.flags & END_STREAM != 0;
        match head.kind {
            HEADERS => {
                if !ends {
                    self.begin_head(head)?;
                }
                self.left = self.left.checked_sub(1).ok_or(Flood::Kind("HEADERS"))?;
            }
            CONTINUATION => {
                if let Some(bytes) = self.streams.get_mut(&head.stream) {
                    *bytes = bytes.saturating_add(head.length);
                }
            }
            _ => {}
        }
        if head.kind == RST_STREAM || ends && matches!(head.kind, HEADERS | DATA) {
            self.streams.remove(&head.stream);
        }
        Ok(())
    }

    /// Counts a head that doesn't end its stream. Earlier such heads of the stream were those of informational
    /// responses.
    fn begin_head(&mut self, head: FrameHead) -> Result<(), Flood> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(Flood::Kind("HEADERS"));
        }
        let before = self.streams.entry(head.stream).or_default();
        if *before > self.limit {
            return Err(Flood::Interim);
        }
        *before = before.saturating_add(head.length.max(MIN_HEAD_BYTES));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32) -> FrameHead {
        FrameHead { length: 5, kind, flags, stream }
    }

    fn heads(limit: usize) -> Heads {
        let mut heads = Heads { limit, left: 0, streams: HashMap::new() };
        heads.count_sent(frame(HEADERS, END_STREAM, 1));
        heads
    }

    /// Counts frames until one is refused; returns the number of accepted ones, and the reason.
    fn accepted(heads: &mut Heads, head: FrameHead) -> (usize, Option<Flood>) {
        let refused =
            (0..10_000).find_map(|number| heads.count_received(head).err().map(|flood| (number, Some(flood))));
        refused.unwrap_or((10_000, None))
    }

    #[test]
    fn heads_before_a_response_have_an_end_on_each_stream() {
        let interim = frame(HEADERS, 0, 1);
        assert_eq!(accepted(&mut heads(32 << 10), interim), (33, Some(Flood::Interim)));
        assert_eq!(accepted(&mut heads(1 << 10), interim), (2, Some(Flood::Interim)));
        // Earlier requests leave a stream no more than its own.
        let mut many = heads(4 << 10);
        for stream in (3..2000).step_by(2) {
            many.count_sent(frame(HEADERS, END_STREAM, stream));
            for (kind, flags) in [(HEADERS, 0), (HEADERS, 0), (DATA, 0), (HEADERS, END_STREAM)] {
                assert_eq!(many.count_received(frame(kind, flags, stream)), Ok(()));
            }
        }
        assert_eq!((accepted(&mut many, interim), many.streams.len()), ((5, Some(Flood::Interim)), 1));
    }

    #[test]
    fn long_heads_count_as_they_are() {
        let mut heads = heads(32 << 10);
        let long = FrameHead { length: 16 << 10, ..frame(HEADERS, 0, 1) };
        assert_eq!(heads.count_received(long), Ok(()));
        assert_eq!(heads.count_received(FrameHead { length: 16 << 10, ..frame(CONTINUATION, 0, 1) }), Ok(()));
        assert_eq!(accepted(&mut heads, long), (1, Some(Flood::Interim)));
    }

    #[test]
    fn heads_of_streams_that_have_ended_have_an_end() {
        let (accepted, flood) = accepted(&mut heads(32 << 10), frame(HEADERS, END_STREAM, 1));
        assert!(accepted <= 40 && flood == Some(Flood::Kind("HEADERS")), "{accepted} {flood:?}");
    }

    #[test]
    fn streams_that_have_ended_are_forgotten() {
        let mut heads = heads(32 << 10);
        for end in [frame(DATA, END_STREAM, 1), frame(RST_STREAM, 0, 1), frame(HEADERS, END_STREAM, 1)] {
            heads.count_received(frame(HEADERS, 0, 1)).unwrap();
            assert_eq!(heads.streams.len(), 1);
            heads.count_received(end).unwrap();
            assert!(heads.streams.is_empty());
        }
        heads.count_received(frame(HEADERS, 0, 1)).unwrap();
        heads.count_sent(frame(RST_STREAM, 0, 1));
        assert!(heads.streams.is_empty());
    }
}
