//! The import `wasi:keyvalue`, over the state of [`crate::shared_state`]: for components that were made for other hosts. It
//! has neither expiry nor comparison; [`super::shared`] has both.
//!
//! There is one implementation, which waits where a server has the state. Where this process has it, nothing is waited for,
//! and the functions are called at once.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, LinkerInstance, Resource, ResourceType};

use super::bindings::key_value::wasi::keyvalue::store::{Error, KeyResponse};
use super::host::HostState;
use super::key_value_bucket::KeyValueBucket;
use super::shared::WaitingShared;
use super::wasi::waits;
use crate::context::bounds;
use crate::shared_state::{SharedError, SharedState};

/// The name of the bucket whose keys are those of the interface `shared`.
const DEFAULT: &str = "default";

/// The byte between the name of a bucket and a key. No text has it, so that buckets are apart.
const END_OF_NAME: u8 = 0xFF;

/// Keys that a call of `batch` may have.
const MAX_BATCH: usize = 1_000;

/// Bytes of the values that a call of `batch` returns.
const MAX_BATCH_BYTES: usize = 4 << 20;

const STORE: &str = "wasi:keyvalue/store@0.2.0-draft";
const ATOMICS: &str = "wasi:keyvalue/atomics@0.2.0-draft";
const BATCH: &str = "wasi:keyvalue/batch@0.2.0-draft";

/// Adds an asynchronous function, or one that is over with its first turn.
macro_rules! add {
    ($calls:ident, $instance:ident, $name:literal, $function:ident($($parameter:ident),*)) => {
        match $calls {
            Calls::AtOnce => {
                $instance.func_wrap($name, |call, ($($parameter,)*)| at_once($function(call, $($parameter),*)))?;
            }
            Calls::Wait => {
                $instance.func_wrap_async($name, |call, ($($parameter,)*)| {
                    Box::new($function(call, $($parameter),*))
                })?;
            }
        }
    };
}

/// The kind of the functions of a linker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Calls {
    AtOnce,
    Wait,
}

/// Adds the interfaces for plugins whose calls never wait.
pub(super) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    add_interfaces(linker, Calls::AtOnce)
}

/// Adds the interfaces for plugins whose calls may wait.
pub(super) fn add_waiting_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    add_interfaces(linker, Calls::Wait)
}

fn add_interfaces(linker: &mut Linker<HostState>, calls: Calls) -> wasmtime::Result<()> {
    add_store(&mut linker.instance(STORE)?, calls)?;
    let mut atomics = linker.instance(ATOMICS)?;
    add!(calls, atomics, "increment", increment(bucket, key, delta));
    let mut batch = linker.instance(BATCH)?;
    add!(calls, batch, "get-many", get_many(bucket, keys));
    add!(calls, batch, "set-many", set_many(bucket, pairs));
    add!(calls, batch, "delete-many", delete_many(bucket, keys));
    Ok(())
}

fn add_store(store: &mut LinkerInstance<'_, HostState>, calls: Calls) -> wasmtime::Result<()> {
    store.resource("bucket", ResourceType::host::<KeyValueBucket>(), |mut store, rep| {
        store.data_mut().table.delete(Resource::<KeyValueBucket>::new_own(rep))?;
        Ok(())
    })?;
    store.func_wrap("open", |mut store: StoreContextMut<'_, HostState>, (identifier,): (String,)| {
        Ok((open(store.data_mut(), &identifier),))
    })?;
    add!(calls, store, "[method]bucket.get", get(bucket, key));
    add!(calls, store, "[method]bucket.set", set(bucket, key, value));
    add!(calls, store, "[method]bucket.delete", delete(bucket, key));
    add!(calls, store, "[method]bucket.exists", exists(bucket, key));
    add!(calls, store, "[method]bucket.list-keys", list_keys(bucket, cursor));
    Ok(())
}

/// Runs a function that has nothing to wait for.
fn at_once<R>(call: impl Future<Output = wasmtime::Result<R>>) -> wasmtime::Result<R> {
    match pin!(call).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(waits()),
    }
}

/// The result of a function of the interfaces.
type Answer<T> = wasmtime::Result<(Result<T, Error>,)>;

type Bucket = Resource<KeyValueBucket>;

type Call<'a> = StoreContextMut<'a, HostState>;

fn open(state: &mut HostState, identifier: &str) -> Result<Bucket, Error> {
    let prefix = match identifier {
        "" | DEFAULT => Vec::new(),
        name => [name.as_bytes(), &[END_OF_NAME]].concat(),
    };
    if prefix.len() > bounds::SHARED_KEY {
        return Err(Error::NoSuchStore);
    }
    state.table.push(KeyValueBucket { prefix }).map_err(|_| Error::Other("too many open buckets".into()))
}

async fn get(mut call: Call<'_>, bucket: Bucket, key: String) -> Answer<Option<Vec<u8>>> {
    let (state, key) = located(&mut call, &bucket, &key)?;
    Ok((value(&state, &key).await.map_err(error),))
}

async fn set(mut call: Call<'_>, bucket: Bucket, key: String, value: Vec<u8>) -> Answer<()> {
    let (state, key) = located(&mut call, &bucket, &key)?;
    Ok((put(&state, &key, &value).await.map_err(error),))
}

