//! HTTP caching by RFC 9111 for shared caches, as a base for policies. The stock `cache` plugin is this module with a
//! configuration, and your own policy changes some of its decisions.
//!
//! ```
//! use plugway_sdk::cache::{Options, Standard};
//! use plugway_sdk::{
//!     CachePolicy, ConfigError, FetchTimes, Lookup, Plugin, Reuse, Setup, StoreDecision, StoredResponse, Values,
//! };
//!
//! /// A policy that stores everything for at least a minute.
//! struct Minute(Standard);
//!
//! impl Plugin for Minute {
//!     type Config = ();
//!
//!     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(Minute(Standard::new(setup, Options::default())))
//!     }
//! }
//!
//! impl CachePolicy for Minute {
//!     fn on_lookup(&mut self, request: &Values) -> Lookup {
//!         self.0.lookup(request)
//!     }
//!
//!     fn on_stored(&mut self, request: &Values, stored: &StoredResponse) -> Reuse {
//!         self.0.stored(request, stored)
//!     }
//!
//!     fn on_fetched(&mut self, response: &Values, times: &FetchTimes) -> StoreDecision {
//!         let mut decision = self.0.fetched(response, times);
//!         if let StoreDecision::Store(storage) = &mut decision {
//!             storage.lifetime_ms = storage.lifetime_ms.max(60_000);
//!         }
//!         decision
//!     }
//!
//!     fn on_invalidate(&mut self, response: &Values) -> Vec<Vec<u8>> {
//!         self.0.invalidated_keys(response)
//!     }
//!
//!     fn on_upstream_error(&mut self, request: &Values, stored: &StoredResponse, status: Option<u16>) -> bool {
//!         self.0.upstream_error(request, stored, status)
//!     }
//! }
//! ```

mod dictionary;
mod directives;
mod http_date;
pub(crate) mod key;
mod standard;

pub use directives::Directives;
pub use key::Query;
pub use standard::Standard;

use std::time::Duration;

use crate::ValueName;

/// The note that an exchange has if its client sent credentials. The host sets it to `authorization` if the request, as
/// received, has the field `Authorization`, so that a plugin which removes the field doesn't make the response storable. A
/// plugin sets it if it lets a client pass by other credentials, such as an API key. [`Standard`] treats a request with
/// this note as one with `Authorization` (RFC 9111 §3.5).
pub const CREDENTIALS: &str = "plugway.credentials";

/// A value of the cache key, with its name in the key.
type Wanted = (ValueName, String);

/// The options of a policy, for decisions that the messages leave open.
#[derive(Clone, Debug)]
pub struct Options {
    /// The part of the query that is in the cache key.
    pub query: Query,
    /// Whether the parameters of the query are sorted by name.
    pub sort_query: bool,
    /// The additional values in the cache key.
    pub key: Vec<ValueName>,
    /// The values that make a request bypass the cache if one of them is not empty.
    pub bypass: Vec<ValueName>,
    /// The beginnings of names of cookies, any of which makes a request bypass the cache if it is not empty.
    pub bypass_cookies: Vec<String>,
    /// Whether the caching directives of requests are obeyed (RFC 9111 §5.2.1).
    pub obey_requests: bool,
    /// The fields that take precedence over `Cache-Control`, in this order (RFC 9213).
    pub targeted: Vec<String>,
    /// The fields with tags for purging, separated by spaces or commas.
    pub tags: Vec<String>,
    /// Whether fields with tags are hidden from clients.
    pub hide_tags: bool,
    /// The handling of responses with `Set-Cookie`.
    pub cookies: Cookies,
    /// The heuristic freshness lifetime, in percent of the time since the last modification, for responses without an
    /// explicit lifetime (RFC 9111 §4.2.2).
    pub heuristic_percent: u64,
    /// The maximum of the heuristic freshness lifetime.
    pub heuristic_most: Duration,
    /// The lifetime of responses without an explicit one, by status; the first range that contains the status applies.
    pub lifetimes: Vec<(std::ops::RangeInclusive<u16>, Duration)>,
    /// The maximum freshness lifetime of any response.
    pub longest: Duration,
    /// The time for stale-while-revalidate if the response doesn't set it (RFC 5861 §3).
    pub stale_while_revalidate: Duration,
    /// The time for stale-if-error if the response doesn't set it (RFC 5861 §4).
    pub stale_if_error: Duration,
}

/// The handling of responses with `Set-Cookie`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cookies {
    /// Responses with `Set-Cookie` aren't stored.
    #[default]
    Refuse,
    /// The response is stored without the cookie; only the client that made the request gets the cookie.
    Strip,
    /// The response is stored with the cookie, and all clients get the same cookie.
    Keep,
}

impl Default for Options {
    /// Returns the options for exactly the rules of RFC 9111.
    fn default() -> Self {
        Options {
            query: Query::Whole,
            sort_query: false,
            key: Vec::new(),
            bypass: Vec::new(),
            bypass_cookies: Vec::new(),
            obey_requests: true,
            targeted: vec!["cdn-cache-control".into()],
            tags: vec!["surrogate-key".into(), "cache-tag".into()],
            hide_tags: false,
            cookies: Cookies::Refuse,
            heuristic_percent: 10,
            heuristic_most: Duration::from_secs(24 * 3600),
            lifetimes: Vec::new(),
            longest: Duration::from_secs(1 << 31),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
        }
    }
}
