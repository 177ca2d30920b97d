//! The traits that plugins implement: [`Plugin`], and one per hook.

use crate::bindings;
use crate::{BodyVerdict, ConfigError, Edit, Setup, Values, Verdict};

pub use bindings::balancer::exports::plugway::plugin::balancer::{Choice, Endpoint, EndpointState};
pub use bindings::cache_policy::exports::plugway::plugin::cache_policy::{
    BypassReason, CacheKey, FetchTimes, Lookup, Refusal, Reuse, Storage, StoreDecision, StoredResponse,
};
pub use bindings::types::Summary;

/// A plugin, created from a configuration.
///
/// The host creates one instance per worker, and may create a new one at any time. State that has to outlive a request
/// belongs in a note, a metric or the upstream.
pub trait Plugin: Sized + 'static {
    /// The type of the configuration in the manifest, where it is a table: a struct or a map, or `()` for none. Its JSON
    /// Schema is part of the component.
    type Config: serde::de::DeserializeOwned + schemars::JsonSchema;

    /// Creates the plugin and declares the values that it needs. An error prevents the manifest from being served;
    /// [`Setup::report`] shows several errors at once.
    fn new(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError>;
}

/// A hook for the head of each request.
///
/// ```
/// # use plugway_sdk::*;
/// struct Tag;
/// impl Plugin for Tag {
///     type Config = ();
///     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(Tag) }
/// }
/// impl RequestFilter for Tag {
///     fn on_request(&mut self, _: &Values) -> Verdict {
///         Verdict::proceed().set_field("x-tag", "1")
///     }
/// }
/// ```
pub trait RequestFilter: Plugin {
    /// Decides about a request; `request` has the values declared in [`Setup::request`].
    fn on_request(&mut self, request: &Values) -> Verdict;
}

/// A hook for the head of each response, which comes from the upstream, the cache or a plugin below.
pub trait ResponseFilter: Plugin {
    /// Decides about a response; `response` has the values declared in [`Setup::response`].
    fn on_response(&mut self, response: &Values) -> Verdict;
}

/// The transformation of one body while it passes; a new value is created for each body. Name the hook `RequestBody` or
/// `ResponseBody` in [`export!`](crate::export).
///
/// ```
/// # use plugway_sdk::*;
/// struct Shout;
/// impl BodyFilter for Shout {
///     fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError> {
///         Ok(chunk.to_ascii_uppercase())
///     }
/// }
/// ```
pub trait BodyFilter: Sized + 'static {
    /// Receives a chunk and returns the bytes to pass on now, which may be empty.
    fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError>;

    /// Receives the end of the body and returns the bytes that were held back.
    fn finish(&mut self) -> Result<Vec<u8>, BodyError> {
        Ok(Vec::new())
    }

    /// Receives the trailers and returns those to pass on.
    fn trailers(&mut self, received: Vec<(String, Vec<u8>)>) -> Result<Vec<(String, Vec<u8>)>, BodyError> {
        Ok(received)
    }
}

/// A plugin that transforms the content of requests.
pub trait RequestBody: Plugin {
    /// The type that transforms one body.
    type Body: BodyFilter;

    /// Starts a body; `request` has the values declared in [`Setup::request_body`], as they are after the head hooks of
    /// all plugins.
    fn request_body(&mut self, request: &Values) -> Self::Body;
}

/// A plugin that transforms the content of responses.
pub trait ResponseBody: Plugin {
    /// The type that transforms one body.
    type Body: BodyFilter;

    /// Starts a body; `response` has the values declared in [`Setup::response_body`], as they are after the head hooks
    /// of all plugins.
    fn response_body(&mut self, response: &Values) -> Self::Body;
}

