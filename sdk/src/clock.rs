//! The time, in a form that tests control: in native tests it is that of [`testing::clock`](crate::testing::clock), which
//! stands still until the test moves it.
//!
//! ```
//! use std::time::Duration;
//!
//! use plugway_sdk::testing::{self, Harness, Request};
//! use plugway_sdk::{ConfigError, Plugin, RequestFilter, Response, Setup, Values, Verdict, clock};
//!
//! /// A filter that lets one request pass in each second.
//! struct Slow {
//!     last: Option<Duration>,
//! }
//!
//! impl Plugin for Slow {
//!     type Config = ();
//!
//!     fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(Slow { last: None })
//!     }
//! }
//!
//! impl RequestFilter for Slow {
//!     fn on_request(&mut self, _: &Values) -> Verdict {
//!         let now = clock::monotonic();
//!         if self.last.is_some_and(|last| now - last < Duration::from_secs(1)) {
//!             return Response::new(429).into();
//!         }
//!         self.last = Some(now);
//!         Verdict::proceed()
//!     }
//! }
//!
//! let mut filter = Harness::<Slow>::new(serde_json::json!({})).unwrap();
//! filter.request(Request::get("/")).expect_passed();
//! testing::clock::advance(Duration::from_millis(999));
//! assert_eq!(filter.request(Request::get("/")).expect_answered().status, 429);
//! testing::clock::advance(Duration::from_millis(1));
//! filter.request(Request::get("/")).expect_passed();
//! ```

use std::time::{Duration, SystemTime};

#[cfg(target_family = "wasm")]
use self::real as source;
#[cfg(not(target_family = "wasm"))]
use crate::testing::clock as source;

/// Returns the date and time. The clock of the machine may be set, so that time may jump and go back: measure with
/// [`monotonic`].
pub fn now() -> SystemTime {
    source::now()
}

/// Returns the time since a moment that is the same for the life of an instance. It never goes back.
pub fn monotonic() -> Duration {
    source::monotonic()
}

/// The clocks of the machine, which the proxy passes to plugins.
#[cfg(target_family = "wasm")]
#[expect(clippy::disallowed_methods, reason = "the one place where plugins read the time")]
mod real {
    use std::time::{Duration, Instant, SystemTime};

    thread_local! {
        static BEGIN: Instant = Instant::now();
    }

    pub fn now() -> SystemTime {
        SystemTime::now()
    }

    pub fn monotonic() -> Duration {
        BEGIN.with(Instant::elapsed)
    }
}
