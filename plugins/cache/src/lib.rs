//! The stock cache policy: [`plugway_sdk::cache::Standard`] with a configuration.

mod config;
#[cfg(test)]
mod tests;

use config::Config;
use plugway_sdk::cache::Standard;
use plugway_sdk::{
    CachePolicy, ConfigError, FetchTimes, Lookup, Plugin, Reuse, Setup, StoreDecision, StoredResponse, Values, export,
};

struct Cache(Standard);

impl Plugin for Cache {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        setup.cache_status = config.cache_status(setup);
        let options = config.options(setup);
        let standard = Standard::new(setup, options);
        setup.lookup_plan = standard.plan();
        Ok(Cache(standard))
    }
}

impl CachePolicy for Cache {
    fn on_lookup(&mut self, request: &Values) -> Lookup {
        self.0.lookup(request)
    }

    fn on_stored(&mut self, request: &Values, stored: &StoredResponse) -> Reuse {
        self.0.stored(request, stored)
    }

    fn on_fetched(&mut self, response: &Values, times: &FetchTimes) -> StoreDecision {
        self.0.fetched(response, times)
    }

    fn on_invalidate(&mut self, response: &Values) -> Vec<Vec<u8>> {
        self.0.invalidated_keys(response)
    }

    fn on_upstream_error(&mut self, request: &Values, stored: &StoredResponse, status: Option<u16>) -> bool {
        self.0.upstream_error(request, stored, status)
    }
}

export!(Cache: CachePolicy);
