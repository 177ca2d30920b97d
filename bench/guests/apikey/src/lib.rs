//! The API-key filter of the `script` scenario: the same work as its twins for nginx Lua and Envoy.

use plugway_sdk::{
    ConfigError, EditPlan, EditPlanId, Input, Part, Plugin, RequestFilter, Response, ResponseFilter, Setup, Values,
    Verdict, export,
};

const KEYS: [(&str, &str); 3] = [("key-alpha", "alice"), ("key-beta", "bob"), ("key-gamma", "carol")];

pub struct ApiKey {
    key: Input,
    users: Vec<(&'static str, EditPlanId)>,
    mark: EditPlanId,
}

impl Plugin for ApiKey {
    type Config = ();

    fn new((): (), setup: &mut Setup) -> Result<Self, ConfigError> {
        let set = |name, value: &str| EditPlan::default().set_field(name, vec![Part::Text(value.into())]);
        let users = KEYS.iter().map(|(key, user)| (*key, setup.plan(set("x-user", user)))).collect();
        Ok(ApiKey { key: setup.request.field("x-api-key"), users, mark: setup.plan(set("x-filter", "1")) })
    }
}

impl RequestFilter for ApiKey {
    fn on_request(&mut self, request: &Values) -> Verdict {
        let sent = request.text(self.key);
        match self.users.iter().find(|(key, _)| Some(*key) == sent) {
            Some((_, plan)) => (*plan).into(),
            None => Response::new(401).body("application/json", r#"{"error":"unauthorized"}"#).into(),
        }
    }
}

impl ResponseFilter for ApiKey {
    fn on_response(&mut self, _: &Values) -> Verdict {
        self.mark.into()
    }
}

export!(ApiKey: RequestFilter, ResponseFilter);
