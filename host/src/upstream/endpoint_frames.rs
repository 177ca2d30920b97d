//! The frames of an endpoint that speaks HTTP/2. Its connection ends if it sends far more of them than its responses
//! explain: h2 handles PINGs, SETTINGS and the like without end, on a worker that has others to serve.

use std::io;
use std::task::Poll;
use std::time::Instant;

use crate::frames::budget::FrameBudget;
use crate::frames::counted::Counter;
use crate::frames::{FrameHead, FrameScanner, HEADERS, PREFACE};

/// The counter of an endpoint's frames. Reads fail once a kind of frame is beyond its allowance.
pub struct EndpointFrames {
    incoming: FrameScanner,
    outgoing: FrameScanner,
    budget: FrameBudget,
    /// Heads and trailers that the endpoint may send.
    heads_left: u64,
    flood: Option<&'static str>,
}

/// Heads that an endpoint may send for each request: interim ones, the final one, and trailers.
const HEADS_PER_REQUEST: u64 = 32;

impl Default for EndpointFrames {
    /// Returns the counter of a connection whose preface hasn't been sent yet.
    fn default() -> Self {
        let (incoming, outgoing) = (FrameScanner::after(0), FrameScanner::after(PREFACE.len()));
        let budget = FrameBudget::new(Instant::now());
        EndpointFrames { incoming, outgoing, budget, heads_left: 0, flood: None }
    }
}

impl Counter for EndpointFrames {
    fn received(&mut self, bytes: &[u8]) {
        self.budget.pass(Instant::now());
        let EndpointFrames { incoming, budget, heads_left, flood, .. } = self;
        incoming.scan(bytes, |head| {
            if let Err(name) = count(budget, heads_left, head) {
                flood.get_or_insert(name);
            }
        });
    }

    fn sent(&mut self, bytes: &[u8]) {
        let EndpointFrames { outgoing, budget, heads_left, .. } = self;
        outgoing.scan(bytes, |head| {
            if head.kind == HEADERS {
                *heads_left += HEADS_PER_REQUEST;
            }
            budget.sent(head);
        });
    }

    fn end_of_reads(&self) -> Option<Poll<io::Result<()>>> {
        let kind = self.flood?;
        Some(Poll::Ready(Err(io::Error::other(format!("the endpoint sends too many frames ({kind})")))))
    }
}

fn count(budget: &mut FrameBudget, heads_left: &mut u64, head: FrameHead) -> Result<(), &'static str> {
    if head.kind == HEADERS {
        *heads_left = heads_left.checked_sub(1).ok_or("HEADERS")?;
    }
    budget.received(head).map_err(|kind| kind.name())
}
