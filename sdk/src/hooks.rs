//! The traits that plugins implement: [`Plugin`], and one per hook.

use crate::bindings;
use crate::{ConfigError, Edit, Setup, Values, Verdict};

pub use bindings::balancer::exports::plugway::plugin::balancer::{Choice, Endpoint, EndpointState};
pub use bindings::cache_policy::exports::plugway::plugin::cache_policy::{
    BypassReason, Keep, Lookup, Place, Refusal, Reuse, Storage, StoredResponse, Times,
};
pub use bindings::types::Summary;

/// What every plugin is: something made from a configuration.
///
/// The host makes one instance per worker, and makes a new one whenever it likes: what must outlive a request belongs
/// into a note, a metric or the upstream.
pub trait Plugin: Sized + 'static {
    /// The configuration, as it stands in the manifest; its schema travels in the component.
    type Config: serde::de::DeserializeOwned + schemars::JsonSchema;

    /// Makes the plugin and declares what it needs. An error keeps the manifest from being served.
    fn new(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError>;
}

/// Sees the head of each request.
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
    /// Decides on a request; `request` has the values declared in [`Setup::request`].
    fn on_request(&mut self, request: &Values) -> Verdict;
}

/// Sees the head of each response, be it of the upstream, the cache or a plugin below.
pub trait ResponseFilter: Plugin {
    /// Decides on a response; `response` has the values declared in [`Setup::response`].
    fn on_response(&mut self, response: &Values) -> Verdict;
}

/// Transforms one body while it passes; made anew for each. Name it `RequestBody` or `ResponseBody` in
/// [`export!`](crate::export).
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
    /// Takes a chunk and gives the bytes to pass on now, which may be none.
    fn push(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, BodyError>;

    /// The body is over: gives what was held back.
    fn finish(&mut self) -> Result<Vec<u8>, BodyError> {
        Ok(Vec::new())
    }

    /// Takes the trailers and gives those to pass on.
    fn trailers(&mut self, received: Vec<(String, Vec<u8>)>) -> Result<Vec<(String, Vec<u8>)>, BodyError> {
        Ok(received)
    }
}

/// A plugin that transforms the content of requests.
pub trait RequestBody: Plugin {
    /// What transforms one body.
    type Body: BodyFilter;

    /// Begins a body.
    fn request_body(&mut self) -> Self::Body;
}

/// A plugin that transforms the content of responses.
pub trait ResponseBody: Plugin {
    /// What transforms one body.
    type Body: BodyFilter;

    /// Begins a body.
    fn response_body(&mut self) -> Self::Body;
}

/// Why a body can't go on; it goes to the log, and the exchange ends.
pub type BodyError = String;

/// Chooses an endpoint of an upstream.
///
/// ```
/// # use plugway_sdk::*;
/// /// Asks the first that is up.
/// struct First(Option<u32>);
///
/// impl Plugin for First {
///     type Config = ();
///     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(First(None)) }
/// }
///
/// impl Balancer for First {
///     fn endpoints_changed(&mut self, endpoints: Vec<Endpoint>, _: &mut ResponsePlans) {
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
    /// The set, a weight or a state has changed. Called before the first [`pick`](Balancer::pick), with twenty times
    /// the time of other calls; a plugin that takes longer than 2 ms learns changes on a new instance, with new state. Edits
    /// that a pick wants made to the response go into `plans`.
    fn endpoints_changed(&mut self, endpoints: Vec<Endpoint>, plans: &mut ResponsePlans);

    /// Gives the endpoint for a request, by its index. `request` has the values declared in [`Setup::balancer`],
    /// `tried` are the endpoints that this request has failed on.
    fn pick(&mut self, request: &Values, tried: &[u32], endpoints: &Endpoints) -> Option<Choice>;
}

/// Edits to responses, made ready when the endpoints change.
#[derive(Debug, Default)]
pub struct ResponsePlans(Vec<Vec<Edit>>);

/// Edits that the host has, for [`Choice::with`]; until the endpoints change again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponsePlan(u32);

/// The live figures of the endpoints of the upstream at hand; 0 for an index that there isn't.
#[derive(Debug, Default)]
#[cfg_attr(target_family = "wasm", expect(dead_code, reason = "the host has the figures"))]
pub struct Endpoints {
    loads: Vec<u32>,
    latencies_us: Vec<u32>,
    failures: Vec<u32>,
}

/// Hears of each exchange after its end.
pub trait Observer: Plugin {
    /// An exchange is over; `values` are those declared in [`Setup::observer`].
    fn on_end(&mut self, values: &Values, summary: &Summary);
}

