//! The number of HTTP/2 frames of each kind that a client may send beyond those that its requests and the responses
//! explain. For an endpoint, the responses and the proxy's requests explain them. PING, SETTINGS, WINDOW_UPDATE and
//! similar frames cost the client a few bytes, and the proxy a parse and often an answer (CVE-2019-9512, -9513, -9515,
//! -9518). Each kind has an allowance that grows with time, requests and sent frames: honest clients send such frames
//! in proportion to these.

use std::time::{Duration, Instant};

use super::{DATA, END_STREAM, FrameHead, HEADERS, SETTINGS};

/// The remaining allowances of a client.
#[derive(Debug)]
pub struct FrameBudget {
    left: [u64; KINDS],
    /// The time up to which allowances have grown.
    since: Instant,
}

/// A kind of frame that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// DATA frames without payload that don't end their stream.
    EmptyData,
    /// PRIORITY and PRIORITY_UPDATE (RFC 9218).
    Priority,
    /// RST_STREAM frames. Resets of streams that are being served have a separate limit.
    Reset,
    Settings,
    Ping,
    /// Acknowledgements of PING and SETTINGS.
    Ack,
    WindowUpdate,
    /// CONTINUATION frames. h2 limits their number in one list of fields.
    Continuation,
    /// Frames that this proxy does not use: unknown types, GOAWAY, PUSH_PROMISE.
    Other,
}

const KINDS: usize = FrameKind::Other as usize + 1;

/// The growth of an allowance.
struct Allowance {
    /// The allowance at the beginning of a connection, and the most that time alone restores.
    burst: u64,
    per_second: u64,
    /// The growth per HEADERS frame of the client.
    per_request: u64,
    /// The growth per HEADERS or DATA frame that is sent to the client.
    per_sent: u64,
    /// The growth per KiB of DATA that is sent to the client.
    per_kib: u64,
}

/// The allowances in the order of [`FrameKind`]. One second of a stranger's PINGs costs less than one request.
const ALLOWANCES: [Allowance; KINDS] = [
    // h2 closes a connection after 100 of them.
    Allowance { burst: 200, per_second: 1, per_request: 2, per_sent: 0, per_kib: 0 },
    // Browsers change the priority of what comes into view; old Firefox built a tree of six nodes.
    Allowance { burst: 200, per_second: 10, per_request: 8, per_sent: 0, per_kib: 0 },
    // A receiver that has closed a stream may reset it for each frame that still arrives on it (RFC 9113 §5.1): endpoints
    // in Go, whose handlers end before an upload does, reset the stream for each DATA frame that was on its way.
    Allowance { burst: 100, per_second: 1, per_request: 1, per_sent: 1, per_kib: 0 },
    // Clients send one, and some send another when a window grows.
    Allowance { burst: 20, per_second: 1, per_request: 0, per_sent: 0, per_kib: 0 },
    // gRPC measures the bandwidth with at most one PING per received DATA frame.
    Allowance { burst: 100, per_second: 2, per_request: 1, per_sent: 1, per_kib: 0 },
    // Each SETTINGS frame and PING of the proxy explains one more.
    Allowance { burst: 10, per_second: 1, per_request: 0, per_sent: 0, per_kib: 0 },
    // A client that reads in small pieces opens two windows for each of them.
    Allowance { burst: 1000, per_second: 100, per_request: 8, per_sent: 4, per_kib: 16 },
    // A head of 32 KiB fits in three frames; a longer one, where allowed, has ten in 64 KiB or more.
    Allowance { burst: 2000, per_second: 10, per_request: 8, per_sent: 0, per_kib: 0 },
    // Chrome greases connections with frames of unknown types.
    Allowance { burst: 100, per_second: 2, per_request: 2, per_sent: 0, per_kib: 0 },
];

/// The maximum of an allowance. A client may first read all that its windows allow, and open them again afterwards in
/// small steps.
const MAX_ALLOWANCE: u64 = 100_000;

const ACK: u8 = 1;

const PING: u8 = 6;

