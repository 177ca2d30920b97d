//! The values that are passed to a call.

use crate::Input;

/// The declared values of a plugin at the time of the call.
#[derive(Debug)]
pub struct Values {
    values: Vec<Option<Vec<u8>>>,
    key: Option<u64>,
}

impl Values {
    /// Returns the bytes of a value; `None` if it is absent.
    pub fn bytes(&self, need: Input) -> Option<&[u8]> {
        self.values.get(need.0)?.as_deref()
    }

    /// Returns a value as text; `None` if it is absent or not UTF-8.
    pub fn text(&self, need: Input) -> Option<&str> {
        std::str::from_utf8(self.bytes(need)?).ok()
    }

    /// Returns a value as another type, parsed from its text; `None` if it is absent or can't be parsed. Numbers, addresses
    /// and the types of the `http` crate can be parsed:
    ///
    /// ```
    /// # use plugway_sdk::*;
    /// struct Shorter { method: Input, length: Input }
    ///
    /// impl Plugin for Shorter {
    ///     type Config = ();
    ///     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
    ///         let (method, length) = (ValueName::Method, ValueName::ContentLength);
    ///         Ok(Shorter { method: setup.request.value(method), length: setup.request.value(length) })
    ///     }
    /// }
    ///
    /// impl RequestFilter for Shorter {
    ///     fn on_request(&mut self, request: &Values) -> Verdict {
    ///         let is_put = request.parsed(self.method) == Some(::http::Method::PUT);
    ///         match request.parsed::<u64>(self.length) {
    ///             Some(length) if is_put && length > 1000 => ::http::StatusCode::PAYLOAD_TOO_LARGE.into(),
    ///             _ => Verdict::proceed(),
    ///         }
    ///     }
    /// }
    ///
    /// use plugway_sdk::testing::{Harness, Request};
    /// let mut filter = Harness::<Shorter>::new(serde_json::json!({})).unwrap();
    /// assert_eq!(filter.request(Request::new("PUT", "/").content(1001)).expect_answered().status, 413);
    /// filter.request(Request::new("POST", "/").content(1001)).expect_passed();
    /// ```
    pub fn parsed<T: std::str::FromStr>(&self, need: Input) -> Option<T> {
        self.text(need)?.parse().ok()
    }

    /// Returns the hash of the value that a balancer declared as its [`key`](crate::Setup::balancer_key); `None` if it
    /// is absent.
    pub fn key(&self) -> Option<u64> {
        self.key
    }

    #[doc(hidden)]
    pub fn new(values: Vec<Option<Vec<u8>>>) -> Self {
        Values { values, key: None }
    }

    #[doc(hidden)]
    pub fn with_key(self, key: Option<u64>) -> Self {
        Values { key, ..self }
    }
}
