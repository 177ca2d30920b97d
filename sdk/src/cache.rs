//! HTTP caching as RFC 9111 has it for shared caches, for policies to build on: the stock `cache` plugin is this with a
//! configuration, and a policy of one's own changes an answer here and there.
//!
//! ```
//! use plugway_sdk::cache::{Options, Standard};
//! use plugway_sdk::{CachePolicy, ConfigError, Keep, Lookup, Plugin, Reuse, Setup, StoredResponse, Times, Values};
//!
//! /// Keeps everything for a minute at least.
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
//!     fn on_fetched(&mut self, response: &Values, times: &Times) -> Keep {
//!         let mut keep = self.0.fetched(response, times);
//!         if let Keep::Store(storage) = &mut keep {
//!             storage.lifetime_ms = storage.lifetime_ms.max(60_000);
//!         }
//!         keep
//!     }
//!
//!     fn on_changed(&mut self, response: &Values) -> Vec<Vec<u8>> {
//!         self.0.changed(response)
//!     }
//!
//!     fn on_upstream_error(&mut self, request: &Values, stored: &StoredResponse, status: Option<u16>) -> bool {
//!         self.0.upstream_error(request, stored, status)
//!     }
//! }
//! ```

mod dictionary;
mod directives;
pub(crate) mod key;
mod standard;

pub use directives::Directives;
pub use key::Query;
pub use standard::Standard;

use std::time::Duration;

use crate::ValueName;

/// A value, and how it is called in the key.
type Wanted = (ValueName, String);

/// What a policy may say where the messages don't.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which part of the query is in the key.
    pub query: Query,
    /// Whether parameters of the query are put in order by name.
    pub sort_query: bool,
    /// Further values in the key.
    pub key: Vec<ValueName>,
    /// Requests that have one of these go past the cache.
    pub bypass: Vec<ValueName>,
    /// Whether what requests say about caching counts (RFC 9111 §5.2.1).
    pub obey_requests: bool,
    /// Fields that go before `Cache-Control`, in this order (RFC 9213).
    pub targeted: Vec<String>,
    /// Fields with tags for purging, separated by spaces or commas.
    pub tags: Vec<String>,
    /// Whether fields with tags are kept from clients.
    pub hide_tags: bool,
    /// What becomes of responses with `Set-Cookie`.
    pub cookies: Cookies,
    /// Of the time since a response was modified, for so many hundredths it is fresh where it doesn't say
    /// (RFC 9111 §4.2.2).
    pub heuristic_percent: u64,
    /// And no longer than this.
    pub heuristic_most: Duration,
    /// How long a response is fresh that says nothing about it, by status; the first that fits counts.
    pub lifetimes: Vec<(std::ops::RangeInclusive<u16>, Duration)>,
    /// No response is fresh for longer than this.
    pub longest: Duration,
    /// Where the response doesn't say (RFC 5861 §3).
    pub stale_while_revalidate: Duration,
    /// Where the response doesn't say (RFC 5861 §4).
    pub stale_if_error: Duration,
}

/// What becomes of responses with `Set-Cookie`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cookies {
    /// They aren't stored.
    #[default]
    Refuse,
    /// They are stored without: only the client that made the request gets the cookie.
    Strip,
    /// They are stored with the cookie, and everybody gets the same.
    Keep,
}

impl Default for Options {
    /// What RFC 9111 says and nothing beyond it.
    fn default() -> Self {
        Options {
            query: Query::Whole,
            sort_query: false,
            key: Vec::new(),
            bypass: Vec::new(),
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
