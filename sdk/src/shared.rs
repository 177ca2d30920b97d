//! State that all instances of the plugin share, on all workers: values, counters and token buckets under keys.
//!
//! The host may evict any entry to make room for others, the one first that was not used for the longest time. The state
//! is kept over reloads and over new versions of the plugin, but doesn't outlast the process. The manifest must grant it:
//! `grants.shared = true`. In native tests the state is that of [`testing::shared`](crate::testing::shared).
//!
//! A filter that allows each API key ten requests a second, and twenty at once:
//!
//! ```
//! use plugway_sdk::shared::{self, Rate};
//! use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Response, Setup, Values, Verdict, export};
//!
//! struct Quota {
//!     key: Input,
//! }
//!
//! impl Plugin for Quota {
//!     type Config = ();
//!
//!     fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(Quota { key: setup.request.field("x-api-key") })
//!     }
//! }
//!
//! impl RequestFilter for Quota {
//!     fn on_request(&mut self, request: &Values) -> Verdict {
//!         let key = request.text(self.key).unwrap_or_default();
//!         match shared::take(key, Rate::per_second(10).burst(20), 1) {
//!             Ok(taken) if !taken.allowed => {
//!                 let seconds = taken.retry_after.as_secs() + 1;
//!                 Response::new(429).field("retry-after", seconds.to_string()).into()
//!             }
//!             Ok(_) => Verdict::proceed(),
//!             Err(error) => Verdict::Fail(format!("no quota: {error}")),
//!         }
//!     }
//! }
//!
//! export!(Quota: RequestFilter);
//!
//! // In a test, time passes when the test says so:
//! use std::time::Duration;
//!
//! use plugway_sdk::testing::{self, Harness, Request};
//!
//! let mut filter = Harness::<Quota>::new(serde_json::json!({})).unwrap();
//! let mut ask = || filter.request(Request::get("/").field("x-api-key", "k")).passed().is_some();
//! assert_eq!((0..30).filter(|_| ask()).count(), 20);
//! testing::clock::advance(Duration::from_millis(500));
//! assert_eq!((0..30).filter(|_| ask()).count(), 5);
//! # fn main() {}
//! ```

use std::fmt;
use std::time::Duration;

use crate::bindings::shared as wit;
#[cfg(target_family = "wasm")]
use crate::bindings::shared as host;
#[cfg(not(target_family = "wasm"))]
use crate::testing::shared as host;

/// The reason why a function did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The key has more than 1,024 bytes.
    KeyTooLong,
    /// The value has more than 65,536 bytes.
    ValueTooLong,
    /// The key has something that the function can't be applied to: a value that is no decimal integer for [`add`], a
    /// value for [`take`], a bucket for the other functions.
    OtherKind,
    /// The sum is out of the range of a counter.
    Overflow,
    /// The rate is out of range, or its bucket never holds as many tokens as the call takes.
    BadRate,
    /// The server that has the state was not asked, rejected the call, or didn't answer in time; then it may have carried
    /// out the call nevertheless. Occurs only with `[shared] redis` in the manifest.
    Unavailable,
}

/// The rate at which a token bucket fills, and its size. The size is the tokens of one period, unless [`Rate::burst`]
/// sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    tokens: u32,
    period: Duration,
    burst: u32,
}

/// The result of [`take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whether the tokens were taken.
    pub allowed: bool,
    /// The tokens that are left in the bucket.
    pub remaining: u32,
    /// The time until the bucket holds as many tokens as the call was to take; zero if they were taken.
    pub retry_after: Duration,
    /// The time until the bucket is full if nothing more is taken.
    pub reset_after: Duration,
}

