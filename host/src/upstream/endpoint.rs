//! One endpoint as all workers share it: requests in flight, latency, and failures.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::EndpointAddr;
use super::failure_notice::FailureNotice;
use crate::system::client_parts::ClientParts;
use crate::system::holder_counts::Holder;
use crate::telemetry::metrics::Counter;

/// An endpoint. It outlives generations, and the set that it is in.
#[derive(Debug)]
pub struct Endpoint {
    pub address: EndpointAddr,
    pub in_flight: InFlight,
    pub latency: Latency,
    /// Failures since the last request that didn't fail.
    pub failures: AtomicU32,
    /// Decides which failures and successes are logged.
    pub notice: FailureNotice,
    /// The counters of each worker, by its number. Locked when a worker's view changes or totals are read, never by a
    /// request.
    figures: Mutex<Vec<Arc<EndpointFigures>>>,
}

/// Requests in flight, over all workers.
#[derive(Debug, Default)]
pub struct InFlight(AtomicU32);

/// The limit of an upstream's requests in flight, of which each client has a part; empty if there is none.
#[derive(Clone, Debug, Default)]
pub struct RequestLimit(Option<Arc<LimitState>>);

#[derive(Debug)]
struct LimitState {
    max: u32,
    requests: Arc<ClientParts>,
}

/// A client's request that counts against a limit, until dropped; empty if there is none.
// Boxed, because it is a part of the future of each exchange, and few upstreams have a limit.
#[derive(Debug, Default)]
pub struct LimitedRequest {
    _counted: Option<Box<CountedRequest>>,
}

#[derive(Debug)]
struct CountedRequest {
    limit: Arc<LimitState>,
    client: Holder,
}

/// A worker's metrics of an endpoint.
#[derive(Debug, Default)]
pub struct EndpointFigures {
    /// Responses that began, by the first digit of the status.
    pub responses: [Counter; 6],
    /// Requests that got no response, or not all of it.
    pub failures: Counter,
    /// Responses whose status counts as a failure.
    pub bad_responses: Counter,
    /// The latency of responses, until their heads arrive.
    pub latency_us: Counter,
}

/// The metrics of all workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    pub responses: [u64; 6],
    pub failures: u64,
    pub bad_responses: u64,
    pub latency_us: u64,
}

/// The time that responses take to begin: an average that follows a rise at once and a fall slowly ("peak EWMA").
#[derive(Debug)]
pub struct Latency {
    born: Instant,
    /// Microseconds, as the bits of an `f32`, above the milliseconds from `born` to the last sample. In one word, so
    /// that both fit together; of two samples at once one may be lost.
    state: AtomicU64,
}

/// The time after which two thirds of a fall are in the average, as in most proxies with such an average.
const MEMORY: Duration = Duration::from_secs(10);

/// The minimum latency that a failure counts as: an endpoint that fails at once would seem the quickest.
const FAILURE: Duration = Duration::from_secs(1);

impl Endpoint {
    pub fn new(address: EndpointAddr, now: Instant) -> Self {
        let latency = Latency { born: now, state: AtomicU64::new(0) };
        let (in_flight, failures, figures) = (InFlight::default(), AtomicU32::new(0), Mutex::default());
        Endpoint { address, in_flight, latency, failures, notice: FailureNotice::new(now), figures }
    }

    /// Returns a worker's metrics.
    pub fn figures(&self, worker: usize) -> Arc<EndpointFigures> {
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        while figures.len() <= worker {
            figures.push(Arc::default());
        }
        figures[worker].clone()
    }

    /// Returns the metrics of all workers together.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for figures in self.figures.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (total, count) in totals.responses.iter_mut().zip(&figures.responses) {
                *total += count.value();
            }
            totals.failures += figures.failures.value();
            totals.bad_responses += figures.bad_responses.value();
            totals.latency_us += figures.latency_us.value();
        }
        totals
    }
}

impl InFlight {
    /// Returns the number of requests in flight.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds a request if fewer than `max` are in flight; [`InFlight::end`] removes it. Returns whether it was added.
    pub fn begin(&self, max: u32) -> bool {
        if self.0.fetch_add(1, Ordering::Relaxed) < max {
            return true;
        }
        self.end();
        false
    }

