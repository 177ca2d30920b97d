//! Write plugins for the Plugway reverse proxy.
//!
//! A plugin is a type that implements [`Plugin`] and one trait for each hook that it has: [`RequestFilter`],
//! [`ResponseFilter`], [`RequestBody`], [`ResponseBody`], [`BufferedRequestBody`], [`BufferedResponseBody`], [`Balancer`], [`Observer`], [`Timer`], [`CachePolicy`]. [`export!`] names
//! the hooks, and `cargo build --target wasm32-wasip2` makes a component that the proxy loads.
//!
//! [`path`], [`authority`], [`query`], [`form`], [`cookie`] and [`media_type`] read and write the parts of messages,
//! [`exchange`] has values that were not declared, [`clock`] has the time, [`log`] and [`metrics`] report.
//!
//! A filter declares in [`Plugin::new`] which values it needs and receives exactly those with each call. It never
//! changes a message itself: it returns a [`Verdict`], which the host applies.
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Response, Setup, Values, Verdict, export};
//!
//! /// The configuration of a filter that requires a known key and passes its user to the upstream.
//! #[derive(serde::Deserialize, schemars::JsonSchema)]
//! struct Config {
//!     /// The user of each key.
//!     keys: BTreeMap<String, String>,
//! }
//!
//! struct ApiKey {
//!     keys: BTreeMap<String, String>,
//!     key: Input,
//! }
//!
//! impl Plugin for ApiKey {
//!     type Config = Config;
//!
//!     fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(ApiKey { keys: config.keys, key: setup.request.field("x-api-key") })
//!     }
//! }
//!
//! impl RequestFilter for ApiKey {
//!     fn on_request(&mut self, request: &Values) -> Verdict {
//!         match request.text(self.key).and_then(|key| self.keys.get(key)) {
//!             Some(user) => Verdict::proceed().set_field("x-user", user.as_str()),
//!             None => Response::new(401).field("www-authenticate", "ApiKey").into(),
//!         }
//!     }
//! }
//!
//! export!(ApiKey: RequestFilter);
//!
//! // In a test, without wasm and without a proxy:
//! use plugway_sdk::testing::{Harness, Request};
//!
//! let config = serde_json::json!({ "keys": { "secret": "alice" } });
//! let mut filter = Harness::<ApiKey>::new(config).unwrap();
//! let passed = filter.request(Request::get("/").field("x-api-key", "secret")).passed().unwrap();
//! assert_eq!(passed.text("x-user"), Some("alice"));
//! assert_eq!(filter.request(Request::get("/")).answered().unwrap().status, 401);
//! # fn main() {}
//! ```
#![deny(missing_docs)]

pub mod authority;
#[doc(hidden)]
pub mod bindings;
pub mod bounds;
pub mod cache;
pub mod clock;
pub mod cookie;
pub mod exchange;
mod export;
pub mod form;
mod hooks;
pub mod http;
pub mod lines;
pub mod log;
pub mod media_type;
pub mod metrics;
pub mod passwords;
pub mod path;
pub mod percent;
pub mod pointer;
pub mod query;
mod setup;
pub mod shared;
pub mod testing;
pub mod token;
pub mod units;
mod values;
mod verdict;

/// The code of the README, which has to compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The code of the guide, which has to compile and to hold.
#[cfg(doctest)]
#[doc = include_str!("../../docs/writing-a-filter.md")]
pub struct Guide;

/// The code of the page about shared state, which has to compile and to hold.
#[cfg(doctest)]
#[doc = include_str!("../../docs/shared-state.md")]
pub struct SharedState;

#[doc(hidden)]
pub use export::glue;
pub use hooks::{
    Balancer, BodyError, BodyFilter, BufferedRequestBody, BufferedResponseBody, BypassReason, CacheKey, CachePolicy,
    Choice, Endpoint, EndpointState, Endpoints, FetchTimes, Lookup, Observer, Plugin, Refusal, RequestBody,
    RequestFilter, ResponseBody, ResponseEdits, ResponseEditsId, ResponseFilter, Reuse, Storage, StoreDecision,
    StoredResponse, Summary, Timer,
};
pub use setup::{
    BodyMode, BodySetup, CacheStatus, CodedContent, ConfigError, ContentRules, EditPlan, EditPlanId, Input, Inputs,
    LookupPlan, OverLimit, Part, Setup, ValueName,
};
pub use values::Values;
pub use verdict::{BodyVerdict, Edit, Response, Verdict};

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The documents whose code this crate compiles: see the items for `doctest`.
    const COMPILED: [&str; 2] = ["writing-a-filter.md", "shared-state.md"];

    #[test]
    fn all_rust_code_of_the_documents_is_compiled() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let plugins = docs.join("plugins");
        let mut with_code = Vec::new();
        for file in [docs, plugins].iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
            let file = file.unwrap();
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            let blocks: Vec<&str> = text.lines().filter(|line| line.starts_with("```rust")).collect();
            assert!(
                blocks.iter().all(|block| *block == "```rust"),
                "{:?} has code that isn't run: {blocks:?}",
                file.path()
            );
            if !blocks.is_empty() {
                with_code.push(file.file_name().into_string().unwrap());
            }
        }
        with_code.sort();
        let mut compiled = COMPILED;
        compiled.sort();
        assert_eq!(with_code, compiled);
        let own = include_str!("lib.rs");
        assert!(COMPILED.iter().all(|name| own.contains(&format!("include_str!(\"../../docs/{name}\")"))));
    }
}
