//! Calls of a cache policy, and checks of its answers.

use http::HeaderName;
use smallvec::SmallVec;

use super::bindings::cache_policy::exports::plugway::plugin::cache_policy as wit;
use super::breaker::HookKind;
use super::call_error::{PluginFailure, trapped};
use super::instance::Instance;
use crate::context::bounds;
use crate::context::edit_check::{self, EditError, check_count};
use crate::context::{ExchangeContext, Value, ValueName};
use crate::store::stored_response::Freshness;

pub use wit::{
    BypassReason, CacheKey, FetchTimes, Lookup as PolicyLookup, Refusal, Reuse, StoredResponse as PolicyResponse,
};

/// The decision of a policy about a fetched response.
pub enum StoreDecision {
    Store(Storage),
    Refuse(Refusal),
}

/// The conditions of storing a response, as its cache policy has decided them.
pub struct Storage {
    pub rules: Freshness,
    /// The tags for purges.
    pub tags: Box<[Box<str>]>,
    /// The request fields that the response depends on.
    pub vary: Vec<HeaderName>,
    /// Response fields that are not stored.
    pub dropped: Vec<HeaderName>,
}

/// The maximum of times, in milliseconds: some thousand years, so that no sum overflows.
const MAX_TIME_MS: u64 = 1 << 46;

impl Instance {
    /// Asks the policy what to do with a request.
    pub fn lookup(&mut self, needs: &[ValueName], context: &ExchangeContext) -> Result<PolicyLookup, PluginFailure> {
        let lookup = self.ask(needs, context, |policy, store, values| policy.call_on_lookup(store, values))?;
        Ok(match lookup {
            PolicyLookup::UseCache(cache_key) => use_cache(cache_key),
            PolicyLookup::Bypass(BypassReason::Other(why)) => PolicyLookup::Bypass(BypassReason::Other(detail(why)?)),
            lookup => lookup,
        })
    }

    /// Asks the policy what to do with a stored response.
    pub fn decide_reuse(
        &mut self,
        needs: &[ValueName],
        context: &ExchangeContext,
        stored: PolicyResponse,
    ) -> Result<Reuse, PluginFailure> {
        self.ask(needs, context, |policy, store, values| policy.call_on_stored(store, values, stored))
    }

    /// Whether to keep a response.
    pub fn decide_storage(
        &mut self,
        needs: &[ValueName],
        context: &ExchangeContext,
        times: FetchTimes,
    ) -> Result<StoreDecision, PluginFailure> {
        match self.ask(needs, context, |policy, store, values| policy.call_on_fetched(store, values, times))? {
            wit::StoreDecision::Refuse(Refusal::Other(why)) => Ok(StoreDecision::Refuse(Refusal::Other(detail(why)?))),
            wit::StoreDecision::Refuse(refusal) => Ok(StoreDecision::Refuse(refusal)),
            wit::StoreDecision::Store(storage) => Ok(StoreDecision::Store(checked(storage)?)),
        }
    }

    /// Asks the policy which stored responses a change makes stale.
    pub fn invalidated_keys(
        &mut self,
        needs: &[ValueName],
        context: &ExchangeContext,
    ) -> Result<Vec<Vec<u8>>, PluginFailure> {
        let keys = self.ask(needs, context, |policy, store, values| policy.call_on_invalidate(store, values))?;
        check_count(bounds::CACHE_LIST, keys.len(), "keys that a change concerns")?;
        keys.iter().try_for_each(|key| check_count(bounds::KEY, key.len(), "bytes of a key"))?;
        Ok(keys)
    }

    /// Whether a stale response may be used instead of a failure.
    pub fn upstream_error(
        &mut self,
        needs: &[ValueName],
        context: &ExchangeContext,
        stored: PolicyResponse,
        status: Option<u16>,
    ) -> Result<bool, PluginFailure> {
        self.ask(needs, context, |policy, store, values| policy.call_on_upstream_error(store, values, stored, status))
    }

    fn ask<R>(
        &mut self,
        needs: &[ValueName],
        context: &ExchangeContext,
        call: impl FnOnce(
            &wit::Guest,
            &mut wasmtime::Store<super::host::HostState>,
            &[Option<&[u8]>],
        ) -> wasmtime::Result<R>,
    ) -> Result<R, PluginFailure> {
        self.begin_call(HookKind::CachePolicy);
        let owned_values: SmallVec<[Option<Value>; 24]> =
            needs.iter().map(|name| context.value_with_aliases(name)).collect();
        let values: SmallVec<[Option<&[u8]>; 24]> =
            owned_values.iter().map(|value| value.as_ref().map(|value| value.bytes())).collect();
        let hook = self.cache_policy.as_ref().ok_or(PluginFailure::NoHook)?;
        call(hook.plugway_plugin_cache_policy(), &mut self.store, &values).map_err(trapped)
    }
}

/// Returns a lookup under a cache key, or a bypass if the key is too long.
pub fn use_cache(cache_key: CacheKey) -> PolicyLookup {
    match cache_key.key.len() {
        0..=bounds::KEY => PolicyLookup::UseCache(cache_key),
        _ => PolicyLookup::Bypass(BypassReason::Other("key-too-long".into())),
    }
}

/// Returns a policy's own text for `Cache-Status`; an error if it is too long.
fn detail(text: String) -> Result<String, EditError> {
    check_count(bounds::DETAIL, text.len(), "bytes of a cache policy's reason").map(|()| text)
}

fn checked(storage: wit::Storage) -> Result<Storage, EditError> {
    let names = |names: Vec<String>, what| {
        check_count(bounds::CACHE_LIST, names.len(), what)?;
        names.iter().map(|name| edit_check::any_field_name(name)).collect::<Result<Vec<_>, EditError>>()
    };
    check_count(bounds::CACHE_LIST, storage.tags.len(), "tags of a stored response")?;
    storage.tags.iter().try_for_each(|tag| edit_check::name(tag))?;
    let rules = Freshness {
        lifetime_ms: storage.lifetime_ms.min(MAX_TIME_MS),
        initial_age_ms: storage.initial_age_ms.min(MAX_TIME_MS),
        stale_while_revalidate_ms: storage.stale_while_revalidate_ms.min(MAX_TIME_MS),
        stale_if_error_ms: storage.stale_if_error_ms.min(MAX_TIME_MS),
        must_revalidate: storage.must_revalidate,
    };
    let tags = storage.tags.into_iter().map(String::into_boxed_str).collect();
    let (vary, dropped) = (names(storage.vary, "names of `vary`")?, names(storage.drop_fields, "fields to drop")?);
    Ok(Storage { rules, tags, vary, dropped })
}
