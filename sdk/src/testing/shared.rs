//! The shared state of native tests, which follows the [clock](super::clock) of the test.
//!
//! Each test has a state of its own, as each runs on a thread of its own: all harnesses of the test share the state, as
//! the workers of a proxy do. Nothing is evicted, unless the test deletes it. The example of [`shared`](crate::shared)
//! shows a test.
//!
//! A script runs before the calls of the plugin. It sees each call, may have it fail, and may do what another worker does
//! at that moment:
//!
//! ```
//! use plugway_sdk::{shared, testing};
//!
//! /// Adds a visitor to a list.
//! fn visit(name: &str) -> Result<(), shared::Error> {
//!     loop {
//!         let known = shared::get("visitors")?;
//!         let list = [known.as_deref().unwrap_or_default(), name.as_bytes(), b" "].concat();
//!         if shared::compare_and_swap("visitors", known.as_deref(), list, None)? {
//!             return Ok(());
//!         }
//!     }
//! }
//!
//! // Another worker is faster once, between the two calls.
//! let mut swaps = 0;
//! testing::shared::script(move |call| {
//!     swaps += u32::from(call.function == "compare_and_swap");
//!     if swaps == 1 {
//!         shared::set("visitors", "bob ", None)?;
//!     }
//!     Ok(())
//! });
//! assert_eq!(visit("alice"), Ok(()));
//! assert_eq!(shared::get("visitors"), Ok(Some(b"bob alice ".to_vec())));
//!
//! testing::shared::script(|call| if call.key == b"visitors" { Err(shared::Error::OtherKind) } else { Ok(()) });
//! assert_eq!(visit("carol"), Err(shared::Error::OtherKind));
//! ```

use std::cell::RefCell;
use std::collections::HashMap;

use super::clock;
use crate::bindings::shared::{Error, Rate, Taken};
use crate::bounds;

/// A call of a function of [`shared`](crate::shared).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The name of the function, such as `compare_and_swap`.
    pub function: &'static str,
    /// The key that the function is called with.
    pub key: Vec<u8>,
}

/// A script of a test.
type Script = Box<dyn FnMut(&Call) -> Result<(), crate::shared::Error>>;

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
    static SCRIPT: RefCell<Option<Script>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct State {
    entries: HashMap<Vec<u8>, Entry>,
}

#[derive(Clone)]
struct Entry {
    value: Value,
    expires: u64,
}

#[derive(Clone, PartialEq)]
enum Value {
    Bytes(Vec<u8>),
    /// A token bucket, which is full when the entry expires.
    Bucket,
}

const NS_PER_MS: u64 = 1_000_000;

/// The longest period of a rate, in milliseconds.
const MAX_PERIOD_MS: u64 = 31_622_400_000;

/// Removes all entries, as if the proxy had been started anew or had evicted them.
pub fn clear() {
    STATE.with_borrow_mut(|state| state.entries.clear());
}

/// Returns the keys that have a value, a counter or a bucket, in order.
pub fn keys() -> Vec<Vec<u8>> {
    STATE.with_borrow(|state| {
        let live = state.entries.iter().filter(|(_, entry)| entry.expires > clock::nanoseconds());
        let mut keys: Vec<_> = live.map(|(key, _)| key.clone()).collect();
        keys.sort();
        keys
    })
}

/// Makes all further calls of this test return an error, or carries them out again with `None`. The call replaces the
/// [`script`] of the test.
pub fn fail(error: Option<crate::shared::Error>) {
    script(move |_| error.map_or(Ok(()), Err));
}

/// Runs a script before each further call of this test. An error is the result of the call, which does nothing then. What
/// the script itself calls is carried out, as if another worker had called it. The script ends with the test, or with the
/// next one.
pub fn script(script: impl FnMut(&Call) -> Result<(), crate::shared::Error> + 'static) {
    SCRIPT.set(Some(Box::new(script)));
}

pub(crate) fn get(key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    with("get", key, |state| state.value(key))
}

pub(crate) fn set(key: &[u8], value: &[u8], ttl_ms: Option<u64>) -> Result<(), Error> {
    with("set", key, |state| state.put(key, value, ttl_ms))
}

