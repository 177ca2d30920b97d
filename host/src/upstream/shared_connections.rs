//! The HTTP/2 connections of one worker to one endpoint, each of which serves many exchanges. There is one, until it has as
//! many exchanges as the endpoint accepts.

use std::time::{Duration, Instant};

use super::connection::SharedSender;
use super::connection_limit::ConnectionLimit;
use super::response_head_limits::ResponseHeadLimits;

/// The shared connections to an endpoint.
#[derive(Default)]
pub struct SharedConnections {
    /// The connections, the oldest first: later ones are used while those before them are full.
    open: Vec<SharedConnection>,
    /// The connection on which no more requests begin, while its exchanges end; `None` if there is none.
    yielded: Option<SharedConnection>,
    /// The time before which no connection in use is yielded, because the last one did not end; `None` for at once.
    kept_until: Option<Instant>,
}

struct SharedConnection {
    sender: SharedSender,
    /// The time when the last request began on it, or when it was yielded.
    used: Instant,
}

/// The time for which a connection that was yielded in vain stays in use.
const YIELD_PAUSE: Duration = Duration::from_secs(5);

impl SharedConnections {
    /// Returns a connection on which another request may begin at once; `None` if there is none.
    pub fn find(&mut self, limit: &ConnectionLimit, head: ResponseHeadLimits, now: Instant) -> Option<SharedSender> {
        self.open.retain(|SharedConnection { sender, .. }| {
            let is_usable = !sender.is_closed() && limit.have(sender.limit_handle()) && sender.head_limits() == head;
            is_usable && !(sender.is_worn() && sender.is_unused())
        });
        let at = self.open.iter().position(|connection| connection.sender.accepts_more())?;
        self.take(at, now)
    }

    /// Returns the connection with the fewest requests, one more of which has to wait; `None` without a connection.
    pub fn find_full(&mut self, now: Instant) -> Option<SharedSender> {
        let at = (0..self.open.len()).min_by_key(|at| self.open[*at].sender.exchanges())?;
        self.take(at, now)
    }

    fn take(&mut self, at: usize, now: Instant) -> Option<SharedSender> {
        let connection = self.open.get_mut(at)?;
        connection.used = now;
        Some(connection.sender.clone())
    }

    /// Adds a connection.
    pub fn add(&mut self, sender: SharedSender, now: Instant) {
        self.open.push(SharedConnection { sender, used: now });
    }

    /// Drops all connections. Those with exchanges end with them.
    pub fn clear(&mut self) {
        self.open.clear();
        self.yielded = None;
    }

    /// Drops the connections that were not used for a time. Those with exchanges end with them.
    pub fn sweep(&mut self, now: Instant, longest: Duration) {
        self.open.retain(|connection| now.saturating_duration_since(connection.used) < longest);
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
            let SharedConnection { sender, .. } = self.open.remove(at);
            self.yielded = (!sender.is_unused()).then_some(SharedConnection { sender, used: now });
        }
        is_back
    }

    /// Drops the connection that was yielded once no exchange is on it, or uses it again if that takes too long. Returns
    /// whether it is used again.
    fn reclaim(&mut self, now: Instant, patience: Duration) -> bool {
        self.yielded.take_if(|yielded| yielded.sender.is_unused() || yielded.sender.is_closed());
        let is_late = |yielded: &mut SharedConnection| now.saturating_duration_since(yielded.used) >= patience;
        let Some(yielded) = self.yielded.take_if(is_late) else { return false };
        self.kept_until = Some(now + YIELD_PAUSE);
        self.open.push(yielded);
        true
    }
}