async fn delete(mut call: Call<'_>, bucket: Bucket, key: String) -> Answer<()> {
    let (state, key) = located(&mut call, &bucket, &key)?;
    Ok((remove(&state, &key).await.map_err(error),))
}

async fn exists(mut call: Call<'_>, bucket: Bucket, key: String) -> Answer<bool> {
    let (state, key) = located(&mut call, &bucket, &key)?;
    Ok((value(&state, &key).await.map(|value| value.is_some()).map_err(error),))
}

async fn list_keys(mut call: Call<'_>, bucket: Bucket, cursor: Option<u64>) -> Answer<KeyResponse> {
    let (state, prefix) = located(&mut call, &bucket, "")?;
    let cursor = cursor.unwrap_or(0);
    let asked = state.asked().map(|fleet| fleet.keys(&prefix, cursor));
    let listed = state.wait(asked, |local, now| Ok(local.keys(&prefix, cursor, now))).await;
    Ok((listed.map_err(error).map(|page| {
        // Keys that are no text are those of other buckets, or of the interface `shared`.
        let texts = page.keys.into_iter().filter_map(|key| String::from_utf8(key).ok());
        KeyResponse { keys: texts.collect(), cursor: page.next }
    }),))
}

async fn increment(mut call: Call<'_>, bucket: Bucket, key: String, delta: u64) -> Answer<u64> {
    let (state, key) = located(&mut call, &bucket, &key)?;
    let Ok(amount) = i64::try_from(delta) else { return Ok((Err(error(SharedError::Overflow)),)) };
    let asked = state.asked().map(|fleet| fleet.add(&key, amount, None));
    let sum = state.wait(asked, |local, now| local.add(key.clone(), amount, None, now)).await;
    Ok((sum.and_then(|sum| u64::try_from(sum).map_err(|_| SharedError::OtherKind)).map_err(error),))
}

/// The values of keys, with the keys.
type Values = Vec<Option<(String, Vec<u8>)>>;

async fn get_many(mut call: Call<'_>, bucket: Bucket, keys: Vec<String>) -> Answer<Values> {
    if let Some(excess) = too_many(keys.len()) {
        return Ok((Err(excess),));
    }
    let (mut values, mut bytes) = (Vec::with_capacity(keys.len()), 0);
    for key in keys {
        let (state, whole) = located(&mut call, &bucket, &key)?;
        let found = match value(&state, &whole).await {
            Ok(found) => found,
            Err(failure) => return Ok((Err(error(failure)),)),
        };
        bytes += found.as_ref().map_or(0, Vec::len);
        if bytes > MAX_BATCH_BYTES {
            let max = MAX_BATCH_BYTES >> 20;
            return Ok((Err(Error::Other(format!("the values of one call have more than {max} MiB"))),));
        }
        values.push(found.map(|value| (key, value)));
    }
    Ok((Ok(values),))
}

async fn set_many(mut call: Call<'_>, bucket: Bucket, pairs: Vec<(String, Vec<u8>)>) -> Answer<()> {
    if let Some(excess) = too_many(pairs.len()) {
        return Ok((Err(excess),));
    }
    for (key, value) in pairs {
        let (state, key) = located(&mut call, &bucket, &key)?;
        if let Err(failure) = put(&state, &key, &value).await {
            return Ok((Err(error(failure)),));
        }
    }
    Ok((Ok(()),))
}

async fn delete_many(mut call: Call<'_>, bucket: Bucket, keys: Vec<String>) -> Answer<()> {
    if let Some(excess) = too_many(keys.len()) {
        return Ok((Err(excess),));
    }
    for key in keys {
        let (state, key) = located(&mut call, &bucket, &key)?;
        if let Err(failure) = remove(&state, &key).await {
            return Ok((Err(error(failure)),));
        }
    }
    Ok((Ok(()),))
}

/// Returns the plugin's state, and a key of a bucket as the state has it.
fn located(call: &mut Call<'_>, bucket: &Bucket, key: &str) -> wasmtime::Result<(WaitingShared, Vec<u8>)> {
    let state = call.data_mut();
    let key = [&state.table.get(bucket)?.prefix, key.as_bytes()].concat();
    Ok((state.waiting_shared(), key))
}

async fn value(state: &WaitingShared, key: &[u8]) -> Result<Option<Vec<u8>>, SharedError> {
    let asked = state.asked().map(|fleet| fleet.get(key));
    state.wait(asked, |local, now| local.get(key, now)).await
}

async fn put(state: &WaitingShared, key: &[u8], value: &[u8]) -> Result<(), SharedError> {
    let asked = state.asked().map(|fleet| fleet.set(key, value, None));
    state.wait(asked, |local: &SharedState, now| local.set(key.into(), value.into(), None, now)).await
}

async fn remove(state: &WaitingShared, key: &[u8]) -> Result<(), SharedError> {
    let asked = state.asked().map(|fleet| fleet.delete(key));
    state.wait(asked, |local, now| local.delete(key, now)).await.map(drop)
}

/// Returns the error of a call with more keys than one may have; `None` if it has no more.
fn too_many(keys: usize) -> Option<Error> {
    (keys > MAX_BATCH).then(|| Error::Other(format!("{keys} keys in one call; at most {MAX_BATCH} are allowed")))
}

fn error(error: SharedError) -> Error {
    Error::Other(error.to_string())
}
