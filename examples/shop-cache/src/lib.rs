//! A cache policy: RFC 9111 with four changes. Tracking parameters are not in the cache key, and phones get responses
//! of their own. Articles may be stale for a day while they are revalidated, and for a week while the upstream fails.

use plugway_sdk::cache::{Options, Query, Standard};
use plugway_sdk::{
    CachePolicy, ConfigError, FetchTimes, Input, Lookup, Plugin, Reuse, Setup, StoreDecision, StoredResponse,
    ValueName, Values, export,
};

pub struct ShopCache {
    standard: Standard,
    hint: Input,
    agent: Input,
    path: Input,
}

impl Plugin for ShopCache {
    type Config = ();

    fn new(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        let query = Query::Without(["utm_*", "fbclid", "gclid"].map(String::from).to_vec());
        let standard = Standard::new(setup, Options { query, ..Options::default() });
        let (hint, agent) = (setup.cache_request.field("sec-ch-ua-mobile"), setup.cache_request.field("user-agent"));
        Ok(ShopCache { standard, hint, agent, path: setup.cache_response.value(ValueName::Path) })
    }
}

impl CachePolicy for ShopCache {
    fn on_lookup(&mut self, request: &Values) -> Lookup {
        let mut lookup = self.standard.lookup(request);
        if let Lookup::UseCache(cache_key) = &mut lookup {
            let is_phone = match request.text(self.hint) {
                Some(hint) => hint == "?1",
                None => request.text(self.agent).is_some_and(|agent| agent.contains("Mobile")),
            };
            cache_key.key.extend_from_slice(if is_phone { PHONE } else { OTHER });
        }
        lookup
    }

    fn on_stored(&mut self, request: &Values, stored: &StoredResponse) -> Reuse {
        self.standard.stored(request, stored)
    }

    fn on_fetched(&mut self, response: &Values, times: &FetchTimes) -> StoreDecision {
        let mut decision = self.standard.fetched(response, times);
        if let StoreDecision::Store(storage) = &mut decision
            && response.bytes(self.path).is_some_and(|path| path.starts_with(b"/articles/"))
            && !storage.must_revalidate
        {
            storage.stale_while_revalidate_ms = 24 * 3_600_000;
            storage.stale_if_error_ms = 7 * 24 * 3_600_000;
        }
        decision
    }

    fn on_invalidate(&mut self, response: &Values) -> Vec<Vec<u8>> {
        let keys = self.standard.invalidated_keys(response);
        keys.iter().flat_map(|key| [[key, PHONE].concat(), [key, OTHER].concat()]).collect()
    }

    fn on_upstream_error(&mut self, request: &Values, stored: &StoredResponse, status: Option<u16>) -> bool {
        self.standard.upstream_error(request, stored, status)
    }
}

/// The end of the cache keys for phones.
const PHONE: &[u8] = b"\nphone";
const OTHER: &[u8] = b"\nother";

export!(ShopCache: CachePolicy);

#[cfg(test)]
mod tests {
    use plugway_sdk::testing::{Harness, Request};
    use plugway_sdk::{FetchTimes, Lookup, Response, Storage, StoreDecision};

    use super::ShopCache;

    fn shop() -> Harness<ShopCache> {
        Harness::new(serde_json::json!({})).unwrap()
    }

    fn key(request: &Request) -> String {
        let Lookup::UseCache(cache_key) = shop().lookup(request) else { panic!("not looked up") };
        String::from_utf8(cache_key.key).unwrap()
    }

    fn storage(path: &str, control: &str) -> Storage {
        let response = Response::new(200).field("cache-control", control);
        match shop().fetched(&Request::get(path), &response, &FetchTimes { received_ms: 0, delay_ms: 0 }) {
            StoreDecision::Store(storage) => storage,
            StoreDecision::Refuse(refusal) => panic!("{refusal:?}"),
        }
    }

    #[test]
    fn tracking_does_not_count_and_devices_do() {
        assert_eq!(key(&Request::get("/a?utm_source=x&id=1&gclid=2")), "http://example.org/a?id=1\nother");
        let phone = Request::get("/a").field("user-agent", "Mozilla/5.0 (Android 15; Mobile; rv:140.0)");
        assert_eq!(key(&phone), "http://example.org/a\nphone");
        assert_eq!(key(&phone.field("sec-ch-ua-mobile", "?0")), "http://example.org/a\nother", "the hint is surer");
        let hinted = Request::get("/a").field("sec-ch-ua-mobile", "?1");
        assert_eq!(key(&hinted), "http://example.org/a\nphone");
    }

    #[test]
    fn articles_may_be_stale_for_longer_unless_they_forbid_it() {
        assert_eq!(storage("/articles/1", "max-age=60").stale_while_revalidate_ms, 86_400_000);
        assert_eq!(storage("/cart", "max-age=60").stale_while_revalidate_ms, 0);
        assert_eq!(storage("/articles/1", "max-age=60, must-revalidate").stale_if_error_ms, 0);
    }

    #[test]
    fn a_change_concerns_all_devices() {
        let keys = shop().invalidated_keys(&Request::new("POST", "/a"), &Response::new(200));
        assert_eq!(keys, [b"http://example.org/a\nphone".to_vec(), b"http://example.org/a\nother".to_vec()]);
    }
}
