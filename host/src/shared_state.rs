//! Values, counters and token buckets that all instances of a plugin share, on all workers. Knows nothing of wasm.
//!
//! Each plugin has a [`SharedState`] of its own, by its name in the manifest. The generations that have the plugin hold
//! the state, so that a reload keeps it. A state is bounded in entries and bytes: new entries evict those that were not
//! used for the longest time. It is divided into parts with a lock each, so that workers meet only where they use keys of
//! the same part at the same moment. Each operation takes the time, and none waits for anything else.
//!
//! With a Redis server, the processes of a fleet have one state: [`fleet`] asks the server, and waits for it.

pub mod fleet;
mod gcra;
mod part;
mod plugin_state;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::time::{ClockId, clock_gettime};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use gcra::{TakeRate, Taken};
pub use plugin_state::PluginState;

use crate::context::bounds;
use part::{SharedEntry, SharedPart, SharedValue};

/// The states of plugins, by their owners; a state is dropped with the last plugin that has it.
#[derive(Default)]
pub struct SharedStates(HashMap<StateOwner, Weak<SharedState>>);

/// The owner of a state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StateOwner {
    /// The plugin of this name in the manifest.
    Plugin(Arc<str>),
    /// The plugins without a name that have this file: those of one file are one plugin.
    File(Arc<str>),
}

/// The state that the instances of one plugin share.
pub struct SharedState {
    parts: Box<[AlignedPart]>,
    /// The secret seed for hashing keys. A client that doesn't know it can't choose keys of one part, or keys that collide.
    seed: u64,
}

/// A part on cache lines of its own, so that the lock of one part slows down no other.
#[repr(align(128))]
struct AlignedPart(Mutex<SharedPart>);

/// The limits of one plugin's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedLimits {
    /// The memory of all entries, in bytes, with [`ENTRY_OVERHEAD`] for each.
    pub bytes: usize,
    pub entries: usize,
}

/// The size of a state, and what it has lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedUse {
    pub entries: usize,
    pub bytes: usize,
    /// The entries that left before their time, for others.
    pub evicted: u64,
}

/// The keys of a state, a part at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPage {
    pub keys: Vec<Vec<u8>>,
    /// The cursor of the next part; `None` at the end.
    pub next: Option<u64>,
}

/// The reason why an operation was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SharedError {
    #[error("the key is too long; at most {} bytes are allowed", bounds::SHARED_KEY)]
    KeyTooLong,
    #[error("the value is too long; at most {} bytes are allowed", bounds::SHARED_VALUE)]
    ValueTooLong,
    /// The key holds a value that the operation can't be applied to.
    #[error("the key has a value of another kind")]
    OtherKind,
    /// The sum would be out of the range of a counter.
    #[error("the sum is out of the range of a counter")]
    Overflow,
    /// The rate allows nothing, or less than the call takes.
    #[error("the rate is out of range")]
    BadRate,
    /// The server of the fleet's state was not asked, rejected the call, or didn't answer in time.
    #[error("the server that has the state is not available")]
    Unavailable,
}

/// The parts of a state: enough that two workers rarely meet at one, few enough that the smallest state has room for
/// the longest value in each.
const PARTS: usize = 64;

/// The entries that a call looks at to list keys.
pub const MAX_LISTED_KEYS: usize = 1_000;

/// Bytes that an entry counts besides its key and its value: about what the host needs to keep it.
pub const ENTRY_OVERHEAD: usize = 128;

/// The least memory of a state: the longest value has room in each part.
pub const MIN_BYTES: usize = PARTS * (bounds::SHARED_KEY + bounds::SHARED_VALUE + ENTRY_OVERHEAD).next_power_of_two();

/// The least number of entries of a state: keys are spread over the parts by chance.
pub const MIN_ENTRIES: usize = PARTS * 16;

/// The most entries of a state: indices have 32 bits, and a state that is larger belongs into a service of its own.
pub const MAX_ENTRIES: usize = 10_000_000;

impl Default for SharedLimits {
    /// Room for the quotas of 100,000 clients, whose keys have some 40 bytes.
    fn default() -> Self {
        SharedLimits { bytes: 16 << 20, entries: 100_000 }
    }
}

/// A time that never comes, in nanoseconds.
const NEVER: u64 = u64::MAX;

/// Returns the time for operations, in nanoseconds since some moment before the start.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