/// Returns the value of a key; `None` if it is absent, expired or evicted. A counter is returned in decimal.
pub fn get(key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, Error> {
    host::get(key.as_ref()).map_err(Error::from)
}

/// Sets the value of a key, whatever the key had before. It expires after `ttl`, or stays until it is evicted.
pub fn set(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, ttl: Option<Duration>) -> Result<(), Error> {
    host::set(key.as_ref(), value.as_ref(), ttl.map(milliseconds)).map_err(Error::from)
}

/// Adds to a counter, and returns its new value. An absent counter starts at 0 and expires after `ttl`; later calls don't
/// change the time at which it expires.
pub fn add(key: impl AsRef<[u8]>, amount: i64, ttl: Option<Duration>) -> Result<i64, Error> {
    host::add(key.as_ref(), amount, ttl.map(milliseconds)).map_err(Error::from)
}

/// Sets the value of a key if its present value is `expected`, or if it is absent and `expected` is `None`. Returns
/// whether the value was set. `ttl` is that of the new value, as with [`set`].
pub fn compare_and_swap(
    key: impl AsRef<[u8]>,
    expected: Option<&[u8]>,
    value: impl AsRef<[u8]>,
    ttl: Option<Duration>,
) -> Result<bool, Error> {
    host::compare_and_swap(key.as_ref(), expected, value.as_ref(), ttl.map(milliseconds)).map_err(Error::from)
}

/// Removes a value, a counter or a bucket. Returns whether there was one.
pub fn delete(key: impl AsRef<[u8]>) -> Result<bool, Error> {
    host::delete(key.as_ref()).map_err(Error::from)
}

/// Takes tokens from the bucket of a key, all of them or none. An absent bucket is full. With a `cost` of 0, nothing is
/// taken.
pub fn take(key: impl AsRef<[u8]>, rate: Rate, cost: u32) -> Result<Taken, Error> {
    let rate = wit::Rate { tokens: rate.tokens, period_ms: milliseconds(rate.period), burst: rate.burst };
    host::take(key.as_ref(), rate, cost).map(Taken::from).map_err(Error::from)
}

impl Rate {
    /// Returns the rate that adds so many tokens in each period, evenly spread over it.
    pub fn per(tokens: u32, period: Duration) -> Self {
        Rate { tokens, period, burst: tokens }
    }

    /// Returns the rate that adds so many tokens in each second.
    pub fn per_second(tokens: u32) -> Self {
        Rate::per(tokens, Duration::from_secs(1))
    }

    /// Returns the rate that adds so many tokens in each minute.
    pub fn per_minute(tokens: u32) -> Self {
        Rate::per(tokens, Duration::from_secs(60))
    }

    /// Sets the size of the bucket: the most tokens that can be taken at once.
    pub fn burst(self, burst: u32) -> Self {
        Rate { burst, ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::KeyTooLong => "the key has more than 1,024 bytes",
            Error::ValueTooLong => "the value has more than 65,536 bytes",
            Error::OtherKind => "the key has a value of another kind",
            Error::Overflow => "the sum is out of the range of a counter",
            Error::BadRate => "the rate is out of range, or its burst is less than the cost",
            Error::Unavailable => "the server that has the shared state is not available",
        })
    }
}

impl std::error::Error for Error {}

impl From<wit::Error> for Error {
    fn from(error: wit::Error) -> Self {
        match error {
            wit::Error::KeyTooLong => Error::KeyTooLong,
            wit::Error::ValueTooLong => Error::ValueTooLong,
            wit::Error::OtherKind => Error::OtherKind,
            wit::Error::Overflow => Error::Overflow,
            wit::Error::BadRate => Error::BadRate,
            wit::Error::Unavailable => Error::Unavailable,
        }
    }
}

impl From<wit::Taken> for Taken {
    fn from(taken: wit::Taken) -> Self {
        let wit::Taken { allowed, remaining, retry_after_ms, reset_after_ms } = taken;
        let (retry_after, reset_after) = (Duration::from_millis(retry_after_ms), Duration::from_millis(reset_after_ms));
        Taken { allowed, remaining, retry_after, reset_after }
    }
}

/// Returns a time in milliseconds, rounded up: a time that is not zero stays so.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
