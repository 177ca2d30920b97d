//! A filter that requires a known key and passes the user of the key to the upstream.

use std::collections::BTreeMap;

use plugway_sdk::{ConfigError, Input, Plugin, RequestFilter, Response, Setup, Values, Verdict, export};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The users by their keys.
    keys: BTreeMap<String, String>,
}

pub struct ApiKey {
    keys: BTreeMap<String, String>,
    key: Input,
}

impl Plugin for ApiKey {
    type Config = Config;

    fn new(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(ApiKey { keys: config.keys, key: setup.request.field("x-api-key") })
    }
}

impl RequestFilter for ApiKey {
    fn on_request(&mut self, request: &Values) -> Verdict {
        match request.text(self.key).and_then(|key| self.keys.get(key)) {
            Some(user) => Verdict::proceed().set_field("x-user", user.as_str()).set_note("user", user.as_str()),
            None => Response::new(401).body("application/json", r#"{"error":"unauthorized"}"#).into(),
        }
    }
}

export!(ApiKey: RequestFilter);

#[cfg(test)]
mod tests {
    use plugway_sdk::testing::{Harness, Request};

    use super::ApiKey;

    #[test]
    fn a_known_key_passes_and_names_the_user() {
        let mut filter = Harness::<ApiKey>::new(serde_json::json!({ "keys": { "k": "carol" } })).unwrap();
        let passed = filter.request(Request::get("/").field("x-api-key", "k")).passed().unwrap();
        assert_eq!((passed.text("x-user"), passed.noted("user")), (Some("carol"), Some("carol")));
        for stranger in [Request::get("/"), Request::get("/").field("x-api-key", "other")] {
            assert_eq!(filter.request(stranger).answered().unwrap().status, 401);
        }
    }
}