/// A hook that receives the whole body of a request before the request is sent to an endpoint. It is called for bodies with
/// the mode [`Buffered`](crate::BodyMode::Buffered), in place of [`RequestBody`] if the plugin has both, and not for requests
/// without content.
///
/// ```
/// # use plugway_sdk::*;
/// /// Rejects bodies that contain a word.
/// struct Guard;
///
/// impl Plugin for Guard {
///     type Config = ();
///     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
///         setup.request_body.mode = BodyMode::Buffered(1 << 20, OverLimit::Reject);
///         Ok(Guard)
///     }
/// }
///
/// impl BufferedRequestBody for Guard {
///     fn on_request_body(&mut self, _: &Values, content: Vec<u8>) -> BodyVerdict {
///         let is_attack = content.windows(7).any(|part| part == b"<script");
///         if is_attack { Response::new(403).into() } else { BodyVerdict::proceed() }
///     }
/// }
/// ```
pub trait BufferedRequestBody: Plugin {
    /// Decides about the content of a request; `request` has the values declared in [`Setup::request_body`].
    fn on_request_body(&mut self, request: &Values, content: Vec<u8>) -> BodyVerdict;
}

/// A hook that receives the whole body of a response before its head is sent to the client. It is called for bodies with the
/// mode [`Buffered`](crate::BodyMode::Buffered), in place of [`ResponseBody`] if the plugin has both, and not for responses
/// without content.
pub trait BufferedResponseBody: Plugin {
    /// Decides about the content of a response; `response` has the values declared in [`Setup::response_body`].
    fn on_response_body(&mut self, response: &Values, content: Vec<u8>) -> BodyVerdict;
}

/// The reason why a body can't be continued; it is logged, and the exchange ends.
pub type BodyError = String;

/// A hook that chooses an endpoint of an upstream.
///
/// ```
/// # use plugway_sdk::*;
/// /// A balancer that chooses the first endpoint that is up.
/// struct First(Option<u32>);
///
/// impl Plugin for First {
///     type Config = ();
///     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(First(None)) }
/// }
///
/// impl Balancer for First {
///     fn endpoints_changed(&mut self, endpoints: Vec<Endpoint>, _: &mut ResponseEdits) {
///         let first = endpoints.iter().position(|endpoint| endpoint.state == EndpointState::Up);
///         self.0 = first.map(|index| index as u32);
///     }
///
///     fn pick(&mut self, _: &Values, _: &[u32], _: &Endpoints) -> Option<Choice> {
///         self.0.map(Choice::from)
///     }
/// }
/// ```
pub trait Balancer: Plugin {
    /// Receives the endpoints, because the set, a weight or a state has changed. Called before the first
    /// [`pick`](Balancer::pick), with twenty times the time of other calls. A plugin that takes longer than 2 ms
    /// receives changes on a new instance, with new state. Edits that a pick applies to the response are added to
    /// `plans`.
    fn endpoints_changed(&mut self, endpoints: Vec<Endpoint>, plans: &mut ResponseEdits);

    /// Returns the index of the endpoint for a request; `None` if no endpoint is suitable. `request` has the values
    /// declared in [`Setup::balancer`], `tried` are the endpoints that this request has failed on.
    fn pick(&mut self, request: &Values, tried: &[u32], endpoints: &Endpoints) -> Option<Choice>;
}

/// The lists of edits to responses that a balancer prepares when the endpoints change.
#[derive(Debug, Default)]
pub struct ResponseEdits(Vec<Vec<Edit>>);

/// A prepared list of edits for [`Choice::with`]; valid until the endpoints change again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseEditsId(u32);

/// The live values of the endpoints of the current upstream; 0 for an unknown index.
#[derive(Debug, Default)]
#[cfg_attr(target_family = "wasm", expect(dead_code, reason = "the host has the figures"))]
pub struct Endpoints {
    in_flight: Vec<u32>,
    latencies_us: Vec<u32>,
    failures: Vec<u32>,
}

/// A hook that receives each exchange after its end.
pub trait Observer: Plugin {
    /// Receives an exchange that has ended; `values` are those declared in [`Setup::observer`].
    fn on_end(&mut self, values: &Values, summary: &Summary);
}

/// A hook that runs at [`Setup::timer_interval`].
pub trait Timer: Plugin {
    /// Runs each time the interval has passed.
    fn on_timer(&mut self);
}