// === SharedStates ===

impl SharedStates {
    /// Returns the state of an owner: that of a generation in service, or a new one with limits.
    pub fn of(&mut self, owner: &StateOwner, limits: SharedLimits) -> Arc<SharedState> {
        self.0.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = self.0.get(owner).and_then(Weak::upgrade) {
            return state;
        }
        let state = Arc::new(SharedState::new(limits));
        self.0.insert(owner.clone(), Arc::downgrade(&state));
        state
    }
}

// === SharedState ===

impl Default for SharedState {
    fn default() -> Self {
        SharedState::new(SharedLimits::default())
    }
}

impl SharedState {
    /// Returns an empty state.
    pub fn new(limits: SharedLimits) -> Self {
        let mut seed = [0; 8];
        // Without a secret, keys are spread as well; only their spread can be known then.
        let _ = getrandom::fill(&mut seed);
        let part = |_| AlignedPart(Mutex::new(SharedPart::new(limits.of_part())));
        SharedState { parts: (0..PARTS).map(part).collect(), seed: u64::from_le_bytes(seed) }
    }

    /// Sets the limits, and evicts what exceeds them.
    pub fn resize(&self, limits: SharedLimits) {
        for part in &self.parts {
            lock(part).resize(limits.of_part());
        }
    }

    /// Returns the number and the size of the entries; those that have expired count until their room is needed.
    pub fn usage(&self) -> SharedUse {
        self.parts.iter().fold(SharedUse::default(), |sum, part| sum.and(lock(part).usage()))
    }

    /// Returns the value of a key; `None` if there is none. A counter is returned in decimal.
    pub fn get(&self, key: &[u8], now: u64) -> Result<Option<Vec<u8>>, SharedError> {
        let hash = self.hash(key)?;
        let mut part = self.part(hash);
        match part.find(hash, key, now) {
            Some(found) => part.entry(found).value.bytes().map(|bytes| Some(bytes.into_owned())),
            None => Ok(None),
        }
    }

    /// Sets the value of a key, whatever the key had before. `ttl_ms` is the time until the value expires, in milliseconds.
    pub fn set(&self, key: Vec<u8>, value: Vec<u8>, ttl_ms: Option<u64>, now: u64) -> Result<(), SharedError> {
        let hash = self.hash(&key)?;
        let (value, expires) = (bytes(value)?, expiry(ttl_ms, now));
        let mut part = self.part(hash);
        // The old value is dropped when the lock is released.
        let _old = match part.find(hash, &key, now) {
            Some(found) => Some(part.replace(found, value, expires)),
            None => {
                part.insert(SharedEntry { hash, key: key.into_boxed_slice(), value, expires }, now);
                None
            }
        };
        drop(part);
        Ok(())
    }

    /// Adds to a counter, and returns its new value. A key without a value counts from 0, and expires after `ttl_ms`; later
    /// calls don't change the time at which a counter expires.
    pub fn add(&self, key: Vec<u8>, amount: i64, ttl_ms: Option<u64>, now: u64) -> Result<i64, SharedError> {
        let hash = self.hash(&key)?;
        let mut part = self.part(hash);
        if let Some(found) = part.find(hash, &key, now) {
            let entry = part.entry(found);
            let count = entry.value.count()?.checked_add(amount).ok_or(SharedError::Overflow)?;
            let expires = entry.expires;
            part.replace(found, SharedValue::Count(count), expires);
            return Ok(count);
        }
        let (value, expires) = (SharedValue::Count(amount), expiry(ttl_ms, now));
        part.insert(SharedEntry { hash, key: key.into_boxed_slice(), value, expires }, now);
        Ok(amount)
    }

    /// Sets the value of a key if the key has the expected value, or none if none is expected. Returns whether it had.
    pub fn compare_and_swap(
        &self,
        key: Vec<u8>,
        expected: Option<&[u8]>,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        now: u64,
    ) -> Result<bool, SharedError> {
        let hash = self.hash(&key)?;
        let (value, expires) = (bytes(value)?, expiry(ttl_ms, now));
        let mut part = self.part(hash);
        match (part.find(hash, &key, now), expected) {
            (None, Some(_)) => Ok(false),
            (None, None) => {
                part.insert(SharedEntry { hash, key: key.into_boxed_slice(), value, expires }, now);
                Ok(true)
            }
            (Some(found), expected) => {
                let known = part.entry(found).value.bytes()?;
                let is_expected = expected.is_some_and(|expected| *expected == *known);
                if is_expected {
                    part.replace(found, value, expires);
                }
                Ok(is_expected)
            }
        }
    }

