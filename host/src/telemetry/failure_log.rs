//! The rate limits of log lines about failures, per topic and second. A part of a topic, such as a route, has no more lines
//! than the topic has room left, so that parts that always fail hide no other. Suppressed lines are counted. Callers ask
//! [`admits`] first, and then log the line themselves.
#![expect(
    clippy::disallowed_methods,
    reason = "limits of the log hold over all threads, most of which have no clock of a worker"
)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::error::FailureKind;

/// The topic of a log line. Each topic has its own limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// A failed exchange.
    Exchange(FailureKind),
    /// A failed attempt at an endpoint that another attempt has followed.
    Attempt(FailureKind),
    /// A failed TLS handshake with a client.
    Handshake,
    /// A connection that didn't begin with the PROXY protocol.
    ProxyProtocol,
    /// A client connection that was closed because of the client's behaviour.
    Client,
    /// A slow reader: a client that accepted too little of a response.
    SlowClient,
    /// A connection that couldn't be accepted.
    Accept,
    /// A failed tunnel.
    Tunnel,
    /// A response that failed while it was stored in a cache.
    Cache,
    /// A file of a route that the proxy may not read.
    File,
    /// An endpoint whose health has changed.
    Endpoint,
    /// A line of a library.
    Library,
}

/// The maximum number of lines per topic at once, and per second after that: a day of failures of one kind fills 50 MB.
const LINES: u64 = 20;
const LINES_A_SECOND: u64 = 2;

/// The maximum number of lines about endpoints at once: those of half a rack, as they fail together.
const ENDPOINT_LINES: u64 = 200;

/// A line as counters count it, so that the counts of parts decrease in proportion.
const LINE: u64 = 1000;

/// The number of parts that are distinguished, by a hash of their names.
const PARTS: usize = 16;

const KINDS: usize = FailureKind::ALL.len();
const TOPICS: usize = 2 * KINDS + 10;

/// Counters instead of a lock: workers that log at the same moment may admit a line too many, and never wait.
struct Limiter {
    /// The second, since the first line, up to which `lines` and the counts of parts have decreased.
    second: AtomicU64,
    /// The lines that still count, of all parts and of each, in units of [`LINE`].
    lines: AtomicU64,
    parts: [AtomicU64; PARTS],
    /// The number of lines that were suppressed and not reported yet.
    left_out: AtomicU64,
    /// The total number of suppressed lines.
    dropped: AtomicU64,
}

static LIMITERS: [Limiter; TOPICS] = [const { Limiter::new() }; TOPICS];
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Whether a line about a part of a topic, such as a route or an endpoint, is within the limits.
pub fn admits(topic: Topic, part: &str) -> bool {
    LIMITERS[topic.index()].admits(topic, part, second())
}

/// Logs how many lines were suppressed in previous seconds. Called by the ticks of workers.
pub fn report() {
    for topic in Topic::all() {
        let limiter = &LIMITERS[topic.index()];
        if limiter.left_out.load(Ordering::Relaxed) > 0 {
            limiter.turn(topic, second());
        }
    }
}

/// Returns the number of suppressed lines of a topic.
pub fn dropped(topic: Topic) -> u64 {
    LIMITERS[topic.index()].dropped.load(Ordering::Relaxed)
}

/// Returns the number of whole hours since the first line or the first call, for lines that are logged once an hour.
pub fn hour() -> u64 {
    second() / 3600
}

fn second() -> u64 {
    BEGAN.get_or_init(Instant::now).elapsed().as_secs()
}

impl Topic {
    /// Returns all topics, in the order of their indices.
    pub fn all() -> impl Iterator<Item = Topic> {
        let exchanges = FailureKind::ALL.into_iter().map(Topic::Exchange);
        let attempts = FailureKind::ALL.into_iter().map(Topic::Attempt);
        let others = [
            Topic::Handshake,
            Topic::ProxyProtocol,
            Topic::Client,
            Topic::SlowClient,
            Topic::Accept,
            Topic::Tunnel,
            Topic::Cache,
            Topic::File,
            Topic::Endpoint,
            Topic::Library,
        ];
        exchanges.chain(attempts).chain(others)
    }

    fn index(self) -> usize {
        match self {
            Topic::Exchange(kind) => kind as usize,
            Topic::Attempt(kind) => KINDS + kind as usize,
            Topic::Handshake => 2 * KINDS,
            Topic::ProxyProtocol => 2 * KINDS + 1,
            Topic::Client => 2 * KINDS + 2,
            Topic::SlowClient => 2 * KINDS + 3,
            Topic::Accept => 2 * KINDS + 4,
            Topic::Tunnel => 2 * KINDS + 5,
            Topic::Cache => 2 * KINDS + 6,
            Topic::File => 2 * KINDS + 7,
            Topic::Endpoint => 2 * KINDS + 8,
            Topic::Library => 2 * KINDS + 9,
        }
    }

