//! The shared state of native tests, with a clock that stands still until a test advances it.
//!
//! Each test has a state of its own, as each runs on a thread of its own: all harnesses of the test share the state, as
//! the workers of a proxy do. Nothing is evicted. The example of [`shared`](crate::shared) shows a test.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use crate::bindings::shared::{Error, Rate, Taken};
use crate::bounds;

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

#[derive(Default)]
struct State {
    entries: HashMap<Vec<u8>, Entry>,
    /// The time that the test has let pass, in nanoseconds.
    now: u64,
    /// The result of all calls; `None` while they are carried out.
    failure: Option<Error>,
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

/// Lets time pass for the state of this test.
pub fn advance(time: Duration) {
    STATE.with_borrow_mut(|state| state.now += u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2));
}

/// Removes all entries, as if the proxy had been started anew or had evicted them.
pub fn clear() {
    STATE.with_borrow_mut(|state| state.entries.clear());
}

/// Returns the keys that have a value, a counter or a bucket, in order.
pub fn keys() -> Vec<Vec<u8>> {
    STATE.with_borrow(|state| {
        let live = state.entries.iter().filter(|(_, entry)| entry.expires > state.now);
        let mut keys: Vec<_> = live.map(|(key, _)| key.clone()).collect();
        keys.sort();
        keys
    })
}

/// Makes all further calls of this test return an error, or carries them out again with `None`.
pub fn fail(error: Option<crate::shared::Error>) {
    use crate::shared::Error as Own;
    let failure = error.map(|error| match error {
        Own::KeyTooLong => Error::KeyTooLong,
        Own::ValueTooLong => Error::ValueTooLong,
        Own::OtherKind => Error::OtherKind,
        Own::Overflow => Error::Overflow,
        Own::BadRate => Error::BadRate,
        Own::Unavailable => Error::Unavailable,
    });
    STATE.with_borrow_mut(|state| state.failure = failure);
}

pub(crate) fn get(key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    with(key, |state| state.value(key))
}

pub(crate) fn set(key: &[u8], value: &[u8], ttl_ms: Option<u64>) -> Result<(), Error> {
    with(key, |state| state.put(key, value, ttl_ms))
}

pub(crate) fn add(key: &[u8], amount: i64, ttl_ms: Option<u64>) -> Result<i64, Error> {
    with(key, |state| {
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
    with(key, |state| {
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
    with(key, |state| {
        let is_known = state.entry(key).is_some();
        state.entries.remove(key);
        Ok(is_known)
    })
}

pub(crate) fn take(key: &[u8], rate: Rate, cost: u32) -> Result<Taken, Error> {
    with(key, |state| {
        let Rate { tokens, period_ms, burst } = rate;
        if tokens == 0 || !(1..=MAX_PERIOD_MS).contains(&period_ms) || burst == 0 || cost > burst {
            return Err(Error::BadRate);
        }
        let now = state.now;
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
fn with<T>(key: &[u8], call: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
    STATE.with_borrow_mut(|state| match state.failure {
        Some(failure) => Err(failure),
        None if key.len() > bounds::NAME => Err(Error::KeyTooLong),
        None => call(state),
    })
}

impl State {
    fn entry(&self, key: &[u8]) -> Option<Entry> {
        self.entries.get(key).filter(|entry| entry.expires > self.now).cloned()
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
        let expires = ttl_ms.map_or(u64::MAX, |ttl| self.now.saturating_add(ttl.saturating_mul(NS_PER_MS)));
        self.entries.insert(key.into(), Entry { value: Value::Bytes(value.into()), expires });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
    fn calls_fail_when_a_test_says_so() {
        fail(Some(shared::Error::Overflow));
        assert_eq!(shared::get("a"), Err(shared::Error::Overflow));
        fail(None);
        assert_eq!(shared::set("a".repeat(1025), "", None), Err(shared::Error::KeyTooLong));
        assert_eq!(shared::set("a", vec![0; 65_537], None), Err(shared::Error::ValueTooLong));
    }
}
