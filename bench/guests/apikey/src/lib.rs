//! The API-key filter of the `script` scenario: the same work as its twins for nginx Lua and Envoy.

use plugway_sdk::{ConfigError, Need, Plugin, RequestFilter, Response, ResponseFilter, Setup, Values, Verdict, export};

const KEYS: [(&str, &str); 3] = [("key-alpha", "alice"), ("key-beta", "bob"), ("key-gamma", "carol")];

pub struct ApiKey {
    key: Need,
}

impl Plugin for ApiKey {
    type Config = ();

    fn new((): (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(ApiKey { key: setup.request.field("x-api-key") })
    }
}

impl RequestFilter for ApiKey {
    fn on_request(&mut self, request: &Values) -> Verdict {
        match KEYS.iter().find(|(key, _)| Some(*key) == request.text(self.key)) {
            Some((_, user)) => Verdict::proceed().set_field("x-user", *user),
            None => Response::new(401).body("application/json", r#"{"error":"unauthorized"}"#).into(),
        }
    }
}

impl ResponseFilter for ApiKey {
    fn on_response(&mut self, _: &Values) -> Verdict {
        Verdict::proceed().set_field("x-filter", "1")
    }
}

export!(ApiKey: RequestFilter, ResponseFilter);