    /// Removes a key, whatever it has. Returns whether it had a value.
    pub fn delete(&self, key: &[u8], now: u64) -> Result<bool, SharedError> {
        let hash = self.hash(key)?;
        let mut part = self.part(hash);
        let found = part.find(hash, key, now);
        found.into_iter().for_each(|found| part.remove(found));
        Ok(found.is_some())
    }

    /// Takes tokens from the bucket of a key, if it has as many. A key without a bucket begins with a full one.
    pub fn take(&self, key: Vec<u8>, rate: TakeRate, cost: u32, now: u64) -> Result<Taken, SharedError> {
        let hash = self.hash(&key)?;
        let limiter = rate.limiter(cost)?;
        let mut part = self.part(hash);
        let Some(found) = part.find(hash, &key, now) else {
            let (full_at, taken) = limiter.take(0, now);
            if full_at > now {
                let value = SharedValue::Bucket;
                part.insert(SharedEntry { hash, key: key.into_boxed_slice(), value, expires: full_at }, now);
            }
            return Ok(taken);
        };
        let entry = part.entry(found);
        if !matches!(entry.value, SharedValue::Bucket) {
            return Err(SharedError::OtherKind);
        }
        // A bucket that is full is as good as none: the time at which it is full is the time at which it expires.
        let (full_at, taken) = limiter.take(entry.expires, now);
        entry.expires = full_at;
        Ok(taken)
    }

    /// Returns the keys that have a value or a counter and begin with `prefix`, without the prefix, a part at a time: a call
    /// looks at [`MAX_LISTED_KEYS`] entries, of one part of the state. Entries that come and go meanwhile may be missed.
    pub fn keys(&self, prefix: &[u8], cursor: u64, now: u64) -> KeyPage {
        // The upper half of a cursor is the part, the lower half the place in it.
        let (at, place) = ((cursor >> 32) as usize, cursor as u32 as usize);
        let Some(part) = self.parts.get(at) else { return KeyPage::default() };
        let mut page = KeyPage::default();
        let rest = lock(part).list_keys(prefix, place, now, &mut page.keys);
        let next_part = (at + 1 < PARTS).then_some((at as u64 + 1) << 32);
        page.next = rest.map(|place| (at as u64) << 32 | place as u64).or(next_part);
        page
    }

    fn hash(&self, key: &[u8]) -> Result<u64, SharedError> {
        if key.len() > bounds::SHARED_KEY {
            return Err(SharedError::KeyTooLong);
        }
        Ok(xxh3_64_with_seed(key, self.seed))
    }

    /// Returns the part of a hash. Its table uses the lowest and the highest bits.
    fn part(&self, hash: u64) -> MutexGuard<'_, SharedPart> {
        lock(&self.parts[(hash >> 32) as usize % PARTS])
    }
}

/// A panic within an operation leaves the entries of a part countable, if not exact.
fn lock(part: &AlignedPart) -> MutexGuard<'_, SharedPart> {
    part.0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedUse {
    /// Returns the sum of two sizes.
    pub fn and(self, other: SharedUse) -> SharedUse {
        let SharedUse { entries, bytes, evicted } = other;
        SharedUse { entries: self.entries + entries, bytes: self.bytes + bytes, evicted: self.evicted + evicted }
    }
}

impl SharedLimits {
    fn of_part(self) -> SharedLimits {
        SharedLimits { bytes: self.bytes / PARTS, entries: self.entries / PARTS }
    }
}

fn bytes(value: Vec<u8>) -> Result<SharedValue, SharedError> {
    match value.len() > bounds::SHARED_VALUE {
        true => Err(SharedError::ValueTooLong),
        false => Ok(SharedValue::Bytes(value.into_boxed_slice())),
    }
}

/// Returns when a value expires; a time to live of more than five centuries is as good as none.
fn expiry(ttl_ms: Option<u64>, now: u64) -> u64 {
    ttl_ms.map_or(NEVER, |ttl| now.saturating_add(ttl.saturating_mul(1_000_000)))
}

#[cfg(test)]
mod tests;
