//! The import `shared`, over the state of [`crate::shared_state`].

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use super::bindings::shared;
use super::host::HostState;
use crate::shared_state::fleet::FleetState;
use crate::shared_state::{PluginState, SharedError, SharedState, TakeRate, Taken};

impl shared::Host for HostState {
    fn get(&mut self, key: Vec<u8>) -> wasmtime::Result<Result<Option<Vec<u8>>, shared::Error>> {
        Ok(self.shared().at_once(|state, now| state.get(&key, now)).map_err(error))
    }

    fn set(
        &mut self,
        key: Vec<u8>,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<(), shared::Error>> {
        Ok(self.shared().at_once(|state, now| state.set(key, value, ttl_ms, now)).map_err(error))
    }

    fn add(&mut self, key: Vec<u8>, amount: i64, ttl_ms: Option<u64>) -> wasmtime::Result<Result<i64, shared::Error>> {
        Ok(self.shared().at_once(|state, now| state.add(key, amount, ttl_ms, now)).map_err(error))
    }

    fn compare_and_swap(
        &mut self,
        key: Vec<u8>,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<bool, shared::Error>> {
        let swap = |state: &SharedState, now| state.compare_and_swap(key, expected.as_deref(), value, ttl_ms, now);
        Ok(self.shared().at_once(swap).map_err(error))
    }

    fn delete(&mut self, key: Vec<u8>) -> wasmtime::Result<Result<bool, shared::Error>> {
        Ok(self.shared().at_once(|state, now| state.delete(&key, now)).map_err(error))
    }

    fn take(
        &mut self,
        key: Vec<u8>,
        rate: shared::Rate,
        cost: u32,
    ) -> wasmtime::Result<Result<shared::Taken, shared::Error>> {
        let rate = take_rate(rate);
        Ok(self.shared().at_once(|state, now| state.take(key, rate, cost, now)).map(taken).map_err(error))
    }
}

/// Puts functions that wait for the fleet's state in place of the others, for plugins whose calls may wait. A call that
/// may not wait gets an error from them where there is such a state.
pub(super) fn add_waiting_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut functions = linker.instance("plugway:plugin/shared@0.1.0")?;
    functions.func_wrap_async("get", |call, (key,)| Box::new(get(call, key)))?;
    functions.func_wrap_async("set", |call, (key, value, ttl_ms)| Box::new(set(call, key, value, ttl_ms)))?;
    functions.func_wrap_async("add", |call, (key, amount, ttl_ms)| Box::new(add(call, key, amount, ttl_ms)))?;
    functions.func_wrap_async("compare-and-swap", |call, (key, expected, value, ttl_ms)| {
        Box::new(swap(call, key, expected, value, ttl_ms))
    })?;
    functions.func_wrap_async("delete", |call, (key,)| Box::new(delete(call, key)))?;
    functions.func_wrap_async("take", |call, (key, rate, cost)| Box::new(take(call, key, rate, cost)))?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The result of a function of the interface.
type Answer<T> = wasmtime::Result<(Result<T, shared::Error>,)>;

/// The store of a call.
type Call<'a> = StoreContextMut<'a, HostState>;

async fn get(mut call: Call<'_>, key: Vec<u8>) -> Answer<Option<Vec<u8>>> {
    let state = call.data_mut().waiting_shared();
    let asked = state.asked().map(|fleet| fleet.get(&key));
    Ok((state.wait(asked, |local, now| local.get(&key, now)).await.map_err(error),))
}

async fn set(mut call: Call<'_>, key: Vec<u8>, value: Vec<u8>, ttl_ms: Option<u64>) -> Answer<()> {
    let state = call.data_mut().waiting_shared();
    let asked = state.asked().map(|fleet| fleet.set(&key, &value, ttl_ms));
    let local = |local: &SharedState, now| local.set(key.clone(), value.clone(), ttl_ms, now);
    Ok((state.wait(asked, local).await.map_err(error),))
}

async fn add(mut call: Call<'_>, key: Vec<u8>, amount: i64, ttl_ms: Option<u64>) -> Answer<i64> {
    let state = call.data_mut().waiting_shared();
    let asked = state.asked().map(|fleet| fleet.add(&key, amount, ttl_ms));
    Ok((state.wait(asked, |local, now| local.add(key.clone(), amount, ttl_ms, now)).await.map_err(error),))
}

async fn swap(
    mut call: Call<'_>,
    key: Vec<u8>,
    expected: Option<Vec<u8>>,
    value: Vec<u8>,
    ttl_ms: Option<u64>,
) -> Answer<bool> {
    let state = call.data_mut().waiting_shared();
    let asked = state.asked().map(|fleet| fleet.compare_and_swap(&key, expected.as_deref(), &value, ttl_ms));
    let local =
        |local: &SharedState, now| local.compare_and_swap(key.clone(), expected.as_deref(), value.clone(), ttl_ms, now);
    Ok((state.wait(asked, local).await.map_err(error),))
}

async fn delete(mut call: Call<'_>, key: Vec<u8>) -> Answer<bool> {
    let state = call.data_mut().waiting_shared();
    let asked = state.asked().map(|fleet| fleet.delete(&key));
    Ok((state.wait(asked, |local, now| local.delete(&key, now)).await.map_err(error),))
}

async fn take(mut call: Call<'_>, key: Vec<u8>, rate: shared::Rate, cost: u32) -> Answer<shared::Taken> {
    let (state, rate) = (call.data_mut().waiting_shared(), take_rate(rate));
    let asked = state.asked().map(|fleet| fleet.take(&key, rate, cost));
    let result = state.wait(asked, |local, now| local.take(key.clone(), rate, cost, now)).await;
    Ok((result.map(taken).map_err(error),))
}

/// The state of a plugin for one call that waits.
pub(super) struct WaitingShared {
    state: PluginState,
    /// Whether the call may wait.
    may_wait: bool,
}

impl WaitingShared {
    /// Returns the fleet's state if it is to be asked.
    pub(super) fn asked(&self) -> Option<&FleetState> {
        self.state.fleet.as_deref().filter(|_| self.may_wait)
    }

    /// Returns what the fleet's state returns, or the state of this process in its place.
    pub(super) async fn wait<T>(
        &self,
        asked: Option<impl Future<Output = Result<T, SharedError>>>,
        local: impl FnOnce(&SharedState, u64) -> Result<T, SharedError>,
    ) -> Result<T, SharedError> {
        self.state.wait(asked, local).await
    }
}

impl HostState {
    /// Returns the state of the plugin. An instance that only describes itself, or tries a configuration, has a state of
    /// its own, which is dropped with it.
    pub(super) fn shared(&mut self) -> &PluginState {
        self.access.shared.get_or_insert_with(Default::default)
    }

    /// Returns the state of the plugin for a call that waits for it.
    pub(super) fn waiting_shared(&mut self) -> WaitingShared {
        let may_wait = self.cpu.has_turns() && self.http.given().is_none();
        WaitingShared { state: self.shared().clone(), may_wait }
    }
}

fn take_rate(rate: shared::Rate) -> TakeRate {
    let shared::Rate { tokens, period_ms, burst } = rate;
    TakeRate { tokens, period_ms, burst }
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
        SharedError::Unavailable => shared::Error::Unavailable,
    }
}
