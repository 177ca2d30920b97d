//! The HTTP/2 connections of one worker to one endpoint, each of which serves many exchanges. There is one, until it has as
//! many exchanges as the endpoint accepts, or the endpoint has stopped to answer on it or to accept content.

use std::time::{Duration, Instant};

use crate::upstream::connection_limit::ConnectionLimit;
use crate::upstream::http2::SharedSender;
use crate::upstream::response_head_limits::ResponseHeadLimits;

/// The shared connections to an endpoint.
#[derive(Default)]
pub struct SharedConnections {
    /// The connections, the oldest first: later ones are used while those before them are full. One with exchanges stays
    /// here until it is closed: as long as it counts against a limit, requests must find it.
    open: Vec<SharedConnection>,
    /// The connection on which no more requests begin, while its exchanges end; `None` if there is none.
    yielded: Option<SharedConnection>,
    /// The time before which no connection in use is yielded, because the last one did not end; `None` for at once.
    kept_until: Option<Instant>,
}

struct SharedConnection {
    sender: SharedSender,
    /// The time when the last request began on it, when it was yielded, or when a sweep has found exchanges on it.
    used: Instant,
    /// The number of frames that had arrived when a request was not answered in time; `None` if that hasn't happened.
    unanswered_at: Option<usize>,
}

/// The longest wait for the end of a connection's exchanges if only requests that need a connection of their own want its
/// permit: requests that could share it wait meanwhile.
const SHORT_PATIENCE: Duration = Duration::from_millis(200);
/// The time for which a connection that was yielded in vain stays in use.
const YIELD_PAUSE: Duration = Duration::from_secs(5);

impl SharedConnections {
    /// Returns a connection on which another request may begin at once; `None` if there is none.
    pub fn find(&mut self, limit: &ConnectionLimit, head: ResponseHeadLimits, now: Instant) -> Option<SharedSender> {
        self.open.retain(|connection| !connection.is_over(now));
        let accepts_more = |connection: &SharedConnection| {
            connection.suits(limit, head) && connection.sender.accepts_more() && !connection.is_stuck(now)
        };
        let at = self.open.iter().position(accepts_more)?;
        self.take(at, now)
    }

    /// Returns the connection with the fewest requests, one more of which has to wait; `None` without a connection. The last
    /// choices are one whose endpoint has fallen silent or accepts no content, and one with other limits of heads, as a reload leaves
    /// them.
    pub fn find_full(
        &mut self,
        limit: &ConnectionLimit,
        head: ResponseHeadLimits,
        now: Instant,
    ) -> Option<SharedSender> {
        let order = |at: &usize| {
            let connection = &self.open[*at];
            (connection.is_stuck(now), connection.sender.head_limits() != head, connection.sender.exchanges())
        };
        let of_limit = |at: &usize| self.open[*at].is_of(limit);
        let at = (0..self.open.len()).filter(of_limit).min_by_key(order)?;
        self.take(at, now)
    }

    /// Whether there is a connection that serves requests, with or without room for another one.
    pub fn serve(&self, limit: &ConnectionLimit, head: ResponseHeadLimits, now: Instant) -> bool {
        self.open.iter().any(|connection| connection.suits(limit, head) && !connection.is_stuck(now))
    }

    /// Whether a long response arrives on one of the connections.
    pub fn have_long_response(&self, limit: &ConnectionLimit) -> bool {
        self.open.iter().any(|connection| connection.is_of(limit) && connection.sender.has_long_response())
    }

    fn take(&mut self, at: usize, now: Instant) -> Option<SharedSender> {
        let connection = self.open.get_mut(at)?;
        connection.used = now;
        Some(connection.sender.clone())
    }

    /// Adds a connection.
    pub fn add(&mut self, sender: SharedSender, now: Instant) {
        self.open.push(SharedConnection { sender, used: now, unanswered_at: None });
    }

    /// Notes that a request on a connection was not answered in time: until the endpoint sends a frame, requests use
    /// others as far as they can.
    pub fn note_unanswered(&mut self, sender: &SharedSender) {
        if let Some(connection) = self.open.iter_mut().find(|connection| connection.sender.is_same(sender)) {
            connection.unanswered_at = Some(sender.received());
        }
    }

