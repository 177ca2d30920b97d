//! A cache policy that misbehaves if a request asks for it in `x-misbehave`, and follows RFC 9111 otherwise. After `key`, a
//! request says which key it invalidates, and `keys` with a number invalidates 256 keys that nothing is stored under.

use plugway_sdk::cache::{Options, Standard};
use plugway_sdk::{
    BypassReason, CachePolicy, ConfigError, FetchTimes, Input, Lookup, Plugin, Refusal, Reuse, Setup, Storage,
    StoreDecision, StoredResponse, Values, export,
};

pub struct Policy {
    standard: Standard,
    asked: Input,
    answered: Input,
}

impl Plugin for Policy {
    type Config = ();

    fn new((): (), setup: &mut Setup) -> Result<Self, ConfigError> {
        let standard = Standard::new(setup, Options::default());
        let (asked, answered) = (setup.cache_request.field("x-misbehave"), setup.cache_response.field("x-misbehave"));
        Ok(Policy { standard, asked, answered })
    }
}

impl CachePolicy for Policy {
    fn on_lookup(&mut self, request: &Values) -> Lookup {
        let mut lookup = self.standard.lookup(request);
        match (request.text(self.asked), &mut lookup) {
            (Some("lookup-trap"), _) => panic!("told to trap"),
            (Some("long-key"), Lookup::UseCache(cache_key)) => cache_key.key.resize(9 << 10, b'k'),
            (Some("long-bypass"), _) => return Lookup::Bypass(BypassReason::Other("x".repeat(200))),
            (Some("post-under"), _) => {
                let cache_key = plugway_sdk::CacheKey { key: b"k".to_vec(), allow_fresh: true, only_if_cached: false };
                return Lookup::UseCache(cache_key);
            }
            _ => {}
        }
        lookup
    }

    fn on_stored(&mut self, request: &Values, stored: &StoredResponse) -> Reuse {
        if request.text(self.asked) == Some("stored-trap") {
            panic!("told to trap");
        }
        self.standard.stored(request, stored)
    }

    fn on_fetched(&mut self, response: &Values, times: &FetchTimes) -> StoreDecision {
        let mut decision = self.standard.fetched(response, times);
        match (response.text(self.answered), &mut decision) {
            (Some("fetched-trap"), _) => panic!("told to trap"),
            (
                Some("for-ever"),
                StoreDecision::Store(Storage { lifetime_ms, initial_age_ms, stale_if_error_ms, .. }),
            ) => {
                (*lifetime_ms, *initial_age_ms, *stale_if_error_ms) = (u64::MAX, u64::MAX - 1, u64::MAX);
            }
            (Some("bad-name"), StoreDecision::Store(storage)) => storage.vary.push("no name".into()),
            (Some("many-tags"), StoreDecision::Store(storage)) => storage.tags = vec!["x".into(); 300],
            (Some("long-tag"), StoreDecision::Store(storage)) => storage.tags = vec!["x".repeat(2_000)],
            (Some("many-vary"), StoreDecision::Store(storage)) => storage.vary = vec!["x".into(); 300],
            (Some("long-names"), StoreDecision::Store(storage)) => {
                storage.vary = (0..256).map(|n| format!("x-{n}-{}", "v".repeat(1_000))).collect();
            }
            (Some("long-refusal"), keep) => *keep = StoreDecision::Refuse(Refusal::Other("x".repeat(200))),
            (Some("many-names"), StoreDecision::Store(storage)) => storage.drop_fields = vec!["x".into(); 10_000],
            _ => {}
        }
        decision
    }

    fn on_invalidate(&mut self, response: &Values) -> Vec<Vec<u8>> {
        if response.text(self.answered) == Some("changed-trap") {
            panic!("told to trap");
        }
        match response.text(self.answered) {
            Some("many-keys") => vec![Vec::new(); 300],
            Some("long-keys") => vec![vec![b'k'; 9 << 10]],
            Some(named) if named.starts_with("keys ") => {
                (0..256).map(|number| format!("{named} {number}").into_bytes()).collect()
            }
            Some(named) if named.starts_with("key ") => vec![named["key ".len()..].into()],
            _ => self.standard.invalidated_keys(response),
        }
    }

    fn on_upstream_error(&mut self, _: &Values, _: &StoredResponse, _: Option<u16>) -> bool {
        panic!("told to trap")
    }
}

export!(Policy: CachePolicy);