    /// Removes one request, which is no longer in flight.
    pub fn end(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RequestLimit {
    /// Returns a limit of so many requests, over all workers. `requests` are those of an upstream, also under other limits.
    pub fn limited(max: u32, requests: Arc<ClientParts>) -> Self {
        RequestLimit(Some(Arc::new(LimitState { max, requests })))
    }

    /// Returns the most requests in flight.
    pub fn max(&self) -> u32 {
        self.0.as_ref().map_or(u32::MAX, |limit| limit.max)
    }

    /// Whether a client has its part, while others have room.
    pub fn holds_back(&self, client: Holder) -> bool {
        self.0.as_ref().is_some_and(|limit| limit.requests.hold_back(client, limit.max))
    }

    /// Counts a request of a client; `None` if the client has its part. `own` is the number of times that the request is
    /// counted already.
    pub fn begin(&self, client: Holder, own: u32) -> Option<LimitedRequest> {
        let Some(limit) = &self.0 else { return Some(LimitedRequest::default()) };
        let is_within = limit.requests.take(client, limit.max.saturating_add(own));
        let counted = || Box::new(CountedRequest { limit: limit.clone(), client });
        is_within.then(|| LimitedRequest { _counted: Some(counted()) })
    }
}

impl Drop for CountedRequest {
    fn drop(&mut self) {
        self.limit.requests.give_back(self.client);
    }
}

impl Totals {
    /// Returns the difference to earlier totals.
    pub fn since(&self, earlier: &Totals) -> Totals {
        let less = |now: u64, then: u64| now.saturating_sub(then);
        let mut responses = [0; 6];
        for (class, count) in responses.iter_mut().enumerate() {
            *count = less(self.responses[class], earlier.responses[class]);
        }
        Totals {
            responses,
            failures: less(self.failures, earlier.failures),
            bad_responses: less(self.bad_responses, earlier.bad_responses),
            latency_us: less(self.latency_us, earlier.latency_us),
        }
    }

    /// Responses of all classes.
    pub fn total_responses(&self) -> u64 {
        self.responses.iter().sum()
    }

    /// The mean time to a response's head, in microseconds, if there was any.
    pub fn mean_latency_us(&self) -> Option<u64> {
        self.latency_us.checked_div(self.total_responses())
    }
}

impl Latency {
    /// A response took so long to begin.
    pub fn observe(&self, took: Duration, now: Instant) {
        let (value, at) = self.unpack();
        let (sample, age) = (took.as_micros() as f32, self.millis(now));
        let remainder = decay(age.saturating_sub(at));
        let value = if sample >= value { sample } else { value * remainder + sample * (1.0 - remainder) };
        self.state.store(u64::from(value.to_bits()) << 32 | u64::from(age), Ordering::Relaxed);
    }

    /// A request failed after so long.
    pub fn record_failure(&self, took: Duration, now: Instant) {
        self.observe(took.max(FAILURE), now);
    }

    /// Returns the latency in microseconds, which falls while no request is observed.
    pub fn micros(&self, now: Instant) -> u32 {
        let (value, at) = self.unpack();
        if value == 0.0 { 0 } else { (value * decay(self.millis(now).saturating_sub(at))).ceil() as u32 }
    }

    fn unpack(&self) -> (f32, u32) {
        let state = self.state.load(Ordering::Relaxed);
        (f32::from_bits((state >> 32) as u32), state as u32)
    }

    fn millis(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.born).as_millis() as u32
    }
}

fn decay(millis: u32) -> f32 {
    (-(millis as f32) / MEMORY.as_millis() as f32).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(born: Instant, seconds: u64) -> Instant {
        born + Duration::from_secs(seconds)
    }

    #[test]
    fn latency_follows_a_rise_at_once_and_a_fall_slowly() {
        let born = Instant::now();
        let latency = Latency { born, state: AtomicU64::new(0) };
        assert_eq!(latency.micros(at(born, 9)), 0);
        latency.observe(Duration::from_millis(1), at(born, 1));
        assert_eq!(latency.micros(at(born, 1)), 1_000);
        latency.observe(Duration::from_millis(80), at(born, 2));
        assert_eq!(latency.micros(at(born, 2)), 80_000);
        latency.observe(Duration::from_millis(1), at(born, 12));
        let fallen = latency.micros(at(born, 12));
        assert!((29_000..32_000).contains(&fallen), "{fallen}");
        let forgotten = latency.micros(at(born, 72));
        assert!(forgotten < 100, "{forgotten}");
        latency.record_failure(Duration::from_millis(1), at(born, 73));
        assert_eq!(latency.micros(at(born, 73)), 1_000_000);
    }

    #[test]
    fn no_more_begin_than_may() {
        let in_flight = InFlight::default();
        assert!(in_flight.begin(2) && in_flight.begin(2) && !in_flight.begin(2));
        in_flight.end();
        assert!(in_flight.begin(2));
        assert_eq!(in_flight.count(), 2);
    }
}
