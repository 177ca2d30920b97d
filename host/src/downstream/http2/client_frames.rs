//! The frames of an HTTP/2 client. Once a kind of frame exceeds its allowance, no more is read, GOAWAY is sent, and the
//! connection ends.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;

use crate::net::counted_transport::TransportCounter;
use crate::net::deadline::Clock;
use crate::protocol::http2_frames::budget::{FrameBudget, FrameKind};
use crate::protocol::http2_frames::turn::FrameTurn;
use crate::protocol::http2_frames::{
    CONTINUATION, DATA, END_STREAM, ENHANCE_YOUR_CALM, FrameHead, FrameScanner, FrameValue, HEADERS,
    MAX_HEADER_LIST_SIZE, PREFACE, RST_STREAM,
};

/// The counter of a client's frames.
pub struct ClientFrames {
    clock: Rc<Clock>,
    incoming: FrameScanner,
    outgoing: FrameScanner,
    budget: FrameBudget,
    turn: FrameTurn,
    /// The longest list of fields that the client says it accepts, in bytes; `None` while it hasn't said so.
    max_section: Rc<Cell<Option<u32>>>,
    /// The last stream that the client has opened.
    last_stream: u32,
    /// The streams that the client has opened.
    opened: usize,
    requests: OpenRequests,
    /// Whether further frames of the head that is being sent will follow: no other frame may be between them (RFC 9113
    /// §4.3).
    sends_head: bool,
    /// The number of heads and trailers that were sent with the end of their stream.
    last_heads: u64,
    answered: AnsweredStreams,
    /// The streams that were reset with PROTOCOL_ERROR before their response had ended.
    malformed: usize,
    /// The number of streams that were reset with REFUSED_STREAM.
    refused: usize,
    flood: Option<FrameKind>,
}

/// The requests of which the client hasn't sent all.
#[derive(Debug, Default)]
struct OpenRequests {
    /// Whether the frames of a head or of trailers are still coming.
    in_head: bool,
    /// The streams without END_STREAM.
    streams: Vec<u32>,
    /// Whether there were more than [`MAX_OPEN_STREAMS`] open streams, of which some are not known.
    are_too_many: bool,
}

/// The streams whose response has ended before the client has sent all of the request.
#[derive(Debug, Default)]
struct AnsweredStreams {
    /// The latest streams, at most [`MAX_OPEN_STREAMS`].
    streams: VecDeque<u32>,
    /// Whether the frame that is being sent resets such a stream.
    is_reset: bool,
}

/// GOAWAY on the connection, with eight bytes.
const GOAWAY: [u8; 9] = [0, 0, 8, 7, 0, 0, 0, 0, 0];
/// The error code of a normal end (RFC 9113 §7).
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const END_HEADERS: u8 = 4;
/// The stream in a GOAWAY that only announces the end (RFC 9113 §6.8).
const ANY_STREAM: u32 = 0x7fff_ffff;

/// The maximum number of streams without END_STREAM that are recorded, and cancelled at the end of the client's bytes.
const MAX_OPEN_STREAMS: usize = 100;

impl ClientFrames {
    /// Creates the counter of a connection whose preface hasn't been read yet. The longest list of fields that the client
    /// says it accepts is written to `max_section`.
    pub fn new(clock: Rc<Clock>, max_section: Rc<Cell<Option<u32>>>) -> Self {
        let budget = FrameBudget::new(clock.now());
        let (incoming, outgoing) = (FrameScanner::after(PREFACE.len()), FrameScanner::after(0));
        let requests = OpenRequests::default();
        ClientFrames {
            clock,
            incoming,
            outgoing,
            budget,
            turn: FrameTurn::default(),
            max_section,
            last_stream: 0,
            opened: 0,
            requests,
            sends_head: false,
            last_heads: 0,
            answered: AnsweredStreams::default(),
            malformed: 0,
            refused: 0,
            flood: None,
        }
    }

    /// Returns the kind of frame that exceeds its allowance; `None` if all are within.
    pub fn flood(&self) -> Option<FrameKind> {
        self.flood
    }

    /// Returns the number of heads and trailers that were sent with the end of their stream so far.
    pub fn last_heads(&self) -> u64 {
        self.last_heads
    }

    /// Returns the number of streams that were reset so far because h2 rejected their requests as malformed. A client that
    /// has its whole response may end an upload short: curl does.
    pub fn malformed(&self) -> usize {
        self.malformed
    }

    /// Returns the number of streams that the client has opened so far, without those that h2 has rejected because of
    /// their number.
    pub fn accepted(&self) -> usize {
        self.opened.saturating_sub(self.refused)
    }

    /// Returns the GOAWAY frame that tells the client to calm down, or `None` if a frame has been sent only in part.
    pub fn farewell(&self) -> Option<Vec<u8>> {
        self.goaway(self.last_stream, ENHANCE_YOUR_CALM)
    }