    /// Drops the connections that had no exchange for a time.
    pub fn sweep(&mut self, now: Instant, longest: Duration) {
        self.open.retain_mut(|connection| {
            if !connection.sender.is_unused() {
                connection.used = now;
            }
            now.saturating_duration_since(connection.used) < longest
        });
    }

    /// Whether a connection is given up for requests of others. This worker's requests get it back if that takes too long.
    pub fn has_yielded(&self) -> bool {
        self.yielded.is_some()
    }

    /// Whether there is no connection that requests may use.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Returns the longest list of fields that the endpoint says it accepts, in bytes; `None` without a connection.
    pub fn max_request_head(&self) -> Option<u32> {
        self.open.first().map(|connection| connection.sender.max_request_head())
    }

    /// Returns the time since which the longest unused connection is unused; `None` if all have exchanges.
    pub fn unused_since(&self) -> Option<Instant> {
        self.open.iter().filter(|connection| connection.sender.is_unused()).map(|connection| connection.used).min()
    }

    /// Removes a connection that is unused since a time.
    pub fn take_unused(&mut self, since: Instant) -> Option<SharedSender> {
        let is_it = |connection: &SharedConnection| connection.sender.is_unused() && connection.used == since;
        let at = self.open.iter().position(is_it)?;
        Some(self.open.remove(at).sender)
    }

    /// Gives up a connection that requests of other workers or endpoints wait for, as soon as its exchanges have ended.
    /// Returns whether one is in use again that was given up before: if its exchanges don't end within `patience`, requests
    /// of this worker would wait for the permit in vain.
    pub fn yield_to_waiters(&mut self, now: Instant, patience: Duration) -> bool {
        let is_back = self.reclaim(now, patience);
        let is_kept = self.kept_until.is_some_and(|until| now < until);
        let may_yield = |connection: &SharedConnection| {
            connection.sender.limit_handle().is_wanted() && (!is_kept || connection.sender.is_unused())
        };
        if self.yielded.is_none()
            && let Some(at) = self.open.iter().position(may_yield)
        {
            let connection = self.open.remove(at);
            self.yielded = (!connection.sender.is_unused()).then_some(SharedConnection { used: now, ..connection });
        }
        is_back
    }

    /// Drops the connection that was yielded once no exchange is on it, or uses it again if that takes too long. Returns
    /// whether it is used again.
    fn reclaim(&mut self, now: Instant, patience: Duration) -> bool {
        self.yielded.take_if(|yielded| yielded.sender.is_unused() || yielded.sender.is_closed());
        let is_late = |yielded: &mut SharedConnection| {
            let is_shared_need = yielded.sender.limit_handle().is_wanted_to_share();
            let patience = if is_shared_need { patience } else { patience.min(SHORT_PATIENCE) };
            now.saturating_duration_since(yielded.used) >= patience
        };
        let Some(yielded) = self.yielded.take_if(is_late) else { return false };
        self.kept_until = Some(now + YIELD_PAUSE);
        self.open.push(yielded);
        true
    }
}

impl SharedConnection {
    /// Whether the connection can or should serve no request any more, and no exchange holds it.
    fn is_over(&self, now: Instant) -> bool {
        self.sender.is_closed() || self.sender.is_unused() && (self.sender.is_worn() || self.is_stuck(now))
    }

    /// Whether the connection counts against a limit, and can be used. Upstreams with other limits may have the same
    /// endpoint, and connections of their own.
    fn is_of(&self, limit: &ConnectionLimit) -> bool {
        !self.sender.is_closed() && limit.have(self.sender.limit_handle())
    }

    /// Whether requests with these limits should use the connection.
    fn suits(&self, limit: &ConnectionLimit, head: ResponseHeadLimits) -> bool {
        self.is_of(limit) && self.sender.head_limits() == head
    }

    /// Whether the endpoint has sent nothing since a request was not answered in time, or accepts no content.
    fn is_stuck(&self, now: Instant) -> bool {
        self.unanswered_at == Some(self.sender.received()) || self.sender.is_shut(now)
    }
}