/// A hook that decides what the cache looks up, stores and serves; see `cache-policy` in the WIT.
pub trait CachePolicy: Plugin {
    /// Decides about a request, before the cache is looked up.
    fn on_lookup(&mut self, request: &Values) -> Lookup;
    /// Decides whether a stored response that matches the request may be served.
    fn on_stored(&mut self, request: &Values, stored: &StoredResponse) -> Reuse;
    /// Decides whether a response of the upstream is stored.
    fn on_fetched(&mut self, response: &Values, times: &FetchTimes) -> StoreDecision;
    /// Returns the keys that are invalidated, after the upstream has answered a request with [`Lookup::Invalidates`].
    fn on_invalidate(&mut self, response: &Values) -> Vec<Vec<u8>>;
    /// Decides whether a stale response may be served after the upstream has failed; `status` is `None` without a
    /// response.
    fn on_upstream_error(&mut self, request: &Values, stored: &StoredResponse, status: Option<u16>) -> bool;
}

impl Endpoints {
    /// Returns the requests in flight at an endpoint, over all workers.
    pub fn in_flight(&self, index: u32) -> u32 {
        #[cfg(target_family = "wasm")]
        return bindings::endpoints::in_flight(index);
        #[cfg(not(target_family = "wasm"))]
        at(&self.in_flight, index)
    }

    /// Returns the requests in flight at several endpoints, in the order of `indices`, with one call of the host.
    pub fn in_flight_counts(&self, indices: &[u32]) -> Vec<u32> {
        #[cfg(target_family = "wasm")]
        return bindings::endpoints::in_flight_counts(indices);
        #[cfg(not(target_family = "wasm"))]
        indices.iter().map(|index| at(&self.in_flight, *index)).collect()
    }

    /// Returns the requests in flight at all endpoints together.
    pub fn total_in_flight(&self) -> u32 {
        #[cfg(target_family = "wasm")]
        return bindings::endpoints::total_in_flight();
        #[cfg(not(target_family = "wasm"))]
        self.in_flight.iter().sum()
    }

    /// Returns the time that an endpoint takes to begin a response, in microseconds; 0 if unknown. The value is an
    /// average that follows a rise at once and a fall slowly.
    pub fn latency_us(&self, index: u32) -> u32 {
        #[cfg(target_family = "wasm")]
        return bindings::endpoints::latency_us(index);
        #[cfg(not(target_family = "wasm"))]
        at(&self.latencies_us, index)
    }

    /// Returns the number of consecutive failed requests at an endpoint, up to now.
    pub fn consecutive_failures(&self, index: u32) -> u32 {
        #[cfg(target_family = "wasm")]
        return bindings::endpoints::consecutive_failures(index);
        #[cfg(not(target_family = "wasm"))]
        at(&self.failures, index)
    }

    /// Creates endpoints for tests with these requests in flight.
    pub fn for_test(in_flight: Vec<u32>) -> Self {
        Endpoints { in_flight, ..Endpoints::default() }
    }

    /// Sets the latencies for tests, in microseconds.
    pub fn with_latencies_us(self, latencies_us: Vec<u32>) -> Self {
        Endpoints { latencies_us, ..self }
    }

    /// Sets the failures for tests.
    pub fn with_failures(self, failures: Vec<u32>) -> Self {
        Endpoints { failures, ..self }
    }
}

#[cfg(not(target_family = "wasm"))]
fn at(figures: &[u32], index: u32) -> u32 {
    figures.get(index as usize).copied().unwrap_or(0)
}

impl From<u32> for Choice {
    /// Chooses the endpoint with this index, without edits to its response.
    fn from(endpoint: u32) -> Self {
        Choice { endpoint, response_edits: None }
    }
}

impl Choice {
    /// Adds prepared edits to the response.
    pub fn with(self, plan: ResponseEditsId) -> Self {
        Choice { response_edits: Some(plan.0), ..self }
    }
}

impl ResponseEdits {
    /// Adds a list of edits, which the host checks once.
    pub fn plan(&mut self, edits: Vec<Edit>) -> ResponseEditsId {
        self.0.push(edits);
        ResponseEditsId(self.0.len() as u32 - 1)
    }

    /// Returns the edits that a choice applies, for tests.
    pub fn edits(&self, choice: &Choice) -> &[Edit] {
        choice.response_edits.and_then(|place| self.0.get(place as usize)).map_or(&[], Vec::as_slice)
    }

    #[doc(hidden)]
    pub fn into_wit(self) -> Vec<Vec<Edit>> {
        self.0
    }
}
