//! The current exchange, for values that were not declared. Each function is a call of the host, so declare the values
//! that you always need. In a native test, [`testing::Harness`](crate::testing::Harness) provides the values while it runs
//! a filter hook; otherwise everything is absent.

use crate::ValueName;
#[cfg(target_family = "wasm")]
use crate::bindings::exchange as host;
#[cfg(not(target_family = "wasm"))]
use crate::testing::current as host;

/// Returns a value of the exchange; `None` if it is absent.
pub fn value(name: &ValueName) -> Option<Vec<u8>> {
    host::value(name)
}

/// Returns all values of a name, in order: each line of a field, each query parameter or each cookie of that name. Any
/// other value is a list of one. An empty list if the value is absent.
///
/// A client may repeat a name, and origins differ in the one that they read. A filter that protects an origin therefore
/// checks all of them:
///
/// ```
/// use plugway_sdk::testing::{Harness, Request};
/// use plugway_sdk::{ConfigError, Plugin, RequestFilter, Response, Setup, ValueName, Values, Verdict, exchange};
///
/// /// A filter that accepts numbers only as `id`.
/// struct Numbers(ValueName);
///
/// impl Plugin for Numbers {
///     type Config = ();
///
///     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
///         Ok(Numbers(ValueName::QueryParameter("id".into())))
///     }
/// }
///
/// impl RequestFilter for Numbers {
///     fn on_request(&mut self, _: &Values) -> Verdict {
///         let ids = exchange::values(&self.0);
///         let are_numbers = ids.iter().all(|id| !id.is_empty() && id.iter().all(u8::is_ascii_digit));
///         if are_numbers { Verdict::proceed() } else { Response::new(400).into() }
///     }
/// }
///
/// let mut filter = Harness::<Numbers>::new(serde_json::json!({})).unwrap();
/// assert!(filter.request(Request::get("/?id=1&id=2")).passed().is_some());
/// for target in ["/?id=1&id=2'--", "/?id=1&%69d=x", "/?id"] {
///     assert_eq!(filter.request(Request::get(target)).answered().unwrap().status, 400, "{target}");
/// }
/// ```
pub fn values(name: &ValueName) -> Vec<Vec<u8>> {
    host::values(name)
}

/// Returns all fields of the request in its current state.
pub fn request_fields() -> Vec<(String, Vec<u8>)> {
    host::request_fields()
}

/// Returns all fields of the response in its current state; an empty list during the request.
pub fn response_fields() -> Vec<(String, Vec<u8>)> {
    host::response_fields()
}