pub(crate) fn add(key: &[u8], amount: i64, ttl_ms: Option<u64>) -> Result<i64, Error> {
    with("add", key, |state| {
        let Some(known) = state.value(key)? else {
            return state.put(key, amount.to_string().as_bytes(), ttl_ms).map(|()| amount);
        };
        let text = std::str::from_utf8(&known).map_err(|_| Error::OtherKind)?;
        let count: i64 = text.parse().map_err(|_| Error::OtherKind)?;
        if count.to_string() != text {
            return Err(Error::OtherKind);
        }
        let sum = count.checked_add(amount).ok_or(Error::Overflow)?;
        if let Some(entry) = state.entries.get_mut(key) {
            entry.value = Value::Bytes(sum.to_string().into_bytes());
        }
        Ok(sum)
    })
}

pub(crate) fn compare_and_swap(
    key: &[u8],
    expected: Option<&[u8]>,
    value: &[u8],
    ttl_ms: Option<u64>,
) -> Result<bool, Error> {
    with("compare_and_swap", key, |state| {
        if value.len() > bounds::VALUE {
            return Err(Error::ValueTooLong);
        }
        let is_expected = state.value(key)?.as_deref() == expected;
        if is_expected {
            state.put(key, value, ttl_ms)?;
        }
        Ok(is_expected)
    })
}

pub(crate) fn delete(key: &[u8]) -> Result<bool, Error> {
    with("delete", key, |state| {
        let is_known = state.entry(key).is_some();
        state.entries.remove(key);
        Ok(is_known)
    })
}

pub(crate) fn take(key: &[u8], rate: Rate, cost: u32) -> Result<Taken, Error> {
    with("take", key, |state| {
        let Rate { tokens, period_ms, burst } = rate;
        if tokens == 0 || !(1..=MAX_PERIOD_MS).contains(&period_ms) || burst == 0 || cost > burst {
            return Err(Error::BadRate);
        }
        let now = clock::nanoseconds();
        let interval = (period_ms * NS_PER_MS / u64::from(tokens)).max(1);
        let times = |count: u32| interval.saturating_mul(u64::from(count)).min(u64::MAX / 4);
        let size = times(burst);
        let full_at = match state.entry(key) {
            Some(Entry { value: Value::Bucket, expires }) => expires.clamp(now, now + size),
            Some(_) => return Err(Error::OtherKind),
            None => now,
        };
        let missing = (full_at + times(cost) - now).saturating_sub(size);
        let expires = if missing == 0 { full_at + times(cost) } else { full_at };
        state.entries.insert(key.into(), Entry { value: Value::Bucket, expires });
        let used = expires - now;
        Ok(Taken {
            allowed: missing == 0,
            remaining: u32::try_from((size - used) / interval).unwrap_or(u32::MAX),
            retry_after_ms: missing.div_ceil(NS_PER_MS),
            reset_after_ms: used.div_ceil(NS_PER_MS),
        })
    })
}

/// Carries out a call with a key of this test's state.
fn with<T>(function: &'static str, key: &[u8], call: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
    run_script(&Call { function, key: key.into() })?;
    if key.len() > bounds::NAME {
        return Err(Error::KeyTooLong);
    }
    STATE.with_borrow_mut(call)
}

/// Runs the script of the test, if there is one. The script is away meanwhile, so that its own calls don't run it.
fn run_script(call: &Call) -> Result<(), Error> {
    let Some(mut script) = SCRIPT.take() else { return Ok(()) };
    let result = script(call);
    SCRIPT.with_borrow_mut(|next| _ = next.get_or_insert(script));
    result.map_err(wit_error)
}

fn wit_error(error: crate::shared::Error) -> Error {
    use crate::shared::Error as Own;
    match error {
        Own::KeyTooLong => Error::KeyTooLong,
        Own::ValueTooLong => Error::ValueTooLong,
        Own::OtherKind => Error::OtherKind,
        Own::Overflow => Error::Overflow,
        Own::BadRate => Error::BadRate,
        Own::Unavailable => Error::Unavailable,
    }
}

