//! The filter of `platform` that counts each request in the shared state.

use plugway_sdk::{ConfigError, Plugin, RequestFilter, Response, Setup, Values, Verdict, export, shared};

pub struct Counter;

impl Plugin for Counter {
    type Config = ();

    fn new((): (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Counter)
    }
}

impl RequestFilter for Counter {
    fn on_request(&mut self, _: &Values) -> Verdict {
        match shared::add("requests", 1, None) {
            Ok(_) => Verdict::proceed(),
            Err(_) => Response::new(503).into(),
        }
    }
}

export!(Counter: RequestFilter);
