//! The frames of an HTTP/2 client. Once a kind of frame exceeds its allowance, no more is read, GOAWAY is sent, and the
//! connection ends.

use std::io;
use std::rc::Rc;
use std::task::Poll;

use crate::clock::Clock;
use crate::frames::budget::{FrameBudget, FrameKind};
use crate::frames::counted::Counter;
use crate::frames::{FrameScanner, HEADERS, PREFACE};

/// The counter of a client's frames.
pub struct ClientFrames {
    clock: Rc<Clock>,
    incoming: FrameScanner,
    outgoing: FrameScanner,
    budget: FrameBudget,
    /// The last stream that the client has opened.
    last_stream: u32,
    flood: Option<FrameKind>,
}

/// The header of a GOAWAY frame on the connection, with eight bytes of payload.
const GOAWAY: [u8; 9] = [0, 0, 8, 7, 0, 0, 0, 0, 0];
/// The error code of RFC 9113 §7 for a peer that causes excessive load.
const ENHANCE_YOUR_CALM: u32 = 11;

impl ClientFrames {
    /// Creates the counter of a connection whose preface hasn't been read yet.
    pub fn new(clock: Rc<Clock>) -> Self {
        let budget = FrameBudget::new(clock.now());
        let (incoming, outgoing) = (FrameScanner::after(PREFACE.len()), FrameScanner::after(0));
        ClientFrames { clock, incoming, outgoing, budget, last_stream: 0, flood: None }
    }

    /// Returns the kind of frame that exceeds its allowance; `None` if all are within.
    pub fn flood(&self) -> Option<FrameKind> {
        self.flood
    }

    /// Returns the GOAWAY frame with ENHANCE_YOUR_CALM; `None` if another frame has been sent only in part.
    pub fn farewell(&self) -> Option<Vec<u8>> {
        let payload = [self.last_stream.to_be_bytes(), ENHANCE_YOUR_CALM.to_be_bytes()].concat();
        self.outgoing.is_between().then(|| [&GOAWAY[..], &payload].concat())
    }
}

impl Counter for ClientFrames {
    fn received(&mut self, bytes: &[u8]) {
        let (budget, flood, last_stream) = (&mut self.budget, &mut self.flood, &mut self.last_stream);
        budget.pass(self.clock.now());
        self.incoming.scan(bytes, |head| {
            if head.kind == HEADERS {
                *last_stream = head.stream.max(*last_stream);
            }
            if let Err(kind) = budget.received(head) {
                flood.get_or_insert(kind);
            }
        });
    }

    fn sent(&mut self, bytes: &[u8]) {
        self.outgoing.scan(bytes, |head| self.budget.sent(head));
    }

    /// Ends reads after a flood, which `serve` checks for after each poll of the connection.
    fn end_of_reads(&self) -> Option<Poll<io::Result<()>>> {
        self.flood.is_some().then_some(Poll::Pending)
    }
}