impl State {
    fn entry(&self, key: &[u8]) -> Option<Entry> {
        self.entries.get(key).filter(|entry| entry.expires > clock::nanoseconds()).cloned()
    }

    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match self.entry(key).map(|entry| entry.value) {
            Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Value::Bucket) => Err(Error::OtherKind),
            None => Ok(None),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8], ttl_ms: Option<u64>) -> Result<(), Error> {
        if value.len() > bounds::VALUE {
            return Err(Error::ValueTooLong);
        }
        let expires = ttl_ms.map_or(u64::MAX, |ttl| clock::nanoseconds().saturating_add(ttl.saturating_mul(NS_PER_MS)));
        self.entries.insert(key.into(), Entry { value: Value::Bytes(value.into()), expires });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::clock::advance;
    use super::*;
    use crate::shared::{self, Rate};

    #[test]
    fn time_passes_when_a_test_says_so() {
        shared::set("a", "1", Some(Duration::from_millis(100))).unwrap();
        shared::set("b", "2", None).unwrap();
        advance(Duration::from_millis(99));
        assert_eq!(shared::get("a"), Ok(Some(b"1".to_vec())));
        advance(Duration::from_millis(1));
        assert_eq!((shared::get("a"), keys()), (Ok(None), vec![b"b".to_vec()]));
        clear();
        assert_eq!(shared::get("b"), Ok(None));
    }

    #[test]
    fn counters_and_swaps_work_as_in_the_host() {
        let minute = Some(Duration::from_secs(60));
        assert_eq!((shared::add("n", 2, minute), shared::add("n", -3, None)), (Ok(2), Ok(-1)));
        assert_eq!(shared::compare_and_swap("n", Some(b"-1"), "x", None), Ok(true));
        assert_eq!(shared::add("n", 1, None), Err(shared::Error::OtherKind));
        assert_eq!(shared::compare_and_swap("n", None, "y", None), Ok(false));
        assert_eq!((shared::delete("n"), shared::delete("n")), (Ok(true), Ok(false)));
        assert_eq!(shared::compare_and_swap("n", None, "y", None), Ok(true));
        assert_eq!(
            (shared::add("m", i64::MAX, None), shared::add("m", 1, None)),
            (Ok(i64::MAX), Err(shared::Error::Overflow))
        );
    }

    #[test]
    fn buckets_fill_with_time() {
        let rate = Rate::per_minute(60).burst(2);
        let take = |cost| shared::take("k", rate, cost);
        assert_eq!(take(2).map(|taken| (taken.allowed, taken.remaining)), Ok((true, 0)));
        assert_eq!(take(1).map(|taken| taken.retry_after), Ok(Duration::from_secs(1)));
        advance(Duration::from_secs(1));
        assert_eq!(take(0).map(|taken| taken.remaining), Ok(1));
        assert_eq!((take(3), shared::get("k")), (Err(shared::Error::BadRate), Err(shared::Error::OtherKind)));
        advance(Duration::from_secs(1));
        assert_eq!(shared::get("k"), Ok(None));
    }

    #[test]
    fn a_script_sees_the_calls_and_acts_between_them() {
        script(|call| match (call.function, &call.key[..]) {
            ("get", b"gone") => shared::delete("gone").map(|_| ()),
            ("take", _) => Err(shared::Error::BadRate),
            _ => Ok(()),
        });
        shared::set("gone", "1", None).unwrap();
        assert_eq!(shared::get("gone"), Ok(None));
        assert_eq!(shared::take("gone", Rate::per_second(1), 1), Err(shared::Error::BadRate));
        // A script may put another in its place.
        script(|_| {
            fail(Some(shared::Error::Overflow));
            Ok(())
        });
        assert_eq!((shared::get("gone"), shared::get("gone")), (Ok(None), Err(shared::Error::Overflow)));
    }

    #[test]
    fn calls_fail_when_a_test_says_so() {
        fail(Some(shared::Error::Overflow));
        assert_eq!(shared::get("a"), Err(shared::Error::Overflow));
        fail(None);
        assert_eq!(shared::set("a".repeat(1025), "", None), Err(shared::Error::KeyTooLong));
        assert_eq!(shared::set("a", vec![0; 65_537], None), Err(shared::Error::ValueTooLong));
    }
}