impl FrameBudget {
    /// Creates the budget of a new connection.
    pub fn new(now: Instant) -> Self {
        FrameBudget { left: ALLOWANCES.each_ref().map(|allowance| allowance.burst), since: now }
    }

    /// Increases allowances by the time that has passed, in whole seconds.
    pub fn pass(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_secs();
        if passed == 0 {
            return;
        }
        self.since += Duration::from_secs(passed);
        for (left, allowance) in self.left.iter_mut().zip(&ALLOWANCES) {
            let grown = left.saturating_add(passed.saturating_mul(allowance.per_second));
            *left = grown.min(allowance.burst).max(*left);
        }
    }

    /// Increases allowances by a frame that is sent to the client.
    pub fn count_sent(&mut self, head: FrameHead) {
        match head.kind {
            DATA | HEADERS => {
                let kib = (head.length >> 10) as u64;
                self.grow(|allowance| allowance.per_sent + kib * allowance.per_kib);
            }
            SETTINGS | PING if head.flags & ACK == 0 => {
                let acks = &mut self.left[FrameKind::Ack as usize];
                *acks = (*acks + 1).min(MAX_ALLOWANCE);
            }
            _ => {}
        }
    }

    /// Counts a frame of the client; the error is the kind that exceeds its allowance.
    pub fn count_received(&mut self, head: FrameHead) -> Result<(), FrameKind> {
        if head.kind == HEADERS {
            self.grow(|allowance| allowance.per_request);
        }
        let Some(kind) = FrameKind::of(head) else { return Ok(()) };
        let left = &mut self.left[kind as usize];
        *left = left.checked_sub(1).ok_or(kind)?;
        Ok(())
    }

    fn grow(&mut self, by: impl Fn(&Allowance) -> u64) {
        for (left, allowance) in self.left.iter_mut().zip(&ALLOWANCES) {
            *left = (*left + by(allowance)).min(MAX_ALLOWANCE);
        }
    }
}

impl FrameKind {
    /// Returns the kind of a frame; `None` if its number needs no limit here.
    fn of(head: FrameHead) -> Option<Self> {
        let is_ack = head.flags & ACK != 0;
        Some(match head.kind {
            DATA if head.length == 0 && head.flags & END_STREAM == 0 => FrameKind::EmptyData,
            DATA | HEADERS => return None,
            2 | 16 => FrameKind::Priority,
            3 => FrameKind::Reset,
            SETTINGS | PING if is_ack => FrameKind::Ack,
            SETTINGS => FrameKind::Settings,
            PING => FrameKind::Ping,
            8 => FrameKind::WindowUpdate,
            9 => FrameKind::Continuation,
            _ => FrameKind::Other,
        })
    }

    /// Returns the name of the kind in the log.
    pub fn name(self) -> &'static str {
        match self {
            FrameKind::EmptyData => "empty DATA",
            FrameKind::Priority => "PRIORITY",
            FrameKind::Reset => "RST_STREAM",
            FrameKind::Settings => "SETTINGS",
            FrameKind::Ping => "PING",
            FrameKind::Ack => "ACK of PING or SETTINGS",
            FrameKind::WindowUpdate => "WINDOW_UPDATE",
            FrameKind::Continuation => "CONTINUATION",
            FrameKind::Other => "frames without a use",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, flags: u8, length: usize) -> FrameHead {
        FrameHead { length, kind, flags, stream: 1 }
    }

    /// Counts frames until one is rejected; returns how many were accepted, up to a million.
    fn accepted(budget: &mut FrameBudget, head: FrameHead) -> usize {
        (0..1_000_000).take_while(|_| budget.count_received(head).is_ok()).count()
    }