    /// Returns the name of the topic in the log and the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Topic::Exchange(_) => "exchange",
            Topic::Attempt(_) => "attempt",
            Topic::Handshake => "tls-handshake",
            Topic::ProxyProtocol => "proxy-protocol",
            Topic::Client => "client",
            Topic::SlowClient => "slow-client",
            Topic::Accept => "accept",
            Topic::Tunnel => "tunnel",
            Topic::Cache => "cache",
            Topic::File => "file",
            Topic::Endpoint => "endpoint",
            Topic::Library => "library",
        }
    }

    /// Returns the maximum number of lines at once.
    fn lines(self) -> u64 {
        if self == Topic::Endpoint { ENDPOINT_LINES } else { LINES }
    }

    /// Returns the kind of failure; `None` if the topic has none.
    pub fn kind(self) -> Option<&'static str> {
        match self {
            Topic::Exchange(kind) | Topic::Attempt(kind) => Some(kind.token()),
            _ => None,
        }
    }
}

impl Limiter {
    const fn new() -> Self {
        Limiter {
            second: AtomicU64::new(0),
            lines: AtomicU64::new(0),
            parts: [const { AtomicU64::new(0) }; PARTS],
            left_out: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    fn admits(&self, topic: Topic, part: &str, now: u64) -> bool {
        self.turn(topic, now);
        // FNV-1a: the names are short, and two that collide only share their limit.
        let hash = part
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let part = &self.parts[hash as usize % PARTS];
        // With n parts that always fail, each has a share of n + 1, and one share is left for the next part that fails.
        let room = (topic.lines() * LINE).saturating_sub(self.lines.load(Ordering::Relaxed));
        let has_room = part.load(Ordering::Relaxed) < room;
        if has_room {
            part.fetch_add(LINE, Ordering::Relaxed);
            self.lines.fetch_add(LINE, Ordering::Relaxed);
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Decreases the counts if a second is over, and logs how many lines were suppressed since the last time.
    fn turn(&self, topic: Topic, now: u64) {
        let second = self.second.load(Ordering::Relaxed);
        let begins = || self.second.compare_exchange(second, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if now == second || !begins() {
            return;
        }
        let passed = now.saturating_sub(second);
        let before = self.lines.load(Ordering::Relaxed);
        let after = before.saturating_sub(passed.saturating_mul(LINES_A_SECOND * LINE));
        self.lines.store(after, Ordering::Relaxed);
        for part in &self.parts {
            part.store(part.load(Ordering::Relaxed) * after / before.max(1), Ordering::Relaxed);
        }
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            let (lines, topic, kind) = (topic.lines(), topic.name(), topic.kind());
            tracing::warn!(
                topic,
                kind,
                left_out,
                "failures left out: {lines} at once and {LINES_A_SECOND} a second are logged, of a part half of those that are left"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: Topic = Topic::Tunnel;

    #[test]
    fn each_topic_has_a_place_of_its_own() {
        let places: Vec<usize> = Topic::all().map(Topic::index).collect();
        assert_eq!(places, (0..TOPICS).collect::<Vec<_>>());
    }

    #[test]
    fn a_part_that_fails_all_the_time_hides_no_other() {
        let limiter = Limiter::new();
        let admitted = |part, now| (0..1000).filter(|_| limiter.admits(TOPIC, part, now)).count() as u64;
        let parts = ["a", "b", "c", "d", "e", "f"];
        assert_eq!(parts.map(|part| admitted(part, 0)), [10, 5, 3, 1, 1, 0], "each has half of what is left");
        assert_eq!(limiter.dropped.load(Ordering::Relaxed), 6000 - LINES);
        assert_eq!(admitted("f", 1), 1, "what a second makes room for");
        assert_eq!(limiter.left_out.load(Ordering::Relaxed), 999, "what was before is reported");
        assert_eq!(admitted("a", 100), LINES / 2, "after a while all is as in the beginning");
    }

    #[test]
    fn parts_that_fail_all_the_time_leave_room_for_one_that_begins() {
        let evil = ["a", "b", "c", "d", "e"];
        for count in 1..=evil.len() {
            let limiter = Limiter::new();
            let mut lines = 0;
            for second in 0..100 {
                for _ in 0..100 {
                    lines += evil[..count].iter().filter(|part| limiter.admits(TOPIC, part, second)).count() as u64;
                }
                // Seen before: hidden by two others.
                if second % 10 == 9 {
                    assert!(limiter.admits(TOPIC, "site", second), "{count} in second {second}");
                    lines += 1;
                }
            }
            assert!(lines <= LINES + 100 * LINES_A_SECOND, "{lines} lines of {count} parts");
        }
    }
}