/// Is called at [`Setup::timer_interval`].
pub trait Timer: Plugin {
    /// The interval has passed.
    fn on_timer(&mut self);
}

/// Decides what the cache looks up, keeps and serves; see `cache-policy` in the WIT.
pub trait CachePolicy: Plugin {
    /// What to do with a request, before anything is looked up.
    fn on_lookup(&mut self, request: &Values) -> Lookup;
    /// Something stored fits the request: may it be served?
    fn on_stored(&mut self, request: &Values, stored: &StoredResponse) -> Reuse;
    /// The upstream answered: is it kept?
    fn on_fetched(&mut self, response: &Values, times: &Times) -> Keep;
    /// The upstream answered a request that [changes](Lookup::Changes) something: which keys are stale from now on?
    fn on_changed(&mut self, response: &Values) -> Vec<Vec<u8>>;
    /// The upstream failed, with a status or without a response: may the stale response be served?
    fn on_upstream_error(&mut self, request: &Values, stored: &StoredResponse, status: Option<u16>) -> bool;
}

impl Endpoints {
    /// Requests in flight at an endpoint, over all workers.
    pub fn in_flight(&self, index: u32) -> u32 {
        #[cfg(target_family = "wasm")]
        return bindings::endpoints::in_flight(index);
        #[cfg(not(target_family = "wasm"))]
        at(&self.loads, index)
    }

    /// The same for several endpoints, in the order asked: one call for many.
    pub fn loads(&self, indices: &[u32]) -> Vec<u32> {
        #[cfg(target_family = "wasm")]
        return bindings::endpoints::loads(indices);
        #[cfg(not(target_family = "wasm"))]
        indices.iter().map(|index| at(&self.loads, *index)).collect()
    }

    /// Requests in flight at all endpoints together.
    pub fn total_in_flight(&self) -> u32 {
        #[cfg(target_family = "wasm")]
        return bindings::endpoints::total_in_flight();
        #[cfg(not(target_family = "wasm"))]
        self.loads.iter().sum()
    }

    /// How long an endpoint takes to begin a response, in microseconds: an average that follows a rise at once and a
    /// fall slowly; 0 if nothing is known.
    pub fn latency_us(&self, index: u32) -> u32 {
        #[cfg(target_family = "wasm")]
        return bindings::endpoints::latency_us(index);
        #[cfg(not(target_family = "wasm"))]
        at(&self.latencies_us, index)
    }

    /// Requests that failed at an endpoint since the last that didn't.
    pub fn failures(&self, index: u32) -> u32 {
        #[cfg(target_family = "wasm")]
        return bindings::endpoints::failures(index);
        #[cfg(not(target_family = "wasm"))]
        at(&self.failures, index)
    }

    /// Made-up figures, for tests: requests in flight.
    pub fn made_up(loads: Vec<u32>) -> Self {
        Endpoints { loads, ..Endpoints::default() }
    }

    /// And latencies, in microseconds.
    pub fn with_latencies_us(self, latencies_us: Vec<u32>) -> Self {
        Endpoints { latencies_us, ..self }
    }

    /// And failures.
    pub fn with_failures(self, failures: Vec<u32>) -> Self {
        Endpoints { failures, ..self }
    }
}

#[cfg(not(target_family = "wasm"))]
fn at(figures: &[u32], index: u32) -> u32 {
    figures.get(index as usize).copied().unwrap_or(0)
}

impl From<u32> for Choice {
    /// The endpoint with this index, and its response as it is.
    fn from(endpoint: u32) -> Self {
        Choice { endpoint, response_plan: None }
    }
}

impl Choice {
    /// With these edits to the response.
    pub fn with(self, plan: ResponsePlan) -> Self {
        Choice { response_plan: Some(plan.0), ..self }
    }
}

impl ResponsePlans {
    /// Hands edits to the host, which checks them once.
    pub fn plan(&mut self, edits: Vec<Edit>) -> ResponsePlan {
        self.0.push(edits);
        ResponsePlan(self.0.len() as u32 - 1)
    }

    /// The edits that a choice asks for, for tests.
    pub fn edits(&self, choice: &Choice) -> &[Edit] {
        choice.response_plan.and_then(|place| self.0.get(place as usize)).map_or(&[], Vec::as_slice)
    }

    #[doc(hidden)]
    pub fn into_wit(self) -> Vec<Vec<Edit>> {
        self.0
    }
}