    #[test]
    fn each_kind_has_an_end() {
        let kinds = [
            (frame(DATA, 0, 0), 200),
            (frame(2, 0, 5), 200),
            (frame(16, 0, 9), 200),
            (frame(3, 0, 4), 100),
            (frame(4, 0, 0), 20),
            (frame(4, ACK, 0), 10),
            (frame(PING, 0, 8), 100),
            (frame(PING, ACK, 8), 10),
            (frame(WINDOW_UPDATE, 0, 4), 1000),
            (frame(9, 0, 0), 2000),
            (frame(5, 0, 4), 100),
            (frame(7, 0, 8), 100),
            (frame(0x2a, 0, 100), 100),
        ];
        for (head, max) in kinds {
            assert_eq!(accepted(&mut FrameBudget::new(Instant::now()), head), max, "{head:?}");
        }
    }

    #[test]
    fn content_and_requests_have_no_end_here() {
        let mut budget = FrameBudget::new(Instant::now());
        for head in [frame(DATA, 0, 1), frame(DATA, END_STREAM, 0), frame(HEADERS, 0, 10)] {
            assert_eq!(accepted(&mut budget, head), 1_000_000);
        }
    }

    #[test]
    fn time_restores_the_burst_and_no_more() {
        let begin = Instant::now();
        let mut budget = FrameBudget::new(begin);
        accepted(&mut budget, frame(PING, 0, 8));
        budget.pass(begin + Duration::from_millis(900));
        assert_eq!(accepted(&mut budget, frame(PING, 0, 8)), 0);
        // Frequent calls lose no part of a second.
        budget.pass(begin + Duration::from_millis(1900));
        budget.pass(begin + Duration::from_millis(2000));
        assert_eq!(accepted(&mut budget, frame(PING, 0, 8)), 4);
        budget.pass(begin + Duration::from_secs(86_400));
        assert_eq!(accepted(&mut budget, frame(PING, 0, 8)), 100);
    }

    #[test]
    fn a_long_download_may_be_followed_by_all_its_window_updates() {
        let mut budget = FrameBudget::new(Instant::now());
        // 64 MiB in frames of 16 KiB, read in pieces of 4 KiB.
        (0..4096).for_each(|_| budget.count_sent(frame(DATA, 0, 16 << 10)));
        assert!(accepted(&mut budget, frame(WINDOW_UPDATE, 0, 4)) >= 2 * (64 << 8));
    }

    #[test]
    fn a_ping_for_each_message_of_grpc_is_no_flood() {
        let mut budget = FrameBudget::new(Instant::now());
        for _ in 0..20_000 {
            budget.count_sent(frame(DATA, 0, 15));
            assert_eq!(budget.count_received(frame(PING, 0, 8)), Ok(()));
            assert_eq!(budget.count_received(frame(WINDOW_UPDATE, 0, 4)), Ok(()));
            assert_eq!(budget.count_received(frame(WINDOW_UPDATE, 0, 4)), Ok(()));
        }
        // Acknowledgements that are sent to the client explain no frames.
        (0..20_000).for_each(|_| budget.count_sent(frame(PING, ACK, 8)));
        assert_eq!(accepted(&mut budget, frame(PING, 0, 8)), 100);
    }

    #[test]
    fn each_frame_that_is_sent_explains_a_reset_of_its_stream() {
        let mut budget = FrameBudget::new(Instant::now());
        for _ in 0..20_000 {
            budget.count_sent(frame(DATA, 0, 16 << 10));
            assert_eq!(budget.count_received(frame(3, 0, 4)), Ok(()));
        }
        // Frames of the connection, and resets themselves, explain none.
        for head in [frame(PING, 0, 8), frame(SETTINGS, 0, 6), frame(8, 0, 4), frame(3, 0, 4)] {
            budget.count_sent(head);
        }
        assert_eq!(accepted(&mut budget, frame(3, 0, 4)), 100);
    }

    #[test]
    fn each_ping_that_is_sent_explains_its_acknowledgement() {
        let mut budget = FrameBudget::new(Instant::now());
        for kind in [PING, SETTINGS].repeat(1000) {
            budget.count_sent(frame(kind, 0, 8));
            assert_eq!(budget.count_received(frame(kind, ACK, 8)), Ok(()));
        }
        (0..1000).for_each(|_| budget.count_sent(frame(PING, ACK, 8)));
        assert_eq!(accepted(&mut budget, frame(PING, ACK, 8)), 10);
    }
}
