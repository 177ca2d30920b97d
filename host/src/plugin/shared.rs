//! The import `shared`, over the state of [`crate::shared_state`].

use super::bindings::shared;
use super::host::HostState;
use crate::shared_state::{self, SharedError, SharedState, TakeRate, Taken};

impl shared::Host for HostState {
    fn get(&mut self, key: Vec<u8>) -> wasmtime::Result<Result<Option<Vec<u8>>, shared::Error>> {
        Ok(self.shared().get(&key, shared_state::now()).map_err(error))
    }

    fn set(
        &mut self,
        key: Vec<u8>,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<(), shared::Error>> {
        Ok(self.shared().set(key, value, ttl_ms, shared_state::now()).map_err(error))
    }

    fn add(&mut self, key: Vec<u8>, amount: i64, ttl_ms: Option<u64>) -> wasmtime::Result<Result<i64, shared::Error>> {
        Ok(self.shared().add(key, amount, ttl_ms, shared_state::now()).map_err(error))
    }

    fn compare_and_swap(
        &mut self,
        key: Vec<u8>,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<bool, shared::Error>> {
        let now = shared_state::now();
        Ok(self.shared().compare_and_swap(key, expected.as_deref(), value, ttl_ms, now).map_err(error))
    }

    fn delete(&mut self, key: Vec<u8>) -> wasmtime::Result<Result<bool, shared::Error>> {
        Ok(self.shared().delete(&key, shared_state::now()).map_err(error))
    }

    fn take(
        &mut self,
        key: Vec<u8>,
        rate: shared::Rate,
        cost: u32,
    ) -> wasmtime::Result<Result<shared::Taken, shared::Error>> {
        let shared::Rate { tokens, period_ms, burst } = rate;
        let rate = TakeRate { tokens, period_ms, burst };
        Ok(self.shared().take(key, rate, cost, shared_state::now()).map(taken).map_err(error))
    }
}

impl HostState {
    /// Returns the state of the plugin. An instance that only describes itself, or tries a configuration, has a state of
    /// its own, which is dropped with it.
    fn shared(&mut self) -> &SharedState {
        self.access.shared.get_or_insert_with(Default::default)
    }
}

fn taken(taken: Taken) -> shared::Taken {
    let Taken { allowed, remaining, retry_after_ms, reset_after_ms } = taken;
    shared::Taken { allowed, remaining, retry_after_ms, reset_after_ms }
}

fn error(error: SharedError) -> shared::Error {
    match error {
        SharedError::KeyTooLong => shared::Error::KeyTooLong,
        SharedError::ValueTooLong => shared::Error::ValueTooLong,
        SharedError::OtherKind => shared::Error::OtherKind,
        SharedError::Overflow => shared::Error::Overflow,
        SharedError::BadRate => shared::Error::BadRate,
    }
}