    /// Returns the GOAWAY frame that acknowledges the end of the client's bytes, or `None` if a frame has been sent
    /// only in part. The system of a client that is gone replies with a reset.
    pub fn acknowledgement(&self) -> Option<Vec<u8>> {
        self.goaway(ANY_STREAM, NO_ERROR)
    }

    fn goaway(&self, last_stream: u32, code: u32) -> Option<Vec<u8>> {
        (self.outgoing.is_between() && !self.sends_head).then(|| goaway(last_stream, code))
    }

    /// Returns the frames that tell h2 what the end of a client's bytes means for its streams. `None` if the client was
    /// cut off within a frame or a head, or has more unfinished requests than are recorded.
    pub fn frames_at_end(&self) -> Option<Bytes> {
        let OpenRequests { in_head, streams, are_too_many } = &self.requests;
        if !self.incoming.is_between() || *in_head || *are_too_many {
            return None;
        }
        let mut frames = Vec::new();
        for stream in streams {
            frames.extend_from_slice(&[0, 0, 4, RST_STREAM, 0]);
            frames.extend_from_slice(&[stream.to_be_bytes(), CANCEL.to_be_bytes()].concat());
        }
        frames.extend(goaway(0, NO_ERROR));
        Some(frames.into())
    }
}

fn goaway(last_stream: u32, code: u32) -> Vec<u8> {
    [&GOAWAY[..], &last_stream.to_be_bytes(), &code.to_be_bytes()].concat()
}

impl OpenRequests {
    /// Notes a frame of the client. A stream is new if it is beyond `last`.
    fn count_received(&mut self, head: FrameHead, last: u32) {
        match head.kind {
            HEADERS | CONTINUATION => self.in_head = head.flags & END_HEADERS == 0,
            DATA | RST_STREAM => {}
            _ => return,
        }
        let is_end = head.kind == RST_STREAM || head.kind != CONTINUATION && head.flags & END_STREAM != 0;
        if is_end {
            self.end(head.stream);
        } else if head.kind == HEADERS && head.stream > last {
            let has_room = self.streams.len() < MAX_OPEN_STREAMS;
            self.are_too_many |= !has_room;
            self.streams.extend(has_room.then_some(head.stream));
        }
    }

    fn end(&mut self, stream: u32) {
        self.streams.retain(|open| *open != stream);
    }
}

impl AnsweredStreams {
    /// Notes a frame that is sent. `requests` are those of which the client hasn't sent all.
    fn count_sent(&mut self, head: FrameHead, requests: &OpenRequests) {
        match head.kind {
            HEADERS | DATA if head.flags & END_STREAM != 0 && requests.streams.contains(&head.stream) => {
                if self.streams.len() == MAX_OPEN_STREAMS {
                    self.streams.pop_front();
                }
                self.streams.push_back(head.stream);
            }
            RST_STREAM => self.is_reset = self.streams.contains(&head.stream),
            _ => {}
        }
    }
}

impl TransportCounter for ClientFrames {
    fn count_received(&mut self, bytes: &[u8]) {
        let ClientFrames { clock, incoming, budget, turn, max_section, last_stream, opened, requests, flood, .. } =
            self;
        budget.pass(clock.now());
        turn.begin_read();
        let each = |head: FrameHead| {
            turn.count_received(head);
            requests.count_received(head, *last_stream);
            if head.kind == HEADERS && head.stream > *last_stream {
                (*last_stream, *opened) = (head.stream, *opened + 1);
            }
            if let Err(kind) = budget.count_received(head) {
                flood.get_or_insert(kind);
            }
        };
        incoming.scan_with_values(bytes, each, |value| {
            if let FrameValue::Setting { identifier: MAX_HEADER_LIST_SIZE, value } = value {
                max_section.set(Some(value));
            }
        });
    }

    fn count_sent(&mut self, bytes: &[u8]) {
        let ClientFrames { outgoing, budget, requests, answered, sends_head, last_heads, .. } = self;
        let (malformed, refused) = (&mut self.malformed, &mut self.refused);
        let resets_answered = Cell::new(answered.is_reset);
        let each = |head: FrameHead| {
            budget.count_sent(head);
            answered.count_sent(head, requests);
            resets_answered.set(answered.is_reset);
            *last_heads += u64::from(head.kind == HEADERS && head.flags & END_STREAM != 0);
            match head.kind {
                HEADERS | CONTINUATION => *sends_head = head.flags & END_HEADERS == 0,
                RST_STREAM => requests.end(head.stream),
                _ => {}
            }
        };
        // Only h2 resets with these codes: hyper has others for responses that fail.
        outgoing.scan_with_values(bytes, each, |value| {
            *malformed += usize::from(value == FrameValue::ResetCode(PROTOCOL_ERROR) && !resets_answered.get());
            *refused += usize::from(value == FrameValue::ResetCode(REFUSED_STREAM));
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

    /// Ends reads after a flood, which `serve` checks for after each poll of the connection.
    fn end_of_reads(&self) -> Option<Poll<io::Result<()>>> {
        self.flood.is_some().then_some(Poll::Pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u32;
        [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// Returns the streams that the end of these bytes cancels; `None` if the end cancels all streams.
    fn cancelled(frames: &[Vec<u8>]) -> Option<Vec<u32>> {
        let mut counter = ClientFrames::new(Clock::new(), Rc::default());
        counter.count_received(PREFACE);
        frames.iter().for_each(|frame| counter.count_received(frame));
        let end = counter.frames_at_end()?;
        let (resets, last) = end.split_at(end.len() - 17);
        assert_eq!(last, goaway(0, NO_ERROR));
        Some(resets.chunks(13).map(|reset| u32::from_be_bytes(reset[5..9].try_into().unwrap())).collect())
    }

    #[test]
    fn the_end_cancels_what_has_no_end_of_its_own() {
        let whole = END_HEADERS | END_STREAM;
        assert_eq!(cancelled(&[]), Some(vec![]));
        assert_eq!(cancelled(&[frame(HEADERS, whole, 1, b"a")]), Some(vec![]));
        let upload = [frame(HEADERS, END_HEADERS, 1, b"a"), frame(HEADERS, whole, 3, b"a"), frame(DATA, 0, 1, b"part")];
        assert_eq!(cancelled(&upload), Some(vec![1]));
        for end in [
            frame(DATA, END_STREAM, 1, b""),
            frame(HEADERS, whole, 1, b"trailers"),
            frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes()),
        ] {
            assert_eq!(cancelled(&[&upload[..], &[end]].concat()), Some(vec![]));
        }
        let begun = frame(HEADERS, END_STREAM, 1, b"a");
        assert_eq!(cancelled(std::slice::from_ref(&begun)), None, "within a head");
        assert_eq!(cancelled(&[begun, frame(CONTINUATION, END_HEADERS, 1, b"b")]), Some(vec![]));
        assert_eq!(cancelled(&[frame(HEADERS, whole, 1, b"a")[..8].to_vec()]), None, "within a frame");
        let many = |count: u32| (0..count).map(|at| frame(HEADERS, END_HEADERS, 2 * at + 1, b"a")).collect::<Vec<_>>();
        assert_eq!(cancelled(&many(100)).map(|streams| streams.len()), Some(100));
        assert_eq!(cancelled(&many(101)), None, "not all are remembered");
    }

    #[test]
    fn a_request_that_ends_short_behind_its_response_is_not_malformed() {
        let reset = |stream| frame(RST_STREAM, 0, stream, &PROTOCOL_ERROR.to_be_bytes());
        // In pieces, as the error code and the stream of a reset may be written apart.
        let malformed = |received: &[Vec<u8>], sent: &[Vec<u8>]| {
            let mut counter = ClientFrames::new(Clock::new(), Rc::default());
            counter.count_received(PREFACE);
            counter.count_received(&frame(HEADERS, END_HEADERS, 1, b"a"));
            sent[..sent.len() - 1].iter().for_each(|frame| counter.count_sent(frame));
            received.iter().for_each(|frame| counter.count_received(frame));
            sent[sent.len() - 1].chunks(5).for_each(|piece| counter.count_sent(piece));
            counter.malformed()
        };
        let (head, end) = (frame(HEADERS, END_HEADERS, 1, b"h"), [frame(DATA, END_STREAM, 1, b"short")]);
        let whole = frame(DATA, END_STREAM, 1, b"response");
        assert_eq!(malformed(&end, &[head.clone(), whole.clone(), reset(1)]), 0);
        assert_eq!(malformed(&end, &[frame(HEADERS, END_HEADERS | END_STREAM, 1, b"h"), reset(1)]), 0);
        assert_eq!(malformed(&end, &[head.clone(), reset(1)]), 1, "before the end of the response");
        assert_eq!(malformed(&end, &[head, whole, reset(3)]), 1, "another stream");
    }

    #[test]
    fn a_stream_that_this_side_resets_is_not_cancelled_again() {
        let mut counter = ClientFrames::new(Clock::new(), Rc::default());
        counter.count_received(PREFACE);
        counter.count_received(&frame(HEADERS, END_HEADERS, 1, b"a"));
        counter.count_sent(&frame(RST_STREAM, 0, 1, &NO_ERROR.to_be_bytes()));
        assert_eq!(counter.frames_at_end().unwrap(), goaway(0, NO_ERROR));
    }
}
